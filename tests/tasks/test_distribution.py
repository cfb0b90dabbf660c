"""Distances between two samples: what they are, and where there is none."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.distribution import distance

TESTS = ("psi", "ks", "jensen_shannon")
NUMBERS = pd.Series(np.arange(1_000, dtype=float))
KINDS = pd.Series(["a"] * 700 + ["b"] * 300)


@pytest.mark.parametrize("test", TESTS)
def test_a_sample_is_no_distance_from_itself(test):
    assert distance(NUMBERS, NUMBERS, test) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=60),
    st.integers(1, 7),
    st.sampled_from(["psi", "jensen_shannon"]),
)
def test_rounding_never_makes_a_distance_of_equal_samples_undefined(values, times, test):
    found = distance(pd.Series(values * times), pd.Series(values), test)

    assert found == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("test", TESTS)
def test_a_larger_shift_is_a_larger_distance(test):
    near, far = (distance(NUMBERS, NUMBERS + shift, test) for shift in (50, 300))

    assert 0 < near < far


def test_psi_of_categories_is_the_sum_over_their_shares():
    found = distance(KINDS, pd.Series(["a"] * 500 + ["b"] * 500), "psi")

    assert found == pytest.approx((0.7 - 0.5) * math.log(0.7 / 0.5) + (0.3 - 0.5) * math.log(0.3 / 0.5))


def test_psi_of_numbers_is_over_the_deciles_of_the_reference():
    upper_half = NUMBERS[NUMBERS >= 500]

    found = distance(NUMBERS, upper_half, "psi")

    floored = 5 * (0.1 - 1e-4) * math.log(0.1 / 1e-4)
    assert found == pytest.approx(floored + 5 * (0.1 - 0.2) * math.log(0.1 / 0.2), rel=0.02)


def test_ks_is_the_largest_gap_between_the_distribution_functions():
    assert distance(NUMBERS, NUMBERS + 250, "ks") == pytest.approx(0.25)


def test_jensen_shannon_is_one_where_nothing_is_shared():
    assert distance(KINDS, pd.Series(["c"] * 9), "jensen_shannon") == pytest.approx(1.0)


def test_a_new_category_counts_and_stays_finite():
    found = distance(KINDS, pd.Series(["a"] * 7 + ["b"] * 2 + ["new"]), "psi")

    assert 0 < found < math.inf


@pytest.mark.parametrize("test", ["psi", "jensen_shannon"])
def test_truth_values_are_categories_whether_some_are_missing_or_not(test):
    whole = pd.Series([True] * 7 + [False] * 3)
    gaps = pd.Series([True] * 7 + [False] * 3 + [None], dtype=object)

    assert distance(whole, gaps, test) == 0.0


def test_times_are_numbers_whatever_their_unit_and_zone():
    moments = pd.Series(pd.date_range("2025-01-01", periods=100, freq="D"))
    elsewhere = moments.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo").dt.as_unit("ms")

    assert distance(moments, elsewhere, "ks") == 0.0
    assert distance(moments, elsewhere + pd.Timedelta(days=50), "ks") == pytest.approx(0.5)


def test_a_constant_that_moves_is_seen():
    constant = pd.Series([5.0] * 100)

    assert distance(constant, pd.Series([4.0] * 100), "psi") > 5
    assert distance(constant, constant, "psi") == 0.0


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    "empty", [pd.Series([], dtype=float), pd.Series([np.nan, np.nan])], ids=["no rows", "NaN"]
)
def test_there_is_no_distance_to_nothing(test, empty):
    assert math.isnan(distance(NUMBERS, empty, test))
    assert math.isnan(distance(empty, NUMBERS, test))


def test_missing_values_are_left_out():
    assert distance(NUMBERS, pd.concat([NUMBERS, pd.Series([np.nan] * 50)]), "ks") == 0.0


def test_ks_of_text_and_an_unknown_test_are_refused():
    with pytest.raises(ValueError, match="needs numbers or times"):
        distance(KINDS, KINDS, "ks")
    with pytest.raises(ValueError, match="no distribution test called 'chi2'"):
        distance(NUMBERS, NUMBERS, "chi2")
