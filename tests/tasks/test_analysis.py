import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import analysis
from tasks.analysis import Analysis, Arms, Family, Finding, Harm
from tasks.verdict import Verdict

ALPHA = 0.01
CUTS = np.arange(0.1, 1.0, 0.1).tolist()

Judge = Callable[[Any, Any], Finding]


def errors(challenger: Any, champion: Any) -> Finding:
    return analysis.error_rate(challenger, champion, share=0.1, harm=Harm(0.02), alpha=ALPHA)


def median(challenger: Any, champion: Any) -> Finding:
    return analysis.latency(challenger, champion, quantile=0.5, harm=Harm(0.2), alpha=ALPHA)


def shift(challenger: Any, champion: Any) -> Finding:
    return analysis.scores(challenger, champion, cuts=CUTS, share=0.1, harm=Harm(0.15), alpha=ALPHA)


def paired(challenger: Any, champion: Any) -> Finding:
    return analysis.paired_scores(
        challenger, champion, lowest=0, highest=1, harm=Harm(0.05, tolerated=0.01), alpha=ALPHA
    )


def loss(challenger: Any, champion: Any) -> Finding:
    return analysis.quality(challenger, champion, bound=1, share=0.1, harm=Harm(0.08), alpha=ALPHA)


def paired_loss(challenger: Any, champion: Any) -> Finding:
    return analysis.quality(challenger, champion, bound=1, share=None, harm=Harm(0.08), alpha=ALPHA)


JUDGES = [errors, median, shift, paired, loss, paired_loss]
UNPAIRED = [errors, median, shift, loss]


