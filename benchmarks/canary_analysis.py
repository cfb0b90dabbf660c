"""False alarms and power of three judges of a canary, by simulation, at the same requests.

Ours, thresholds on each interval as Flagger has them, and a Mann-Whitney test repeated at each look as Kayenta's
judge does it. Each run has 50 looks; each look brings 30 requests of the challenger and 270 of the champion. Run
`python -m benchmarks.canary_analysis`.
"""

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, mannwhitneyu, norm

from benchmarks.report import write_table
from tasks import sequential
from tasks.analysis import Family

Numbers = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, bool, bool], tuple[Numbers, Numbers]]

LOOKS, CHALLENGERS, CHAMPIONS, SHARE = 50, 30, 270, 0.1
SHOWN = (10, 25, 50)
RUNS = 240
FAMILY = Family(tests=5)
METRICS = ("errors", "latency", "scores")
CUTS = np.arange(0.1, 1.0, 0.1)
BINS = 64


# Traffic: `worse` makes the challenger do harm, a `bad_day` changes both arms alike ----------------------------


def _errors(random: np.random.Generator, runs: int, worse: bool, bad_day: bool) -> tuple[Numbers, Numbers]:
    """0.5 % of requests fail; 2 % of a worse challenger's, 1 % of everybody's on a bad day."""
    usual = 0.01 if bad_day else 0.005
    return (
        (random.random((runs, LOOKS, CHALLENGERS)) < (0.02 if worse else usual)).astype(np.float64),
        (random.random((runs, LOOKS, CHAMPIONS)) < usual).astype(np.float64),
    )


def _latency(random: np.random.Generator, runs: int, worse: bool, bad_day: bool) -> tuple[Numbers, Numbers]:
    """The log of lognormal latencies with a deviation of 0.5; 20 % slower if worse, or on a bad day."""
    slower, usual = math.log(1.2) * worse, math.log(1.2) * bad_day
    return (
        random.normal(slower + usual, 0.5, (runs, LOOKS, CHALLENGERS)),
        random.normal(usual, 0.5, (runs, LOOKS, CHAMPIONS)),
    )


def _scores(random: np.random.Generator, runs: int, worse: bool, bad_day: bool) -> tuple[Numbers, Numbers]:
    """Probabilities from Beta(2, 6); a worse challenger's, or everybody's on a bad day, from Beta(2, 5)."""
    return (
        random.beta(2, 5 if worse or bad_day else 6, (runs, LOOKS, CHALLENGERS)),
        random.beta(2, 5 if bad_day else 6, (runs, LOOKS, CHAMPIONS)),
    )


DRAWS: dict[str, Draw] = {"errors": _errors, "latency": _latency, "scores": _scores}


# Judges: the look at which each run is failed, LOOKS where it never is ----------------------------------------


