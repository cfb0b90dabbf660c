"""Score: the champion over a table of any size, in chunks; resumable, and never over an earlier output.

Each chunk is checked against the contract, scored, and kept as a part; the parts become the output in one move.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from deployments.contract import TableContract
from deployments.declared import Declared
from deployments.errors import BadInputError
from deployments.source import CsvSource, Source, source_at
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform
from platforms.snapshot import ContentDigest, Snapshot
from tasks.champion import ChampionMissing, ChampionRef, Standing, load_version, standing_champion
from tasks.frame import model_inputs
from tasks.ingest import arrow_type, describe, read_source, without_personal_data
from tasks.metrics import outputs_of
from tasks.progress import stage
from tasks.validate import Failures, _any_of, _with_reasons, check_chunk, compile_schema

CHUNK_ROWS = 100_000
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
    """What decides a scoring's result: another plan may not go on with this one's parts."""

    name: str
    version: str
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
    """
    like = next(iter(loaded.spec.sources.values()))
    source = source_at(
        given, like if isinstance(like, CsvSource) else CsvSource(path=given, null_values=("",))
    )
    contract = input_contract(loaded.spec)
    stream = read_source(source, contract, platform, beside=Path.cwd())
    missing = [
        name
        for name in (*loaded.spec.features.entity, *loaded.spec.features.columns)
        if name not in stream.schema.names
    ]
    if missing:
        raise BadInputError(f"{describe(source)}: missing columns: {', '.join(missing)}")
    known = contract.model_copy(
        update={"columns": {n: c for n, c in contract.columns.items() if n in stream.schema.names}}
    )
    stream = without_personal_data(stream, known, platform)
    return _score(loaded, platform, known, stream, _identity(source, platform), output, chunk_rows)


def score_snapshot(
    loaded: LoadedSpec, platform: Platform, snapshot: Snapshot, output: Path, chunk_rows: int = CHUNK_ROWS
) -> ScoreOutcome:
    """Score a snapshot of the feature table."""
    contract = input_contract(loaded.spec)
    names = [name for name in contract.kept_columns if name in snapshot.columns]
    schema = platform.tables.open(snapshot).schema
    stream = pa.RecordBatchReader.from_batches(
        pa.schema([schema.field(name) for name in names]), platform.tables.batches(snapshot, names)
    )
    return _score(
        loaded, platform, contract, stream, f"{snapshot.table}@{snapshot.digest}", output, chunk_rows
    )


def _identity(source: Source, platform: Platform) -> str:
    path = Path(platform.resolve(str(getattr(source, "path", "")), Path.cwd()))
    size = path.stat().st_size if path.is_file() else 0
    return f"{path}:{size}"


def _score(
    loaded: LoadedSpec,
    platform: Platform,
    contract: TableContract,
    stream: pa.RecordBatchReader,
    source: str,
    output: Path,
    chunk_rows: int,
) -> ScoreOutcome:
    if output.suffix not in {".csv", ".parquet"}:
        raise BadInputError(f"{output}: scores are written to .csv or .parquet")
    champion = require_champion(platform, loaded.name, standing_champion(platform, loaded.name))
    plan = _Plan(
        name=champion.name,
        version=champion.version,
        model_digest=champion.digest,
        source=source,
        chunk_rows=chunk_rows,
    )
    manifest = output.with_name(output.name + ".manifest.json")
    if output.exists():
        return _standing_output(output, manifest, plan)
    work = _work_folder(output, plan)
    model = load_version(platform, champion)
    parts: list[_Part] = []
    with stage("score") as advance:
        for index, chunk in enumerate(_chunks(stream, chunk_rows)):
            parts.append(
                _score_chunk(
                    loaded, contract, model, champion, chunk, work, index, sum(p.rows for p in parts)
                )
            )
            advance(chunk.num_rows)
    outcome = _outcome(loaded, platform, champion, parts, output, work)
    if outcome.rows == 0:
        raise BadInputError(f"{source}: there are no rows to score")
    share = outcome.rejected_rows / outcome.rows
    if share > contract.max_invalid_share or outcome.scored_rows == 0:
        worst = ", ".join(f"{name}: {count:,}" for name, count in outcome.failures.items())
        raise BadInputError(
            f"{source.rpartition(':')[0] or source}: {outcome.rejected_rows:,} of {outcome.rows:,} rows break the contract "
            f"({share:.2%}, at most {contract.max_invalid_share:.2%} allowed): {worst}; nothing was written"
        )
    _assemble(work, len(parts), output, outcome, manifest, plan)
    return outcome


def _standing_output(output: Path, manifest: Path, plan: _Plan) -> ScoreOutcome:
    """The outcome that made an existing output, if it is of the same plan."""
    try:
        said = json.loads(manifest.read_text())
        if said["plan"] == plan.model_dump(mode="json"):
            return ScoreOutcome.model_validate(said["outcome"]).model_copy(update={"unchanged": True})
    except (OSError, ValueError, KeyError):
        pass
    raise BadInputError(
        f"{output}: this file exists already, and scores are never written over another output"
    )


def _work_folder(output: Path, plan: _Plan) -> Path:
    """The folder of finished parts; one of another plan is cleared first."""
    work = output.with_name(f".{output.name}.parts")
    said = plan.model_dump_json()
    if work.exists() and (not (work / "plan.json").exists() or (work / "plan.json").read_text() != said):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    _write_whole(work / "plan.json", said.encode())
    return work


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


