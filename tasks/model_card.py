"""Model card: one version in a page of Markdown, after Mitchell et al., "Model Cards for Model Reporting" (2019).

It becomes the version's description in the registry, which has room for 5,000 characters: long tables are cut, and
say so.
"""

import math
import re
from collections.abc import Iterable, Sequence

from deployments.measures import MEASURES, TaskKind
from deployments.spec import LoadedSpec, ModelSpec
from tasks.evaluate import Evaluation, Group, SliceResult
from tasks.gate import GateReport
from tasks.report import (
    WORST_FIRST,
    count,
    declared,
    interval,
    label,
    number,
    percent,
    settings,
    signed,
    summary,
    without_personal_data,
)
from tasks.split import Parts
from tasks.train import TrainedModel, TrainingRun
from tasks.verdict import Verdict

MOST_CHARACTERS = 5_000
"""The longest description that MLflow's SQL stores keep of a version."""

_TABLE_ROWS = (12, 8, 5, 3, 1)
_CUT = "\n\n*Cut here; the report has the rest.*\n"
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile(r"[\\`*\[\]<>|#~&]|(?<!\w)_|_(?!\w)")


def model_card(
    loaded: LoadedSpec,
    trained: TrainedModel,
    evaluation: Evaluation,
    gates: GateReport,
    parts: Parts,
    run: TrainingRun,
) -> str:
    """The card, in at most `MOST_CHARACTERS`: tables get shorter until it fits, and keep their worst rows."""
    shown, decided = without_personal_data(loaded.spec, evaluation, gates)
    card = ""
    for most in _TABLE_ROWS:
        sections = (
            _headline(loaded, trained, gates),
            _details(trained, shown),
            _intended_use(loaded.spec),
            _data(loaded.spec, parts, run, most),
            _metrics(loaded.spec, shown, most),
            _champion(shown, most),
            _slices(shown.slices, most),
            _groups(loaded.spec, shown.groups, most),
            _gates(decided, most),
            _caveats(loaded.spec),
            _again(trained, gates, run),
        )
        card = "\n\n".join(section for section in sections if section) + "\n"
        if len(card) <= MOST_CHARACTERS:
            return card
    kept = card[: MOST_CHARACTERS - len(_CUT)]
    return kept[: kept.rfind("\n")] + _CUT


def plain(text: object) -> str:
    """Text that Markdown takes literally, on one line.

    Not every renderer takes a backslash before an angle bracket, so those are entities.
    """

    def literal(found: re.Match[str]) -> str:
        return _ENTITIES.get(found.group(), f"\\{found.group()}")

    return _SPECIAL.sub(literal, " ".join(str(text).split()))


def _table(header: str, rows: Iterable[Sequence[str]], most: int) -> str:
    """A table of at most `most` rows; `header` is its columns, those with a colon at the end right-aligned."""
    names = header.split(" | ")
    every = [f"| {' | '.join(cells)} |" for cells in rows]
    rule = ["---:" if name.endswith(":") else "---" for name in names]
    shown = [f"| {' | '.join(name.rstrip(':') for name in names)} |", f"|{'|'.join(rule)}|", *every[:most]]
    more = f"\n\nand {len(every) - most} more in the report" if len(every) > most else ""
    return "\n".join(shown) + more


def _headline(loaded: LoadedSpec, trained: TrainedModel, gates: GateReport) -> str:
    return f"# {plain(loaded.name)}: {plain(trained.candidate)}\n\n**{plain(summary(gates))}**"


def _details(trained: TrainedModel, evaluation: Evaluation) -> str:
    lines = [
        f"- Estimator: `{trained.estimator}`",
        f"- Parameters: {plain(settings(trained.params))}",
        f"- Trained on {count(trained.training_rows)} rows",
    ]
    if trained.threshold is not None:
        lines.append(f"- Answers yes from a score of {number(trained.threshold)}")
    if evaluation.megabytes is not None:
        lines.append(f"- Size: {number(evaluation.megabytes)} MB")
    if evaluation.latency is not None:
        lines.append(f"- One row: p95 {number(evaluation.latency.p95_milliseconds)} ms")
    return "\n".join(["## Model details\n", *lines])


def _intended_use(spec: ModelSpec) -> str:
    governance, target = spec.governance, spec.target
    positive = f", positive {plain(target.positive)}" if target.positive is not None else ""
    note = f". {plain(governance.risk_note)}" if governance.risk_note else ""
    return "\n".join(
        [
            "## Intended use\n",
            f"{plain(governance.purpose)}\n",
            f"- Owner: {plain(governance.owner)}",
            f"- Risk: {governance.risk}{note}",
            f"- Predicts: {plain(target.column)} ({target.kind}{positive})",
        ]
    )


def _data(spec: ModelSpec, parts: Parts, run: TrainingRun, most: int) -> str:
    named = (
        ("train", parts.development.train),
        ("validation", parts.development.validation),
        ("holdout", parts.holdout),
    )
    spoken = number if spec.target.kind is TaskKind.REGRESSION else percent
    rows = [
        (
            name,
            count(part.snapshot.rows),
            plain(f"{part.snapshot.table} v{part.snapshot.version}"),
            _some([f"{plain(value)} {spoken(share)}" for value, share in part.balance.items()], most),
        )
        for name, part in named
    ]
    by = getattr(spec.split, "column", None)
    how = f"{spec.split.kind} by {plain(by)}" if by else spec.split.kind
    return "\n\n".join(
        [
            f"## Training and evaluation data\n\nAs of {run.as_of:%Y-%m-%d %H:%M} UTC; split: {how}.",
            _table("Part | Rows: | Snapshot | Target", rows, len(rows)),
        ]
    )


