"""How many labels are new: the first of each row that was answered to a caller, and no other."""

from datetime import timedelta

import pyarrow as pa
import pytest

from platforms.local import LocalPlatform
from tasks.labels import add_labels, labelled_since, labels_for
from tests.serving.test_fold import REFUSED
from tests.tasks.live_logs import NOON, at, predictions, write_log

MADE = NOON + timedelta(days=1)
"""When the champion's version was made."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Folds take a process each, which is tested elsewhere."""
    monkeypatch.setattr(LocalPlatform, "predictions", predictions)


@pytest.fixture
def add(platform, make_spec, tmp_path):
    """Adds labels given as lines of csv, some hours before or after the version was made."""
    loaded = make_spec()

    def adds(hours, *lines):
        file = tmp_path / "labels.csv"
        file.write_text("\n".join(["request_id,row,label", *lines]) + "\n")
        moment = MADE + timedelta(hours=hours)
        return add_labels(platform, loaded, file, received_at=moment, look_up=False)

    return adds


def test_corrections_and_labels_sent_again_are_not_new(add, platform):
    write_log(platform, "fruit", [at(minute, f"r{minute}", rows=2) for minute in range(3)])
    add(-5, "r0,0,true", "r0,1,true", "r1,0,true")

    add(1, "r0,0,false", "r0,1,true", "r1,0,false", "r2,0,true")
    add(2, "r2,0,false", "r2,1,false")

    assert labelled_since(platform, "fruit", MADE) == 2
    assert labels_for(platform, "fruit", ["r2"]) == {("r2", 0): "false", ("r2", 1): "false"}


def test_labels_of_nothing_that_a_caller_was_answered_are_not_counted(add, platform):
    write_log(
        platform,
        "fruit",
        [at(0, "r0", rows=1), at(1, "copied", rows=1, shadow=True), at(2, "refused", **REFUSED)],
    )

    add(1, "r0,0,true", "r0,7,true", "copied,0,true", "refused,0,true", "invented,0,true")

    assert labelled_since(platform, "fruit", MADE) == 1


def test_a_label_whose_request_is_logged_later_counts_from_then_on(add, platform):
    add(1, "r0,0,true")
    assert labelled_since(platform, "fruit", MADE) == 0

    write_log(platform, "fruit", [at(0, "r0", rows=1)])

    assert labelled_since(platform, "fruit", MADE) == 1


def test_labels_that_were_kept_without_their_first_moment_came_when_they_were_last_received(add, platform):
    write_log(platform, "fruit", [at(minute, f"r{minute}", rows=1) for minute in range(3)])
    added = add(-5, "r0,0,true", "r1,0,true")
    old = platform.tables.read(added.snapshot).drop_columns(["first_received_at"])
    platform.tables.write(
        added.snapshot.table, pa.RecordBatchReader.from_batches(old.schema, old.to_batches())
    )

    add(1, "r0,0,false", "r2,0,true")

    assert labelled_since(platform, "fruit", MADE) == 1
    assert labelled_since(platform, "fruit", MADE - timedelta(days=1)) == 3


def test_without_labels_there_are_none(platform):
    assert labelled_since(platform, "fruit", MADE) == 0