def _first(alarms: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(alarms.any(axis=1), alarms.argmax(axis=1), LOOKS)


def _our_evidence(metric: str, ours: Numbers, theirs: Numbers) -> Numbers:
    """The log capital at each look, by run."""
    judge = {"errors": _our_errors, "latency": _our_latency, "scores": _our_scores}[metric]
    return np.array([judge(a, b) for a, b in zip(ours, theirs, strict=True)])


def _our_errors(ours: Numbers, theirs: Numbers) -> Numbers:
    differences = sequential.blocks(ours.ravel(), theirs.ravel(), SHARE)
    return sequential.log_capital_path(differences + 1.0, 1.0, every=CHALLENGERS)


def _our_scores(ours: Numbers, theirs: Numbers) -> Numbers:
    paths = []
    for cut in CUTS:
        differences = sequential.blocks(
            (ours.ravel() <= cut).astype(np.float64), (theirs.ravel() <= cut).astype(np.float64), SHARE
        )
        paths += [
            sequential.log_capital_path(sign * differences + 1.0, 1.0, every=CHALLENGERS)
            for sign in (1.0, -1.0)
        ]
    evidence: Numbers = np.logaddexp.reduce(paths, axis=0) - math.log(len(paths))
    return evidence


def _our_latency(ours: Numbers, theirs: Numbers) -> Numbers:
    found = []
    for quantile in (0.5, 0.95):
        a, b = np.exp(ours.ravel()), np.exp(theirs.ravel())
        times = ((np.arange(len(a)) + 0.5) / len(a), (np.arange(len(b)) + 0.5) / len(b))
        groups = sequential.neighbours(a, b, times, sequential.largest_of(quantile))
        path = sequential.log_capital_path(sequential.exceedances(groups, 0.0), 0.5)
        # A group counts at the first look after its last request of the challenger.
        ended = np.searchsorted(
            np.append(groups.challenger.first[1:], len(groups.challenger.values)),
            np.arange(1, LOOKS + 1) * CHALLENGERS,
            side="right",
        )
        found.append(np.where(ended > 0, path[np.maximum(ended, 1) - 1], 0.0))
    evidence: Numbers = np.max(found, axis=0)
    return evidence


def _failed_check_statistic(metric: str, ours: Numbers) -> Numbers:
    """What is compared with a threshold in each interval: of the challenger alone."""
    if metric == "errors":
        statistic: Numbers = ours.mean(axis=2)
    elif metric == "latency":
        statistic = np.quantile(ours, 0.99, axis=2)
    else:
        statistic = np.abs(ours.mean(axis=2) - 2 / 8)
    return statistic


USUAL_LIMITS = {"errors": 0.01, "latency": 0.5 * float(norm.ppf(0.99)) + math.log(1.25), "scores": 0.05}


def _threshold_looks(statistic: Numbers, limit: float, failed_checks: int) -> NDArray[np.int64]:
    return _first((statistic > limit).cumsum(axis=1) >= failed_checks)


def _calibrated_thresholds(nulls: list[Numbers], harm: Numbers, budget: float) -> tuple[float, int]:
    """The limit and number of failed checks with the most power, of those within the budget in every null."""
    best, power = (math.inf, LOOKS), -1.0
    for limit in np.unique(np.quantile(nulls[0], np.linspace(0.3, 0.995, 25))):
        counts = [(null > limit).sum(axis=1) for null in nulls]
        needed = next(
            (n for n in range(1, LOOKS + 1) if all(np.mean(one >= n) <= budget for one in counts)), None
        )
        if needed is not None and (reached := float(np.mean((harm > limit).sum(axis=1) >= needed))) > power:
            best, power = (float(limit), needed), reached
    return best


def _mann_whitney_of_intervals(metric: str, ours: Numbers, theirs: Numbers) -> Numbers:
    """The p of each look over one point per interval and arm: the error rate, mean latency, mean score."""
    a, b = (np.exp(arm).mean(axis=2) if metric == "latency" else arm.mean(axis=2) for arm in (ours, theirs))
    p = np.ones(a.shape)
    for look in range(2, LOOKS):
        with np.errstate(invalid="ignore", divide="ignore"):
            found = mannwhitneyu(
                a[:, : look + 1],
                b[:, : look + 1],
                axis=1,
                method="asymptotic",
                alternative="two-sided" if metric == "scores" else "greater",
            ).pvalue
        p[:, look] = np.nan_to_num(found, nan=1.0) * (1.0 if metric == "scores" else 2.0)
    return p


def _mann_whitney_of_requests(metric: str, ours: Numbers, theirs: Numbers) -> Numbers:
    """The p of each look over all requests so far, values in 64 equally likely bins."""
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = {
        "errors": np.array([0.5]),
        "latency": norm.ppf(inner) * 0.5,
        "scores": beta.ppf(inner, 2, 6),
    }[metric]
    p = np.ones(ours.shape[:2])
    bins = len(edges) + 1
    offsets = np.arange(LOOKS)[:, None] * bins
    for run, arms in enumerate(zip(ours, theirs, strict=True)):
        a, b = (
            np.bincount((np.searchsorted(edges, arm) + offsets).ravel(), minlength=LOOKS * bins)
            .reshape(LOOKS, bins)
            .cumsum(axis=0)
            .astype(np.float64)
            for arm in arms
        )
        m, n, tied = a.sum(axis=1), b.sum(axis=1), a + b
        u = (a * (b.cumsum(axis=1) - b / 2.0)).sum(axis=1)
        total = m + n
        variance = m * n / 12.0 * (total + 1.0 - (tied**3 - tied).sum(axis=1) / (total * (total - 1.0)))
        z = np.divide(u - m * n / 2.0, np.sqrt(variance), out=np.zeros(LOOKS), where=variance > 0)
        p[run] = 2.0 * norm.sf(np.abs(z) if metric == "scores" else z)
    return p


MANN_WHITNEY = {
    "Mann-Whitney of intervals": _mann_whitney_of_intervals,
    "Mann-Whitney of requests": _mann_whitney_of_requests,
}


# Tables -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Simulate, calibrate, compare."""
    begun = time.perf_counter()
    random = np.random.default_rng(20_261_121)
    budget = FAMILY.alpha / len(METRICS)
    looks: dict[str, dict[str, dict[str, NDArray[np.int64]]]] = {}
    for metric, draw in DRAWS.items():
        null, bad_day, harm = (
            draw(random, RUNS, worse, bad) for worse, bad in ((False, False), (False, True), (True, False))
        )
        traffic = {"alike": null, "bad day": bad_day, "harm": harm}
        evidence = {
            name: _our_evidence(metric, a, b)
            for name, (a, b) in traffic.items()
            # A ratio does not change if everybody is slower.
            if (metric, name) != ("latency", "bad day")
        }
        calibrated = float(np.quantile(evidence["alike"].max(axis=1), 1.0 - budget))
        for title, needed in (("ours", math.log(1.0 / FAMILY.each)), ("ours, calibrated", calibrated)):
            looks.setdefault(title, {})[metric] = {
                name: _first(one > needed) for name, one in evidence.items()
            }
        checks = {name: _failed_check_statistic(metric, a) for name, (a, _) in traffic.items()}
        for title, (limit, failed) in {
            "thresholds, 5 failed checks": (USUAL_LIMITS[metric], 5),
            "thresholds, calibrated": _calibrated_thresholds([checks["alike"]], checks["harm"], budget),
            "thresholds, calibrated for bad days too": _calibrated_thresholds(
                [checks["alike"], checks["bad day"]], checks["harm"], budget
            ),
        }.items():
            looks.setdefault(title, {})[metric] = {
                name: _threshold_looks(one, limit, failed) for name, one in checks.items()
            }
        for title, judge in MANN_WHITNEY.items():
            p = {name: judge(metric, a, b) for name, (a, b) in traffic.items()}
            calibrated = float(np.quantile(p["alike"].min(axis=1), budget))
            for suffix, level in ((", 98 %", 0.02), (", calibrated", calibrated)):
                looks.setdefault(title + suffix, {})[metric] = {
                    name: _first(one < level) for name, one in p.items()
                }
    _write(looks, time.perf_counter() - begun)


def _write(looks: dict[str, dict[str, dict[str, NDArray[np.int64]]]], seconds: float) -> None:
    rows = []
    for judge, by_metric in looks.items():
        alarms = [_family(by_metric, name) for name in ("alike", "bad day")]
        power = [
            " / ".join(f"{np.mean(by_metric[metric]['harm'] < shown):.0%}" for shown in SHOWN)
            for metric in METRICS
        ]
        rows.append([judge, *(f"{one:.1%}" for one in alarms), *power])
    write_table(
        "canary_analysis",
        "Judging a canary: false alarms over 50 looks, and power",
        "python -m benchmarks.canary_analysis",
        [
            "judge",
            "false alarms",
            "false alarms, bad day",
            "errors 0.5 % → 2 %",
            "latency +20 %",
            "score shift",
        ],
        rows,
        note=_NOTE.format(runs=RUNS, seconds=round(seconds)),
    )


def _family(by_metric: dict[str, dict[str, NDArray[np.int64]]], name: str) -> float:
    """The chance that any metric alarms, from the independent rates of each."""
    quiet = [
        1.0 - float(np.mean(by_metric[metric].get(name, by_metric[metric]["alike"]) < LOOKS))
        for metric in METRICS
    ]
    return 1.0 - math.prod(quiet)


_NOTE = (
    "Power: failed by look 10 / 25 / 50, that is after 300 / 750 / 1,500 requests of the challenger and nine times as "
    "many of the champion. {runs} runs each. "
    "False alarms: the chance that errors, latency or scores fail a challenger like the champion, in 50 looks. Bad "
    "day: 1 % errors, 20 % slower, shifted scores, in both arms. Ours spends 5 % on five tests (errors, latency p50 "
    "and p95, scores, sample ratio), and promises that for any number of looks. What is calibrated spends 5 % on "
    "three, and only for these 50 looks of this traffic; the thresholds' limits are those that turned out to have "
    "the most power. Thresholds see the challenger alone, in each interval: error rate above 1 %, p99 latency more "
    "than 25 % above the champion's, mean score 0.05 off; five failed checks of a metric fail the release. "
    "Mann-Whitney of intervals has a point per arm and interval, as Kayenta's judge; its tolerance for small effects "
    "is left out. Mann-Whitney of requests is what that test would do with single requests, which Kayenta does not "
    "see. {seconds} s."
)


if __name__ == "__main__":
    main()
