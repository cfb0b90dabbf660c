"""Labels that name an entity and a moment: each of the newest answer about it, and none of any other."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deployments.errors import BadInputError
from deployments.personal_data import keyed_hash
from platforms.local import LocalPlatform
from tasks.labels import add_labels, labels_for
from tests.serving.test_fold import REFUSED
from tests.tasks.live_logs import NOON, at, predictions, write_log

ROOT = Path(__file__).resolve().parents[2]
LATER = NOON + timedelta(days=30)


def asked(minute, request, *fruit, **changes):
    return at(minute, request, **{"rows": len(fruit), "keys": {"fruit_id": list(fruit)}, **changes})


def moment(minute):
    return (NOON + timedelta(minutes=minute)).isoformat()


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Folds take a process each, which is tested elsewhere."""
    monkeypatch.setattr(LocalPlatform, "predictions", predictions)


@pytest.fixture
def fruit(make_spec):
    return make_spec()


@pytest.fixture
def add(platform, fruit, tmp_path):
    """Adds labels given as (fruit, minute, label)."""

    def adds(*rows, loaded=fruit, header="fruit_id,as_of,label", **options):
        file = tmp_path / "late.csv"
        lines = [f"{key},{moment(minute)},{label}" for key, minute, label in rows]
        file.write_text("\n".join([header, *lines]) + "\n")
        return add_labels(platform, loaded, file, **{"received_at": LATER, **options})

    return adds


def known(platform):
    return dict(labels_for(platform, "fruit", [f"r{place}" for place in range(9)]))


def test_a_label_is_of_the_newest_answer_at_or_before_its_moment(add, platform):
    write_log(
        platform, "fruit", [asked(0, "r0", 1), asked(10, "r1", 1), asked(20, "r2", 1), asked(5, "r3", 2)]
    )

    added = add((1, 19, "true"), (2, 5, "false"))

    assert (added.rows, added.new, added.unmatched, added.unknown) == (2, 2, 0, None)
    assert known(platform) == {("r1", 0): "true", ("r3", 0): "false"}


def test_of_a_request_with_many_rows_the_row_of_the_entity_is_labelled(add, platform):
    write_log(platform, "fruit", [asked(0, "r0", 4, 5, 6)])

    add((6, 1, "true"), (4, 1, "false"))

    assert known(platform) == {("r0", 2): "true", ("r0", 0): "false"}


def test_copies_and_refusals_are_nobodys_answer(add, platform):
    write_log(
        platform,
        "fruit",
        [asked(0, "r0", 1), asked(2, "r1", 1, **{**REFUSED, "rows": 1, "keys": {"fruit_id": [1]}})],
    )
    write_log(platform, "fruit", [asked(1, "r2", 1, shadow=True)], version="4")

    add((1, 9, "true"))

    assert known(platform) == {("r0", 0): "true"}


def test_an_answer_too_long_before_is_not_the_one_that_is_meant(add, platform):
    write_log(platform, "fruit", [asked(0, "r0", 1)])

    beyond = add((1, 24 * 60 + 1, "true"))
    wider = add((1, 24 * 60 + 1, "true"), within_hours=25)
    inside = add((1, 24 * 60, "false"))

    assert (beyond.unmatched, beyond.new) == (1, 0)
    assert (wider.unmatched, wider.new) == (0, 1)
    assert (inside.unmatched, inside.corrected) == (0, 1)


def test_what_finds_no_answer_is_counted_and_found_when_the_file_comes_again(add, platform):
    first = add((1, 5, "true"), (2, 5, "true"))
    write_log(platform, "fruit", [asked(0, "r0", 1)])
    second = add((1, 5, "true"), (2, 5, "true"))
    third = add((1, 5, "true"), (2, 5, "true"))

    assert (first.unmatched, first.new) == (2, 0)
    assert (second.unmatched, second.new, second.unchanged) == (1, 1, 0)
    assert (third.unmatched, third.new, third.unchanged) == (1, 0, 1)
    assert third.snapshot == second.snapshot
    assert known(platform) == {("r0", 0): "true"}


def test_of_several_moments_of_one_answer_the_latest_counts_in_whatever_order_they_stand(add, platform):
    write_log(platform, "fruit", [asked(0, "r0", 1)])

    added = add((1, 30, "true"), (1, 10, "false"))

    assert (added.new, added.repeated) == (1, 1)
    assert known(platform) == {("r0", 0): "true"}


def test_labels_by_entity_and_by_request_correct_each_other(add, platform, fruit, tmp_path):
    write_log(platform, "fruit", [asked(0, "r0", 1)])
    add((1, 5, "true"))
    (tmp_path / "by_request.csv").write_text("request_id,label\nr0,false\n")

    corrected = add_labels(
        platform, fruit, tmp_path / "by_request.csv", look_up=False, received_at=LATER + timedelta(hours=1)
    )

    assert corrected.corrected == 1
    assert known(platform) == {("r0", 0): "false"}


