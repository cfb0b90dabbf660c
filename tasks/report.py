"""Reports: what the contracts found, and what a training came to, each as one HTML page.

Documents go in and text comes out; nothing is measured, decided or stored here. A page is whole by itself: it
has no script and asks the network for nothing, which its content security policy also forbids it to do. Personal
data is not shown: the values of columns that a contract marks with `pii` are hidden, hashed or not.
"""

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deployments.contract import TableContract
from deployments.measures import MEASURES
from deployments.spec import FEATURES, LoadedSpec, ModelSpec
from platforms.snapshot import Snapshot
from tasks.checks import compile_schema
from tasks.evaluate import Evaluation
from tasks.gate import GateReport, GateResult
from tasks.metrics import Estimate
from tasks.split import Part, Parts
from tasks.train import Leaderboard, TrainedModel, TrainingRun
from tasks.validate import CheckResult, TableResult
from tasks.verdict import Verdict, overall

MISSING = "–"
"""What stands where there is no value: neither zero nor blank."""

HIDDEN = "(personal data)"
"""What stands for a value of a column with personal data."""

_MOST_ROWS = 60
_MOST_FEATURES = 15
WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


def number(value: float | None) -> str:
    """A measured value: four decimals below 10, four significant digits below 1,000, whole numbers above."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:.4g}"
    decimals = next(places for limit, places in ((10, 4), (100, 2), (1000, 1), (math.inf, 0)) if size < limit)
    return f"{value + 0.0:,.{decimals}f}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def declared(value: float | None) -> str:
    """A threshold as somebody wrote it: no digit more."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.10g}"


def bound(value: float | str | None) -> str:
    """One end of a declared range; a moment is text, and an open end is an ellipsis."""
    return "…" if value is None else value if isinstance(value, str) else declared(value)


def count(value: float | None) -> str:
    """How many of something."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.0f}"


def quantity(value: float | None) -> str:
    """What a check looked at: a count as such, anything else as a measured value."""
    whole = value is not None and math.isfinite(value) and value == int(value)
    return count(value) if whole else number(value)


def percent(share: float | None) -> str:
    """A share; only nothing is 0 %, and only all is 100 %."""
    if share is None or math.isnan(share):
        return MISSING
    if share in {0, 1}:
        return f"{share:.0%}"
    if 0 < share < 0.0001:
        return "< 0.01%"
    if 0.9999 < share < 1:
        return "> 99.99%"
    return f"{share:.2%}"


def interval(found: Estimate) -> str:
    """The interval of an estimate."""
    if math.isnan(found.low) or math.isnan(found.high):
        return MISSING
    return f"[{number(found.low)}, {number(found.high)}]"


def settings(params: Mapping[str, Any]) -> str:
    """Parameters in one line."""
    return ", ".join(f"{name} = {_setting(value)}" for name, value in params.items()) or "defaults"


def _setting(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def label(metric: str) -> str:
    """A metric's name for people."""
    return MEASURES[metric].label if metric in MEASURES else metric


def _bar(value: float, most: float) -> float:
    """The width of a bar in percent."""
    drawn = math.isfinite(value) and math.isfinite(most) and most > 0
    return 100 * min(max(value / most, 0.0), 1.0) if drawn else 0.0


