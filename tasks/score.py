"""Score: the champion over a table of any size, in chunks; resumable, and never over an earlier output.

Each chunk is checked against the contract, scored, and kept as a part; the parts become the output in one move.
The champion is given its own inputs, as the spec that it was trained with declares them.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pydantic import ValidationError

from deployments.contract import TableContract
from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from deployments.measures import TaskKind
from deployments.model_file import file_digest
from deployments.source import CsvSource, source_at
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform
from platforms.snapshot import ContentDigest, Snapshot
from platforms.tables import storable
from tasks.champion import (
    ChampionMissing,
    ChampionRef,
    Standing,
    load_version,
    standing_champion,
    trained_spec,
)
from tasks.frame import model_inputs
from tasks.ingest import arrow_type, describe, read_source, without_personal_data
from tasks.metrics import outputs_of
from tasks.progress import stage
from tasks.threads import limited_threads, openmp_threads
from tasks.validate import Failures, _any_of, _with_reasons, check_chunk, compile_schema

CHUNK_ROWS = 100_000
_CHUNK_CELLS = 8_000_000
"""Wide inputs are scored in shorter chunks, so that a chunk's memory does not grow with their width."""
PREDICTION, SCORE, MODEL, VERSION = "prediction", "score", "model_name", "model_version"


class ScoreOutcome(Declared):
    """One batch scored: how many rows went in, came out and were rejected, by which version, and where they are."""

    model: str
    environment: str
    name: str
    version: str
    output: str
    rejected: str | None
    rows: int
    scored_rows: int
    rejected_rows: int
    mean_score: float
    failures: dict[str, int]
    unchanged: bool = False


class _Plan(Declared):
    """What decides a scoring's result beside the rows: another plan may not go on with this one's parts."""

    name: str
    version: str
    run_id: str
    model_digest: str
    source: str
    chunk_rows: int


class _Part(Declared):
    """One chunk that is done; `digest` is of the rows that went in."""

    digest: str
    rows: int
    scored: int
    score_sum: float
    failures: dict[str, int]


class _Manifest(Declared):
    """What an output is of: the plan, the rows that went in, what came out, and the file itself."""

    plan: _Plan
    rows_digest: str
    output_digest: str
    rejected_digest: str | None
    outcome: ScoreOutcome


@dataclass(frozen=True)
class _Batch:
    """The rows to score, in chunks, and what they are to be; `where` is what people call them."""

    where: str
    source: str
    contract: TableContract
    stream: pa.RecordBatchReader
    chunk_rows: int

    def chunks(self) -> Iterator[tuple[str, pa.Table]]:
        """Each chunk with the digest of its rows."""
        for chunk in _chunks(self.stream, self.chunk_rows):
            digest = ContentDigest(chunk.schema)
            for batch in chunk.to_batches():
                digest.update(batch)
            yield digest.hexdigest(), chunk


def require_champion(platform: Platform, model: str, standing: Standing) -> ChampionRef:
    """The champion to score with.

    Raises:
        BadInputError: there is none.
    """
    if isinstance(standing, ChampionRef):
        return standing
    name = platform.registered_model(model)
    reason = standing.reason if isinstance(standing, ChampionMissing) else f"{name} has no champion yet"
    raise BadInputError(f"{reason}; train and promote one first")


def input_contract(spec: ModelSpec) -> TableContract:
    """The feature table's contract without the target and without whole-table checks: what a scored row must be."""
    contract = spec.feature_contract
    columns = {name: column for name, column in contract.columns.items() if name != spec.target.column}
    rules = tuple(rule for rule in contract.rules if _speaks_only_of(rule.expression, set(columns)))
    return TableContract(
        columns=columns, extra_columns="drop", rules=rules, max_invalid_share=contract.max_invalid_share
    )


def _speaks_only_of(expression: str, columns: set[str]) -> bool:
    return set(pl.sql_expr(expression).meta.root_names()) <= columns


