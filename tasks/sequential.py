"""Always-valid statistics: how much evidence numbers hold against a claim, however often one looks.

Everything here is betting. A gambler starts with 1 and stakes a fraction of what he has on each observation, at
odds that are fair or worse if the claim is true. Then his capital passes 1/alpha, ever, with a probability of at
most alpha (Ville's inequality), so that it may be read after every observation and acted on at once. Turned
around, the claims he has not won enough against are a confidence sequence. No distribution is assumed, and
nothing is asymptotic: the values are bounded, and within an arm have the same mean, given what came before.

Sources: betting on a bounded mean, Waudby-Smith & Ramdas 2023, "Estimating means of bounded random variables by
betting" (section 4, theorem 3 for the capital; the fractions here are a fixed mixture, their section on mixture
methods, instead of predictable plug-ins); confidence sequences and Ville's inequality, Howard, Ramdas, McAuliffe &
Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (section 1); mixtures, Robbins 1970;
latencies by comparing neighbours: the rank test of Mann & Whitney 1947 taken group by group;
sample ratio, Lindon & Malek 2022, "Anytime-valid inference for multinomial count data" (section 2);
always-valid decisions in experiments, Johari, Koomen, Pekelis & Walsh 2017 and 2022.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, inf, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FRACTIONS",
    "Interval",
    "Neighbours",
    "block_size",
    "blocks",
    "exceedances",
    "largest_of",
    "log_capital",
    "log_capital_path",
    "mean_interval",
    "neighbours",
    "quantile_ratio_interval",
    "requests_needed",
    "share_interval",
    "shift_interval",
    "slower_evidence",
]

Numbers = NDArray[np.float64]

FRACTIONS: Numbers = np.concatenate([[0.0], np.geomspace(0.004, 0.98, 9)])
"""What the gamblers stake, a fraction each. The first keeps his money, so that no capital ever falls below his."""

WEIGHTS: Numbers = np.concatenate([[0.03], 0.97 * np.sqrt(FRACTIONS[1:]) / np.sqrt(FRACTIONS[1:]).sum()])
"""What the gamblers begin with, 1 together. Bold ones have more: what a release must stop is large, and small harm
takes so many requests that beginning with little hardly matters."""

_LOG_WEIGHTS: Numbers = np.log(WEIGHTS)
_BINS = 16_384
_HALVINGS = 30


@dataclass(frozen=True)
class Interval:
    """A confidence sequence as it stands: each end alone is wrong, ever, with probability at most alpha."""

    estimate: float
    low: float
    high: float


def log_capital(values: Numbers, mean: float, counts: Numbers | None = None) -> float:
    """The log of the capital won against "the mean of these is at most `mean`".

    `values` are 0 or more, each seen once, or as often as `counts` says. The order does not matter. Source:
    Waudby-Smith & Ramdas 2023, section 4; a mixture over `FRACTIONS`.
    """
    if mean <= 0:
        return inf if np.any(values > 0) else 0.0
    growth = np.log1p(FRACTIONS[:, None] * (values / mean - 1.0)[None, :])
    total = growth.sum(axis=1) if counts is None else growth @ counts
    return float(np.logaddexp.reduce(total + _LOG_WEIGHTS))


def log_capital_path(values: Numbers, mean: float, every: int = 1) -> Numbers:
    """The log capital after each look, for those who want to see it grow; `values` are 0 or more.

    A look comes after `every` so many values; those after the last look are left out.
    """
    looks = len(values) // every
    growth = np.log1p(FRACTIONS[:, None] * (values[: looks * every] / mean - 1.0)[None, :])
    seen = growth.reshape(len(FRACTIONS), looks, every).sum(axis=2).cumsum(axis=1)
    path: Numbers = np.logaddexp.reduce(seen + _LOG_WEIGHTS[:, None], axis=0)
    return path


def block_size(share: float) -> tuple[int, int]:
    """How many requests of the challenger and of the champion make a block."""
    return max(1, round(share / (1.0 - share))), max(1, round((1.0 - share) / share))


def blocks(challenger: Numbers, champion: Numbers, share: float) -> Numbers:
    """Differences of means of the arms, one per block of requests, in the order in which each arm answered.

    A block has as many requests of each arm as the challenger's `share` (0 to 1) gives, with one of the rarer
    arm: at 10 %, one of the challenger and nine of the champion. How the arms interleave does not matter, and
    what does not fill a block waits for the next look. The share is what was configured, and must not change
    between looks: another share is another series.
    """
    few, many = block_size(share)
    number = min(len(challenger) // few, len(champion) // many)
    rows = challenger[: number * few].reshape(number, few).mean(axis=1)
    differences: Numbers = rows - champion[: number * many].reshape(number, many).mean(axis=1)
    return differences


def mean_interval(values: Numbers, *, lowest: float, highest: float, alpha: float) -> Interval:
    """A confidence sequence for the mean of values between `lowest` and `highest`; of none, everything."""
    if not len(values):
        return Interval(float("nan"), lowest, highest)
    estimate = float(np.mean(values))
    low = _lower_bound(values, lowest, highest, alpha)
    return Interval(estimate, low, -_lower_bound(-values, -highest, -lowest, alpha))


def shift_interval(
    challenger: Numbers, champion: Numbers, cuts: Numbers, share: float, alpha: float
) -> Interval:
    """A confidence sequence for the largest difference of the two distribution functions at the `cuts`.

    The cuts must be chosen without the values. Evidence for a shift is the mean capital over cuts and
    directions: a mixture, which costs the logarithm of their number where a union bound would cost the same
    in every one. The upper end needs no correction: it is below the truth only if it is so at the cut where
    the difference is largest. A sequential Kolmogorov-Smirnov test on a grid (compare Howard & Ramdas 2022, section 4).
    """
    by_cut = [blocks(challenger <= cut, champion <= cut, share) for cut in cuts]
    if not by_cut or not len(by_cut[0]):
        return Interval(float("nan"), 0.0, 1.0)
    signed = [_binned(sign * one, -1.0, 1.0) for one in by_cut for sign in (1.0, -1.0)]
    estimate = max(abs(float(one.mean())) for one in by_cut)

    def evidence(shift: float) -> float:
        each = [log_capital(values, shift + 1.0, counts) for values, counts in signed]
        return float(np.logaddexp.reduce(each)) - log(len(each))

    low = _last_refuted(evidence, 0.0, estimate, alpha)
    high = max(-_lower_bound(-sign * one, -1.0, 1.0, alpha) for one in by_cut for sign in (1.0, -1.0))
    return Interval(estimate, low, high)


def largest_of(quantile: float) -> int:
    """Of how many values the largest has its median at a quantile: 1 for 0.5, 7 for 0.9, 69 for 0.99."""
    return max(1, round(log(0.5) / log(quantile)))


@dataclass(frozen=True)
class Side:
    """One arm's values, as logs, in groups that follow in time, sorted within each.

    `group` says which group each value is of, `first` where each group begins, and `largest` how likely each value
    is the largest of a draw of `Neighbours.size` from its group.
    """

    values: Numbers
    group: NDArray[np.int64]
    first: NDArray[np.int64]
    largest: Numbers


@dataclass(frozen=True)
class Neighbours:
    """Requests of both arms in groups that were answered at about the same time, `size` or more of each arm."""

    size: int
    groups: int
    challenger: Side
    champion: Side

    def swapped(self) -> "Neighbours":
        """The same with the arms changed over."""
        return Neighbours(self.size, self.groups, self.champion, self.challenger)


def neighbours(
    challenger: Numbers, champion: Numbers, times: tuple[Numbers, Numbers], size: int
) -> Neighbours:
    """Group values above 0 by time: a group ends as soon as it has `size` of each arm; the unfinished last waits.

    Where a group ends depends on when requests came, and never on how long they took.
    """
    orders = [np.argsort(time, kind="stable") for time in times]
    moments = [time[order] for time, order in zip(times, orders, strict=True)]
    bounds: list[list[int]] = [[0], [0]]
    while all(bound[-1] + size <= len(arm) for bound, arm in zip(bounds, moments, strict=True)):
        least = [bound[-1] + size for bound in bounds]
        end = max(arm[place - 1] for place, arm in zip(least, moments, strict=True))
        for bound, arm, place in zip(bounds, moments, least, strict=True):
            bound.append(max(int(np.searchsorted(arm, end, side="right")), place))
    ours, theirs = (
        _side(np.log(arm[order]), bound, size)
        for arm, order, bound in zip((challenger, champion), orders, bounds, strict=True)
    )
    return Neighbours(size, len(bounds[0]) - 1, ours, theirs)


def _side(values: Numbers, bounds: list[int], size: int) -> Side:
    lengths = np.diff(bounds)
    group = np.repeat(np.arange(len(lengths)), lengths)
    values = values[: bounds[-1]]
    values = values[np.lexsort((values, group))]
    first = np.array(bounds[:-1], dtype=np.int64)
    rank = np.arange(len(values)) - first[group]
    largest = np.exp(_log_choose(rank, size - 1) - _log_choose(lengths, size)[group])
    return Side(values, group, first, largest)


def exceedances(found: Neighbours, log_ratio: float) -> Numbers:
    """For each group, how likely the largest of `size` of the challenger's is above that of the champion's.

    The champion's are multiplied by the ratio, and draws of `size` without replacement are averaged over. If the
    arms are alike and the ratio is 1, the mean is a half or less, whatever all of a group have in common.
    """
    ours, theirs = found.challenger, found.champion
    lowest = float(theirs.values.min())
    width = float(theirs.values.max()) - lowest + 2.0
    # Groups are laid side by side on one line, so that one search serves all of them.
    line = theirs.values - lowest + 1.0 + theirs.group * width
    sought = np.clip(ours.values - log_ratio - lowest + 1.0, 0.5, width - 0.5) + ours.group * width
    below = np.searchsorted(line, sought, side="left") - theirs.first[ours.group]
    lengths = np.bincount(theirs.group, minlength=found.groups)
    ways = _log_choose(np.arange(lengths.max() + 1), found.size)
    all_below = np.exp(ways[below] - ways[lengths][ours.group])
    means = np.bincount(ours.group, ours.largest * all_below, minlength=found.groups)
    return np.minimum(means.astype(np.float64), 1.0)


def quantile_ratio_interval(
    challenger: Numbers,
    champion: Numbers,
    quantile: float,
    alpha: float,
    times: tuple[Numbers, Numbers] | None = None,
) -> Interval:
    """A confidence sequence for the challenger's quantile over the champion's; values above 0.

    Requests are compared with those that were answered at about the same time, so that what slows a whole machine
    down for a while, and makes neighbouring requests alike, is no evidence against either arm. In each group of them
    the larger of two largest values, one of each arm, is the challenger's with a chance of at most a half if its
    values are at most r times the champion's: a bounded mean, to be bet on. Without `times` (any numbers that order
    the requests of both arms) the arms are taken as evenly interleaved.
    """
    if times is None:
        times = (
            (np.arange(len(challenger)) + 0.5) / max(1, len(challenger)),
            (np.arange(len(champion)) + 0.5) / max(1, len(champion)),
        )
    found = neighbours(challenger, champion, times, largest_of(quantile))
    if not found.groups:
        return Interval(float("nan"), 0.0, inf)
    both = np.concatenate([found.challenger.values, found.champion.values])
    widest = float(np.ptp(both)) + 1.0
    middle = _balance(lambda ratio: float(exceedances(found, ratio).mean()), -widest, widest)
    swapped = found.swapped()
    low = _last_refuted(lambda ratio: slower_evidence(found, ratio), -widest, middle, alpha)
    # The other side is the same question with the arms changed over.
    other = _last_refuted(lambda ratio: slower_evidence(swapped, ratio), -widest, -middle, alpha)
    return Interval(exp(middle), exp(low) if low > -widest else 0.0, exp(-other) if other > -widest else inf)


def slower_evidence(found: Neighbours, log_ratio: float) -> float:
    """The log capital against "the challenger's values are at most exp(`log_ratio`) times the champion's"."""
    return log_capital(exceedances(found, log_ratio), 0.5)


def _balance(share: Callable[[float], float], low: float, high: float) -> float:
    """Where a share that falls from `low` to `high` passes a half."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if share(middle) >= 0.5 else (low, middle)
    return (low + high) / 2.0


