import base64
import re
from datetime import timedelta

import pytest
from mlflow.exceptions import MlflowException

from tasks import release_report
from tasks.release_plots import thinned
from tasks.release_record import State
from tasks.release_report import duration, release_artifacts, release_page, write_release_report
from tasks.verdict import Verdict
from tests.tasks.made_releases import HARM, kept, look, looks, reading, released, told
from tests.tasks.test_report import Outline


def images(page):
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    return [base64.b64decode(image).decode() for image in found]


def ledger_entries(platform):
    return list(release_report.ledger_of(platform).entries())


def test_a_page_says_how_a_release_ended_and_why(platform):
    release = told(platform, released(State.ROLLED_BACK))

    page = release_page(release, looks(failing=True), ledger_entries(platform))

    outline = Outline(page)
    assert outline.mistakes == []
    assert "Version 7 was rolled back; version 6 serves on. The error rate differs by 0.05" in outline.text
    steps = [
        row for row in outline.rows if len(row) == 7 and row[0] in {"shadow", "canary, step 2", "rolled back"}
    ]
    assert [row[1] for row in steps] == ["100 % of copies", "50 %", "0 %"]
    assert [row[4] for row in steps] == ["50 ms"] * 3
    assert steps[-1][6] == HARM
    (failing,) = [row for row in outline.rows if "✕fail" in row[0]]
    assert failing[2:6] == ["+5.00 pp", "+2.00 to +8.00 pp", "400", "410"]
    assert "6 ledger entries" in outline.text


def test_a_page_is_whole_by_itself():
    page = release_page(released(), looks(), [])

    outline = Outline(page)
    assert {name for name, _ in outline.elements}.isdisjoint({"script", "link", "iframe"})
    for _, attributes in outline.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    assert len(images(page)) == 6


def test_the_same_release_makes_the_same_page():
    assert release_page(released(), looks(), []) == release_page(released(), looks(), [])


def test_a_release_that_was_rejected_has_a_page_without_plots(platform):
    release = told(platform, released(State.REJECTED))

    page = release_page(release, [], ledger_entries(platform))

    assert images(page) == []
    text = Outline(page).text
    assert "was rejected before it had any traffic; version 6 serves on. Nobody approved it." in text
    assert "Nothing was analysed" in text


def test_a_first_release_that_is_put_in_place_directly_has_a_page(platform):
    plan = released().plan.model_copy(update={"strategy": "direct"})

    text = Outline(release_page(released(after=0, champion=None, plan=plan), [], [])).text

    assert "Version 7 became the first champion" in text
    assert "none → 7" in text
    assert "The ledger has no entry of it." in text


def test_a_release_under_way_shows_what_is_not_confirmed():
    whole = released()
    release = whole.model_copy(
        update={
            "state": State.CANARY,
            "history": whole.history[:-2],
            "intent": whole.history[-2].model_copy(update={"effective": None}),
            "held": "no verdict after 3600 s",
        }
    )

    outline = Outline(release_page(release, looks()[:6], []))

    assert outline.mistakes == []
    assert "under way: canary" in outline.text
    assert "It waits for a person: no verdict after 3600 s" in outline.text
    assert [row[3] for row in outline.rows if row and row[0] == "canary, step 2"] == ["not confirmed"]


def test_arms_without_requests_are_left_out_of_the_plots():
    nothing = {"challenger": None, "champion": None}
    alone = look(
        seconds=1,
        latency_p50=nothing,
        latency_p95={"challenger": 4.0, "champion": None},
        scores={"challenger": (3, 4, 5)},
    ).model_copy(update={"requests": {"challenger": 12, "champion": 0}})
    unread = alone.model_copy(update={"latency_p95": nothing, "requests": {}, "scores": {}, "readings": ()})

    for seen in ([alone], [unread], [unread, alone]):
        assert Outline(release_page(released(), seen, [])).mistakes == []


def test_intervals_without_an_end_are_cut_off_and_what_is_no_number_is_left_out():
    nan, inf = float("nan"), float("inf")
    open_ended = (
        reading("latency p90", Verdict.INCONCLUSIVE, estimate=nan, low=-1.0, high=inf),
        reading("error rate", Verdict.INCONCLUSIVE, estimate=nan, low=nan, high=nan),
        reading("never heard of", Verdict.PASS, estimate=0.0, low=0.0, high=0.0),
    )

    page = release_page(released(), [look(seconds=5, readings=open_ended)] * 2, [])

    assert "-100.0 % to ∞" in page
    assert all("nan" not in image.lower() for image in images(page))


