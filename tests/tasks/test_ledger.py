"""The ledger: what stands stays, what is changed is found, and what a kill interrupts is put right."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import ContenderError
from tasks.ledger import GENESIS, Entry, Ledger, LedgerError

ROOT = Path(__file__).parents[2]
STEPS = 6


def record(ledger: Ledger, key: str, **changes: Any) -> Entry:
    fields = {"model": "churn", "subject": "churn/4", "details": {"share_percent": 10}, "actor": "mona"}
    return ledger.append(**({"event": "canary", "key": key} | fields | changes))


def steps(ledger: Ledger) -> list[str]:
    return [entry.key for entry in ledger.entries()]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture(scope="module")
def written() -> dict[str, bytes]:
    """The files of a ledger of `STEPS` entries after each of its appends, as `<name> <entries>`."""
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        for step in range(1, STEPS + 1):
            record(ledger, f"step-{step}", model="churn" if step % 2 else "fraud", details={"step": step})
            files |= {f"{path.name} {step}": path.read_bytes() for path in Path(folder).glob("*.json*")}
    return files


@contextmanager
def restored(lines: bytes, head: bytes | None) -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        path.write_bytes(lines)
        if head is not None:
            path.with_suffix(".head.json").write_bytes(head)
        yield Ledger(path)


def assert_found(lines: bytes, head: bytes | None) -> None:
    """An audit names the line, and no further entry is taken."""
    with restored(lines, head) as ledger:
        verification = ledger.verify()

        assert not verification.ok
        assert all(problem.startswith("line ") for problem in verification.problems)
        with pytest.raises(LedgerError, match="changed by something other than an append"):
            record(ledger, "next")
        assert ledger.path.read_bytes() == lines


# What an append writes


def test_an_entry_says_who_did_what_to_which_model_and_when(ledger: Ledger) -> None:
    entry = record(ledger, "release-4/canary-10", details={"share_percent": 10, "arms": ("a", "b")})

    assert (entry.seq, entry.event, entry.model, entry.subject) == (1, "canary", "churn", "churn/4")
    assert (entry.actor, entry.key, entry.previous) == ("mona", "release-4/canary-10", GENESIS)
    assert entry.details == {"arms": ["a", "b"], "share_percent": 10}
    assert datetime.now(UTC) - datetime.fromisoformat(entry.time) < timedelta(minutes=1)
    assert entry.time.endswith("+00:00")
    assert list(ledger.entries()) == [entry]


def test_each_entry_holds_the_hash_of_the_one_before(ledger: Ledger) -> None:
    entries = [record(ledger, f"step-{step}") for step in range(3)]

    assert [entry.previous for entry in entries] == [GENESIS, entries[0].hash, entries[1].hash]
    head = json.loads(ledger.path.with_suffix(".head.json").read_text())
    assert (head["entries"], head["last"]) == (3, entries[2].hash)
    assert ledger.verify().ok
    assert ledger.verify().entries == 3


def test_entries_can_be_read_for_one_model_alone(ledger: Ledger) -> None:
    record(ledger, "one", model="churn")
    record(ledger, "two", model="fraud")
    record(ledger, "three", model="churn")

    assert [entry.key for entry in ledger.entries("churn")] == ["one", "three"]
    assert steps(ledger) == ["one", "two", "three"]


def test_a_ledger_never_written_is_empty_and_sound(ledger: Ledger) -> None:
    assert list(ledger.entries()) == []
    assert ledger.verify().ok
    assert list(ledger.path.parent.iterdir()) == []


def test_a_ledger_makes_the_folder_it_lives_in(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "down" / "ledger.jsonl")

    record(ledger, "one")

    assert ledger.verify().ok


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4), st.text(min_size=1))
def test_any_json_and_any_key_are_read_back_and_verify(details: dict[str, Any], key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")

        entry = record(ledger, key, details=details)

        assert entry.details == details
        assert record(ledger, key, details=details) == entry
        assert list(ledger.entries()) == [entry]
        assert ledger.verify().ok


@pytest.mark.parametrize(
    "details", [{"psi": float("nan")}, {"psi": float("inf")}, {"at": object()}, {"b": b"x"}]
)
def test_details_that_are_not_json_are_refused(ledger: Ledger, details: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="must be JSON"):
        record(ledger, "one", details=details)

    assert not ledger.path.exists()


@pytest.mark.parametrize("name", ["event", "key", "actor"])
def test_an_entry_without_an_event_a_key_or_an_actor_is_refused(ledger: Ledger, name: str) -> None:
    with pytest.raises(LedgerError, match=f"No entry can be made with this {name}"):
        record(ledger, **({"key": "one"} | {name: ""}))

    assert steps(ledger) == []


def test_what_the_disk_refuses_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ContenderError, match="the ledger cannot be used"):
        record(Ledger(tmp_path / "file" / "ledger.jsonl"), "one")


# Idempotency


def test_a_step_run_again_is_recorded_once(ledger: Ledger) -> None:
    first = record(ledger, "one")
    record(ledger, "two")
    before = ledger.path.read_bytes()

    again = record(Ledger(ledger.path), "one", actor="the worker that took over")

    assert again == first
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"event": "promoted"}, {"subject": "churn/5"}, {"model": "fraud"}, {"details": {"share_percent": 10.0}}],
)
def test_a_key_that_stands_for_something_else_is_refused(ledger: Ledger, change: dict[str, Any]) -> None:
    record(ledger, "one")

    with pytest.raises(
        LedgerError, match=f"'one' already stands for entry 1 .*, with another {next(iter(change))}"
    ):
        record(ledger, "one", **change)
    assert steps(ledger) == ["one"]


def test_a_key_inside_details_is_not_taken_for_the_key_of_an_entry(ledger: Ledger) -> None:
    record(ledger, "one", details={"key": "two"})

    record(ledger, "two")

    assert steps(ledger) == ["one", "two"]


# Tampering


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_byte_changed_put_in_or_taken_out_is_found(
    written: dict[str, bytes], data: st.DataObject
) -> None:
    lines, head = written[f"ledger.jsonl {STEPS}"], written[f"ledger.head.json {STEPS}"]
    at = data.draw(st.integers(0, len(lines) - 1))
    byte = bytes([data.draw(st.integers(0, 255).filter(lambda value: value != lines[at]))])
    changed = data.draw(
        st.sampled_from(
            [
                lines[:at] + byte + lines[at + 1 :],
                lines[:at] + byte + lines[at:],
                lines[:at] + lines[at + 1 :],
            ]
        )
    )

    assert_found(changed, head)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_line_dropped_doubled_or_moved_is_found(written: dict[str, bytes], data: st.DataObject) -> None:
    lines = written[f"ledger.jsonl {STEPS}"].splitlines(keepends=True)
    order = data.draw(
        st.lists(st.integers(0, STEPS - 1), max_size=STEPS + 2).filter(lambda o: o != list(range(STEPS)))
    )

    assert_found(b"".join(lines[index] for index in order), written[f"ledger.head.json {STEPS}"])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_ledger_cut_short_anywhere_is_found(written: dict[str, bytes], data: st.DataObject) -> None:
    lines = written[f"ledger.jsonl {STEPS}"]
    length = data.draw(st.integers(0, len(lines) - 1))

    assert_found(lines[:length], written[f"ledger.head.json {STEPS}"])


def test_a_field_edited_and_hashed_anew_is_found_at_the_next_line(written: dict[str, bytes]) -> None:
    lines = written[f"ledger.jsonl {STEPS}"].splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as folder:
        other = Ledger(Path(folder) / "ledger.jsonl")
        record(other, "step-1", details={"step": 100})
        lines[0] = other.path.read_bytes()

    assert_found(b"".join(lines), written[f"ledger.head.json {STEPS}"])
    with restored(b"".join(lines), written[f"ledger.head.json {STEPS}"]) as ledger:
        assert ledger.verify().problems == (
            "line 2: it does not follow from line 1; one of them was rewritten",
        )


def test_the_line_that_was_edited_is_the_one_that_is_named(written: dict[str, bytes]) -> None:
    lines = written[f"ledger.jsonl {STEPS}"].replace(b'"step":3', b'"step":4')

    with restored(lines, written[f"ledger.head.json {STEPS}"]) as ledger:
        (problem,) = ledger.verify().problems
        assert problem.startswith("line 3: it is not an entry as it was written")
        with pytest.raises(LedgerError, match=r"ledger\.jsonl:3"):
            list(ledger.entries())


@pytest.mark.parametrize("head", [None, b"", b"[]", b'{"entries":6}'])
def test_a_head_that_is_gone_or_unreadable_is_found(written: dict[str, bytes], head: bytes | None) -> None:
    assert_found(written[f"ledger.jsonl {STEPS}"], head)


@pytest.mark.parametrize(
    ("name", "value"), [("entries", 7), ("entries", 4), ("last", "f" * 64), ("digest", "")]
)
def test_a_head_that_is_edited_is_found(written: dict[str, bytes], name: str, value: object) -> None:
    head = json.loads(written[f"ledger.head.json {STEPS}"]) | {name: value}

    assert_found(written[f"ledger.jsonl {STEPS}"], json.dumps(head).encode())


def test_an_earlier_head_put_back_is_found(written: dict[str, bytes]) -> None:
    assert_found(written[f"ledger.jsonl {STEPS}"], written[f"ledger.head.json {STEPS - 2}"])


def test_a_copy_on_a_read_only_disk_can_be_verified(written: dict[str, bytes]) -> None:
    with restored(written[f"ledger.jsonl {STEPS}"], written[f"ledger.head.json {STEPS}"]) as ledger:
        assert ledger.verify().ok

        assert not ledger.path.with_suffix(".lock").exists()


# Interruption


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_line_torn_by_a_crash_is_cut_off_by_the_next_append(
    written: dict[str, bytes], data: st.DataObject
) -> None:
    before, after = written[f"ledger.jsonl {STEPS - 1}"], written[f"ledger.jsonl {STEPS}"]
    length = data.draw(st.integers(len(before) + 1, len(after) - 1))

    with restored(after[:length], written[f"ledger.head.json {STEPS - 1}"]) as ledger:
        assert len(steps(ledger)) == STEPS - 1
        (problem,) = ledger.verify().problems
        assert problem == f"line {STEPS}: its append was interrupted; the next append will remove it"
        record(ledger, "next")

        assert steps(ledger) == [*(f"step-{step}" for step in range(1, STEPS)), "next"]
        assert ledger.verify().ok


def test_an_entry_that_the_head_does_not_count_yet_is_confirmed_by_the_next_append(
    written: dict[str, bytes],
) -> None:
    with restored(written[f"ledger.jsonl {STEPS}"], written[f"ledger.head.json {STEPS - 1}"]) as ledger:
        (problem,) = ledger.verify().problems
        assert problem == f"line {STEPS}: its append was interrupted; the next append will confirm it"
        record(ledger, f"step-{STEPS}", model="fraud", details={"step": STEPS})

        assert steps(ledger) == [f"step-{step}" for step in range(1, STEPS + 1)]
        assert ledger.verify().ok


def test_an_entry_that_the_head_does_not_count_is_not_confirmed_over_a_broken_chain(
    written: dict[str, bytes],
) -> None:
    lines = written[f"ledger.jsonl {STEPS}"].replace(f'"step":{STEPS}'.encode(), b'"step":0')

    assert_found(lines, written[f"ledger.head.json {STEPS - 1}"])


APPEND = """
import sys
from pathlib import Path
from tasks.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]))
for step in range(int(sys.argv[3])):
    key = f"{sys.argv[2]}-{step}"
    ledger.append("step", model="churn", subject="4", details={"pad": "x" * 2000}, key=key, actor="worker")
    print(key, flush=True)
