"""The analysis of a release step: does real traffic show that the challenger does harm, or exclude it?

Arrays of what each arm answered go in, oldest first; a finding for each test comes out, and one verdict. Every
finding may be taken after any request and as often as one likes: see `tasks.sequential` for why, and for the
sources. Requests of an arm are taken as independent with the same mean; where callers stick to an arm and few of
them send most requests, they are not, and the share should be one of callers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks import sequential
from tasks.sequential import Interval
from tasks.verdict import Verdict, overall

__all__ = [
    "MINIMUM",
    "Analysis",
    "Arms",
    "Family",
    "Finding",
    "Harm",
    "absolute_error",
    "brier_loss",
    "error_rate",
    "latency",
    "log_loss",
    "paired_scores",
    "quality",
    "required_requests",
    "sample_ratio",
    "scores",
    "squared_error",
    "zero_one_loss",
]

MINIMUM = 100
"""Fewer requests than this in an arm never pass, whatever they show. They may fail."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Harm:
    """How much worse a challenger may be: shown above `tolerated` it fails, excluded from `effect` on it passes.

    In the unit of the test: 0.01 is one percentage point of errors, or 1 % of a latency. Where both are true
    the difference is real and too small to matter, and the test passes.
    """

    effect: float
    tolerated: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.effect) and 0.0 <= self.tolerated < self.effect):
            raise ValueError(
                f"The effect that matters ({self.effect}) must be above what is tolerated ({self.tolerated}), "
                "and that must be 0 or more."
            )


@dataclass(frozen=True)
class Family:
    """The tests of one release and the chance, over all of them and all looks, that a good challenger fails.

    Bonferroni: each test in each step has an equal part of alpha. Nothing is assumed about how tests depend on
    each other. The chance that a test passes a challenger whose harm has the declared size is at most its part.
    """

    tests: int
    alpha: float = 0.05
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0 or self.tests < 1 or self.steps < 1:
            raise ValueError("A family has an alpha between 0 and 1, and at least one test and one step.")

    @property
    def each(self) -> float:
        """What one test of one step may spend."""
        return self.alpha / (self.tests * self.steps)

    def each_at(self, attempt: int) -> float:
        """What one test may spend at the `attempt`-th time (from 1) that its step is begun.

        The parts fall with the square, and sum to `each`: however often a step begins anew, no more is spent.
        """
        if attempt < 1:
            raise ValueError(f"Attempts are counted from 1; {attempt} is none.")
        return self.each * 6.0 / (math.pi * attempt) ** 2


@dataclass(frozen=True)
class Arms:
    """How many requests, or labels, or pairs, each arm has."""

    challenger: int
    champion: int


@dataclass(frozen=True)
class Finding:
    """What one test says: a confidence sequence for the difference that would be harm, and why the verdict.

    `low` and `high` are each wrong with probability at most `alpha`, over all looks together.
    """

    name: str
    estimate: float
    low: float
    high: float
    verdict: Verdict
    alpha: float
    counts: Arms
    reason: str


@dataclass(frozen=True)
class Analysis:
    """All findings of one look. Pass only if every test passes; nothing looked at is inconclusive."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail if any test fails, else inconclusive if any is."""
        return overall(finding.verdict for finding in self.findings)


# Tests ------------------------------------------------------------------------------------------------------


def error_rate(
    challenger: ArrayLike,
    champion: ArrayLike,
    *,
    share: float,
    harm: Harm,
    alpha: float,
    minimum: int = MINIMUM,
) -> Finding:
    """Error rate, challenger less champion; for each request whether it failed (1) or not (0).

    `share` is the challenger's configured part of the traffic, 0 to 1 (see `sequential.blocks`).
    """
    ours, theirs, problem = _arms(challenger, champion, lowest=0.0, highest=1.0)
    counts = Arms(len(ours), len(theirs))
    if problem:
        return _undecided("error rate", problem, alpha, counts, -1.0, 1.0)
    differences = sequential.blocks(ours, theirs, _checked(share))
    seen = sequential.mean_interval(differences, lowest=-1.0, highest=1.0, alpha=alpha)
    return _one_sided("error rate", seen, harm, alpha, counts, minimum)