def test_the_moment_may_be_called_time_and_be_written_without_a_zone(platform, fruit, tmp_path):
    write_log(platform, "fruit", [asked(0, "r0", 1)])
    file = tmp_path / "late.csv"
    file.write_text("label,time,fruit_id\ntrue,2026-11-20 12:00:00,1\n")

    added = add_labels(platform, fruit, file, received_at=LATER)

    assert (added.new, added.unmatched) == (1, 0)


def hashed(spec):
    spec["contract"]["fruit"]["columns"]["tree"]["pii"] = "hash"
    spec["features"]["entity"] = ["tree"]


def test_a_key_that_is_personal_data_is_found_by_its_digest(add, platform, make_spec):
    digest = keyed_hash("Mr Oak", platform.pii_key())
    write_log(platform, "fruit", [at(0, "r0", keys={"tree": [digest]})])

    added = add(
        ("Mr Oak", 5, "true"),
        ("Ms Elm", 5, "true"),
        loaded=make_spec("binary", hashed),
        header="tree,as_of,label",
    )

    assert (added.new, added.unmatched) == (1, 1)


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("fruit_id,label", "1,true", "missing columns: as_of (found: fruit_id, label)"),
        ("as_of,label", "2026-11-20,true", "missing columns: fruit_id"),
        ("fruit_id,as_of", "1,2026-11-20", "missing columns: label"),
        ("tree,label", "1,true", "missing columns: request_id (found: tree, label); or name fruit_id"),
        ("fruit_id,as_of,time,label", "1,2026-11-20,2026-11-20,true", "labels do not have: time"),
        ("fruit_id,as_of,label,row", "1,2026-11-20,true,0", "columns that labels do not have: row"),
        ("fruit_id,as_of,label", "one,2026-11-20,true", "'fruit_id': 1 of 1 rows hold no integer"),
        ("fruit_id,as_of,label", ",2026-11-20,true", "'fruit_id': 1 of 1 rows have no value"),
        ("fruit_id,as_of,label", "1,yesterday,true", "'as_of': 1 of 1 rows hold no timestamp"),
        ("fruit_id,as_of,label", "1,2036-11-20,true", "'as_of': 1 of 1 rows are still to come, first row 1"),
        ("fruit_id,as_of,label", "1,2026-11-20,maybe", "'label': 1 of 1 rows hold no boolean"),
    ],
)
def test_a_file_that_is_wrong_is_refused_as_a_whole(platform, fruit, tmp_path, header, row, said):
    file = tmp_path / "late.csv"
    file.write_text(f"{header}\n{row}\n")

    with pytest.raises(BadInputError) as refused:
        add_labels(platform, fruit, file, received_at=datetime(2026, 12, 24, tzinfo=UTC))

    assert said in str(refused.value)
    assert platform.tables.latest(platform.table("labels", "fruit", "labels")) is None


ADD_AND_DIE = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from deployments.environment import Environment, LocalPlatformConfig
from deployments.spec import load_spec
from platforms.local import LocalPlatform
from tasks import labels

root, spec, file, step = sys.argv[1:]
owner, name = {"fold": (LocalPlatform, "predictions"), "join": (labels, "_match"), "merge": (labels, "_merge")}.get(
    step.split("-")[1], (None, None))
platform = LocalPlatform(Environment(name="dev", platform=LocalPlatformConfig(data_root="data")), Path(root))
if step.endswith("write"):
    owner, name = type(platform.tables), "write"
done = getattr(owner, name)

def killing(*given, **named):
    if step.startswith("before"):
        os.kill(os.getpid(), signal.SIGKILL)
    done(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, killing)
labels.add_labels(platform, load_spec(spec), Path(file), received_at=datetime(2026, 12, 21, tzinfo=UTC))
"""


@pytest.mark.slow
def test_a_join_that_is_killed_at_any_step_loses_and_doubles_nothing(add, platform, fruit, tmp_path):
    write_log(platform, "fruit", [asked(place, f"r{place}", place) for place in range(6)])
    add((0, 5, "false"))
    file = tmp_path / "all.csv"
    file.write_text("\n".join(["fruit_id,as_of,label", *(f"{place},{moment(9)},true" for place in range(6))]))
    states = []

    for step in ("fold", "join", "merge", "write"):
        for when in ("before", "after"):
            command = [sys.executable, "-c", ADD_AND_DIE, platform.root, fruit.path, file, f"{when}-{step}"]
            done = subprocess.run(
                [str(part) for part in command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=False,
            )
            assert done.returncode == -signal.SIGKILL
            states.append(known(platform))
    again = add(*((place, 9, "true") for place in range(6)))

    assert states[:-1] == [{("r0", 0): "false"}] * 7
    assert states[-1] == known(platform) == {(f"r{place}", 0): "true" for place in range(6)}
    assert (again.new, again.corrected, again.unchanged, again.unmatched) == (0, 0, 6, 0)
