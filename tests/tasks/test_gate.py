"""Gates: each passes, fails and refuses to decide; whatever is missing or no number lets nothing through."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import SpecError
from deployments.gates import (
    CalibrationGate,
    ChampionGate,
    FairnessGate,
    LatencyGate,
    LeakageGate,
    MetricGate,
    OverfitGate,
    RobustnessGate,
    SizeGate,
)
from tasks.evaluate import Calibration, Comparison, Evaluation, Group, PairedEstimate
from tasks.gate import _DECISIONS, GateReport, GateResult, judge
from tasks.metrics import Estimate
from tasks.probe import Latency, SingleFeature, Swing
from tasks.verdict import Verdict

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
NAN = math.nan


def about(value, low=None, high=None, rows=1000):
    return Estimate(
        value=value,
        low=value - 0.02 if low is None else low,
        high=value + 0.02 if high is None else high,
        rows=rows,
    )


def evaluated(**measured):
    """An evaluation in which nothing was measured but this."""
    nothing = {
        "model_digest": "d" * 64,
        "first_version": False,
        "champion": "3",
        "rows": 1000,
        "metrics": {},
        "train_metrics": {},
    }
    return Evaluation(**nothing | measured)


def compared(value, low, high, rows=1000, metric="roc_auc", problem=""):
    pair = PairedEstimate(challenger=0.8 + value, champion=0.8, improvement=about(value, low, high))
    return Comparison(version="3", rows=rows, excluded=0, metrics={metric: pair}, problem=problem)


def group(value, rows=100, selection=0.5, true=0.5, false=0.5, positives=50, metric=0.9):
    return Group(
        attribute="sex",
        value=value,
        rows=rows,
        selection_rate=selection,
        true_positive_rate=true,
        false_positive_rate=false,
        positives=positives,
        negatives=rows - positives,
        metrics={"roc_auc": metric, "brier": 1 - metric},
    )


def verdict_of(gate, measured):
    (result,) = judge([gate], measured).results
    return result.verdict


PARITY = FairnessGate(attribute="sex", measure="demographic_parity_difference", max=0.1)
ODDS = FairnessGate(attribute="sex", measure="equalized_odds_difference", max=0.1)
FLOOR = FairnessGate(attribute="sex", measure="group_floor", metric="roc_auc", min=0.8)
CEILING = FairnessGate(attribute="sex", measure="group_floor", metric="brier", max=0.2)
AUC, BRIER = MetricGate(metric="roc_auc", min=0.8), MetricGate(metric="brier", max=0.2)
AUC_BOUND = MetricGate(metric="roc_auc", min=0.8, on="bound")
BRIER_BOUND = MetricGate(metric="brier", max=0.2, on="bound")
NOT_WORSE = ChampionGate(metric="roc_auc", margin=0.01)
BETTER = ChampionGate(metric="roc_auc", test="superiority", margin=0.01)


def latency(p95):
    return evaluated(latency=Latency(requests=200, p50_milliseconds=1.0, p95_milliseconds=p95))


def swings(*values, error=""):
    return evaluated(swings=tuple(Swing(perturbation="noise", swing=value, error=error) for value in values))


def features(*scores):
    return evaluated(single_features=tuple(SingleFeature(feature="x", score=score) for score in scores))


CASES = [
    (AUC, evaluated(metrics={"roc_auc": about(0.8)}), PASS),
    (AUC, evaluated(metrics={"roc_auc": about(0.79)}), FAIL),
    (AUC, evaluated(metrics={"roc_auc": about(NAN)}), INCONCLUSIVE),
    (AUC, evaluated(metrics={"roc_auc": about(math.inf)}), INCONCLUSIVE),
    (AUC, evaluated(metrics={"accuracy": about(0.99)}), INCONCLUSIVE),
    (AUC_BOUND, evaluated(metrics={"roc_auc": about(0.83, low=0.81)}), PASS),
    (AUC_BOUND, evaluated(metrics={"roc_auc": about(0.83, low=0.79)}), FAIL),
    (AUC_BOUND, evaluated(metrics={"roc_auc": about(0.83, low=NAN)}), INCONCLUSIVE),
    (BRIER, evaluated(metrics={"brier": about(0.2)}), PASS),
    (BRIER, evaluated(metrics={"brier": about(0.21)}), FAIL),
    (BRIER, evaluated(metrics={"brier": about(NAN)}), INCONCLUSIVE),
    (BRIER_BOUND, evaluated(metrics={"brier": about(0.18, high=0.19)}), PASS),
    (BRIER_BOUND, evaluated(metrics={"brier": about(0.18, high=0.21)}), FAIL),
    (BRIER_BOUND, evaluated(metrics={"brier": about(0.18, high=NAN)}), INCONCLUSIVE),
    (NOT_WORSE, evaluated(first_version=True, champion=None), PASS),
    (NOT_WORSE, evaluated(comparison=compared(0.0, -0.01, 0.01)), PASS),
    (NOT_WORSE, evaluated(comparison=compared(-0.05, -0.08, -0.02)), FAIL),
    (NOT_WORSE, evaluated(comparison=compared(0.0, -0.02, 0.02)), INCONCLUSIVE),
    (NOT_WORSE, evaluated(), INCONCLUSIVE),
    (NOT_WORSE, evaluated(first_version=True, champion="3"), INCONCLUSIVE),
    (NOT_WORSE, evaluated(first_version=True, comparison=compared(-0.05, -0.08, -0.02)), FAIL),
    (NOT_WORSE, evaluated(comparison=compared(0.1, 0.05, 0.2, problem="its file has changed")), INCONCLUSIVE),
    (NOT_WORSE, evaluated(comparison=compared(0.1, 0.05, 0.2, rows=199)), INCONCLUSIVE),
    (NOT_WORSE, evaluated(comparison=compared(0.1, 0.05, 0.2, metric="recall")), INCONCLUSIVE),
    (NOT_WORSE, evaluated(comparison=compared(NAN, 0.05, 0.2)), INCONCLUSIVE),
    (NOT_WORSE, evaluated(comparison=compared(0.1, NAN, 0.2)), INCONCLUSIVE),
    (NOT_WORSE, evaluated(comparison=compared(0.1, 0.05, math.inf)), INCONCLUSIVE),
    (BETTER, evaluated(comparison=compared(0.05, 0.001, 0.1)), PASS),
    (BETTER, evaluated(comparison=compared(0.0, 0.0, 0.0)), INCONCLUSIVE),
    (BETTER, evaluated(comparison=compared(0.0, -0.005, 0.01)), INCONCLUSIVE),
    (BETTER, evaluated(comparison=compared(-0.05, -0.1, -0.001)), FAIL),
    (PARITY, evaluated(groups=(group("f", selection=0.5), group("m", selection=0.6))), PASS),
    (PARITY, evaluated(groups=(group("f", selection=0.5), group("m", selection=0.61))), FAIL),
    (PARITY, evaluated(groups=(group("f"), group("m", selection=NAN))), INCONCLUSIVE),
    (PARITY, evaluated(groups=(group("f"), group("m", rows=49, positives=20))), INCONCLUSIVE),
    (PARITY, evaluated(groups=(group("f"),)), INCONCLUSIVE),
    (PARITY, evaluated(), INCONCLUSIVE),
    (ODDS, evaluated(groups=(group("f"), group("m", true=0.6, false=0.45))), PASS),
    (ODDS, evaluated(groups=(group("f"), group("m", true=0.61))), FAIL),
    (ODDS, evaluated(groups=(group("f"), group("m", false=0.39))), FAIL),
    (ODDS, evaluated(groups=(group("f"), group("m", positives=0))), INCONCLUSIVE),
    (ODDS, evaluated(groups=(group("f"), group("m", positives=100))), INCONCLUSIVE),
    (ODDS, evaluated(groups=(group("f"), group("m", true=NAN))), INCONCLUSIVE),
    (FLOOR, evaluated(groups=(group("f"), group("m", metric=0.8))), PASS),
    (FLOOR, evaluated(groups=(group("f"), group("m", metric=0.79))), FAIL),
    (FLOOR, evaluated(groups=(group("f"), group("m", metric=NAN))), INCONCLUSIVE),
    (FLOOR, evaluated(groups=(group("f", rows=10, positives=5), group("m"))), INCONCLUSIVE),
    (CEILING, evaluated(groups=(group("f"), group("m", metric=0.81))), PASS),
    (CEILING, evaluated(groups=(group("f"), group("m", metric=0.7))), FAIL),
    (CEILING, evaluated(groups=(group("f"), group("m", metric=NAN))), INCONCLUSIVE),
    (LatencyGate(max_p95_milliseconds=100), latency(100.0), PASS),
    (LatencyGate(max_p95_milliseconds=100), latency(101.0), FAIL),
    (LatencyGate(max_p95_milliseconds=100), latency(NAN), INCONCLUSIVE),
    (LatencyGate(max_p95_milliseconds=100), evaluated(), INCONCLUSIVE),
    (RobustnessGate(max_swing=0.1), swings(0.05, 0.1), PASS),
    (RobustnessGate(max_swing=0.1), swings(0.05, 0.11), FAIL),
    (RobustnessGate(max_swing=0.1), swings(NAN, error="unknown category"), FAIL),
    (RobustnessGate(max_swing=0.1), swings(0.05, NAN), INCONCLUSIVE),
    (RobustnessGate(max_swing=0.1), evaluated(), INCONCLUSIVE),
    (CalibrationGate(max_error=0.05), evaluated(calibration=Calibration(error=0.05, bins=())), PASS),
    (CalibrationGate(max_error=0.05), evaluated(calibration=Calibration(error=0.06, bins=())), FAIL),
    (CalibrationGate(max_error=0.05), evaluated(calibration=Calibration(error=NAN, bins=())), INCONCLUSIVE),
    (CalibrationGate(max_error=0.05), evaluated(), INCONCLUSIVE),
    (LeakageGate(max_score=0.95), features(0.95, 0.6), PASS),
    (LeakageGate(max_score=0.95), features(0.6, 0.96), FAIL),
    (LeakageGate(max_score=0.95), features(0.6, NAN), INCONCLUSIVE),
    (LeakageGate(max_score=0.95), evaluated(), INCONCLUSIVE),
    (
        OverfitGate(metric="roc_auc", max_gap=0.05),
        evaluated(train_metrics={"roc_auc": 0.84}, metrics={"roc_auc": about(0.8)}),
        PASS,
    ),
    (
        OverfitGate(metric="roc_auc", max_gap=0.05),
        evaluated(train_metrics={"roc_auc": 0.99}, metrics={"roc_auc": about(0.8)}),
        FAIL,
    ),
    (
        OverfitGate(metric="brier", max_gap=0.05),
        evaluated(train_metrics={"brier": 0.1}, metrics={"brier": about(0.2)}),
        FAIL,
    ),
    (
        OverfitGate(metric="roc_auc", max_gap=0.05),
        evaluated(train_metrics={"roc_auc": NAN}, metrics={"roc_auc": about(0.8)}),
        INCONCLUSIVE,
    ),
    (
        OverfitGate(metric="roc_auc", max_gap=0.05),
        evaluated(train_metrics={"auc": 0.84}, metrics={"roc_auc": about(0.8)}),
        INCONCLUSIVE,
    ),
    (SizeGate(max_megabytes=20), evaluated(megabytes=20.0), PASS),
    (SizeGate(max_megabytes=20), evaluated(megabytes=20.1), FAIL),
    (SizeGate(max_megabytes=20), evaluated(megabytes=NAN), INCONCLUSIVE),
    (SizeGate(max_megabytes=20), evaluated(), INCONCLUSIVE),
]


@pytest.mark.parametrize(
    ("gate", "measured", "expected"),
    CASES,
    ids=[f"{gate.kind}-{expected}-{place}" for place, (gate, _, expected) in enumerate(CASES)],
)
def test_each_gate_passes_fails_and_refuses_to_decide(gate, measured, expected):
    assert verdict_of(gate, measured) is expected


def test_every_kind_of_gate_is_shown_with_every_verdict():
    shown = {(type(gate), verdict) for gate, _, verdict in CASES}

    assert shown == {(kind, verdict) for kind in _DECISIONS for verdict in Verdict}


numbers = st.floats(-2, 2) | st.sampled_from([NAN, math.inf, -math.inf])
maybe = st.none() | numbers


@st.composite
def evaluations(draw):
    """Evaluations in which anything may be missing, NaN or infinite."""
    estimates = st.builds(Estimate, value=numbers, low=numbers, high=numbers, rows=st.integers(0, 2000))
    by_name = st.dictionaries(st.sampled_from(["roc_auc", "brier"]), estimates)
    pairs = st.builds(PairedEstimate, challenger=numbers, champion=numbers, improvement=estimates)
    comparisons = st.builds(
        Comparison,
        version=st.just("3"),
        rows=st.integers(0, 2000),
        excluded=st.just(0),
        metrics=st.dictionaries(st.just("roc_auc"), pairs),
        problem=st.sampled_from(["", "it could not be loaded"]),
    )
    groups = st.builds(
        Group,
        attribute=st.just("sex"),
        value=st.sampled_from("fmx"),
        rows=st.integers(0, 200),
        selection_rate=numbers,
        true_positive_rate=numbers,
        false_positive_rate=numbers,
        positives=st.integers(0, 3),
        negatives=st.integers(0, 3),
        metrics=st.dictionaries(st.sampled_from(["roc_auc", "brier"]), numbers),
    )
    probes = {
        "latency": st.builds(
            Latency, requests=st.just(50), p50_milliseconds=numbers, p95_milliseconds=numbers
        ),
        "calibration": st.builds(Calibration, error=numbers, bins=st.just(())),
    }
    return evaluated(
        first_version=draw(st.booleans()),
        champion=draw(st.sampled_from([None, "3"])),
        metrics=draw(by_name),
        train_metrics=draw(st.dictionaries(st.sampled_from(["roc_auc", "brier"]), numbers)),
        comparison=draw(st.none() | comparisons),
        groups=tuple(draw(st.lists(groups, max_size=3, unique_by=lambda one: one.value))),
        swings=tuple(
            draw(st.lists(st.builds(Swing, perturbation=st.just("noise"), swing=numbers), max_size=3))
        ),
        single_features=tuple(
            draw(st.lists(st.builds(SingleFeature, feature=st.just("x"), score=numbers), max_size=3))
        ),
        megabytes=draw(maybe),
        **{name: draw(st.none() | strategy) for name, strategy in probes.items()},
    )


GATES = {
    AUC: lambda m: [m.metrics["roc_auc"].value] if "roc_auc" in m.metrics else [],
    AUC_BOUND: lambda m: [m.metrics["roc_auc"].low] if "roc_auc" in m.metrics else [],
    BRIER: lambda m: [m.metrics["brier"].value] if "brier" in m.metrics else [],
    BRIER_BOUND: lambda m: [m.metrics["brier"].high] if "brier" in m.metrics else [],
    PARITY: lambda m: [one.selection_rate for one in m.groups],
    ODDS: lambda m: [rate for one in m.groups for rate in (one.true_positive_rate, one.false_positive_rate)],
    FLOOR: lambda m: [one.metrics.get("roc_auc", NAN) for one in m.groups],
    CEILING: lambda m: [one.metrics.get("brier", NAN) for one in m.groups],
    LatencyGate(max_p95_milliseconds=1): lambda m: [m.latency.p95_milliseconds] if m.latency else [],
    RobustnessGate(max_swing=0.5): lambda m: [one.swing for one in m.swings],
    CalibrationGate(max_error=0.5): lambda m: [m.calibration.error] if m.calibration else [],
    LeakageGate(max_score=0.9): lambda m: [one.score for one in m.single_features],
    OverfitGate(metric="roc_auc", max_gap=0.5): lambda m: (
        [m.train_metrics["roc_auc"], m.metrics["roc_auc"].value]
        if "roc_auc" in m.train_metrics and "roc_auc" in m.metrics
        else []
    ),
    SizeGate(max_megabytes=1): lambda m: [] if m.megabytes is None else [m.megabytes],
}


@given(gate=st.sampled_from(list(GATES)), measured=evaluations())
@settings(max_examples=250, deadline=None)
def test_what_is_missing_or_no_number_never_passes(gate, measured):
    looked_at = GATES[gate](measured)

    verdict = verdict_of(gate, measured)

    if not looked_at or not all(math.isfinite(value) for value in looked_at):
        assert verdict is not PASS


@given(gate=st.sampled_from([NOT_WORSE, BETTER]), measured=evaluations())
@settings(max_examples=150, deadline=None)
def test_a_champion_is_passed_only_by_a_whole_interval_on_enough_rows(gate, measured):
    verdict = verdict_of(gate, measured)

    if verdict is PASS and not (measured.first_version and measured.champion is None):
        found = measured.comparison.metrics["roc_auc"].improvement
        assert measured.comparison.problem == ""
        assert measured.comparison.rows >= gate.min_rows
        assert all(math.isfinite(value) for value in (found.value, found.low, found.high))
        assert found.low >= -gate.margin if gate is NOT_WORSE else found.low > 0


@given(value=st.floats(0, 1), threshold=st.floats(0, 1))
@settings(deadline=None)
def test_thresholds_know_which_way_is_better(value, threshold):
    higher = MetricGate(metric="roc_auc", min=threshold)
    lower = MetricGate(metric="brier", max=threshold)

    assert (verdict_of(higher, evaluated(metrics={"roc_auc": about(value)})) is PASS) == (value >= threshold)
    assert (verdict_of(lower, evaluated(metrics={"brier": about(value)})) is PASS) == (value <= threshold)


@pytest.mark.parametrize(
    "gate",
    [{"kind": "metric", "metric": "brier", "min": 0.1}, {"kind": "metric", "metric": "roc_auc", "max": 0.9}],
)
def test_a_threshold_that_points_the_wrong_way_is_no_spec(make_spec, gate):
    with pytest.raises(SpecError, match="would wave through bad models"):
        make_spec("binary", lambda document: document["gates"].append(gate))


def test_a_gate_on_a_metric_that_nobody_measures_is_no_spec(make_spec):
    gate = {"kind": "metric", "metric": "accuracy", "min": 0.1}

    with pytest.raises(SpecError, match="'accuracy' is not measured"):
        make_spec("binary", lambda document: document["gates"].append(gate))


@given(st.lists(st.sampled_from(list(Verdict)), max_size=5))
@settings(deadline=None)
def test_only_all_passes_pass(verdicts):
    results = tuple(
        GateResult(gate="g", verdict=verdict, value=None, threshold=None, reason="") for verdict in verdicts
    )

    report = GateReport(model_digest="d", champion=None, results=results)

    assert (report.verdict is PASS) == (bool(verdicts) and set(verdicts) == {PASS})
    if FAIL in verdicts:
        assert report.verdict is FAIL


def test_no_gate_at_all_lets_nothing_through():
    assert judge([], evaluated()).verdict is INCONCLUSIVE


def test_a_gate_that_crashes_is_not_taken_for_a_verdict(monkeypatch):
    def broken(gate, measured):
        raise ZeroDivisionError

    monkeypatch.setitem(_DECISIONS, SizeGate, broken)

    with pytest.raises(ZeroDivisionError):
        judge([AUC, SizeGate(max_megabytes=1)], evaluated(metrics={"roc_auc": about(0.9)}, megabytes=0.1))


def test_a_further_result_can_only_take_a_pass_away():
    report = judge([AUC], evaluated(metrics={"roc_auc": about(0.9)}))
    refused = GateResult(
        gate="integration", verdict=FAIL, value=None, threshold=None, reason="it did not load"
    )

    assert report.verdict is PASS
    assert report.plus(refused).verdict is FAIL
    assert report.plus(refused).digest != report.digest


def test_a_report_keeps_its_digest_when_it_is_read_again():
    report = judge(
        [AUC, NOT_WORSE, SizeGate(max_megabytes=1)],
        evaluated(metrics={"roc_auc": about(NAN)}, first_version=True, champion=None, megabytes=0.5),
    )

    again = GateReport.model_validate_json(report.model_dump_json())

    assert again == report
    assert again.digest == report.digest


def test_reasons_name_numbers_rows_and_the_worst():
    results = judge(
        [AUC_BOUND, NOT_WORSE, PARITY, FLOOR],
        evaluated(
            metrics={"roc_auc": about(0.83, low=0.81, high=0.85)},
            comparison=compared(0.1, 0.05, 0.2, rows=120),
            groups=(group("f", selection=0.5), group("m", selection=0.62, metric=0.7)),
        ),
    ).results

    assert results[0].reason == "holdout 0.8300 [0.8100, 0.8500], 1,000 rows"
    assert "120 holdout rows are left that champion version 3 was not trained on" in results[1].reason
    assert results[2].reason == "rate of positive answers, 0.500 (f) to 0.620 (m)"
    assert results[3].reason == "the worst group is m"
