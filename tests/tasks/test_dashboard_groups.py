"""Slices, fairness and importance over windows: what is worse than its window, and what matters most."""

import pytest

from tasks.dashboard import dashboard_page
from tasks.dashboard_groups import group_plots, important, lagging
from tests.tasks.made_monitoring import FAIL, PASS, facts, monitored, row, windows

FIRST, LAST = windows(2)


def of_slice(subject, value, low, high, metric="roc_auc", **more):
    return row(LAST, "slice", metric, value, subject=subject, low=low, high=high, **more)


def test_a_slice_is_as_far_behind_as_its_interval_says():
    whole = row(LAST, "quality", "roc_auc", 0.9)
    behind, ahead = of_slice("tier=gold", 0.8, 0.75, 0.85), of_slice("tier=new", 0.95, 0.9, 0.99)

    found = {one.subject: (one.value, one.threshold) for one in lagging([whole, behind, ahead])}

    assert found["tier=gold"] == pytest.approx((0.1, 0.05))
    assert found["tier=new"] == (0.0, pytest.approx(0.04))


def test_where_lower_is_better_a_higher_slice_is_behind():
    whole, behind = row(LAST, "quality", "brier", 0.1), of_slice("tier=gold", 0.2, 0.18, 0.22, "brier")

    (found,) = lagging([whole, behind])

    assert (found.value, found.threshold) == pytest.approx((0.1, 0.02))


def test_without_the_windows_own_metric_a_slice_is_held_against_the_others_of_its_column():
    slices = [
        of_slice("tier=gold", 0.6, 0.5, 0.7, rows=100),
        of_slice("tier=new", 0.9, 0.8, 1.0, rows=200),
        of_slice("site=far", 0.1, 0.0, 0.2, rows=300),
    ]

    found = {one.subject: one.value for one in lagging(slices)}

    assert found["tier=gold"] == pytest.approx(0.2)
    assert found["site=far"] == 0.0


def test_features_are_told_as_a_part_of_the_largest_of_their_window():
    rows = [
        row(window, "importance", "importance", value, subject=name)
        for window, name, value in ((FIRST, "a", 0.4), (FIRST, "b", 0.1), (LAST, "a", -0.1), (LAST, "b", 0.0))
    ]

    found = {one.subject: one.value / one.threshold for one in important(rows)}

    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(0.25)}
    assert all(ratio < 1 for ratio in found.values())


def test_each_kind_is_drawn_where_there_are_rows_of_it():
    rows = [
        row(LAST, "quality", "roc_auc", 0.9),
        of_slice("tier=gold", 0.8, 0.75, 0.85),
        row(FIRST, "fairness", "group_floor", 0.7, subject="tier recall", threshold=0.5, verdict=PASS),
        row(LAST, "fairness", "group_floor", 0.4, subject="tier recall", threshold=0.5, verdict=FAIL),
        row(LAST, "fairness", "equalized_odds_difference", None, subject="site"),
        row(LAST, "importance", "importance", 0.2, subject="a"),
        row(LAST, "importance", "importance_shift", 0.3),
    ]

    names = [name for name, *_ in group_plots(rows, [FIRST, LAST])]

    assert names == [
        "Slices",
        "Fairness: group floor by tier recall",
        "What the model goes by",
        "Shift of importance",
    ]
    assert list(group_plots([], [FIRST, LAST])) == []


def test_the_dashboard_shows_slices_over_windows(platform):
    assert 'alt="Slices over windows"' in dashboard_page(facts(platform))
    without = [one for one in monitored() if one.kind != "slice"]
    assert 'alt="Slices over windows"' not in dashboard_page(facts(platform, without))