def latency(
    challenger: ArrayLike,
    champion: ArrayLike,
    *,
    quantile: float,
    harm: Harm,
    alpha: float,
    minimum: int = MINIMUM,
    times: tuple[ArrayLike, ArrayLike] | None = None,
) -> Finding:
    """A quantile of latency, as the challenger's over the champion's, less 1: 0.2 is 20 % slower.

    The unit of the latencies does not matter; all must be above 0, and nothing is slower than 1e12. `times` say when
    each request of challenger and champion was answered, as numbers: only neighbours are compared. A quantile far
    out needs many requests: about 10 groups of log(0.5) / log(quantile) of each arm to decide anything.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"A quantile lies between 0 and 1; {quantile} does not.")
    name = f"latency p{100 * quantile:g}"
    ours, theirs, problem = _arms(challenger, champion, lowest=1e-9, highest=1e12)
    counts = Arms(len(ours), len(theirs))
    if problem:
        return _undecided(name, problem, alpha, counts, -1.0, math.inf)
    when = None
    if times is not None:
        when = (np.asarray(times[0], dtype=np.float64), np.asarray(times[1], dtype=np.float64))
    ratio = sequential.quantile_ratio_interval(ours, theirs, quantile, alpha, when)
    seen = Interval(ratio.estimate - 1.0, ratio.low - 1.0, ratio.high - 1.0)
    return _one_sided(name, seen, harm, alpha, counts, minimum)


def scores(
    challenger: ArrayLike,
    champion: ArrayLike,
    *,
    cuts: Sequence[float],
    share: float,
    harm: Harm,
    alpha: float,
    minimum: int = MINIMUM,
) -> Finding:
    """How far apart the arms' scores are distributed: the largest difference of their distribution functions.

    Each of the `cuts` is a score where they are compared, fixed before the release: for probabilities 0.1 to
    0.9, for a regression the deciles of what the champion answered in its evaluation. A challenger that was
    trained anew scores differently, so `harm.tolerated` says how differently it may.
    """
    ours, theirs, problem = _arms(challenger, champion, lowest=-math.inf, highest=math.inf)
    counts = Arms(len(ours), len(theirs))
    places = np.unique(np.asarray(cuts, dtype=np.float64))
    if not problem and (not len(places) or not np.isfinite(places).all()):
        problem = "there is no score to compare the distributions at"
    if problem:
        return _undecided("score distribution", problem, alpha, counts, 0.0, 1.0)
    seen = sequential.shift_interval(ours, theirs, places, _checked(share), alpha)
    return _one_sided("score distribution", seen, harm, alpha, counts, minimum)


def paired_scores(
    challenger: ArrayLike,
    champion: ArrayLike,
    *,
    lowest: float,
    highest: float,
    harm: Harm,
    alpha: float,
    minimum: int = MINIMUM,
) -> Finding:
    """In shadow, the mean difference of the two scores of the same request; fails in either direction.

    Both arrays are in the order of the requests; every score lies between `lowest` and `highest`.
    """
    name = "paired score"
    ours, theirs, problem = _arms(challenger, champion, lowest=lowest, highest=highest)
    counts, width = Arms(len(ours), len(theirs)), highest - lowest
    problem = problem or _unpaired(counts)
    if problem:
        return _undecided(name, problem, alpha, counts, -width, width)
    return _two_sided(
        name,
        # Either direction would be harm, so each end has half of what there is to spend.
        sequential.mean_interval(ours - theirs, lowest=-width, highest=width, alpha=alpha / 2.0),
        harm,
        alpha,
        counts,
        minimum,
        around=0.0,
    )


def sample_ratio(
    challenger: int, champion: int, *, share: float, harm: Harm, alpha: float, minimum: int = MINIMUM
) -> Finding:
    """The challenger's part of the requests against its configured `share`: broken routing shows here first."""
    counts, total = Arms(challenger, champion), challenger + champion
    if challenger < 0 or champion < 0:
        raise ValueError("There cannot be fewer than no requests.")
    if not total:
        return _undecided("sample ratio", "no arm has any request", alpha, counts, 0.0, 1.0)
    seen = sequential.share_interval(challenger, total, _checked(share), alpha)
    return _two_sided("sample ratio", seen, harm, alpha, counts, minimum, around=share)