def two(
    judge: Judge, random: np.random.Generator, challengers: int, worse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Answers of both arms for a test, alike or with the challenger worse than is allowed."""
    champions = 9 * challengers if judge in UNPAIRED else challengers
    if judge is errors:
        return (random.random(challengers) < (0.06 if worse else 0.005)) * 1.0, (
            random.random(champions) < 0.005
        ) * 1.0
    if judge is median:
        return random.lognormal(3, 0.4, challengers) * (1.4 if worse else 1.0), random.lognormal(
            3, 0.4, champions
        )
    ours, theirs = random.beta(2, 6, challengers), random.beta(2, 6, champions)
    if judge in {paired, paired_loss}:
        ours = np.clip(theirs + random.normal(0, 0.02, challengers), 0, 1)
    return (np.clip(ours + 0.2, 0, 1) if worse else ours), theirs


# Verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", JUDGES)
def test_harm_of_that_size_fails(judge: Judge) -> None:
    ours, theirs = two(judge, np.random.default_rng(1), 1500, worse=True)

    found = judge(ours, theirs)

    assert found.verdict is Verdict.FAIL
    assert found.low > 0
    assert "is shown" in found.reason


@pytest.mark.parametrize("judge", JUDGES)
def test_arms_alike_pass_once_there_is_enough(judge: Judge) -> None:
    ours, theirs = two(judge, np.random.default_rng(1), 1500, worse=False)

    found = judge(ours, theirs)

    assert found.verdict is Verdict.PASS, found
    assert found.low <= found.estimate <= found.high
    assert found.counts == Arms(len(ours), len(theirs))
    assert "excluded" in found.reason


@pytest.mark.parametrize("judge", JUDGES)
def test_arms_alike_are_not_decided_on_little(judge: Judge) -> None:
    ours, theirs = two(judge, np.random.default_rng(1), 30, worse=False)

    assert judge(ours, theirs).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("missing", ["challenger", "champion", "both"])
def test_an_arm_without_requests_decides_nothing(judge: Judge, missing: str) -> None:
    ours, theirs = two(judge, np.random.default_rng(1), 200, worse=True)

    found = judge([] if missing != "champion" else ours, [] if missing != "challenger" else theirs)

    assert found.verdict is Verdict.INCONCLUSIVE
    assert math.isnan(found.estimate)
    assert "has no requests" in found.reason


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("worse", [False, True])
def test_a_value_that_is_no_number_decides_nothing(judge: Judge, bad: float, worse: bool) -> None:
    ours, theirs = two(judge, np.random.default_rng(1), 1500, worse=worse)
    ours[7] = bad

    found = judge(ours, theirs)

    assert found.verdict is Verdict.INCONCLUSIVE
    assert "1 of the challenger's 1500 values" in found.reason


@pytest.mark.parametrize("judge", [errors, paired, loss])
def test_a_value_out_of_bounds_decides_nothing(judge: Judge) -> None:
    ours, theirs = two(judge, np.random.default_rng(1), 1500, worse=False)
    theirs[3] = 1.5

    found = judge(ours, theirs)

    assert found.verdict is Verdict.INCONCLUSIVE
    assert "outside 0 to 1" in found.reason


@pytest.mark.parametrize("latency", [0.0, -1.0, 1e300])
def test_what_can_be_no_latency_decides_nothing(latency: float) -> None:
    assert median([latency] * 200, [1.0] * 200).verdict is Verdict.INCONCLUSIVE
    assert median([1.0] * 200, [latency] * 200).verdict is Verdict.INCONCLUSIVE


def test_latencies_that_are_all_the_same_are_compared_exactly() -> None:
    assert median([5.0] * 300, [5.0] * 2700).verdict is Verdict.PASS
    assert median([7.0] * 300, [5.0] * 2700).low == pytest.approx(0.4)


@pytest.mark.parametrize("judge", [paired, paired_loss])
def test_pairs_without_a_partner_decide_nothing(judge: Judge) -> None:
    found = judge([0.5] * 300, [0.5] * 299)

    assert found.verdict is Verdict.INCONCLUSIVE
    assert "cannot be paired" in found.reason


def test_few_requests_may_fail_but_never_pass() -> None:
    def judged(failed: float) -> Verdict:
        return analysis.error_rate(
            [failed] * 40, [0.0] * 400, share=0.1, harm=Harm(0.9), alpha=ALPHA, minimum=100
        ).verdict

    assert judged(1.0) is Verdict.FAIL
    assert judged(0.0) is Verdict.INCONCLUSIVE


def test_harm_that_is_real_and_too_small_to_matter_passes() -> None:
    random = np.random.default_rng(6)
    theirs = random.uniform(0.2, 0.8, 4000)

    found = analysis.paired_scores(theirs + 0.02, theirs, lowest=0, highest=1, harm=Harm(0.05), alpha=ALPHA)

    assert found.low > 0
    assert found.verdict is Verdict.PASS


@pytest.mark.parametrize("direction", [-1, 1])
def test_scores_that_moved_either_way_fail(direction: int) -> None:
    theirs = np.random.default_rng(6).uniform(0.3, 0.7, 1500)

    assert paired(theirs + direction * 0.15, theirs).verdict is Verdict.FAIL


def test_a_challenger_that_is_better_passes() -> None:
    random = np.random.default_rng(9)
    theirs = (random.random(9000) < 0.06) * 1.0

    found = errors(np.zeros(1000), theirs)

    assert found.verdict is Verdict.PASS
    assert found.high < 0


@pytest.mark.parametrize(
    ("challenger", "champion", "verdict"),
    [
        (1000, 9000, Verdict.PASS),
        (700, 9300, Verdict.FAIL),
        (1400, 8600, Verdict.FAIL),
        (0, 1000, Verdict.FAIL),
        (10, 90, Verdict.INCONCLUSIVE),
        (0, 0, Verdict.INCONCLUSIVE),
    ],
)
def test_the_sample_ratio_is_held_to_the_share(challenger: int, champion: int, verdict: Verdict) -> None:
    found = analysis.sample_ratio(challenger, champion, share=0.1, harm=Harm(0.02), alpha=ALPHA)

    assert found.verdict is verdict, found


def test_an_analysis_passes_only_if_every_test_does() -> None:
    passed = analysis.sample_ratio(1000, 9000, share=0.1, harm=Harm(0.05), alpha=ALPHA)
    failed = analysis.sample_ratio(100, 9900, share=0.1, harm=Harm(0.05), alpha=ALPHA)
    undecided = analysis.sample_ratio(0, 0, share=0.1, harm=Harm(0.05), alpha=ALPHA)

    assert Analysis((passed, passed)).verdict is Verdict.PASS
    assert Analysis((passed, undecided)).verdict is Verdict.INCONCLUSIVE
    assert Analysis((passed, undecided, failed)).verdict is Verdict.FAIL
    assert Analysis(()).verdict is Verdict.INCONCLUSIVE


@given(
    st.lists(st.sampled_from([0.0, 1.0, math.nan]), max_size=60),
    st.lists(st.sampled_from([0.0, 1.0]), max_size=200),
    st.floats(0.02, 0.98),
    st.floats(0.001, 0.2),
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_in_too_few_never_pass(
    ours: list[float], theirs: list[float], share: float, alpha: float
) -> None:
    found = analysis.error_rate(ours, theirs, share=share, harm=Harm(0.5), alpha=alpha)

    assert found.verdict is not Verdict.PASS
    assert found.low <= found.high


# What is declared -------------------------------------------------------------------------------------------


def test_a_family_shares_its_alpha_among_tests_and_steps() -> None:
    assert Family(tests=5).each == pytest.approx(0.01)
    assert Family(tests=5, alpha=0.06, steps=3).each == pytest.approx(0.004)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Family(tests=0),
        lambda: Family(tests=1, alpha=0.0),
        lambda: Family(tests=1, steps=0),
        lambda: Harm(0.0),
        lambda: Harm(0.1, tolerated=0.1),
        lambda: Harm(0.1, tolerated=-0.1),
        lambda: Harm(math.nan),
        lambda: analysis.error_rate([0.0], [0.0], share=0.0, harm=Harm(0.1), alpha=ALPHA),
        lambda: analysis.latency([1.0], [1.0], quantile=1.0, harm=Harm(0.1), alpha=ALPHA),
        lambda: analysis.scores([[1.0]], [1.0], cuts=CUTS, share=0.1, harm=Harm(0.1), alpha=ALPHA),
        lambda: analysis.sample_ratio(-1, 2, share=0.1, harm=Harm(0.1), alpha=ALPHA),
        lambda: analysis.required_requests(baseline=0.5, effect=0.6, share=0.1, alpha=ALPHA),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^[A-Z].*\.$"):
        make()


def test_scores_without_a_place_to_compare_them_decide_nothing() -> None:
    found = analysis.scores([0.5] * 500, [0.5] * 4500, cuts=[], share=0.1, harm=Harm(0.1), alpha=ALPHA)

    assert found.verdict is Verdict.INCONCLUSIVE


# Losses -----------------------------------------------------------------------------------------------------


def test_losses_are_what_they_are_called() -> None:
    assert analysis.zero_one_loss(["a", "b"], ["a", "c"]).tolist() == [0.0, 1.0]
    assert analysis.brier_loss([1, 0], [0.75, 0.5]).tolist() == [0.0625, 0.25]
    assert analysis.log_loss([1.0, 0.5, 0.0], bound=3.0).tolist() == pytest.approx([0.0, math.log(2), 3.0])
    assert analysis.absolute_error([1.0, 10.0], [3.0, 0.0], bound=5.0).tolist() == [2.0, 5.0]
    assert analysis.squared_error([1.0, 10.0], [3.0, 0.0], bound=5.0).tolist() == [4.0, 5.0]


@pytest.mark.parametrize(
    "losses",
    [
        analysis.squared_error([1.0, math.nan], [3.0, 0.0], bound=5.0),
        analysis.brier_loss([1.0, math.nan], [0.5, 0.5]),
        analysis.log_loss([0.5, math.nan], bound=5.0),
        analysis.zero_one_loss([1.0, math.nan], [1.0, 0.0]),
        analysis.zero_one_loss(["a", None], ["a", "b"]),
    ],
)
def test_a_missing_label_is_not_taken_for_a_loss(losses: np.ndarray) -> None:
    found = analysis.quality(losses, losses, bound=5.0, share=None, harm=Harm(1.0), alpha=ALPHA)

    assert found.verdict is Verdict.INCONCLUSIVE


# Over many looks --------------------------------------------------------------------------------------------


def test_equal_error_rates_seldom_fail_at_any_of_many_looks() -> None:
    random = np.random.default_rng(31)
    failed = 0

    for _ in range(100):
        ours, theirs = (random.random(800) < 0.02) * 1.0, (random.random(800) < 0.02) * 1.0
        looks = (
            analysis.error_rate(ours[:n], theirs[:n], share=0.5, harm=Harm(0.001), alpha=0.1).verdict
            for n in range(50, 801, 125)
        )
        failed += Verdict.FAIL in looks

    # Of 100 releases at most 10 are expected to fail; 20 or more would come up once in 500 tries.
    assert failed < 20


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_requests_that_are_asked_for_suffice(share: float) -> None:
    random = np.random.default_rng(41)
    needed = analysis.required_requests(baseline=0.005, effect=0.015, share=share, alpha=ALPHA, power=0.8)

    found = [
        analysis.error_rate(
            random.random(needed.challenger) < 0.02,
            random.random(needed.champion) < 0.005,
            share=share,
            harm=Harm(0.0001),
            alpha=ALPHA,
        ).verdict
        for _ in range(200)
    ]

    # 160 of 200 are promised; 145 or fewer would come up once in 200 tries.
    assert found.count(Verdict.FAIL) > 145


def test_more_power_or_a_smaller_effect_needs_more_requests() -> None:
    def challengers(effect: float, power: float) -> int:
        return analysis.required_requests(
            baseline=0.005, effect=effect, share=0.1, alpha=ALPHA, power=power
        ).challenger

    assert challengers(0.015, 0.8) < challengers(0.015, 0.95)
    assert challengers(0.015, 0.8) < challengers(0.01, 0.8)
