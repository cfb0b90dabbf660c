"""The timeline of a life: its sentences say what the facts say, and the page shows in a browser."""

from datetime import UTC, datetime, timedelta

import pytest

from tasks.life import (
    LabelsCame,
    LifecycleOutcome,
    Monitored,
    Month,
    Released,
    Retrained,
    TrafficSent,
    Trained,
)
from tasks.life_told import told, told_of_month
from tasks.monitoring_record import Alert, MetricRow, MonitorOutcome, Window
from tasks.release_record import State
from tasks.timeline import timeline_page, write_timeline
from tasks.verdict import Verdict
from tests.browser import browser
from tests.tasks.made_releases import released

BEGUN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
MONTHS = [datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3, 4)]
TITLES = ("The first champion", "A month like any other", "The shop changes", "Good offline, bad online")


def window(number, place=0):
    start = BEGUN + timedelta(minutes=10 * number, seconds=10 * place)
    return Window(start=start, end=start + timedelta(seconds=9))


def trained(version="1", **changed):
    fields = {
        "as_of": MONTHS[0],
        "candidate": "boosting",
        "metric": "roc_auc",
        "value": 0.851,
        "low": 0.834,
        "high": 0.866,
        "rows": 4520,
        "verdict": Verdict.PASS,
        "version": version,
        "report": "/reports/training.html",
        "evidence": "/evidence/v1",
    }
    return Trained(**(fields | changed))


def row(month, kind, metric, value, verdict, *, subject="", threshold=None, low=None, high=None, place=0):
    return MetricRow(
        version="1",
        window=window(month, place),
        kind=kind,
        metric=metric,
        subject=subject,
        value=value,
        threshold=threshold,
        low=low,
        high=high,
        verdict=verdict,
        rows=450,
    )


def monitored(month, *, drift=(), labelled=0, place=0, alerts=(), quality=None, verdict=None):
    columns = [
        row(month, "drift", "wasserstein", value, judged, subject=name, threshold=0.3, place=place)
        for name, value, judged in drift
    ]
    judged = verdict or (
        Verdict.FAIL if any(one.verdict is Verdict.FAIL for one in columns) else Verdict.PASS
    )
    coverage = row(
        month, "quality", "coverage", float(labelled > 0), Verdict.PASS, threshold=0.2, place=place
    )
    rows = [*columns, coverage, *([quality] if quality else [])]
    outcome = MonitorOutcome(
        model="churn",
        environment="demo",
        name="demo-churn",
        version="1",
        window=window(month, place),
        requests=450,
        rows=450,
        labelled=labelled,
        verdicts={"drift": judged},
        alerts=alerts,
        report="/reports/monitoring.html",
    )
    return Monitored(month=month, outcome=outcome, rows=tuple(rows))


def traffic(month, failed=0):
    return TrafficSent(
        as_of=MONTHS[month - 1], customers=900, requests=900, failed=failed, windows=(window(month),)
    )


def release(end=State.PROMOTED, after=3, **changed):
    fields = {"requests": 5000, "failed": 0, "answered": {"6": 4000, "7": 1000}, "report": "/r/report.html"}
    return Released(release=released(end, after=after), **(fields | changed))


@pytest.fixture
def life(tmp_path):
    small = ("events_last_30d", 0.1, Verdict.PASS)
    large = ("avg_events_per_day", 0.64, Verdict.FAIL)
    quality = row(1, "quality", "roc_auc", 0.846, Verdict.PASS, low=0.82, high=0.87, threshold=0.834)
    alert = Alert(kind="drift", event="contender.drift.detected", reason="2 of the last 3 windows drifted")
    first = Released(release=released(champion=None), requests=0, failed=0, report=None)
    months = (
        {
            "trained": trained(),
            "released": first,
            "traffic": traffic(1),
            "monitored": (monitored(1, drift=[small]),),
        },
        {
            "labels": (LabelsCame(of_month=1, known=MONTHS[1], labels=900, positive=155),),
            "monitored": (
                monitored(1, drift=[small], labelled=900, quality=quality),
                monitored(2, drift=[small]),
            ),
            "traffic": traffic(2),
        },
        {
            "traffic": traffic(3),
            "monitored": (
                monitored(3, drift=[small, large]),
                monitored(3, drift=[large], place=1, alerts=(alert,)),
            ),
            "retrained": Retrained(state="promoted", why=(), trained=trained("7"), released=release()),
        },
        {
            "traffic": traffic(4),
            "trained": trained("8", compared_with="7", champion_value=0.79),
            "released": release(State.ROLLED_BACK, after=1, answered={"6": 5000}),
        },
    )
    return LifecycleOutcome(
        model="churn",
        environment="demo",
        begun=BEGUN,
        ended=BEGUN + timedelta(minutes=3),
        months=tuple(
            Month(number=number, title=TITLES[number - 1], begins=MONTHS[number - 1], champion="1", **facts)
            for number, facts in enumerate(months, 1)
        ),
        champion="7",
        requests=13600,
        failed=0,
        timeline=str(tmp_path / "timeline.html"),
    )