def quality(
    challenger: ArrayLike,
    champion: ArrayLike,
    *,
    bound: float,
    share: float | None,
    harm: Harm,
    alpha: float,
    minimum: int = MINIMUM,
) -> Finding:
    """Mean loss on labels, challenger less champion, in the order in which the labels came.

    Losses lie between 0 and `bound`; see `brier_loss` and its neighbours. With `share` None, both arms answered
    the same requests (shadow) and the losses are pairs. That a label came must not depend on the arm.
    """
    ours, theirs, problem = _arms(challenger, champion, lowest=0.0, highest=bound)
    counts = Arms(len(ours), len(theirs))
    problem = problem or (_unpaired(counts) if share is None else None)
    if problem:
        return _undecided("quality", problem, alpha, counts, -bound, bound)
    differences = ours - theirs if share is None else sequential.blocks(ours, theirs, _checked(share))
    seen = sequential.mean_interval(differences, lowest=-bound, highest=bound, alpha=alpha)
    return _one_sided("quality", seen, harm, alpha, counts, minimum)


def required_requests(
    *,
    baseline: float,
    effect: float,
    share: float,
    alpha: float,
    power: float = 0.8,
    tolerated: float = 0.0,
) -> Arms:
    """How many requests a step needs to fail a challenger with `effect` more errors than the `baseline` rate.

    That is to show that its error rate is more than `tolerated` higher, with a chance of `power`.

    By formula (`sequential.requests_needed`), from the binomial distribution of a block's errors. It is on the
    careful side, since evidence may have sufficed before the last request.
    """
    if not 0.0 <= baseline < baseline + effect <= 1.0:
        raise ValueError(f"An error rate of {baseline} cannot rise by {effect}: rates lie between 0 and 1.")
    few, many = sequential.block_size(_checked(share))
    ours, theirs = _binomial(few, baseline + effect), _binomial(many, baseline)
    values = np.subtract.outer(np.arange(few + 1) / few, np.arange(many + 1) / many)
    needed = sequential.requests_needed(
        values.ravel(),
        np.multiply.outer(ours, theirs).ravel(),
        lowest=-1.0,
        alpha=alpha,
        power=power,
        tolerated=tolerated,
    )
    return Arms(needed * few, needed * many)


def _binomial(trials: int, chance: float) -> Numbers:
    """The probability of each number of successes, 0 to all."""
    if chance in {0.0, 1.0}:
        certain: Numbers = np.eye(trials + 1)[round(chance * trials)]
        return certain
    n, p = trials, chance
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(n + 1)
    ]
    probabilities: Numbers = np.exp(np.array(logs))
    return probabilities


# Losses -----------------------------------------------------------------------------------------------------


def zero_one_loss(labels: ArrayLike, predictions: ArrayLike) -> Numbers:
    """1 where the predicted class is wrong, NaN where there is no label; for binary and multiclass."""
    known = np.asarray(labels, dtype=object)
    wrong = np.where(known != np.asarray(predictions, dtype=object), 1.0, 0.0)
    missing = [label is None or (isinstance(label, float) and math.isnan(label)) for label in known.tolist()]
    return np.where(missing, math.nan, wrong)


def brier_loss(labels: ArrayLike, probabilities: ArrayLike) -> Numbers:
    """The squared distance of the positive class's probability from the label (0 or 1); at most 1."""
    loss: Numbers = (np.asarray(probabilities, dtype=np.float64) - np.asarray(labels, dtype=np.float64)) ** 2
    return loss


def log_loss(probabilities: ArrayLike, bound: float) -> Numbers:
    """Minus the log of the probability given to the class that came true, cut off at `bound`."""
    with np.errstate(divide="ignore"):
        return np.minimum(-np.log(np.asarray(probabilities, dtype=np.float64)), bound)


def squared_error(labels: ArrayLike, predictions: ArrayLike, bound: float) -> Numbers:
    """The squared error of a regression, cut off at `bound`: beyond it, worse counts no more."""
    return np.minimum(absolute_error(labels, predictions, math.inf) ** 2, bound)


def absolute_error(labels: ArrayLike, predictions: ArrayLike, bound: float) -> Numbers:
    """The absolute error of a regression, cut off at `bound`."""
    distance = np.abs(np.asarray(predictions, dtype=np.float64) - np.asarray(labels, dtype=np.float64))
    return np.minimum(distance, bound)


# Verdicts ---------------------------------------------------------------------------------------------------


