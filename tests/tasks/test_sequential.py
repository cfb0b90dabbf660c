import itertools
import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import sequential

ALPHA = 0.05


def passed_ever(paths: list[np.ndarray], alpha: float) -> float:
    return float(np.mean([np.any(path >= math.log(1 / alpha)) for path in paths]))


# Capital ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_no_fair_game_raises_the_expected_capital(chance: float) -> None:
    games = list(product([0.0, 1.0], repeat=6))

    expected = sum(
        chance ** sum(game)
        * (1 - chance) ** (6 - sum(game))
        * math.exp(sequential.log_capital(np.array(game), chance))
        for game in games
    )

    assert expected == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0, 2), min_size=1, max_size=60), st.floats(0.01, 1.9))
def test_capital_ends_where_its_path_ends_in_any_order(values: list[float], mean: float) -> None:
    array = np.array(values)

    path = sequential.log_capital_path(array, mean)

    assert path[-1] == pytest.approx(sequential.log_capital(array[::-1], mean), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.05, 0.9), st.floats(0.001, 0.1))
def test_a_higher_mean_is_harder_to_refute(values: list[float], mean: float, more: float) -> None:
    array = np.array(values)

    assert sequential.log_capital(array, mean + more) <= sequential.log_capital(array, mean) + 1e-12


def test_a_path_looked_at_now_and_then_is_the_same_path() -> None:
    values = np.random.default_rng(7).random(103)

    now_and_then = sequential.log_capital_path(values, 0.4, every=10)

    assert now_and_then.tolist() == pytest.approx(sequential.log_capital_path(values, 0.4)[9:100:10].tolist())


def test_many_values_are_rounded_only_against_the_gambler() -> None:
    values = np.random.default_rng(3).random(20_000)

    binned, counts = sequential._binned(values, 0.0, 1.0)

    assert counts.sum() == len(values)
    assert len(binned) <= 16_385
    assert 0 <= values.mean() - np.average(binned, weights=counts) < 1 / 16_384


def test_fair_games_seldom_make_anybody_rich_however_often_one_looks() -> None:
    random = np.random.default_rng(11)

    games = [sequential.log_capital_path((random.random(1_000) < 0.02) * 1.0, 0.02) for _ in range(300)]

    assert passed_ever(games, ALPHA) <= ALPHA


# Intervals --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=80), st.floats(0.001, 0.4))
@settings(max_examples=50, deadline=None)
def test_an_interval_holds_its_estimate_and_stays_within_bounds(values: list[float], alpha: float) -> None:
    found = sequential.mean_interval(np.array(values), lowest=-1, highest=1, alpha=alpha)

    assert -1 <= found.low <= found.estimate + 1e-9
    assert found.estimate - 1e-9 <= found.high <= 1


def test_an_interval_of_values_turned_round_is_turned_round() -> None:
    values = np.random.default_rng(5).uniform(-0.2, 0.9, 300)

    one = sequential.mean_interval(values, lowest=-1, highest=1, alpha=ALPHA)
    other = sequential.mean_interval(-values, lowest=-1, highest=1, alpha=ALPHA)

    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_nothing_seen_excludes_nothing() -> None:
    nothing = np.empty(0)

    assert sequential.mean_interval(nothing, lowest=-1, highest=1, alpha=ALPHA).high == 1
    assert sequential.quantile_ratio_interval(nothing, nothing, 0.5, ALPHA).high == math.inf
    assert sequential.shift_interval(nothing, nothing, np.array([0.5]), 0.1, ALPHA).high == 1
    assert sequential.share_interval(0, 0, 0.1, ALPHA).high == 1


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.8])
def test_blocks_use_each_request_once_and_leave_out_what_fills_none(share: float) -> None:
    few, many = sequential.block_size(share)

    found = sequential.blocks(np.ones(3 * few), np.zeros(5 * many + 1), share)

    assert few / (few + many) == pytest.approx(share, abs=0.005)
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_blocks_of_earlier_requests_stay_as_they_were() -> None:
    random = np.random.default_rng(8)
    ours, theirs = random.random(50), random.random(450)

    early, late = (
        sequential.blocks(ours[:20], theirs[:200], 0.1),
        sequential.blocks(ours, theirs, 0.1),
    )

    assert late[: len(early)].tolist() == early.tolist()


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.3])
def test_a_group_is_judged_as_trying_all_draws_from_it_would(size: int, ratio: float) -> None:
    random = np.random.default_rng(2)
    # Whole numbers: many values are equal, within an arm and across.
    ours, theirs = (np.ceil(random.lognormal(2, 0.5, n)) for n in (9, 12))
    found = sequential.neighbours(ours, theirs, (np.zeros(9), np.zeros(12)), size)

    tried = [
        max(a) > ratio * max(b)
        for a in itertools.combinations(ours, size)
        for b in itertools.combinations(theirs, size)
    ]

    assert found.groups == 1
    assert sequential.exceedances(found, math.log(ratio)).tolist() == pytest.approx([np.mean(tried)])