"""


def start(ledger: Ledger, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPEND, str(ledger.path), name, str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("confirmed_before_the_kill", [1, 7, 20])
def test_a_process_killed_amid_appends_loses_nothing_it_was_promised(
    ledger: Ledger, confirmed_before_the_kill: int
) -> None:
    with start(ledger, "killed", 100_000) as process:
        assert process.stdout is not None
        promised = [process.stdout.readline().strip() for _ in range(confirmed_before_the_kill)]
        process.kill()
        promised += process.stdout.read().split()

    record(ledger, "next")

    kept = steps(ledger)
    assert kept[: len(promised)] == promised
    assert kept[-1] == "next"
    assert len(kept) - len(promised) in (1, 2)  # the kill may fall between an entry and the word of it
    assert ledger.verify().ok


def test_two_processes_that_append_at_once_lose_nothing(ledger: Ledger) -> None:
    with start(ledger, "one", 30) as one, start(ledger, "two", 30) as two:
        assert (one.wait(), two.wait()) == (0, 0)

    assert sorted(steps(ledger)) == sorted(f"{name}-{step}" for name in ("one", "two") for step in range(30))
    assert ledger.verify().ok


def test_threads_that_append_the_same_step_at_once_record_it_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        entries = list(threads.map(lambda number: record(ledger, f"step-{number % 5}"), range(20)))

    assert len({entry.hash for entry in entries}) == 5
    assert sorted(steps(ledger)) == [f"step-{step}" for step in range(5)]
    assert ledger.verify().ok