def score_file(
    loaded: LoadedSpec, platform: Platform, given: str, output: Path, chunk_rows: int = CHUNK_ROWS
) -> ScoreOutcome:
    """Score a csv, Parquet or Delta file.

    Raises:
        BadInputError: the input is not to be read, lacks columns, or has too many invalid rows; the output
            exists already and is of another scoring; there is no champion.
        UntrustedModelError: the champion is not what was registered.
    """
    champion = _champion(loaded, platform, output)
    spec = trained_spec(platform, champion)
    like = next(iter(loaded.spec.sources.values()))
    source = source_at(
        given, like if isinstance(like, CsvSource) else CsvSource(path=given, null_values=("",))
    )
    contract, where = input_contract(spec), describe(source)
    received = read_source(source, contract, platform, beside=Path.cwd())
    contract = _present(spec, contract, received.schema.names, where)
    stream = storable(without_personal_data(received, contract, platform))
    batch = _Batch(
        where, platform.resolve(given, Path.cwd()), contract, stream, _fitting(chunk_rows, contract)
    )
    return _score(loaded, platform, champion, spec, batch, output)


def score_snapshot(
    loaded: LoadedSpec, platform: Platform, snapshot: Snapshot, output: Path, chunk_rows: int = CHUNK_ROWS
) -> ScoreOutcome:
    """Score a snapshot of the feature table.

    Raises:
        BadInputError: it lacks columns, or has too many invalid rows; the output exists already and is of
            another scoring; there is no champion.
        UntrustedModelError: the champion is not what was registered.
    """
    champion = _champion(loaded, platform, output)
    spec = trained_spec(platform, champion)
    contract = _present(spec, input_contract(spec), snapshot.columns, str(snapshot))
    names = list(contract.kept_columns)
    schema = platform.tables.open(snapshot).schema
    stream = pa.RecordBatchReader.from_batches(
        pa.schema([schema.field(name) for name in names]), platform.tables.batches(snapshot, names)
    )
    source = f"{snapshot.table}@{snapshot.digest}"
    batch = _Batch(str(snapshot), source, contract, stream, _fitting(chunk_rows, contract))
    return _score(loaded, platform, champion, spec, batch, output)