def _score_chunk(
    loaded: LoadedSpec,
    contract: TableContract,
    model: Any,
    champion: ChampionRef,
    chunk: pa.Table,
    work: Path,
    index: int,
    first_row: int,
) -> _Part:
    """Score one chunk and keep it, or find that it was kept before."""
    digest = ContentDigest(chunk.schema)
    for batch in chunk.to_batches():
        digest.update(batch)
    content = digest.hexdigest()
    note = work / f"{index:06d}.json"
    if note.exists():
        part = _Part.model_validate_json(note.read_bytes())
        if part.digest == content:
            return part
    spec = loaded.spec
    raw = pl.DataFrame(pl.from_arrow(chunk))
    failures = Failures()
    typed, found = check_chunk(
        raw, contract, compile_schema(contract, chunk.column_names), failures, first_row
    )
    rejected = work / f"{index:06d}.rejected.parquet"
    if found:
        bad = _any_of(list(found.values()))
        reasons = _with_reasons(raw, found, bad)
        pq.write_table(reasons.to_arrow(), rejected)
        typed = typed.filter(~bad)
    schema = pa.schema([pa.field(name, arrow_type(contract.columns[name].type)) for name in typed.columns])
    rows = typed.to_arrow().cast(schema)
    scores = pa.table(_scored_columns(rows, spec, model, champion))
    pq.write_table(scores, work / f"{index:06d}.parquet.partial")
    (work / f"{index:06d}.parquet.partial").replace(work / f"{index:06d}.parquet")
    part = _Part(
        digest=content,
        rows=chunk.num_rows,
        scored=scores.num_rows,
        score_sum=float(pl.DataFrame(pl.from_arrow(scores))[SCORE].sum()) if scores.num_rows else 0.0,
        failures={
            f"{column}: {name}" if column else name: n for (column, name), n in failures.counts.items()
        },
    )
    _write_whole(note, part.model_dump_json().encode())
    return part


def _scored_columns(rows: pa.Table, spec: ModelSpec, model: Any, champion: ChampionRef) -> dict[str, Any]:
    columns: dict[str, Any] = {name: rows.column(name) for name in spec.features.entity}
    if rows.num_rows:
        said = outputs_of(model, model_inputs(rows, spec), spec.target)
        predictions: Any = pa.array(said.predictions.tolist())
        scores: Any = pa.array(said.score, pa.float64())
    else:
        predictions, scores = pa.array([], pa.string()), pa.array([], pa.float64())
    columns[PREDICTION] = predictions
    columns[SCORE] = scores
    columns[MODEL] = pa.array([champion.name] * rows.num_rows, pa.string())
    columns[VERSION] = pa.array([champion.version] * rows.num_rows, pa.string())
    return columns


def _outcome(
    loaded: LoadedSpec,
    platform: Platform,
    champion: ChampionRef,
    parts: list[_Part],
    output: Path,
    work: Path,
) -> ScoreOutcome:
    failures: dict[str, int] = {}
    for part in parts:
        for name, count in part.failures.items():
            failures[name] = failures.get(name, 0) + count
    rows, scored = sum(part.rows for part in parts), sum(part.scored for part in parts)
    has_rejected = any(work.glob("*.rejected.parquet"))
    return ScoreOutcome(
        model=loaded.name,
        environment=platform.environment.name,
        name=champion.name,
        version=champion.version,
        output=str(output),
        rejected=str(rejected_path(output)) if has_rejected else None,
        rows=rows,
        scored_rows=scored,
        rejected_rows=rows - scored,
        mean_score=sum(part.score_sum for part in parts) / scored if scored else float("nan"),
        failures=dict(sorted(failures.items(), key=lambda item: -item[1])),
    )


def rejected_path(output: Path) -> Path:
    """Where the rows that broke the contract go, with their reasons."""
    return output.with_name(f"{output.stem}.rejected.parquet")


def _assemble(
    work: Path, count: int, output: Path, outcome: ScoreOutcome, manifest: Path, plan: _Plan
) -> None:
    """Make the output of the parts in one move that fails where a file has appeared meanwhile."""
    staged = work / f"whole{output.suffix}"
    files = [work / f"{index:06d}.parquet" for index in range(count)]
    _concatenate([file for file in files if pq.read_metadata(file).num_rows], staged)
    if outcome.rejected is not None:
        whole = work / "rejected.parquet"
        _concatenate(sorted(work.glob("[0-9]*.rejected.parquet")), whole)
        whole.replace(outcome.rejected)
    said = {"plan": plan.model_dump(mode="json"), "outcome": outcome.model_dump(mode="json")}
    _write_whole(manifest, json.dumps(said, indent=1).encode())
    try:
        os.link(staged, output)
    except FileExistsError:
        raise BadInputError(f"{output}: this file has appeared meanwhile, and is not written over") from None
    shutil.rmtree(work)


def _concatenate(files: list[Path], target: Path) -> None:
    schema = pq.read_schema(files[0])
    writer: Any = (
        pacsv.CSVWriter(target, schema) if target.suffix == ".csv" else pq.ParquetWriter(target, schema)
    )
    with writer:
        for file in files:
            writer.write_table(pq.read_table(file))


def default_output(platform: Platform, model: str, snapshot: Snapshot, champion: ChampionRef) -> Path:
    """Where the scores of a snapshot go when nobody says: a name that says what they are of."""
    folder = platform.folder("scores") / model
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{snapshot.digest}{champion.digest}".encode()).hexdigest()[:8]
    return folder / f"scores-v{champion.version}-{name}.parquet"