def said(fact):
    return [(line.text, line.verdict) for line in told(fact)]


def test_a_training_says_what_it_measured_and_what_the_champion_has_on_the_same_rows():
    ((text, verdict),) = said(trained("3", compared_with="2", champion_value=0.79))

    assert "version 3 as of 2026-01-01: boosting, roc_auc 0.851 [0.834, 0.866] on 4,520 rows" in text
    assert "version 2 has 0.790 on the same rows" in text
    assert verdict is Verdict.PASS


def test_a_training_that_was_refused_says_why():
    ((text, verdict),) = said(trained(None, verdict=Verdict.FAIL, why="latency: fail"))

    assert "refused by its gates: latency: fail" in text
    assert verdict is Verdict.FAIL


def test_a_release_says_its_way_and_what_callers_got():
    ((text, verdict),) = said(release())

    assert "Version 7 instead of 6: shadow → canary 5 % → canary 50 % → champion" in text
    assert "5,000 requests, 0 failed" in text
    assert verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("answered", "met"), [({"6": 900}, "None of them"), ({"6": 900, "7": 12}, "12 of them")]
)
def test_a_rollback_says_where_why_how_fast_and_who_met_the_challenger(answered, met):
    (what, bad), (then, good) = said(release(State.ROLLED_BACK, after=1, answered=answered))

    assert "Version 7 was rolled back in shadow: The error rate differs" in what
    assert "Version 6 had all traffic 0.25 s after the look that decided it" in then
    assert f"{met} got its answers" in then
    assert (bad, good) == (Verdict.FAIL, Verdict.PASS)


def test_failed_requests_are_said_and_are_no_success():
    ((text, verdict),) = said(traffic(1, failed=7))

    assert "7 failed" in text
    assert verdict is Verdict.FAIL


def test_a_window_without_drift_without_labels_says_both():
    (drift, unknown) = said(monitored(2, drift=[("a", 0.1, Verdict.PASS)]))

    assert drift == ("Month 2, 450 requests: no drift.", Verdict.PASS)
    assert unknown[0].endswith("their labels come later.")


def test_a_window_with_drift_names_the_furthest_columns_first():
    columns = [("near", 0.4, Verdict.FAIL), ("far", 0.9, Verdict.FAIL), ("still", 0.1, Verdict.PASS)]

    (drift, *_) = said(monitored(3, drift=columns))

    assert drift == (
        "Month 3, 450 requests: drift in far (wasserstein 0.90), near (wasserstein 0.40).",
        Verdict.FAIL,
    )


def test_a_window_that_could_not_be_judged_does_not_look_like_one_without_drift():
    (drift, *_) = said(monitored(3, verdict=Verdict.INCONCLUSIVE))

    assert drift == ("Month 3, 450 requests: drift could not be judged.", Verdict.INCONCLUSIVE)


def test_quality_stands_beside_its_interval_and_bound(life):
    lines = [line.text for line in told_of_month(life.months[1])]

    assert (
        "On 900 labels roc_auc is 0.846 [0.820, 0.870], against a bound of 0.834 from the holdout." in lines
    )
    assert lines.index(next(line for line in lines if line.startswith("By 2026-02-01"))) == 0


def test_the_page_is_whole_by_itself_and_has_every_month(life):
    page = timeline_page(life)

    for words in (*TITLES, "13,600", "contender.drift.detected", "version 7", "--fresh"):
        assert words in page
    assert "<script" not in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert "http://" not in page


def test_what_went_otherwise_is_at_the_top(life):
    page = timeline_page(life.model_copy(update={"surprises": ("month 2: there was an <alert>",)}))

    assert "Another way than usual: month 2: there was an &lt;alert&gt;" in page
    assert page.index("Another way") < page.index("months side by side")


def test_the_page_is_written_whole_over_an_earlier_one(life, tmp_path):
    path = tmp_path / "life.html"
    path.write_text("an earlier one")

    write_timeline(life, path)

    assert path.read_text().startswith("<!doctype html>")
    assert path.read_text().rstrip().endswith("</html>")
    assert [one.name for one in tmp_path.iterdir()] == ["life.html"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_complaint_and_without_scrolling_sideways(life, tmp_path, width):
    page = write_timeline(life, tmp_path / "life.html")

    with browser(tmp_path) as tab:
        tab.open(page, width)

        assert tab.complaints == []
        assert tab.requests == [page.as_uri()]
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.value("document.images.length") == 1
        assert tab.value("document.images[0].naturalWidth") > 500
        tab.picture(tmp_path / f"life-{width}.png")