def _one_sided(name: str, seen: Interval, harm: Harm, alpha: float, counts: Arms, minimum: int) -> Finding:
    """More is worse: fail above what is tolerated, pass below the effect that matters."""
    if seen.high < harm.effect:
        verdict, reason = _unless_few(counts, minimum, f"harm of {harm.effect:g} or more is excluded")
    elif seen.low > harm.tolerated:
        verdict, reason = Verdict.FAIL, f"harm above {harm.tolerated:g} is shown"
    else:
        verdict, reason = (
            Verdict.INCONCLUSIVE,
            f"harm is neither shown above {harm.tolerated:g} nor excluded from {harm.effect:g} on",
        )
    return _finding(name, seen, verdict, alpha, counts, reason)


def _two_sided(
    name: str, seen: Interval, harm: Harm, alpha: float, counts: Arms, minimum: int, *, around: float
) -> Finding:
    """Any distance from `around` is worse."""
    if max(seen.high - around, around - seen.low) < harm.effect:
        verdict, reason = _unless_few(
            counts, minimum, f"a distance of {harm.effect:g} from {around:g} is excluded"
        )
    elif max(seen.low - around, around - seen.high) > harm.tolerated:
        verdict, reason = Verdict.FAIL, f"a distance of more than {harm.tolerated:g} from {around:g} is shown"
    else:
        verdict, reason = (
            Verdict.INCONCLUSIVE,
            f"it is neither shown to be more than {harm.tolerated:g} from {around:g} nor less than {harm.effect:g}",
        )
    return _finding(name, seen, verdict, alpha, counts, reason)


def _unless_few(counts: Arms, minimum: int, passed: str) -> tuple[Verdict, str]:
    fewest = min(counts.challenger, counts.champion)
    if fewest < minimum:
        return Verdict.INCONCLUSIVE, f"{passed}, but an arm has only {fewest} of the {minimum} wanted"
    return Verdict.PASS, passed


def _finding(name: str, seen: Interval, verdict: Verdict, alpha: float, counts: Arms, reason: str) -> Finding:
    sentence = (
        f"The {name} differs by {seen.estimate:.4g} ({seen.low:.4g} to {seen.high:.4g}), "
        if name != "sample ratio"
        else f"The challenger's part of the requests is {seen.estimate:.4g} ({seen.low:.4g} to {seen.high:.4g}), "
    )
    return Finding(
        name, seen.estimate, seen.low, seen.high, verdict, alpha, counts, f"{sentence}so {reason}."
    )


def _undecided(name: str, problem: str, alpha: float, counts: Arms, low: float, high: float) -> Finding:
    reason = f"The {name} cannot be judged: {problem}."
    return Finding(name, math.nan, low, high, Verdict.INCONCLUSIVE, alpha, counts, reason)


# What comes in ----------------------------------------------------------------------------------------------


def _arms(
    challenger: ArrayLike, champion: ArrayLike, *, lowest: float, highest: float
) -> tuple[Numbers, Numbers, str | None]:
    """Both arms as numbers, and the first thing that makes them useless."""
    ours, theirs = np.asarray(challenger, dtype=np.float64), np.asarray(champion, dtype=np.float64)
    for name, arm in (("challenger", ours), ("champion", theirs)):
        if arm.ndim != 1:
            raise ValueError(f"The {name}'s values are a list of numbers, not {arm.ndim}-dimensional.")
        if not len(arm):
            return ours, theirs, f"the {name} has no requests"
        bad = int(np.count_nonzero(~np.isfinite(arm)))
        if bad:
            return ours, theirs, f"{bad} of the {name}'s {len(arm)} values are missing or not finite"
        outside = int(np.count_nonzero((arm < lowest) | (arm > highest)))
        if outside:
            return (
                ours,
                theirs,
                f"{outside} of the {name}'s {len(arm)} values are outside {lowest:g} to {highest:g}",
            )
    return ours, theirs, None


def _unpaired(counts: Arms) -> str | None:
    if counts.challenger == counts.champion:
        return None
    return f"{counts.challenger} values of the challenger cannot be paired with {counts.champion} of the champion"


def _checked(share: float) -> float:
    if not 0.0 < share < 1.0:
        raise ValueError(f"The challenger's share lies between 0 and 1; {share} does not.")
    return share
