"""Monitor: one window of live traffic, from each side, as rows of metrics with verdicts; and what follows from them.

Each part reads what it needs and gives rows back. They are put into the table together, so that a window stands there
whole or not at all, and one that is looked at again replaces itself.
"""

from collections.abc import Sequence
from datetime import UTC
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from deployments.errors import ContenderError
from deployments.gates import FairnessGate
from deployments.measures import TaskKind
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform
from tasks.arrow_types import arrow_type
from tasks.champion import load_version
from tasks.coercion import coerce
from tasks.evaluate import Evaluation
from tasks.frame import target_values
from tasks.live_inputs import input_rows, look_at_inputs
from tasks.live_window import (
    PREDICTION,
    PREDICTION_NUMBER,
    SCORE,
    Joined,
    answered_batches,
    columns_of,
    inputs_frame,
    join_labels,
    labelled_inputs,
    received_batches,
)
from tasks.monitor_reference import known_categories, training_reference
from tasks.monitor_window import Watched
from tasks.monitoring_alerts import alerts_of
from tasks.monitoring_record import (
    Kind,
    MetricRow,
    MonitoringTable,
    MonitorOutcome,
    verdict_of,
)
from tasks.monitoring_series import log_window
from tasks.quality import (
    Looked,
    estimated_rows,
    fairness_rows,
    importance_rows,
    quality_rows,
    slice_rows,
)
from tasks.sampling import sample
from tasks.service_levels import counted_within, service_rows
from tasks.tracking import Tracking
from tasks.verdict import Verdict

__all__ = [
    "concluded",
    "drift_part",
    "drift_report",
    "inputs_part",
    "quality_part",
    "report_name",
    "reported",
    "service_part",
]

_IMPORTANCE_ROWS = 1000


def report_name(watched: Watched) -> str:
    """What the report of a window is called: by its end and length in seconds, and the version."""
    start, end = (one.astimezone(UTC) for one in (watched.window.start, watched.window.end))
    return f"monitoring-v{watched.version}-{start:%Y%m%dT%H%M%S.%f}-{end:%Y%m%dT%H%M%S.%f}".replace(
        ".000000", ""
    )


def drift_report(platform: Platform, watched: Watched) -> Path:
    """Where the drift report of a window lies, beside its page."""
    folder = platform.folder("reports") / watched.model
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{report_name(watched)}-drift.html"


# The parts --------------------------------------------------------------------------------------------------


def service_part(loaded: LoadedSpec, watched: Watched) -> list[MetricRow]:
    """Service levels of the endpoint, and the figures of each version that answered callers."""
    lost, unanswered = (
        counted_within(counts, watched.window)
        for counts in ((watched.log.lost, watched.log.unanswered) if watched.log is not None else ((), ()))
    )
    return service_rows(
        loaded.spec.monitoring.service,
        watched.calls,
        watched.window,
        watched.version,
        lost=lost,
        unanswered=unanswered,
    )