def _log_choose(of: NDArray[Any], few: int) -> Numbers:
    """The log of the number of ways to choose `few`; minus infinity where there are none."""
    from scipy.special import gammaln

    of = np.asarray(of, dtype=np.float64)
    ways: Numbers = np.where(
        of >= few, gammaln(of + 1.0) - gammaln(np.maximum(of - few, 0.0) + 1.0) - lgamma(few + 1.0), -inf
    )
    return ways


def share_interval(count: int, total: int, expected: float, alpha: float) -> Interval:
    """A confidence sequence for the share behind `count` of `total`, narrowest where the share is as expected.

    A beta mixture centred on the expected share, with the weight of 100 observations: the Dirichlet mixture of
    Lindon & Malek 2022 (section 2) for two arms. Both ends together are wrong with probability at most alpha.
    """
    if not total:
        return Interval(float("nan"), 0.0, 1.0)
    before = 100.0 * expected, 100.0 * (1.0 - expected)
    mixture = _log_beta(before[0] + count, before[1] + total - count) - _log_beta(*before)

    def evidence(share: float) -> float:
        if (share <= 0.0 and count) or (share >= 1.0 and count < total):
            return inf
        seen = count * log(share) if count else 0.0
        return mixture - seen - ((total - count) * log1p(-share) if count < total else 0.0)

    estimate = count / total
    low = _last_refuted(evidence, 0.0, estimate, alpha)
    high = 1.0 - _last_refuted(lambda rest: evidence(1.0 - rest), 0.0, 1.0 - estimate, alpha)
    return Interval(estimate, low, high)


