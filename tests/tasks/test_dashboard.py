import base64
import re
from datetime import timedelta

import pytest

from tasks.dashboard import dashboard_page
from tasks.verdict import Verdict
from tests.browser import browser
from tests.tasks import made_monitoring as made
from tests.tasks.test_report import Outline


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A dashboard with everything on it, and that of a model that was never trained."""
    from deployments.environment import Environment, LocalPlatformConfig
    from platforms.local import LocalPlatform

    folder = tmp_path_factory.mktemp("dashboard")
    environment = Environment(name="dev", platform=LocalPlatformConfig(data_root="data"))
    platform = LocalPlatform(environment, folder / "data")
    made.recorded(platform)
    found = {"full": dashboard_page(made.facts(platform)), "nothing": None}
    found["nothing"] = dashboard_page(made.nothing(platform))
    for name, page in found.items():
        (folder / f"{name}.html").write_text(page)
    return folder


def outline(pages, name="full"):
    return Outline((pages / f"{name}.html").read_text())


def images(page):
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    return [base64.b64decode(image).decode() for image in found]


def test_a_page_is_whole_by_itself(pages):
    for name in ("full", "nothing"):
        found = outline(pages, name)
        assert found.mistakes == []
        assert {element for element, _ in found.elements}.isdisjoint({"script", "link", "iframe", "form"})
        for _, attributes in found.elements:
            for key in ("src", "href"):
                assert (attributes.get(key) or "#").startswith(("data:", "#"))


def test_the_worst_comes_first_and_a_window_without_labels_is_inconclusive(pages):
    found = outline(pages)

    assert "Version 7 serves since 2026-03-18" in found.text
    assert "nothing failed; quality on labels could not be decided" in found.text
    health = [row for row in found.rows if len(row) == 5 and row[3] == "2026-03-20 00:00:00"]
    assert [row[0] for row in health][:2] == ["?inconclusive", "✓pass"]
    assert health[0][1] == "Quality on labels"
    assert "no labels yet" in health[0][4]


def test_only_the_version_that_a_window_judged_is_shown(pages):
    figures = [row for row in outline(pages).rows if len(row) == 9 and row[2] == "requests"]

    assert [row[4] for row in figures] != ["12.00"]
    assert len(figures) == 1


def test_columns_that_drifted_in_the_last_window_are_named(platform):
    last = made.windows()[-1]
    rows = [
        made.row(last, "drift", "psi", 0.9, subject="total_events", threshold=0.3, verdict=Verdict.FAIL),
        made.row(last, "drift", "psi", 0.1, subject="recency_tier", threshold=0.3, verdict=Verdict.PASS),
    ]

    text = Outline(dashboard_page(made.facts(platform, rows=rows))).text

    assert "In the last window 1 drifted: total_events." in text
    assert "drift of inputs failed" in text


def test_delivery_figures_say_what_they_are_computed_from(pages):
    text = outline(pages).text

    assert "median of 2 versions" in text
    assert "2 in 30 days" in text
    assert "1 caught before the version had all traffic; 50.00% of promotions were taken back" in text
    assert "Gates decided 5 times and refused 2 (40.00%)" in text
    gates = {
        row[0]: row[1:4] for row in outline(pages).rows if row and row[0] in {"metric roc_auc", "calibration"}
    }
    assert gates == {"metric roc_auc": ["2", "0", "40.00%"], "calibration": ["0", "1", "20.00%"]}


def test_costs_stand_beside_their_budgets(pages):
    rows = {row[0]: row for row in outline(pages).rows if row and row[0] in {"Today", "This month"}}

    assert rows["Today"][1:3] == ["0.05 EUR", "2"]
    assert rows["This month"][1:3] == ["4.2 EUR", "6"]
    assert "✓pass" in rows["This month"][-1]


def test_a_budget_that_is_used_up_fails_and_unknown_costs_are_inconclusive(platform):
    facts = made.facts(platform)
    used_up = facts.month.model_copy(update={"amount": 6.0})
    unknown = facts.today.model_copy(update={"damaged": ("file.jsonl:3",)})

    rows = Outline(dashboard_page(made.facts(platform, month=used_up, today=unknown))).rows

    verdicts = {row[0]: row[-1] for row in rows if row and row[0] in {"Today", "This month"}}
    assert verdicts == {"Today": "?inconclusive", "This month": "✕fail"}


def test_a_model_that_was_never_trained_has_a_page_that_says_what_to_do(pages):
    found = outline(pages, "nothing")

    assert images((pages / "nothing.html").read_text()) == []
    assert found.text.count("Nothing yet") == 8
    for command in ("train", "release", "monitor", "labels add", "retrain", "up"):
        assert f"python -m flows.run {command} " in found.text
    assert "not judged yet" in found.text


@pytest.mark.parametrize("missing", ["rows", "history", "entries", "costs", "holdouts", "acks"])
def test_any_part_may_be_missing(platform, missing):
    changed = {missing: {} if missing == "holdouts" else ()}
    changed |= {"rows": made.monitored(made.windows(2), ["total_events"])} if missing != "rows" else {}

    assert Outline(dashboard_page(made.facts(platform, **changed))).mistakes == []


def test_what_people_wrote_is_shown_as_text(platform):
    harm = "<script>alert(1)</script>"
    facts = made.facts(platform)
    ack = facts.acks[0].model_copy(update={"reason": harm})
    rows = [
        made.row(made.windows()[-1], "inputs", "nulls", 1.0, subject=harm, verdict=Verdict.FAIL, reason=harm)
    ]

    page = dashboard_page(made.facts(platform, rows=rows, acks=(ack,)))

    assert "<script" not in page


def test_many_columns_and_windows_a_second_apart_are_shown_as_far_as_they_fit(platform):
    spans = made.windows(90, every=timedelta(seconds=7), length=timedelta(seconds=7))
    rows = made.monitored(spans, [f"column_{number}_{'x' * 40}" for number in range(50)], drifts_from=80)

    found = Outline(dashboard_page(made.facts(platform, rows=rows)))

    assert found.mistakes == []
    assert "The 30 of 51 columns that moved most are shown." in found.text
    assert "60 windows shown" in found.text


# In a real browser ------------------------------------------------------------------------------------------

WIDER = """[...document.querySelectorAll('body *')]
    .filter(one => !one.closest('.scroll') && one.getBoundingClientRect().right > innerWidth + 1)
    .map(one => one.tagName + '.' + one.className)"""
SMALL_IMAGES = """[...document.images].filter(one => !one.complete || one.naturalWidth < 600 || one.width < 300)
    .map(one => one.alt)"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["full", "nothing"])