@cache
def templates() -> Environment:
    """The templates of all pages, with what they need to show values."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "signed": signed,
        "declared": declared,
        "bound": bound,
        "count": count,
        "quantity": quantity,
        "percent": percent,
        "interval": interval,
        "settings": settings,
        "label": label,
    }
    made.globals["bar"] = _bar
    return made


def contract_page(loaded: LoadedSpec, results: Sequence[TableResult]) -> str:
    """What the contract of each table found, and what it asks for."""
    spec = loaded.spec
    tables = [
        _table(spec.training_contract if result.table == FEATURES else spec.contract[result.table], result)
        for result in results
    ]
    return (
        templates()
        .get_template("contract.html.j2")
        .render(
            loaded=loaded,
            verdict=overall(result.verdict for result in results),
            tables=tables,
        )
    )


@dataclass(frozen=True)
class _Table:
    """One table as its page shows it: the worst checks first, personal data hidden."""

    result: TableResult
    contract: TableContract
    checks: tuple[CheckResult, ...]
    clean: tuple[str, ...]


def _table(contract: TableContract, result: TableResult) -> _Table:
    ordered = sorted(result.checks, key=lambda item: (WORST_FIRST.index(item.verdict), not item.failures))
    checks = tuple(_without_personal_samples(contract, check) for check in ordered)
    return _Table(result=result, contract=contract, checks=checks, clean=_clean_checks(contract, result))


def _without_personal_samples(contract: TableContract, check: CheckResult) -> CheckResult:
    personal = _personal(contract)
    samples = tuple(
        sample.model_copy(
            update={"values": {k: HIDDEN if k in personal else v for k, v in sample.values.items()}}
        )
        for sample in check.samples
    )
    return check.model_copy(update={"samples": samples})


def _personal(contract: TableContract) -> set[str]:
    return {name for name, column in contract.columns.items() if column.pii is not None}


def _clean_checks(contract: TableContract, result: TableResult) -> tuple[str, ...]:
    """The row-level checks that ran and are not among the results, since no row failed them."""
    schema = compile_schema(contract, result.bronze.columns)
    ran: list[tuple[str | None, str]] = []
    for name, column in schema.columns.items():
        ran += [(name, "type")] + ([] if column.nullable else [(name, "not_null")])
        ran += [(name, str(check.name)) for check in column.checks]
    ran += [(None, str(check.name)) for check in schema.checks]
    ran += [
        (None, f"unique({', '.join(key)})")
        for key in contract.unique
        if set(key) <= set(result.bronze.columns)
    ]
    found = {(check.column, check.check) for check in result.checks}
    return tuple(
        f"{column}: {name}" if column else name for column, name in ran if (column, name) not in found
    )


def training_page(
    loaded: LoadedSpec,
    *,
    tables: Sequence[TableResult],
    parts: Parts,
    leaderboard: Leaderboard,
    trained: TrainedModel,
    evaluation: Evaluation,
    gates: GateReport,
    plots: Mapping[str, bytes],
    version: str | None,
    run: TrainingRun,
    mlflow_hint: str,
) -> str:
    """What one training came to: the decision first, then what it rests on, then how to have it again.

    Args:
        loaded: the spec.
        tables: what the contracts found.
        parts: the split.
        leaderboard: the candidates.
        trained: the winner.
        evaluation: what was measured.
        gates: what was decided.
        plots: PNG files by name.
        version: the registered version; None where nothing was registered.
        run: the run all of it is recorded in.
        mlflow_hint: how to open the run, in the words of the platform.
    """
    shown, decided = without_personal_data(loaded.spec, evaluation, gates)
    named = {
        "train": parts.development.train,
        "validation": parts.development.validation,
        "holdout": parts.holdout,
    }
    return (
        templates()
        .get_template("training.html.j2")
        .render(
            loaded=loaded,
            verdict=gates.verdict,
            standing=standing(gates, version),
            summary=summary(gates),
            tiles=_tiles(loaded.spec, shown, gates, trained),
            gates=sorted(decided.results, key=lambda item: WORST_FIRST.index(item.verdict)),
            evaluation=shown,
            measures=MEASURES,
            candidates=[(item, *spread(item.folds)) for item in leaderboard.candidates],
            leaderboard=leaderboard,
            trained=trained,
            tables=tables,
            parts=named,
            balance=_balance(named),
            snapshots=_snapshots(tables, parts),
            plots=_images(loaded.spec, plots),
            started=datetime.fromtimestamp(run.started, UTC),
            run=run,
            gates_digest=gates.digest,
            mlflow_hint=mlflow_hint,
            most_rows=_MOST_ROWS,
            most_features=_MOST_FEATURES,
        )
    )


def without_personal_data(
    spec: ModelSpec, evaluation: Evaluation, gates: GateReport
) -> tuple[Evaluation, GateReport]:
    """Both documents with the values of personal columns numbered instead of named, in reasons too."""
    personal = _personal(spec.feature_contract)
    named = [(item.column, item.value) for item in evaluation.slices]
    named += [(item.attribute, item.value) for item in evaluation.groups]
    values = dict.fromkeys(value for column, value in named if column in personal and value != "(missing)")
    if not personal or not (values or evaluation.skipped_slices):
        return evaluation, gates
    numbered = {value: f"{HIDDEN} {place}" for place, value in enumerate(values, 1)}

    def spoken(text: str) -> str:
        for value, instead in numbered.items():
            text = text.replace(value, instead)
        return text

    def skipped(text: str) -> str:
        column = text.partition("=")[0]
        return f"{column}={HIDDEN} ({text.rpartition(' (')[2]}" if column in personal else text

    slices = [
        item.model_copy(update={"value": numbered.get(item.value, item.value)})
        if item.column in personal
        else item
        for item in evaluation.slices
    ]
    groups = [
        item.model_copy(update={"value": numbered.get(item.value, item.value)})
        if item.attribute in personal
        else item
        for item in evaluation.groups
    ]
    results = [result.model_copy(update={"reason": spoken(result.reason)}) for result in gates.results]
    return (
        evaluation.model_copy(
            update={
                "slices": tuple(slices),
                "groups": tuple(groups),
                "skipped_slices": tuple(map(skipped, evaluation.skipped_slices)),
            }
        ),
        gates.model_copy(update={"results": tuple(results)}),
    )


def standing(gates: GateReport, version: str | None) -> str:
    """What became of the model. It is called a challenger only where every gate passes."""
    if gates.verdict is not Verdict.PASS:
        return "refused" if version is None else f"version {version}, refused"
    return "not registered" if version is None else f"version {version}, challenger"


def summary(gates: GateReport) -> str:
    """The decision in a sentence."""
    if not gates.results:
        return "Refused: no gate was judged, so nothing is decided."
    if gates.verdict is Verdict.PASS:
        return f"Every one of {len(gates.results)} gates passes."
    said = [
        f"{_listed(stopped)} {ending}"
        for verdict, ending in ((Verdict.FAIL, "failed"), (Verdict.INCONCLUSIVE, "could not be decided"))
        if (stopped := [result for result in gates.results if result.verdict is verdict])
    ]
    return f"Refused: {'; '.join(said)}. Only a challenger that passes every gate goes on."


def _listed(results: Sequence[GateResult], most: int = 4) -> str:
    names = [result.gate for result in results[:most]]
    if len(results) > most:
        names.append(f"{len(results) - most} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def spread(folds: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over folds; NaN where there are too few."""
    mean = statistics.fmean(folds) if folds else math.nan
    return mean, statistics.stdev(folds) if len(folds) > 1 and math.isfinite(mean) else math.nan


