"""How many requests the steps of a release plan need for their error rates: to find harm, and to exclude it.

A plan goes in, and numbers by formula (`tasks.analysis.required_requests`) come out; nothing is measured.
"""

import numpy as np

from deployments.declared import Declared
from deployments.release import ReleasePlan
from tasks import analysis
from tasks.analysis import Family, Harm
from tasks.decide import Stage, stages
from tasks.release_record import State
from tasks.sequential import block_size
from tasks.verdict import Verdict

__all__ = ["POWER", "StepSize", "step_sizes"]

POWER = 0.8
_MOST_BLOCKS = 1 << 20


class StepSize(Declared):
    """Requests of the challenger, in one step.

    `to_fail` shows an error rate that is higher by the plan's effect, with a chance of `POWER`; `to_pass` excludes that
    effect where neither arm fails; None where no number does. `minimum` is what the plan wants at least.
    """

    state: State
    percentage: int
    minimum: int
    to_fail: int | None
    to_pass: int | None


def step_sizes(plan: ReleasePlan, baseline: float) -> tuple[StepSize, ...]:
    """The sizes of all steps that are analysed, at the champion's error rate `baseline` (0 to 1).

    Raises:
        ValueError: no rate of errors can be higher than the baseline by the plan's effect.
    """
    family = Family(tests=len(plan.analysis.tests), alpha=plan.analysis.alpha, steps=plan.looks + 1)
    return tuple(_size(plan, stage, baseline, family.each_at(1)) for stage in stages(plan))


def _size(plan: ReleasePlan, stage: Stage, baseline: float, alpha: float) -> StepSize:
    effect, to_fail, to_pass = plan.analysis.error_rate, None, None
    paired = stage.state is State.SHADOW or stage.percentage == 100
    share = 0.5 if paired else stage.percentage / 100
    if effect is not None:
        harm = Harm(effect.effect, effect.tolerated)
        to_fail = analysis.required_requests(
            baseline=baseline,
            effect=harm.effect,
            tolerated=harm.tolerated,
            share=share,
            alpha=alpha,
            power=POWER,
        ).challenger
        to_pass = _to_pass(harm, share, alpha)
    return StepSize(
        state=stage.state,
        percentage=stage.percentage,
        minimum=stage.minimum_requests,
        to_fail=to_fail,
        to_pass=to_pass,
    )


def _to_pass(harm: Harm, share: float, alpha: float) -> int | None:
    """The fewest requests of the challenger by which two arms without errors pass."""
    few, many = block_size(share)

    def passes(number: int) -> bool:
        found = analysis.error_rate(
            np.zeros(number * few),
            np.zeros(number * many),
            share=share,
            harm=harm,
            alpha=alpha,
            minimum=1,
        )
        return found.verdict is Verdict.PASS

    high = 1
    while not passes(high):
        high *= 2
        if high * max(few, many) > _MOST_BLOCKS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high * few