def test_a_browser_shows_the_page_without_complaint_and_without_scrolling_sideways(
    pages, chromium, name, width, tmp_path
):
    page = pages / f"{name}.html"

    chromium.open(page, width)

    assert chromium.complaints == []
    assert chromium.requests == [page.as_uri()]
    assert chromium.value("innerWidth") == width
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value(WIDER) == []
    assert chromium.value(SMALL_IMAGES) == []
    assert chromium.value("document.images.length") == (9 if name == "full" else 0)
    sections = (
        "[...document.querySelectorAll('section')].filter(one => one.offsetHeight > 60).map(one => one.id)"
    )
    expected = ["health", "quality", "drift", "service", "releases", "retraining", "costs", "delivery"]
    assert chromium.value(sections) == expected
    assert _colours(chromium.picture(tmp_path / "page.png")) > 50


@pytest.mark.slow
def test_a_browser_does_complain_of_a_page_that_is_broken(chromium, tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(
        "<body><div style='width: 3000px'>x</div><img src='nothing.png'><script>broken()</script>"
    )

    chromium.open(page, 390)

    assert len(chromium.complaints) >= 2
    assert len(chromium.requests) == 2
    assert chromium.value(WIDER) == ["DIV."]


def _colours(picture):
    """How many colours a picture has: a page that was not drawn has one."""
    from matplotlib.image import imread

    pixels = imread(picture)[::3, ::3, :3]
    return len({tuple(one) for one in (pixels.reshape(-1, 3) * 31).astype(int).tolist()})