def test_groups_are_of_neighbours_and_leave_nobody_out_but_at_the_end() -> None:
    random = np.random.default_rng(3)
    times = (np.sort(random.random(40)), np.sort(random.random(300)))

    found = sequential.neighbours(np.exp(times[0]), np.exp(times[1]), times, 7)

    for side in (found.challenger, found.champion):
        assert np.bincount(side.group).min() >= 7
        assert (np.diff(side.values) >= 0).all()
    ends = [side.values[side.group == 2].max() for side in (found.challenger, found.champion)]
    begins = [side.values[side.group == 3].min() for side in (found.challenger, found.champion)]
    assert max(ends) <= min(begins)


def test_what_slows_everybody_down_for_a_while_is_no_evidence() -> None:
    random = np.random.default_rng(6)
    slow = np.repeat(np.exp(random.standard_normal(40)), 100)
    values, challenger = slow * random.lognormal(0, 0.2, 4000), random.random(4000) < 0.3
    times = np.arange(4000.0)

    found = sequential.quantile_ratio_interval(
        values[challenger], values[~challenger], 0.9, ALPHA, (times[challenger], times[~challenger])
    )

    assert found.low < 1 < found.high
    assert found.high / found.low < 1.3


def test_the_ratio_of_quantiles_does_not_depend_on_the_unit() -> None:
    random = np.random.default_rng(4)
    ours, theirs = random.lognormal(3, 0.4, 200), random.lognormal(3, 0.4, 900)

    one = sequential.quantile_ratio_interval(ours, theirs, 0.5, ALPHA)
    other = sequential.quantile_ratio_interval(ours * 1000, theirs * 1000, 0.5, ALPHA)

    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert 0 < one.low < one.estimate < one.high < 2


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_a_share_and_its_rest_are_judged_alike(total: int, part: float, expected: float) -> None:
    count = round(part * total)

    one = sequential.share_interval(count, total, expected, ALPHA)
    other = sequential.share_interval(total - count, total, 1 - expected, ALPHA)

    assert 0 <= one.low <= one.estimate <= one.high <= 1
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low), abs=1e-6)


def test_no_number_of_requests_shows_a_harm_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no number of them"):
        sequential.requests_needed(
            np.array([-1.0, 1.0]), np.array([0.5, 0.5]), lowest=-1, alpha=0.01, power=0.8
        )


# Over many looks --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_confidence_sequences_hold_the_truth_at_every_look() -> None:
    random = np.random.default_rng(21)
    wrong = {"mean": 0, "quantile": 0, "share": 0, "shift": 0}
    runs = 60

    for _ in range(runs):
        ours, theirs = random.lognormal(0, 0.5, 400), random.lognormal(0, 0.5, 1_600)
        arms = random.random(2_000) < 0.2
        found: dict[str, list[tuple[float, sequential.Interval]]] = {name: [] for name in wrong}
        for n in range(100, 401, 100):
            a, b = ours[:n], theirs[: 4 * n]
            found["mean"].append(
                (
                    0.0,
                    sequential.mean_interval(
                        (a < 0.6) - NormalDist().cdf(np.log(0.6) / 0.5), lowest=-1, highest=1, alpha=0.1
                    ),
                )
            )
            found["quantile"].append((1.0, sequential.quantile_ratio_interval(a, b, 0.9, 0.1)))
            found["share"].append((0.2, sequential.share_interval(int(arms[: 5 * n].sum()), 5 * n, 0.2, 0.1)))
            found["shift"].append((0.0, sequential.shift_interval(a, b, np.array([0.5, 1, 2]), 0.2, 0.1)))
        for name, looks in found.items():
            wrong[name] += any(truth < look.low for truth, look in looks)

    # Of 60 runs at most 6 are expected; 13 or more would come up once in 150 tries.
    assert max(wrong.values()) < 13, wrong
