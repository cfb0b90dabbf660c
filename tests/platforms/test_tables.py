"""Delta tables: versions by content, whole or not at all, and nothing left lying about."""

import json
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from deployments.errors import BadInputError, ContenderError
from platforms.scratch import scratch_folder
from platforms.tables import DeltaTables, open_delta

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(tmp_path):
    return DeltaTables(tmp_path / "tables", tmp_path / "scratch")


def numbers(*values: int) -> pa.RecordBatchReader:
    return pa.table({"a": pa.array(values, pa.int64())}).to_reader()


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_was_written_is_read_back(tables):
    written = pa.table({"a": [1, 2, None], "b": ["x", None, "z"], "c": [True, False, None]})

    snapshot = tables.write("silver/shop/events", written.to_reader())

    assert tables.read(snapshot).equals(written)
    assert (snapshot.table, snapshot.version, snapshot.rows) == ("silver/shop/events", 0, 3)
    assert snapshot.columns == ("a", "b", "c")


def test_the_same_content_is_the_same_version(tables):
    first = tables.write("t", numbers(1, 2, 3, 4))

    again = tables.write(
        "t", pa.RecordBatchReader.from_batches(first_schema(), batches_of(first_schema(), [1], [2, 3], [4]))
    )

    assert again == first
    assert DeltaTable(first.uri).version() == 0


def first_schema() -> pa.Schema:
    return pa.schema([pa.field("a", pa.int64())])


def batches_of(schema: pa.Schema, *values: list[int]):
    for some in values:
        yield pa.record_batch([pa.array(some, pa.int64())], schema=schema)


def test_other_content_is_a_new_version_and_the_old_one_stays(tables):
    old = tables.write("t", numbers(1, 2))

    new = tables.write("t", numbers(3))

    assert (old.version, new.version) == (0, 1)
    assert tables.read(old).column("a").to_pylist() == [1, 2]
    assert tables.read(new).column("a").to_pylist() == [3]
    assert tables.latest("t") == new


def test_content_that_was_there_before_is_a_new_version_again(tables):
    first, _ = tables.write("t", numbers(1)), tables.write("t", numbers(2))

    third = tables.write("t", numbers(1))

    assert third.version == 2
    assert third.digest == first.digest
    assert tables.read(first).equals(tables.read(third))


def test_columns_may_change_from_version_to_version(tables):
    old = tables.write("t", numbers(1))

    new = tables.write("t", pa.table({"a": ["x"], "b": [2.5]}).to_reader())

    assert tables.read(old).to_pylist() == [{"a": 1}]
    assert tables.read(new).to_pylist() == [{"a": "x", "b": 2.5}]


def test_a_table_without_rows_keeps_its_columns(tables):
    snapshot = tables.write("t", numbers())

    assert snapshot.rows == 0
    assert tables.read(snapshot).schema == first_schema()
    assert list(tables.batches(snapshot)) == []


def test_there_is_no_latest_version_of_what_was_never_written(tables):
    assert tables.latest("nothing") is None


def test_versions_are_kept_for_good(tables):
    snapshot = tables.write("t", numbers(1))
    tables.write("t", pa.table({"other": ["columns"]}).to_reader())

    configuration = DeltaTable(snapshot.uri).metadata().configuration

    assert configuration["delta.enableExpiredLogCleanup"] == "false"
    assert configuration["delta.logRetentionDuration"] == "interval 36500 days"
    assert configuration["delta.deletedFileRetentionDuration"] == "interval 36500 days"


def test_batches_come_in_order_and_no_larger_than_asked_for(tables):
    snapshot = tables.write("t", numbers(*range(10_000)))

    batches = list(tables.batches(snapshot, rows=999))

    assert max(batch.num_rows for batch in batches) <= 999
    assert pa.Table.from_batches(batches).column("a").to_pylist() == list(range(10_000))


def test_only_the_columns_asked_for_are_read_and_in_that_order(tables):
    snapshot = tables.write("t", pa.table({"a": [1], "b": [2], "a.b": [3]}).to_reader())

    (batch,) = tables.batches(snapshot, ["a.b", "a"])

    assert batch.to_pydict() == {"a.b": [3], "a": [1]}
    assert tables.read(snapshot, ["b"]).to_pydict() == {"b": [2]}