def test_what_people_wrote_is_shown_as_text():
    reason = "<script>alert('reason')</script>"
    history = released().history
    bad = history[-1].model_copy(update={"reason": reason})

    page = release_page(released(history=(*history[:-1], bad), held=reason), looks(), [])

    assert "<script" not in page


def test_approvals_are_shown_as_the_ledger_tells_of_them(platform):
    release = released(approvals=("a" * 64, "b" * 64))
    release_report.ledger_of(platform).append(
        "approval.given",
        model="patients",
        subject=release.subject,
        details={"digest": "a" * 64, "role": "compliance", "ticket": "CHG-9", "approver": "Lin"},
        key="approval/a",
        actor="host",
    )

    rows = Outline(release_page(release, [], ledger_entries(platform))).rows

    assert [
        row[:3] for row in rows if len(row) == 5 and len(row[4]) == 64 and row[0] in {"Lin", "unknown"}
    ] == [
        ["Lin", "compliance", "CHG-9"],
        ["unknown", "–", "–"],
    ]


def test_however_many_looks_there_are_the_page_stays_small_and_ends_as_they_did():
    start = looks(1)[0]
    many = [
        start.model_copy(
            update={
                "at": start.at + timedelta(seconds=0.01 * n),
                "requests": {"challenger": n, "champion": n},
            }
        )
        for n in range(50_000)
    ]
    last = looks(failing=True)[-1]

    page = release_page(released(), [*many, last], [])

    assert len(page) < 2_000_000
    kept_looks = [one for stretch in thinned([*many, last]) for one in stretch]
    assert len(kept_looks) < 1000
    assert (kept_looks[0], kept_looks[-2], kept_looks[-1]) == (many[0], many[-1], last)


def test_the_watch_after_a_promotion_has_a_stretch_of_time_of_its_own():
    watched = [
        look(State.PROMOTED, 1, 100, seconds=3600 * hour, readings=(reading("quality"),))
        for hour in range(1, 20)
    ]

    page = release_page(released(), [*looks(), *watched], [])

    assert "Quality on labels" in page
    assert Outline(page).mistakes == []


def test_a_report_is_written_into_the_releases_folder_and_to_the_challengers_run(platform, monkeypatch):
    logged = {}
    client = type("Client", (), {"log_text": lambda self, *what: logged.update({what[0]: what[1:]})})()
    monkeypatch.setattr(release_report, "Tracking", lambda platform: type("Tracking", (), {"client": client}))
    release = kept(platform, told(platform, released()), looks())

    written = write_release_report(platform, release)

    assert written.unlogged == ""
    assert written.path == platform.folder("releases") / "patients" / release.id / "report.html"
    assert logged == {"run-7": (written.path.read_text(), f"releases/{release.id}/report.html")}
    assert sorted(path.name for path in written.path.parent.iterdir()) == [
        "looks.jsonl",
        "release.json",
        "report.html",
    ]


@pytest.mark.parametrize("error", [MlflowException("the store\nis gone"), ConnectionError("the store")])
def test_a_report_is_written_also_where_mlflow_does_not_take_it(platform, monkeypatch, error):
    class Down:
        @property
        def client(self):
            raise error

    monkeypatch.setattr(release_report, "Tracking", lambda platform: Down())

    written = write_release_report(platform, kept(platform, released(State.REJECTED)))

    assert written.path.is_file()
    assert written.unlogged == "MLflow has no copy of the report: the store"


def test_markdown_for_prefect_has_transitions_and_last_readings():
    release = released(State.ROLLED_BACK).model_copy(update={"approvers": ("olga", "olga@example.com")})

    text = release_artifacts(release, looks(failing=True))

    assert "Approved by olga, olga@example.com." in text
    assert "| canary 50 % | 50 % |" in text
    assert "| Error rate | **fail** | +5.00 pp | +2.00 to +8.00 pp | 400 | 410 | canary 50 % |" in text
    assert "Nothing was analysed." in release_artifacts(released(State.REJECTED), [])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0.0416, "42 ms"),
        (7.26, "7.3 s"),
        (59.6, "1 min"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds, said):
    assert duration(seconds) == said
