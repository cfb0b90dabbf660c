"""From the rows of a window, and of those before it, to what a person or an automation should act on."""

from collections.abc import Sequence

from deployments.monitoring import AlertKind, MonitoringSpec
from tasks.drift_decision import alert_of
from tasks.monitoring_record import Alert, Kind, MetricRow, Window
from tasks.verdict import Verdict

__all__ = ["alerts_of", "told_apart"]

_EVENTS: dict[tuple[Kind, ...], tuple[AlertKind, str]] = {
    ("quality", "fairness"): ("quality", "contender.quality.degraded"),
    ("service",): ("service", "contender.slo.breached"),
    ("inputs",): ("inputs", "contender.inputs.invalid"),
    ("budget",): ("budget", "contender.budget.breached"),
}


def alerts_of(
    plan: MonitoringSpec, rows: Sequence[MetricRow], standing: Sequence[MetricRow]
) -> tuple[Alert, ...]:
    """The alerts of the window that `rows` are of.

    Drift asks for several windows, the others are alerts as soon as one fails. A window that is inconclusive gives
    rise to none: what is not known is said by its verdict.

    Args:
        plan: how many windows drift must show in.
        rows: of one window.
        standing: the rows of all windows, this one among them or not.
    """
    alerts = [
        alert
        for kind in ("drift", "prediction_drift")
        if (alert := alert_of(plan.drift, _history(kind, rows, standing))) is not None
    ]
    for kinds, (about, event) in _EVENTS.items():
        failed = [row for row in rows if row.kind in kinds and row.verdict is Verdict.FAIL]
        if failed:
            alerts.append(
                Alert(
                    kind=about,
                    event=event,
                    reason="; ".join(f"{_named(row)}: {row.reason}" for row in failed),
                    subjects=tuple(dict.fromkeys(_named(row) for row in failed)),
                )
            )
    return tuple(alerts)


def _named(row: MetricRow) -> str:
    return f"{row.metric} {row.subject}".strip()


def _history(kind: str, rows: Sequence[MetricRow], standing: Sequence[MetricRow]) -> list[list[MetricRow]]:
    """The windows of one kind that ended before this one did, the oldest first, and this one last."""
    now = [row for row in rows if row.kind == kind]
    if not now:
        return []
    window, version = now[0].window, now[0].version
    before: dict[Window, list[MetricRow]] = {}
    for row in standing:
        earlier = row.window != window and row.window.end <= window.end
        if row.kind == kind and row.version == version and earlier:
            before.setdefault(row.window, []).append(row)
    ordered = sorted(before.items(), key=lambda item: (item[0].end, item[0].start))
    return [*(found for _, found in ordered), now]


def told_apart(verdicts: dict[str, Verdict]) -> str:
    """What drift and quality say together, in a sentence: either comes without the other."""
    quality = verdicts.get("quality", Verdict.INCONCLUSIVE)
    drift = [verdicts.get(kind, Verdict.INCONCLUSIVE) for kind in ("drift", "prediction_drift")]
    drifted = Verdict.FAIL in drift
    if quality is Verdict.FAIL and drifted:
        return (
            "Quality fell and the data drifted: the model is asked about cases that it did not learn, or no longer "
            "as they were."
        )
    if quality is Verdict.FAIL and all(one is Verdict.PASS for one in drift):
        return (
            "Quality fell and the data looks as in training: the relation of inputs and outcome has changed, or "
            "labels or features are made differently."
        )
    if quality is Verdict.FAIL:
        return "Quality fell; whether the data drifted cannot be told."
    if quality is Verdict.PASS:
        return (
            "The data drifted and quality held: the model copes with it so far."
            if drifted
            else "Quality is what it was on the holdout."
            if Verdict.INCONCLUSIVE in drift
            else "Quality is what it was on the holdout, and the data looks as in training."
        )
    if drifted:
        return (
            "The data drifted, and what that did to quality is not known, since there are too few labels; "
            + (
                "predictions drifted, too."
                if drift[1] is Verdict.FAIL
                else "predictions did not."
                if drift[1] is Verdict.PASS
                else "of predictions nothing can be told."
            )
        )
    if all(one is Verdict.PASS for one in drift):
        return "The data looks as in training; quality is not known, since there are too few labels."
    return "There is too little to tell drift or quality."