def test_small_batches_are_gathered_to_row_groups(tables):
    schema = first_schema()
    many = batches_of(schema, *[[value] for value in range(2_000)])

    snapshot = tables.write("t", pa.RecordBatchReader.from_batches(schema, many))

    (file,) = Path(snapshot.uri).glob("*.parquet")
    assert pq.ParquetFile(file).num_row_groups == 1


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (pa.array([0, 255], pa.uint8()), pa.int16()),
        (pa.array([2**32 - 1], pa.uint32()), pa.int64()),
        (pa.array([2**64 - 1], pa.uint64()), pa.decimal128(20, 0)),
        (pa.array([1.5], pa.float16()), pa.float32()),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string()),
        (pa.array(["a"], pa.large_string()), pa.string()),
        (pa.array([None, None]), pa.string()),
        (pa.array([1_714_521_600_000]).cast(pa.timestamp("ms")), pa.timestamp("us")),
        (
            pa.array([datetime(2024, 5, 1, tzinfo=UTC)], pa.timestamp("us", "Europe/Paris")),
            pa.timestamp("us", "UTC"),
        ),
        (pa.array([Decimal("1.25")]), pa.decimal128(3, 2)),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_types_that_delta_lacks_are_stored_as_wider_ones(tables, given, kind):
    snapshot = tables.write("t", pa.table({"a": given}).to_reader())

    read = tables.read(snapshot).column("a")

    assert read.type == kind
    assert read.to_pylist() == given.to_pylist()


def test_nanoseconds_are_cut_to_microseconds(tables):
    given = pa.array([1_500, -1_500], pa.timestamp("ns", "UTC"))

    snapshot = tables.write("t", pa.table({"a": given}).to_reader())

    assert tables.read(snapshot).column("a").cast(pa.int64()).to_pylist() == [1, -1]


def test_times_of_day_are_stored_as_text(tables):
    snapshot = tables.write("t", pa.table({"a": [time_of_day(9, 30)]}).to_reader())

    assert tables.read(snapshot).to_pylist() == [{"a": "09:30:00.000000"}]


@pytest.mark.parametrize(
    "column",
    [[[1]], [{"b": 1}], [b"bytes"], [timedelta(days=1)]],
    ids=["list", "struct", "bytes", "duration"],
)
def test_types_that_a_table_cannot_hold_are_refused_by_name(tables, column):
    with pytest.raises(BadInputError, match=r"column 'odd' has the type .* which a table cannot hold"):
        tables.write("t", pa.table({"odd": column}).to_reader())

    assert tables.latest("t") is None


def test_an_error_in_the_stream_writes_nothing_and_leaves_nothing(tables, tmp_path):
    before = tables.write("t", numbers(1))

    def broken():
        yield pa.record_batch({"a": [2]})
        raise BadInputError("row 2 is half-written")

    with pytest.raises(BadInputError, match="row 2 is half-written"):
        tables.write("t", pa.RecordBatchReader.from_batches(first_schema(), broken()))

    assert tables.latest("t") == before
    assert files_under(tmp_path / "scratch") == []


def test_writing_leaves_no_scratch_behind(tables, tmp_path):
    tables.write("t", numbers(1))
    tables.write("t", numbers(1))

    assert list((tmp_path / "scratch").iterdir()) == []
    assert len([file for file in files_under(tmp_path / "tables") if file.endswith(".parquet")]) == 1


def test_several_writers_of_one_table_wait_for_each_other(tables):
    found = []

    def write(value):
        found.append(tables.write("t", numbers(value)))

    threads = [threading.Thread(target=write, args=(value % 3,)) for value in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 12
    versions = {snapshot.version: snapshot.digest for snapshot in found}
    assert sorted(versions) == list(range(tables.latest("t").version + 1))


def test_a_table_that_somebody_else_wrote_to_is_refused(tables):
    snapshot = tables.write("t", numbers(1))
    write_deltalake(snapshot.uri, pa.table({"a": [2]}), mode="append")

    with pytest.raises(ContenderError, match=r"table t: version 1 \(WRITE\) was not written by Contender"):
        tables.latest("t")


def test_a_version_that_is_gone_is_a_clear_error(tables):
    snapshot = tables.write("t", numbers(1))

    with pytest.raises(ContenderError, match=r"t v7 .* is no longer at"):
        tables.open(snapshot.model_copy(update={"version": 7}))


def test_someone_elses_delta_table_is_opened_at_any_version(tmp_path):
    folder = tmp_path / "with a space%é"
    write_deltalake(folder, pa.table({"a": [1]}))
    write_deltalake(folder, pa.table({"a": [2, 3]}), mode="overwrite")

    assert open_delta(str(folder)).to_table().column("a").to_pylist() == [2, 3]
    assert open_delta(str(folder), 0).to_table().column("a").to_pylist() == [1]
    with pytest.raises(BadInputError, match="there is no version 9 of this Delta table"):
        open_delta(str(folder), 9)
    with pytest.raises(BadInputError, match="there is no Delta table here"):
        open_delta(str(tmp_path))


# Processes that die -----------------------------------------------------------------------------------------

KILLED_WHILE_IT_STREAMS = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from platforms.tables import DeltaTables

def rows():
    for start in range(0, 1_500_000, 300_000):
        yield pa.record_batch({"a": range(start, start + 300_000)})
    os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
schema = pa.schema([pa.field("a", pa.int64())])
DeltaTables(root / "tables", root / "scratch").write("t", pa.RecordBatchReader.from_batches(schema, rows()))
"""

KILLED_WHILE_IT_COMMITS = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from platforms import tables

when, root = sys.argv[2], Path(sys.argv[1])

def die(*args, **kwargs):
    if when == "after":
        commit(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

commit = tables.create_table_with_add_actions
tables.create_table_with_add_actions = die
schema = pa.schema([pa.field("a", pa.int64())])
rows = iter([pa.record_batch({"a": [7]})])
tables.DeltaTables(root / "tables", root / "scratch").write("t", pa.RecordBatchReader.from_batches(schema, rows))
"""


def run(program: str, *arguments: str) -> int:
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, check=False, timeout=60, capture_output=True
    )
    return finished.returncode


