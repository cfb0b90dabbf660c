"""The page of a window: it leads with what to act on, and is whole by itself."""

import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest

from tasks.monitor import verdicts_of
from tasks.monitoring_record import Alert, MetricRow, MonitorOutcome, Window
from tasks.monitoring_report import monitoring_markdown, monitoring_page, name_of, shown
from tasks.verdict import Verdict
from tests.tasks.live_logs import DAY

BEFORE = Window(start=DAY.start - timedelta(days=1), end=DAY.start)
AFTER = Window(start=DAY.end, end=DAY.end + timedelta(days=1))


def row(kind, metric, verdict=None, subject="", value=0.5, window=DAY, version="3", **more):
    return MetricRow(
        version=version,
        window=window,
        kind=kind,
        metric=metric,
        subject=subject,
        value=value,
        verdict=verdict,
        rows=400,
        **more,
    )


ROWS = [
    row("drift", "wasserstein", Verdict.PASS, "calm", 0.1, threshold=0.3),
    row("drift", "jensenshannon", Verdict.FAIL, "<b>wild</b>", 0.9, threshold=0.1, reason="p 0.001"),
    row("drift", "drifted_columns", Verdict.FAIL, value=1, reason="1 of 2 drifted"),
    row("quality", "coverage", value=0.25),
    row("quality", "roc_auc", Verdict.PASS, value=0.91, low=0.9, high=0.92, threshold=0.88),
    row("estimated_quality", "estimated_roc_auc", value=0.93, reason="an estimate"),
    row("service", "requests", value=1234),
    row("service", "p95_milliseconds", Verdict.INCONCLUSIVE, value=None),
    row("service", "p95_milliseconds", None, "version 3", 6),
    row("service", "p95_milliseconds", None, "version 4", 7, version="4"),
    row("importance", "importance", subject="calm", value=0.2, reason="0.1 in training"),
]


def outcome(found=ROWS, **changes):
    given = {
        "model": "fruit",
        "environment": "dev",
        "name": "dev-fruit",
        "version": "3",
        "window": DAY,
        "requests": 1234,
        "rows": 1300,
        "labelled": 325,
        "verdicts": verdicts_of(found, "3"),
        "alerts": (
            Alert(kind="drift", event="contender.drift.detected", reason="it drifted", subjects=("wild",)),
        ),
        "report": "/somewhere/report.html",
        "problems": ("something to know",),
    }
    return MonitorOutcome.model_validate(given | changes)


class Outline(HTMLParser):
    """Tags that are opened and closed, and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in {"href", "src"}]
        if tag not in {"meta", "br", "img", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return outline


def test_verdicts_are_of_what_was_judged_of_the_version():
    assert verdicts_of(ROWS, "3") == {
        "drift": Verdict.FAIL,
        "quality": Verdict.PASS,
        "service": Verdict.INCONCLUSIVE,
    }


def test_the_page_is_whole_and_asks_nobody_for_anything():
    outline = read(monitoring_page(outcome(), ROWS, ROWS, drift="of-the-window-drift.html"))

    assert not outline.tags & {"script", "iframe", "link"}
    others = [address for address in outline.addresses if not address.startswith(("#", "data:"))]
    assert others == ["of-the-window-drift.html"]


def test_the_page_says_what_to_act_on_and_hides_no_value():
    page = monitoring_page(outcome(), ROWS, ROWS)

    assert "contender.drift.detected" in page
    assert "The data drifted and quality held" in page
    assert "something to know" in page
    assert "&lt;b&gt;wild&lt;/b&gt;" in page
    assert "<b>wild" not in page
    assert page.index("wild&lt;") < page.index(">calm<")
    assert "ROC AUC, estimated" in page
    assert "[0.9000, 0.9200]" in page


def test_versions_are_told_one_by_one_where_several_answered():
    alone = [one for one in ROWS if one.version == "3"]

    assert "By the version that answered" in monitoring_page(outcome(), ROWS, ROWS)
    assert "By the version that answered" not in monitoring_page(outcome(), alone, alone)


def test_the_windows_before_are_shown_and_those_after_are_not():
    def of(window, quality):
        return [
            row("drift", "drifted_columns", Verdict.PASS, window=window),
            row("quality", "roc_auc", Verdict.PASS, value=quality, window=window),
        ]

    page = monitoring_page(outcome(), ROWS, [*ROWS, *of(BEFORE, 0.8123), *of(AFTER, 0.7654)])

    assert "0.8123" in page
    assert "0.7654" not in page


def test_a_window_of_nothing_has_a_page():
    empty = outcome((), verdicts={}, alerts=(), problems=(), requests=0, rows=0, labelled=0)

    page = monitoring_page(empty, [], [])

    read(page)
    assert "too little to tell" in page
    assert "inconclusive" in page


def test_what_was_acknowledged_is_said_beside_its_alert():
    alert = outcome().alerts[0].model_copy(update={"acknowledged": "Black Friday (ada)"})
    told = outcome(alerts=(alert,))

    assert "acknowledged: Black Friday (ada)" in monitoring_page(told, ROWS, ROWS)
    assert "acknowledged: Black Friday (ada)" in monitoring_markdown(told)


def test_the_artifact_has_every_verdict():
    text = monitoring_markdown(outcome())

    assert re.search(r"\| Data drift \| fail \|", text)
    assert re.search(r"\| Quality \| pass \|", text)
    assert "contender.drift.detected" in text


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("p95_milliseconds", 12.3456, "12.35 ms"),
        ("error_rate", 0.012, "1.20%"),
        ("coverage", 1.0, "100%"),
        ("requests", 12345.0, "12,345"),
        ("roc_auc", 0.91234, "0.9123"),
        ("roc_auc", None, "–"),
        ("p95_milliseconds", None, "–"),
    ],
)
def test_values_are_shown_in_their_units(metric, value, said):
    assert shown(metric, value) == said


def test_metrics_have_names_for_people():
    assert name_of("roc_auc") == "ROC AUC"
    assert name_of("estimated_f1") == "F1, estimated"
    assert name_of("not_null_share") == "not null share"