def _some(texts: Sequence[str], most: int) -> str:
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


def _metrics(spec: ModelSpec, evaluation: Evaluation, most: int) -> str:
    ordered = sorted(evaluation.metrics.items(), key=lambda item: item[0] != spec.training.metric)
    rows = [
        (
            f"{label(name)} ({_better(name)})",
            number(found.value),
            interval(found),
            number(evaluation.train_metrics.get(name)),
        )
        for name, found in ordered
    ]
    confidence = declared(100 * spec.evaluation.confidence)
    return "\n\n".join(
        [
            f"## Metrics\n\n{count(evaluation.rows)} holdout rows, seen once; {confidence}% bootstrap intervals.",
            _table("Metric | Holdout: | Interval: | Trained on:", rows, max(most, 5)),
        ]
    )


def _better(metric: str) -> str:
    return "higher is better" if MEASURES[metric].higher_is_better else "lower is better"


def _champion(evaluation: Evaluation, most: int) -> str:
    compared, title = evaluation.comparison, "## Against the champion"
    if compared is None and evaluation.first_version:
        return f"{title}\n\nFirst version: there is no champion to compare with."
    if compared is None:
        return f"{title}\n\nThe champion was not scored."
    if compared.problem:
        return f"{title}\n\nNot compared: {plain(compared.problem)}"
    rows = [
        (
            label(name),
            number(pair.challenger),
            number(pair.champion),
            f"{signed(pair.improvement.value)} {interval(pair.improvement)}",
        )
        for name, pair in compared.metrics.items()
    ]
    intro = (
        f"Version {plain(compared.version)} on {count(compared.rows)} holdout rows that it was not trained on; "
        "a positive improvement is for the challenger."
    )
    return f"{title}\n\n{intro}\n\n" + _table("Metric | Challenger: | Champion: | Improvement:", rows, most)


def _slices(slices: Sequence[SliceResult], most: int) -> str:
    """The weakest first: those are what a reader must know of."""
    if not slices:
        return ""
    metric = slices[0].metric
    rows = [
        (
            plain(f"{item.column} = {item.value}"),
            count(item.estimate.rows),
            number(item.estimate.value),
            interval(item.estimate),
        )
        for item in sorted(slices, key=_weakness, reverse=True)
    ]
    return f"## Slices, the weakest first\n\n{_table(f'Slice | Rows: | {label(metric)}: | Interval:', rows, most)}"


def _weakness(item: SliceResult) -> float:
    value = item.estimate.value
    if math.isnan(value):
        return math.inf
    return -value if MEASURES[item.metric].higher_is_better else value


def _groups(spec: ModelSpec, groups: Sequence[Group], most: int) -> str:
    if not groups:
        return ""
    binary = spec.target.kind is TaskKind.BINARY
    rates = " | Selection rate: | True positive rate: | False positive rate:" if binary else ""
    rows = [
        (
            plain(f"{group.attribute} = {group.value}"),
            count(group.rows),
            *(
                (
                    number(group.selection_rate),
                    number(group.true_positive_rate),
                    number(group.false_positive_rate),
                )
                if binary
                else ()
            ),
            ", ".join(f"{label(name)} {number(value)}" for name, value in group.metrics.items()) or "–",
        )
        for group in groups
    ]
    return f"## Groups\n\n{_table(f'Group | Rows:{rates} | Metrics', rows, most)}"


def _gates(gates: GateReport, most: int) -> str:
    ordered = sorted(gates.results, key=lambda item: WORST_FIRST.index(item.verdict))
    stopped = sum(item.verdict is not Verdict.PASS for item in ordered)
    rows = [
        (
            str(item.verdict),
            plain(item.gate),
            number(item.value),
            declared(item.threshold),
            "" if item.verdict is Verdict.PASS else plain(item.reason),
        )
        for item in ordered
    ]
    table = _table("Verdict | Gate | Value: | Threshold: | Why not", rows, max(most, stopped))
    return f"## Gates: {gates.verdict}\n\n{table}"


def _caveats(spec: ModelSpec) -> str:
    if not spec.governance.limits:
        return ""
    return "\n".join(["## Caveats and limits\n", *(f"- {plain(limit)}" for limit in spec.governance.limits)])


def _again(trained: TrainedModel, gates: GateReport, run: TrainingRun) -> str:
    state = " (not committed as it ran)" if run.code.dirty else ""
    return "\n".join(
        [
            "## Reproducibility\n",
            f"- Run `{run.run_id}`, training key `{run.key}`",
            f"- Code `{run.code.commit or 'no commit'}`{state}, sha256 `{run.code.digest}`",
            f"- Model file sha256 `{trained.digest}`",
            f"- Gate report sha256 `{gates.digest}`",
        ]
    )