def _fitting(chunk_rows: int, contract: TableContract) -> int:
    return max(1, min(chunk_rows, _CHUNK_CELLS // len(contract.columns)))


def _champion(loaded: LoadedSpec, platform: Platform, output: Path) -> ChampionRef:
    if output.suffix not in {".csv", ".parquet"}:
        raise BadInputError(f"{output}: scores are written to .csv or .parquet")
    return require_champion(platform, loaded.name, standing_champion(platform, loaded.name))


def _present(spec: ModelSpec, contract: TableContract, names: Sequence[str], where: str) -> TableContract:
    """The contract of those columns that are there.

    Raises:
        BadInputError: entity or features are missing, or cannot be told from another column.
    """
    needed = (*spec.features.entity, *spec.features.columns)
    missing = [name for name in needed if name not in names]
    if missing:
        raise BadInputError(f"{where}: missing columns: {', '.join(missing)}")
    twice = sorted({name for name in contract.columns if list(names).count(name) > 1})
    if twice:
        raise BadInputError(f"{where}: columns that stand more than once: {', '.join(twice)}")
    taken = [name for name in spec.features.entity if name in {PREDICTION, SCORE, MODEL, VERSION}]
    if taken:
        raise BadInputError(
            f"{where}: the entity column {taken[0]!r} has the name of a column that scoring adds; rename it"
        )
    present = {name: column for name, column in contract.columns.items() if name in names}
    return contract.model_copy(update={"columns": present})


def _score(
    loaded: LoadedSpec,
    platform: Platform,
    champion: ChampionRef,
    spec: ModelSpec,
    batch: _Batch,
    output: Path,
) -> ScoreOutcome:
    plan = _Plan(
        name=champion.name,
        version=champion.version,
        run_id=champion.run_id,
        model_digest=champion.digest,
        source=batch.source,
        chunk_rows=batch.chunk_rows,
    )
    with _work_folder(output, plan) as work:
        if output.exists():
            return _standing_output(output, plan, batch)
        _expect_free(output)
        model = load_version(platform, champion)
        scorer = _Scorer(spec, champion, model, batch.contract, work)
        parts: list[_Part] = []
        rows = 0
        with stage("score") as advance, limited_threads(openmp_threads(batch.chunk_rows, workers=1)):
            for index, (digest, chunk) in enumerate(batch.chunks()):
                parts.append(scorer.part(index, digest, chunk, rows))
                rows += chunk.num_rows
                advance(chunk.num_rows)
        outcome = _outcome(loaded, platform, champion, parts, output)
        _require_enough(outcome, batch)
        _assemble(work, parts, outcome, plan)
    return outcome


def _require_enough(outcome: ScoreOutcome, batch: _Batch) -> None:
    if outcome.rows == 0:
        raise BadInputError(f"{batch.where}: there are no rows to score")
    share, allowed = outcome.rejected_rows / outcome.rows, batch.contract.max_invalid_share
    if share > allowed or outcome.scored_rows == 0:
        worst = ", ".join(f"{name}: {count:,}" for name, count in outcome.failures.items())
        raise BadInputError(
            f"{batch.where}: {outcome.rejected_rows:,} of {outcome.rows:,} rows break the contract "
            f"({share:.2%}, at most {allowed:.2%} allowed): {worst}; nothing was written"
        )


def _manifest(output: Path) -> _Manifest | None:
    """The manifest of an output, if one stands that can be read."""
    try:
        return _Manifest.model_validate_json(manifest_path(output).read_bytes())
    except (OSError, ValidationError):
        return None


def _expect_free(output: Path) -> None:
    """Refuse to write over what is not ours: what lay beside an output that was taken away may go.

    Raises:
        BadInputError: a file of something else has the name of what lies beside the output.
    """
    said, rejected = _manifest(output), rejected_path(output)
    in_the_way = [manifest_path(output)] if said is None and manifest_path(output).exists() else []
    if rejected.exists() and (said is None or file_digest(rejected) != said.rejected_digest):
        in_the_way.append(rejected)
    if in_the_way:
        raise BadInputError(f"{in_the_way[0]}: this file exists already, and is not written over")


def _standing_output(output: Path, plan: _Plan, batch: _Batch) -> ScoreOutcome:
    """The outcome that made an existing output, if it is of the same plan and the same rows."""
    said = _manifest(output)
    if said is None:
        raise BadInputError(
            f"{output}: this file exists already, and scores are never written over another output"
        )
    if said.plan != plan or said.rows_digest != _rows_digest(digest for digest, _ in batch.chunks()):
        raise BadInputError(
            f"{output}: this file has the scores of other rows or of another version, and is not written over; "
            "give another output"
        )
    if not output.is_file() or file_digest(output) != said.output_digest:
        raise BadInputError(f"{output}: this file was changed since it was written, and is not written over")
    return said.outcome.model_copy(update={"unchanged": True})


def _rows_digest(chunks: Iterator[str]) -> str:
    return hashlib.sha256("".join(chunks).encode()).hexdigest()


@contextmanager
def _work_folder(output: Path, plan: _Plan) -> Iterator[Path]:
    """The folder of finished parts, locked; parts of another plan are cleared first.

    It stays only where the process was stopped on its way: after an output, or a refusal that would be the same
    again, it is gone.
    """
    work = output.with_name(f".{output.name}.parts")
    with _held(work, output):
        said = plan.model_dump_json()
        if not (work / "plan.json").exists() or (work / "plan.json").read_text() != said:
            for path in work.iterdir():
                path.unlink()
        _write_whole(work / "plan.json", said.encode())
        try:
            yield work
        except ContenderError:
            _clear(work)
            raise
        _clear(work)


def _clear(work: Path) -> None:
    shutil.rmtree(work)


@contextmanager
def _held(work: Path, output: Path) -> Iterator[None]:
    """Hold a folder for this process alone; the lock ends with the process, however it dies."""
    busy = BadInputError(f"{output}: another process is scoring into this file just now")
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise BadInputError(f"{output}: cannot be written ({error.strerror})") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        if not work.exists() or os.fstat(handle).st_ino != work.stat().st_ino:
            raise busy
        yield
    finally:
        os.close(handle)


def _write_whole(path: Path, content: bytes) -> None:
    staged = path.with_name(path.name + ".partial")
    staged.write_bytes(content)
    staged.replace(path)


def _chunks(stream: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """The stream in tables of exactly `rows` rows, but the last."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in stream:
        rest = batch
        while count + rest.num_rows >= rows:
            held.append(rest.slice(0, rows - count))
            rest = rest.slice(rows - count)
            yield pa.Table.from_batches(held, stream.schema)
            held, count = [], 0
        if rest.num_rows:
            held.append(rest)
            count += rest.num_rows
    if held:
        yield pa.Table.from_batches(held, stream.schema)


class _Scorer:
    """Scores chunks with one model, and keeps each as a part."""

    def __init__(
        self, spec: ModelSpec, champion: ChampionRef, model: Any, contract: TableContract, work: Path
    ) -> None:
        self._spec = spec
        self._champion = champion
        self._model = model
        self._contract = contract
        self._work = work
        self._checks = compile_schema(contract)
        self._prediction = prediction_type(model, spec)

    def part(self, index: int, digest: str, chunk: pa.Table, first_row: int) -> _Part:
        """Score one chunk and keep it, or find that it was kept before."""
        note = self._work / f"{index:06d}.json"
        if note.exists():
            part = _Part.model_validate_json(note.read_bytes())
            if part.digest == digest:
                return part
            note.unlink()
        raw = pl.DataFrame(pl.from_arrow(chunk))
        failures = Failures()
        typed, found = check_chunk(raw, self._contract, self._checks, failures, first_row)
        if found:
            bad = _any_of(list(found.values()))
            pq.write_table(_with_reasons(raw, found, bad).to_arrow(), _rejected_part(self._work, index))
            typed = typed.filter(~bad)
        scores = self._scores(typed)
        pq.write_table(scores, _part(self._work, index))
        part = _Part(
            digest=digest,
            rows=chunk.num_rows,
            scored=scores.num_rows,
            score_sum=float(scores.column(SCORE).to_numpy().sum()),
            failures={
                f"{column}: {name}" if column else name: n for (column, name), n in failures.counts.items()
            },
        )
        # Last: a part counts as kept once its note is there.
        _write_whole(note, part.model_dump_json().encode())
        return part

    def _scores(self, typed: pl.DataFrame) -> pa.Table:
        columns = self._contract.columns
        schema = pa.schema([pa.field(name, arrow_type(columns[name].type)) for name in typed.columns])
        rows = typed.to_arrow().cast(schema)
        said, score = np.empty(0), np.empty(0)
        if rows.num_rows:
            outputs = outputs_of(self._model, model_inputs(rows, self._spec), self._spec.target)
            if not outputs.finite:
                raise ContenderError(
                    f"{self._champion.name} version {self._champion.version} answers with what is not a number; "
                    "nothing was written"
                )
            said, score = outputs.predictions, outputs.score
        return pa.table(
            {name: rows.column(name) for name in self._spec.features.entity}
            | {
                PREDICTION: pa.array(said.tolist(), self._prediction),
                SCORE: pa.array(score, pa.float64()),
                MODEL: pa.array([self._champion.name] * rows.num_rows, pa.string()),
                VERSION: pa.array([self._champion.version] * rows.num_rows, pa.string()),
            }
        )


def prediction_type(model: Any, spec: ModelSpec) -> pa.DataType:
    """The Arrow type of a model's predictions: that of its classes, whatever a chunk of rows happens to hold."""
    if spec.target.kind is TaskKind.REGRESSION:
        return pa.float64()
    classes: pa.DataType = pa.array(np.asarray(model.classes_).tolist()).type
    return classes


def _part(work: Path, index: int) -> Path:
    return work / f"{index:06d}.parquet"


def _rejected_part(work: Path, index: int) -> Path:
    return work / f"{index:06d}.rejected.parquet"


def _outcome(
    loaded: LoadedSpec, platform: Platform, champion: ChampionRef, parts: Sequence[_Part], output: Path
) -> ScoreOutcome:
    failures: dict[str, int] = {}
    for part in parts:
        for name, count in part.failures.items():
            failures[name] = failures.get(name, 0) + count
    rows, scored = sum(part.rows for part in parts), sum(part.scored for part in parts)
    return ScoreOutcome(
        model=loaded.name,
        environment=platform.environment.name,
        name=champion.name,
        version=champion.version,
        output=str(output),
        rejected=str(rejected_path(output)) if scored < rows else None,
        rows=rows,
        scored_rows=scored,
        rejected_rows=rows - scored,
        mean_score=sum(part.score_sum for part in parts) / scored if scored else float("nan"),
        failures=dict(sorted(failures.items(), key=lambda item: -item[1])),
    )


def rejected_path(output: Path) -> Path:
    """Where the rows that broke the contract go, with their reasons."""
    return output.with_name(f"{output.name}.rejected.parquet")


def manifest_path(output: Path) -> Path:
    """Where it stands what an output is of."""
    return output.with_name(f"{output.name}.manifest.json")


def _assemble(work: Path, parts: Sequence[_Part], outcome: ScoreOutcome, plan: _Plan) -> None:
    """Make the output of the parts in one move; rejected rows and manifest are there before it."""
    output, staged, set_aside = Path(outcome.output), work / "scores", work / "rejected"
    _concatenate([_part(work, i) for i, part in enumerate(parts) if part.scored], staged, output.suffix)
    if outcome.rejected is not None:
        rejected = [_rejected_part(work, i) for i, part in enumerate(parts) if part.scored < part.rows]
        _concatenate(rejected, set_aside, ".parquet")
    manifest = _Manifest(
        plan=plan,
        rows_digest=_rows_digest(part.digest for part in parts),
        output_digest=file_digest(staged),
        rejected_digest=file_digest(set_aside) if outcome.rejected is not None else None,
        outcome=outcome,
    )
    rejected_path(output).unlink(missing_ok=True)
    _write_whole(manifest_path(output), manifest.model_dump_json(indent=1).encode())
    if outcome.rejected is not None:
        _put(set_aside, rejected_path(output))
    _put(staged, output)


def _put(staged: Path, place: Path) -> None:
    """Give a finished file its place, and never over another one."""
    try:
        os.link(staged, place)
    except FileExistsError:
        raise BadInputError(f"{place}: this file has appeared meanwhile, and is not written over") from None


def _concatenate(files: Sequence[Path], target: Path, suffix: str) -> None:
    schema = pq.read_schema(files[0])
    writer: Any = pacsv.CSVWriter(target, schema) if suffix == ".csv" else pq.ParquetWriter(target, schema)
    with writer:
        for file in files:
            writer.write_table(pq.read_table(file))


def default_output(platform: Platform, model: str, snapshot: Snapshot, champion: ChampionRef) -> Path:
    """Where the scores of a snapshot go when nobody says: a name that says what they are of."""
    folder = platform.folder("scores") / model
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{snapshot.digest}{champion.digest}".encode()).hexdigest()[:8]
    return folder / f"scores-v{champion.version}-{name}.parquet"
