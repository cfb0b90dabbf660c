"""How many requests the steps of a plan need."""

import numpy as np
import pytest

from deployments.release import AnalysisPlan, ReleasePlan
from tasks import analysis
from tasks.analysis import Family, Harm
from tasks.release_sizes import step_sizes
from tasks.verdict import Verdict


def test_the_sizes_of_the_default_plan_pass_a_challenger_without_errors_and_no_fewer_do():
    plan = ReleasePlan()
    alpha = Family(tests=len(plan.analysis.tests), steps=plan.looks + 1).each_at(1)
    half = step_sizes(plan, 0.0)[-1]

    def verdict(number):
        arm = np.zeros(number)
        return analysis.error_rate(arm, arm, share=0.5, harm=Harm(0.03), alpha=alpha, minimum=1).verdict

    assert verdict(half.to_pass) is Verdict.PASS
    assert verdict(half.to_pass - 1) is Verdict.INCONCLUSIVE


def test_a_smaller_effect_and_a_worse_baseline_need_more_requests():
    plan = ReleasePlan(analysis=AnalysisPlan.model_validate({"error_rate": {"effect": 0.015}}))

    usual, worse = step_sizes(ReleasePlan(), 0.005)[0], step_sizes(ReleasePlan(), 0.02)[0]
    finer = step_sizes(plan, 0.005)[0]

    assert usual.to_fail < worse.to_fail
    assert usual.to_fail < finer.to_fail


def test_a_plan_without_a_test_of_errors_has_no_sizes():
    plan = ReleasePlan(analysis=AnalysisPlan(error_rate=None))

    assert {(one.to_fail, one.to_pass) for one in step_sizes(plan, 0.0)} == {(None, None)}


def test_a_rate_that_cannot_rise_is_refused():
    with pytest.raises(ValueError, match="cannot rise"):
        step_sizes(ReleasePlan(), 0.99)
