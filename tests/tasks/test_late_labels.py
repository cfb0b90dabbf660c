"""Late labels: windows are judged again once their labels are others, and not before."""

from datetime import timedelta

import pytest

from tasks.champion import ChampionRef
from tasks.labels import add_labels
from tasks.late_labels import Late, late_windows
from tasks.live_window import EndpointCalls, join_labels
from tasks.monitor_window import Watched
from tasks.monitoring_record import MetricRow, MonitoringTable, Window
from tasks.quality import labels_said
from tests.tasks.live_logs import NOON, at, predictions, write_log

HOUR = timedelta(hours=1)
REF = ChampionRef(name="dev-fruit", version="3", run_id="r", model_id="m", digest="d")


def hour(place, length=HOUR):
    return Window(start=NOON + place * HOUR, end=NOON + place * HOUR + length)


class Watching:
    """A log of three hours, each looked at, and what of it is late by the labels that came."""

    def __init__(self, platform, make_spec, folder):
        self.platform, self.folder = platform, folder
        self.make_spec = make_spec
        write_log(platform, "fruit", [at(60 * place + 5, f"r{place}") for place in range(4)])
        self.log = predictions(platform, "fruit")

    def judged(self, *windows, version="3"):
        """Coverage as `monitor` would have put it by now."""
        rows = []
        for window in windows:
            joined = join_labels(self.platform, self.log, window, version, "fruit")
            said = labels_said(joined.rows.num_rows, joined.answered, joined.received)
            rows.append(
                MetricRow(
                    version=version,
                    window=window,
                    kind="quality",
                    metric="coverage",
                    rows=joined.answered,
                    reason=said,
                )
            )
        MonitoringTable(self.platform, "fruit").put(rows)

    def label(self, minute=0, **labels):
        file = self.folder / "labels.csv"
        file.write_text("\n".join(["request_id,label", *(f"{k},{v}" for k, v in labels.items())]))
        received = NOON + timedelta(days=30, minutes=minute)
        add_labels(self.platform, self.make_spec(), file, look_up=False, received_at=received)

    def late(self, newest=None, **plan):
        loaded = self.make_spec("binary", lambda spec: spec.update(monitoring={"quality": plan}))
        newest = newest or hour(3)
        watched = Watched("fruit", REF, loaded.spec, newest, self.log, EndpointCalls())
        return late_windows(loaded, self.platform, watched)


@pytest.fixture
def watching(platform, make_spec, tmp_path):
    found = Watching(platform, make_spec, tmp_path)
    found.judged(hour(0), hour(1), hour(2))
    return found


def test_windows_whose_labels_came_are_late_the_oldest_first_until_they_are_judged(watching):
    assert watching.late() == []

    watching.label(r2="true", r0="true")
    before = watching.late()
    watching.judged(hour(0))
    after = watching.late()

    assert before == [Late(hour(0), "3"), Late(hour(2), "3")]
    assert after == [Late(hour(2), "3")]


def test_a_label_that_was_corrected_makes_its_window_late(watching):
    watching.label(r1="true")
    watching.judged(hour(1))
    assert watching.late() == []

    watching.label(minute=5, r1="false")

    assert watching.late() == [Late(hour(1), "3")]


def test_the_same_labels_again_make_nothing_late(watching):
    watching.label(r1="true")
    watching.judged(hour(1))

    watching.label(minute=5, r1="true")

    assert watching.late() == []


def test_windows_of_another_length_or_that_end_later_or_that_nobody_looked_at_are_left_alone(watching):
    watching.judged(hour(0, 2 * HOUR), hour(3))
    watching.label(r0="true", r3="true")

    assert watching.late(newest=hour(2)) == [Late(hour(0), "3")]
    assert watching.late(newest=hour(4, HOUR / 2)) == []


def test_the_plan_says_how_far_back_and_how_many(watching):
    watching.label(r0="true", r1="true", r2="true")

    assert watching.late(look_back_windows=2) == [Late(hour(0), "3"), Late(hour(1), "3")]
    assert watching.late(look_back_days=2 / 24) == [Late(hour(1), "3"), Late(hour(2), "3")]
    assert watching.late(look_back_days=0) == []


def test_each_version_that_was_judged_in_a_window_is_late_by_its_own_answers(watching):
    watching.judged(hour(0), version="4")
    watching.label(r0="true")

    assert watching.late() == [Late(hour(0), "3")]