def inputs_part(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:
    """Live inputs against the feature contract that the version was trained under."""
    plan = loaded.spec.monitoring
    try:
        known = known_categories(platform, watched.ref, watched.spec)
    except ContenderError:
        # The contract is checked all the same; which categories are new is then not told.
        known = {}
    batches = (
        received_batches(
            watched.log,
            watched.window,
            watched.version,
            columns_of(watched.log, watched.spec.features.columns),
        )
        if watched.log is not None and watched.judged is not None
        else iter(())
    )
    found = look_at_inputs(watched.spec, batches, known)
    return input_rows(
        found,
        watched.spec,
        watched.window,
        watched.version,
        allowed=plan.invalid_share,
        minimum=plan.drift.minimum_rows,
    )


def drift_part(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:
    """Inputs against training data, answers against those about the holdout, and the quality that scores let expect.

    Raises:
        ContenderError: the model's file is not what was recorded.
    """
    from tasks.drift import drift_rows

    plan, spec, seed = loaded.spec.monitoring.drift, watched.spec, watched.spec.training.seed
    live = _drawn(watched, plan.sample_rows, seed)
    answered = watched.judged.rows if watched.judged else 0
    if live.num_rows < plan.minimum_rows:
        reason = f"{answered:,} rows in the window; {plan.minimum_rows:,} are needed"
        return _inconclusive(watched, reason, answered)
    try:
        reference = training_reference(platform, watched.ref, spec, rows=plan.sample_rows, seed=seed)
    except ContenderError as error:
        return _inconclusive(watched, str(error), answered)
    rows = drift_rows(
        plan,
        spec,
        version=watched.version,
        window=watched.window,
        reference=reference.frame,
        live=inputs_frame(live, spec).assign(**{PREDICTION: _said(live, spec.target.kind)}),
        reference_rows=reference.rows,
        live_rows=answered,
        html=drift_report(platform, watched),
        unlearned=reference.unlearned,
    )
    if reference.unlearned is None:
        reason = (
            f"what version {watched.version} says of rows that it did not learn was not kept, and what it says of "
            "those that it did is no measure"
        )
        rows += _inconclusive(watched, reason, answered, ("prediction_drift",))
    return [*rows, *estimated_rows(_looked(loaded, watched), live, answered, _evaluation(platform, watched))]


def quality_part(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:
    """Labelled rows against the champion's holdout: metrics, slices, fairness and what the model goes by.

    Raises:
        ContenderError: the model's file is not what was recorded.
    """
    spec, looked = watched.spec, _looked(loaded, watched)
    evaluation = _evaluation(platform, watched)
    named = dict.fromkeys((*spec.evaluation.slices, *_attributes(watched)))
    shown = [name for name in named if name in spec.features.columns]
    columns = columns_of(watched.log, shown) if watched.log is not None else ()
    if watched.log is None or watched.judged is None:
        joined = _nothing_joined()
    else:
        joined = join_labels(platform, watched.log, watched.window, watched.version, watched.model, columns)
    rows = quality_rows(looked, joined, evaluation.metrics if evaluation else {})
    slices = [name for name in columns if name in spec.evaluation.slices]
    rows += slice_rows(looked, joined, slices)
    rows += fairness_rows(looked, joined, columns)
    if evaluation is not None and joined.rows.num_rows >= looked.plan.minimum_labels:
        rows += _importance(platform, watched, looked, joined, evaluation)
    return rows


def _importance(
    platform: Platform, watched: Watched, looked: Looked, joined: Joined, evaluation: Evaluation
) -> list[MetricRow]:
    """Permutation importance on a seeded sample of labelled rows, against that on the validation part of training."""
    from tasks.probe import importance

    assert watched.log is not None
    spec = watched.spec
    drawn = labelled_inputs(
        platform,
        watched.log,
        watched.window,
        watched.version,
        joined,
        spec.features.columns,
        rows=_IMPORTANCE_ROWS,
        seed=spec.training.seed,
    )
    drawn = drawn.filter(_complete(drawn, watched))
    if drawn.num_rows < looked.plan.minimum_labels:
        return []
    truth = target_values(_typed(drawn["label"], spec), spec)
    inputs = inputs_frame(drawn.drop_columns(["label"]), spec)
    live = importance(load_version(platform, watched.ref), inputs, truth, spec, rows=_IMPORTANCE_ROWS)
    return importance_rows(looked, live, evaluation.importance, drawn.num_rows)


def _typed(labels: pa.ChunkedArray, spec: ModelSpec) -> pa.Table:
    """Labels in the type that the target has in training."""
    target, contract = spec.target.column, spec.training_contract
    typed, _ = coerce(pl.DataFrame({target: pl.Series(labels)}), contract)
    return pa.table({target: typed[target].to_arrow().cast(arrow_type(contract.columns[target].type))})


def _complete(rows: pa.Table, watched: Watched) -> pa.Array:
    """Which rows have all that a model cannot do without."""
    declared = watched.spec.feature_contract.columns
    whole = np.ones(rows.num_rows, dtype=bool)
    for name in watched.spec.features.columns:
        if not declared[name].nullable:
            whole &= rows.column(name).is_valid().to_numpy()
    return pa.array(whole)


def _drawn(watched: Watched, rows: int, seed: int) -> pa.Table:
    """Answered rows of the window, at most so many, drawn by a seed."""
    if watched.log is None or watched.judged is None:
        return pa.table({})
    features = watched.spec.features.columns
    return sample(answered_batches(watched.log, watched.window, watched.version, features), rows, seed)


def _said(rows: pa.Table, kind: TaskKind) -> np.ndarray:
    column = {TaskKind.BINARY: SCORE, TaskKind.MULTICLASS: PREDICTION, TaskKind.REGRESSION: PREDICTION_NUMBER}
    values = rows.column(column[kind]).to_pandas()
    return np.asarray(values, dtype=object if kind is TaskKind.MULTICLASS else np.float64)


def _inconclusive(
    watched: Watched, reason: str, rows: int, kinds: tuple[Kind, ...] = ("drift", "prediction_drift")
) -> list[MetricRow]:
    return [
        MetricRow(
            version=watched.version,
            window=watched.window,
            kind=kind,
            metric="drifted_columns",
            verdict=Verdict.INCONCLUSIVE,
            rows=rows,
            reason=reason,
        )
        for kind in kinds
    ]


def _looked(loaded: LoadedSpec, watched: Watched) -> Looked:
    return Looked(watched.version, watched.window, loaded.spec.monitoring.quality, watched.spec)


def _evaluation(platform: Platform, watched: Watched) -> Evaluation | None:
    return Tracking(platform).document(watched.ref.run_id, "evaluation", Evaluation)


def _attributes(watched: Watched) -> list[str]:
    return [gate.attribute for gate in watched.spec.gates if isinstance(gate, FairnessGate)]


# What follows -----------------------------------------------------------------------------------------------


def concluded(
    loaded: LoadedSpec, platform: Platform, watched: Watched, rows: Sequence[MetricRow]
) -> MonitorOutcome:
    """Keep the rows of a window, in the table and with the version's run, write its page, and say what follows.

    Raises:
        BusyError: somebody else is writing rows of this model.
    """
    MonitoringTable(platform, watched.model).put(rows)
    return reported(loaded, platform, watched, rows)


def reported(
    loaded: LoadedSpec, platform: Platform, watched: Watched, rows: Sequence[MetricRow]
) -> MonitorOutcome:
    """What follows from the rows of a window, with its page and its figures beside the version's run.

    The rows need not be in the table yet: those that stand there for the same window and version count for nothing.
    """
    from tasks.conclude import write_page
    from tasks.drift_ack import acknowledged
    from tasks.monitoring_report import monitoring_page

    standing = MonitoringTable(platform, watched.model).beside(rows)
    alerts = acknowledged(
        platform, watched.model, alerts_of(loaded.spec.monitoring, rows, standing), watched.window
    )
    problems = [
        *watched.problems,
        *log_window(platform, watched.ref, loaded.spec.monitoring, watched.window, rows),
    ]
    drift = drift_report(platform, watched)
    outcome = MonitorOutcome(
        model=watched.model,
        environment=platform.environment.name,
        name=watched.ref.name,
        version=watched.version,
        window=watched.window,
        requests=watched.judged.requests if watched.judged else 0,
        rows=watched.judged.rows if watched.judged else 0,
        labelled=next((row.rows for row in rows if row.kind == "quality" and row.metric != "coverage"), 0),
        verdicts=verdicts_of(rows, watched.version),
        alerts=alerts,
        report="",
        problems=tuple(problems),
    )
    page = monitoring_page(outcome, rows, standing, drift=drift.name if drift.exists() else None)
    path = write_page(platform, watched.model, report_name(watched), page)
    return outcome.model_copy(update={"report": path})


def verdicts_of(rows: Sequence[MetricRow], version: str) -> dict[str, Verdict]:
    """One verdict for each kind that was judged."""
    kinds = dict.fromkeys(row.kind for row in rows if row.verdict is not None and row.version == version)
    return {
        kind: verdict_of(row for row in rows if row.kind == kind and row.version == version) for kind in kinds
    }


def _nothing_joined() -> Joined:
    texts = ("request_id", PREDICTION, "label", "entity")
    columns = {name: pa.array([], pa.string()) for name in texts}
    numbers = {PREDICTION_NUMBER: pa.array([], pa.float64()), SCORE: pa.array([], pa.float64())}
    return Joined(0, pa.table(columns | numbers))