def test_a_process_killed_while_it_writes_leaves_the_old_version(tables, tmp_path):
    old = tables.write("t", numbers(1, 2, 3))

    code = run(KILLED_WHILE_IT_STREAMS, str(tmp_path))

    assert code == -signal.SIGKILL
    assert tables.latest("t") == old
    assert tables.read(old).column("a").to_pylist() == [1, 2, 3]
    assert files_under(tmp_path / "scratch") != []


def test_the_run_after_a_killed_one_gives_the_same_digest_and_sweeps_up(tables, tmp_path):
    undisturbed = DeltaTables(tmp_path / "calm", tmp_path / "calm scratch").write("t", whole_range())
    run(KILLED_WHILE_IT_STREAMS, str(tmp_path))

    snapshot = tables.write("t", whole_range())

    assert snapshot.digest == undisturbed.digest
    assert snapshot.version == 0
    assert list((tmp_path / "scratch").iterdir()) == []


def whole_range() -> pa.RecordBatchReader:
    return pa.table({"a": pa.array(range(1_500_000), pa.int64())}).to_reader()


def test_a_file_that_was_moved_but_never_committed_is_removed(tables, tmp_path):
    code = run(KILLED_WHILE_IT_COMMITS, str(tmp_path), "before")
    orphan = list((tmp_path / "tables/t").glob("*.parquet"))

    snapshot = tables.write("t", numbers(7))

    assert code == -signal.SIGKILL
    assert len(orphan) == 1
    assert not orphan[0].exists()
    assert tables.read(snapshot).column("a").to_pylist() == [7]


def test_a_commit_that_was_made_is_kept_though_its_process_died(tables, tmp_path):
    code = run(KILLED_WHILE_IT_COMMITS, str(tmp_path), "after")

    snapshot = tables.write("t", numbers(7))

    assert code == -signal.SIGKILL
    assert snapshot.version == 0
    assert tables.read(snapshot).column("a").to_pylist() == [7]


def test_scratch_of_a_living_owner_is_left_alone(tmp_path):
    with scratch_folder(tmp_path) as mine:
        (mine / "work").touch()

        with scratch_folder(tmp_path) as other:
            assert other != mine

        assert (mine / "work").exists()
    assert list(tmp_path.iterdir()) == []


def test_only_scratch_is_swept(tmp_path):
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "held-by-nobody").mkdir()

    with scratch_folder(tmp_path):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["somebody's"]


STOPPED_BY_AN_ERROR = """
import sys
from pathlib import Path
from platforms.tables import DeltaTables, open_delta

tables = DeltaTables(Path(sys.argv[1]) / "tables", Path(sys.argv[1]) / "scratch")
snapshot = tables.latest("t")
half_read = tables.batches(snapshot, rows=50_000)
next(half_read)
scan = open_delta(snapshot.uri).scanner(batch_size=1_000).to_batches()
next(scan)
raise SystemExit(3)
"""


def test_an_error_in_the_middle_of_reading_ends_the_process_in_good_order(tables, tmp_path):
    tables.write("t", whole_range())

    code = run(STOPPED_BY_AN_ERROR, str(tmp_path))

    assert code == 3


def test_reading_runs_no_further_ahead_than_one_batch(tables):
    snapshot = tables.write("t", numbers(*range(600_000)))
    before = pa.total_allocated_bytes()

    batches = tables.batches(snapshot, rows=10_000)
    next(batches)
    time.sleep(0.1)

    assert pa.total_allocated_bytes() - before < 4 << 20
    batches.close()


def test_the_log_says_how_many_rows_there_are(tables):
    snapshot = tables.write("t", numbers(1, 2, 3))

    (log,) = Path(snapshot.uri, "_delta_log").glob("*.json")
    added = [json.loads(line)["add"] for line in log.read_text().splitlines() if '"add"' in line]

    assert json.loads(added[0]["stats"]) == {"numRecords": 3}
    assert isinstance(tables.open(snapshot), ds.Dataset)
    assert (Path(snapshot.uri) / added[0]["path"]).stat().st_size == added[0]["size"]