def requests_needed(
    values: Numbers, weights: Numbers, *, lowest: float, alpha: float, power: float, tolerated: float = 0.0
) -> int:
    """How many blocks show a mean above `tolerated`, with probability `power`, if this is their distribution.

    A formula, and a careful one: the log capital of the best fixed fraction is a random walk with drift g and
    deviation s per block, taken as normal, and the mixture has at least its weight w of it. So the n for
    which n·g - z(power)·s·sqrt(n) reaches log(1/alpha) + log(1/w). Only the last look is
    counted, not the chance to have seen it before.

    Raises `ValueError` if the distribution does not lie above `tolerated`: no number of requests shows that.
    """
    weights = weights / weights.sum()
    growth = np.log1p(FRACTIONS[1:, None] * ((values - tolerated) / (tolerated - lowest))[None, :])
    drift = growth @ weights
    deviation = np.sqrt(np.maximum((growth**2) @ weights - drift**2, 0.0))
    goals, z = log(1.0 / alpha) - _LOG_WEIGHTS[1:], NormalDist().inv_cdf(power)
    needed: list[float] = [
        ((z * s + sqrt((z * s) ** 2 + 4.0 * g * goal)) / (2.0 * g)) ** 2
        for g, s, goal in zip(drift.tolist(), deviation.tolist(), goals.tolist(), strict=True)
        if g > 0
    ]
    if not needed:
        raise ValueError(
            "The mean of these values is not above what is tolerated, so no number of them shows it."
        )
    return ceil(min(needed))


def _binned(values: Numbers, lowest: float, highest: float) -> tuple[Numbers, Numbers]:
    """Values above `lowest`, and how often; many are rounded down, which only ever loses capital."""
    lifted = np.maximum(values - lowest, 0.0)
    if len(lifted) > _BINS:
        step = (highest - lowest) / _BINS
        lifted = np.floor(lifted / step + 1e-9) * step
    found, counts = np.unique(lifted, return_counts=True)
    return found, counts.astype(np.float64)


def _lower_bound(values: Numbers, lowest: float, highest: float, alpha: float) -> float:
    lifted, counts = _binned(values, lowest, highest)
    estimate = float(np.average(lifted, weights=counts))
    return lowest + _last_refuted(lambda mean: log_capital(lifted, mean, counts), 0.0, estimate, alpha)


def _last_refuted(evidence: Callable[[float], float], low: float, high: float, alpha: float) -> float:
    """Where evidence, falling from `low` to `high`, passes log(1/alpha), or `low` where it never reaches that."""
    needed = log(1.0 / alpha)
    if evidence(low) < needed:
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        if evidence(middle) >= needed:
            low = middle
        else:
            high = middle
    return low


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