@dataclass(frozen=True)
class _Tile:
    """One figure of the headline."""

    name: str
    value: str
    note: str


def _tiles(
    spec: ModelSpec, evaluation: Evaluation, gates: GateReport, trained: TrainedModel
) -> tuple[_Tile, ...]:
    passed = sum(result.verdict is Verdict.PASS for result in gates.results)
    tiles = [_Tile("Gates passed", f"{passed} of {len(gates.results)}", f"{trained.candidate} wins")]
    ranked = (spec.training.metric, *evaluation.metrics)
    chosen = next((name for name in ranked if name in evaluation.metrics), None)
    if chosen is not None:
        found = evaluation.metrics[chosen]
        tiles.append(_Tile(f"{label(chosen)}, holdout", number(found.value), interval(found)))
    tiles.append(_against_champion(evaluation, chosen))
    tiles.append(
        _Tile("Rows", count(trained.training_rows), f"trained on; {count(evaluation.rows)} held out")
    )
    return tuple(tiles)


def _against_champion(evaluation: Evaluation, metric: str | None) -> _Tile:
    compared = evaluation.comparison
    name = "Against the champion"
    if compared is None:
        first = evaluation.first_version
        return _Tile(
            name, "first version" if first else MISSING, "nobody to compare with" if first else "not scored"
        )
    pair = compared.metrics.get(metric) if metric else None
    if pair is None or compared.problem:
        return _Tile(name, MISSING, "the champion was not scored")
    better = pair.improvement
    return _Tile(name, signed(better.value), f"{label(str(metric))} over version {compared.version}")


def _balance(parts: Mapping[str, Part]) -> dict[str, tuple[float | None, ...]]:
    """The share of each class (or mean and deviation of the target) in each part, in the order of the parts."""
    names = dict.fromkeys(name for part in parts.values() for name in part.balance)
    return {name: tuple(part.balance.get(name) for part in parts.values()) for name in names}


def _snapshots(tables: Sequence[TableResult], parts: Parts) -> tuple[Snapshot, ...]:
    """Every snapshot the training rests on, in the order they were made."""
    found = [item for table in tables for item in (table.bronze, table.silver) if item is not None]
    found += [
        part.snapshot for part in (parts.development.train, parts.development.validation, parts.holdout)
    ]
    return tuple(found)


def data_uri(image: bytes, kind: str) -> str:
    """An image (png, svg+xml) as an address that holds all of it."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _images(spec: ModelSpec, plots: Mapping[str, bytes]) -> dict[str, str]:
    """Each plot as a data URI; a plot that names personal values is left out."""
    personal = _personal(spec.feature_contract) & set(spec.evaluation.slices)
    return {
        name: data_uri(image, "png") for name, image in plots.items() if not (personal and name == "slices")
    }
