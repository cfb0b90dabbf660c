"""Gates: pure decisions on what evaluation measured. Whatever is missing, NaN or too small promotes nothing."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from deployments.declared import Declared
from deployments.gates import (
    CalibrationGate,
    ChampionGate,
    FairnessGate,
    Gate,
    LatencyGate,
    LeakageGate,
    MetricGate,
    OverfitGate,
    RobustnessGate,
    SizeGate,
)
from deployments.measures import MEASURES
from tasks.evaluate import Evaluation, Group
from tasks.verdict import Verdict, overall


class GateResult(Declared):
    """One gate's decision: the value it looked at, the threshold it was asked against, and why."""

    gate: str
    verdict: Verdict
    value: float | None
    threshold: float | None
    reason: str


class GateReport(Declared):
    """All gates of one challenger."""

    model_digest: str
    champion: str | None
    results: tuple[GateResult, ...]

    @property
    def verdict(self) -> Verdict:
        """Pass only if every gate passes."""
        return overall([result.verdict for result in self.results])

    @property
    def digest(self) -> str:
        """SHA-256 of the report; what an approval is bound to."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def plus(self, *results: GateResult) -> "GateReport":
        """The report with further results."""
        return self.model_copy(update={"results": (*self.results, *results)})


def judge(gates: Sequence[Gate], measured: Evaluation) -> GateReport:
    """Decide every declared gate.

    A gate that crashes is a defect in the gate; its exception is not caught, and nothing is promoted.
    """
    results = tuple(_decide(gate, measured) for gate in gates)
    return GateReport(model_digest=measured.model_digest, champion=measured.champion, results=results)


def _decide(gate: Gate, measured: Evaluation) -> GateResult:
    decide: Callable[[Any, Evaluation], GateResult] = _DECISIONS[type(gate)]
    return decide(gate, measured)


def _inconclusive(name: str, reason: str, threshold: float | None = None) -> GateResult:
    return GateResult(gate=name, verdict=Verdict.INCONCLUSIVE, value=None, threshold=threshold, reason=reason)


def at_most(name: str, value: float | None, threshold: float, reason: str = "") -> GateResult:
    """Pass where `value` is at most `threshold`; inconclusive where there is no finite value."""
    if value is None or not math.isfinite(value):
        return _inconclusive(name, reason or "the value is missing", threshold)
    verdict = Verdict.PASS if value <= threshold else Verdict.FAIL
    return GateResult(gate=name, verdict=verdict, value=value, threshold=threshold, reason=reason)


def at_least(name: str, value: float | None, threshold: float, reason: str = "") -> GateResult:
    """Pass where `value` is at least `threshold`; inconclusive where there is no finite value."""
    if value is None or not math.isfinite(value):
        return _inconclusive(name, reason or "the value is missing", threshold)
    verdict = Verdict.PASS if value >= threshold else Verdict.FAIL
    return GateResult(gate=name, verdict=verdict, value=value, threshold=threshold, reason=reason)


def _metric(gate: MetricGate, measured: Evaluation) -> GateResult:
    name = f"metric {gate.metric}"
    found = measured.metrics.get(gate.metric)
    if found is None:
        return _inconclusive(
            name, f"{gate.metric} was not measured", gate.min if gate.min is not None else gate.max
        )
    interval = f"holdout {found.value:.4f} [{found.low:.4f}, {found.high:.4f}], {found.rows:,} rows"
    if gate.min is not None:
        return at_least(name, found.low if gate.on == "bound" else found.value, gate.min, interval)
    assert gate.max is not None
    return at_most(name, found.high if gate.on == "bound" else found.value, gate.max, interval)


def _champion(gate: ChampionGate, measured: Evaluation) -> GateResult:
    name = f"champion {gate.metric}"
    margin = gate.margin if gate.test == "non_inferiority" else 0.0
    threshold = 0.0 - margin
    compared = measured.comparison
    if compared is None:
        if measured.first_version and measured.champion is None:
            return GateResult(
                gate=name,
                verdict=Verdict.PASS,
                value=None,
                threshold=None,
                reason="first version: there is no champion to compare with",
            )
        return _inconclusive(name, "the champion was not scored", threshold)
    if compared.problem:
        return _inconclusive(name, compared.problem, threshold)
    if compared.rows < gate.min_rows:
        return _inconclusive(
            name,
            f"{compared.rows:,} holdout rows are left that champion version {compared.version} was not trained on "
            f"({compared.excluded:,} excluded); {gate.min_rows:,} are needed",
            threshold,
        )
    pair = compared.metrics.get(gate.metric)
    if pair is None:
        return _inconclusive(name, f"{gate.metric} of the champion was not measured", threshold)
    found = pair.improvement
    if not all(math.isfinite(value) for value in (found.value, found.low, found.high)):
        return _inconclusive(name, f"{gate.metric} is not defined on the compared rows", threshold)
    reason = (
        f"{gate.test.replace('_', '-')}: {pair.challenger:.4f} against {pair.champion:.4f} "
        f"of version {compared.version} on {compared.rows:,} rows; improvement in [{found.low:.4f}, {found.high:.4f}]"
    )
    passed = found.low > threshold or (gate.test == "non_inferiority" and found.low >= threshold)
    failed = found.high < threshold
    verdict = Verdict.PASS if passed else Verdict.FAIL if failed else Verdict.INCONCLUSIVE
    return GateResult(gate=name, verdict=verdict, value=found.low, threshold=threshold, reason=reason)


def _fairness(gate: FairnessGate, measured: Evaluation) -> GateResult:
    name = f"fairness {gate.measure} {gate.attribute}" + (f" {gate.metric}" if gate.metric else "")
    threshold = gate.min if gate.min is not None else gate.max
    assert threshold is not None
    groups = [group for group in measured.groups if group.attribute == gate.attribute]
    if len(groups) < 2:
        return _inconclusive(name, f"fewer than two groups of {gate.attribute} were measured", threshold)
    small = [f"{group.value} ({group.rows})" for group in groups if group.rows < gate.min_group_rows]
    if small:
        return _inconclusive(
            name, f"groups with fewer than {gate.min_group_rows} rows: {', '.join(small)}", threshold
        )
    if gate.measure == "group_floor":
        return _group_floor(gate, name, groups)
    if gate.measure == "demographic_parity_difference":
        spread, who = _spread(groups, lambda group: group.selection_rate)
        return at_most(name, spread, threshold, f"rate of positive answers, {who}")
    lacking = [group.value for group in groups if not group.positives or not group.negatives]
    if lacking:
        return _inconclusive(name, f"groups without both outcomes: {', '.join(lacking)}", threshold)
    spreads = [
        _spread(groups, lambda group: group.true_positive_rate),
        _spread(groups, lambda group: group.false_positive_rate),
    ]
    spread, who = max(spreads, key=lambda pair: (math.isnan(pair[0]), pair[0]))
    return at_most(
        name, spread, threshold, f"the larger of the differences in true and false positive rate, {who}"
    )


def _spread(groups: Sequence[Group], rate: Callable[[Group], float]) -> tuple[float, str]:
    rates = [rate(group) for group in groups]
    if not all(math.isfinite(value) for value in rates):
        return math.nan, "which is not defined in every group"
    low, high = min(groups, key=rate), max(groups, key=rate)
    return rate(high) - rate(low), f"{rate(low):.3f} ({low.value}) to {rate(high):.3f} ({high.value})"


def _group_floor(gate: FairnessGate, name: str, groups: Sequence[Group]) -> GateResult:
    assert gate.metric is not None
    values = {group.value: group.metrics.get(gate.metric, math.nan) for group in groups}
    unknown = [value for value, found in values.items() if not math.isfinite(found)]
    threshold = gate.min if gate.min is not None else gate.max
    assert threshold is not None
    if unknown:
        return _inconclusive(name, f"{gate.metric} is not defined for {', '.join(unknown)}", threshold)
    higher = MEASURES[gate.metric].higher_is_better
    worst = (min if higher else max)(values, key=lambda value: values[value])
    reason = f"the worst group is {worst}"
    return (at_least if higher else at_most)(name, values[worst], threshold, reason)


def _latency(gate: LatencyGate, measured: Evaluation) -> GateResult:
    found = measured.latency
    reason = (
        f"one row, {found.requests} requests, p50 {found.p50_milliseconds:.1f} ms"
        if found
        else "not measured"
    )
    return at_most("latency", found.p95_milliseconds if found else None, gate.max_p95_milliseconds, reason)


def _robustness(gate: RobustnessGate, measured: Evaluation) -> GateResult:
    crashed = [swing for swing in measured.swings if swing.error]
    if crashed:
        return GateResult(
            gate="robustness",
            verdict=Verdict.FAIL,
            value=None,
            threshold=gate.max_swing,
            reason=f"{crashed[0].perturbation}: the model failed ({crashed[0].error})",
        )
    if not measured.swings or not all(math.isfinite(swing.swing) for swing in measured.swings):
        return _inconclusive("robustness", "not measured", gate.max_swing)
    worst = max(measured.swings, key=lambda swing: swing.swing)
    return at_most(
        "robustness", worst.swing, gate.max_swing, f"the largest swing is under {worst.perturbation}"
    )


def _calibration(gate: CalibrationGate, measured: Evaluation) -> GateResult:
    found = measured.calibration
    return at_most(
        "calibration",
        found.error if found else None,
        gate.max_error,
        "expected calibration error" if found else "not measured",
    )


def _leakage(gate: LeakageGate, measured: Evaluation) -> GateResult:
    if not measured.single_features:
        return _inconclusive("leakage", "not measured", gate.max_score)
    unknown = [item.feature for item in measured.single_features if not math.isfinite(item.score)]
    if unknown:
        return _inconclusive("leakage", f"no score for {', '.join(unknown)}", gate.max_score)
    best = max(measured.single_features, key=lambda item: item.score)
    return at_most(
        "leakage", best.score, gate.max_score, f"the strongest feature by itself is {best.feature}"
    )


def _overfit(gate: OverfitGate, measured: Evaluation) -> GateResult:
    name = f"overfit {gate.metric}"
    train, held = measured.train_metrics.get(gate.metric), measured.metrics.get(gate.metric)
    if train is None or held is None:
        return _inconclusive(name, f"{gate.metric} was not measured on both parts", gate.max_gap)
    gap = MEASURES[gate.metric].improvement(train, held.value)
    return at_most(name, gap, gate.max_gap, f"trained on {train:.4f}, holdout {held.value:.4f}")


def _size(gate: SizeGate, measured: Evaluation) -> GateResult:
    return at_most("size", measured.megabytes, gate.max_megabytes, "megabytes of the saved model")


_DECISIONS: dict[type[Any], Callable[[Any, Evaluation], GateResult]] = {
    MetricGate: _metric,
    ChampionGate: _champion,
    FairnessGate: _fairness,
    LatencyGate: _latency,
    RobustnessGate: _robustness,
    CalibrationGate: _calibration,
    LeakageGate: _leakage,
    OverfitGate: _overfit,
    SizeGate: _size,
}
