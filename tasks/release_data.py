"""What a step of a release has seen so far: every request of both arms, and what the tests say of them.

Requests are added as they are found in the prediction log; nothing is looked up here. Where one arm answered copies
of the other's requests, the two answers to one request are a pair, and requests whose other half is not there yet
count for nothing but the sample ratio.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from deployments.contract import ColumnType
from deployments.measures import TaskKind
from deployments.release import AnalysisPlan, QualityEffect
from deployments.spec import Target
from tasks import analysis
from tasks.analysis import Family, Finding, Harm
from tasks.classes import class_of
from tasks.decide import Stage
from tasks.release_record import Look, Reading, State
from tasks.verdict import Verdict, overall

__all__ = ["ARMS", "Arm", "StageData"]

CHALLENGER, CHAMPION = "challenger", "champion"
ARMS = (CHALLENGER, CHAMPION)

_PROBABILITY_CUTS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
_EDGES = 20

Key = tuple[str, int]
Loss = Callable[[str, str | None, float], float]


class _Column:
    """Numbers that are added one after another, and asked for as an array."""

    def __init__(self) -> None:
        self._values = np.empty(1024)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, value: float) -> None:
        if self._count == len(self._values):
            self._values = np.concatenate([self._values, np.empty(self._count)])
        self._values[self._count] = value
        self._count += 1

    @property
    def array(self) -> np.ndarray:
        """All of them, in order; a view."""
        return self._values[: self._count]


@dataclass
class Arm:
    """What one version answered, oldest first: the part of each that failed, and what there is of those that did not.

    A row that was answered with null failed; `errors` counts the answers with any. What there is of others is
    milliseconds, when they were asked for (seconds since 1970), scores and losses.
    """

    requests: int = 0
    errors: int = 0
    failed: _Column = field(default_factory=_Column)
    milliseconds: _Column = field(default_factory=_Column)
    answered: _Column = field(default_factory=_Column)
    scores: _Column = field(default_factory=_Column)
    losses: _Column = field(default_factory=_Column)


@dataclass(frozen=True)
class _Answer:
    """One answer; its scores and predictions are a row each, NaN or None where the model gave none."""

    failed: bool
    milliseconds: float
    answered: float
    scores: tuple[float, ...]
    predictions: tuple[str | None, ...]

    @property
    def unanswered(self) -> float:
        """The part of it that is no answer, 0 to 1: all of it where it failed, else its rows that are null."""
        if self.failed or not self.predictions:
            return float(self.failed)
        nulls = [
            prediction is None or (place < len(self.scores) and math.isnan(self.scores[place]))
            for place, prediction in enumerate(self.predictions)
        ]
        return sum(nulls) / len(nulls)


class StageData:
    """All requests of one stage: `names` are the served entities of challenger and champion.

    `declared` is the type that the contract gives the target. `tests` and `steps` say over how many the plan's alpha
    is spread, and `attempt` how often this one was begun; no request is under way for longer than `timeout_seconds`.
    `cuts` are the scores at which the arms' distributions are compared, fixed beforehand: probabilities
    have tenths, a regression brings its own.
    """

    def __init__(
        self,
        plan: AnalysisPlan,
        stage: Stage,
        target: Target,
        declared: ColumnType,
        *,
        names: tuple[str, str],
        steps: int,
        attempt: int = 1,
        timeout_seconds: float = 30.0,
        cuts: Sequence[float] = (),
    ) -> None:
        self._plan, self._stage, self._target = plan, stage, target
        self._loss = _loss(plan.quality, target, declared) if plan.quality else None
        self._arm_of = dict(zip(names, ARMS, strict=True))
        self._cuts = tuple(cuts) if target.kind is TaskKind.REGRESSION else _PROBABILITY_CUTS
        self._alpha = Family(tests=len(plan.tests), alpha=plan.alpha, steps=steps).each_at(attempt)
        self._timeout_seconds = timeout_seconds
        self.paired = stage.state is State.SHADOW or stage.percentage == 100
        self._copies = CHALLENGER if stage.state is State.SHADOW else CHAMPION
        self.arms: dict[str, Arm] = {name: Arm() for name in ARMS}
        self._halves: dict[str, dict[str, _Answer]] = {}
        self._unlabelled: dict[Key, dict[str, tuple[str | None, float]]] = {}
        self._arrived: dict[str, _Column] = {name: _Column() for name in ARMS}
        self._longest: dict[str, float] = {}
        self._settling: dict[str, list[bool]] = {name: [] for name in ARMS}

    # Requests

    def add(self, table: pa.Table) -> None:
        """Requests as they stand in the prediction log, in its order; those of other versions are passed over."""
        for row in table.to_pylist():
            arm = self._arm(row)
            if arm is None:
                continue
            self._arrived[arm].add(row["time"].timestamp())
            answer = _Answer(
                failed=row["status"] >= 400,
                milliseconds=row["milliseconds"],
                answered=row["time"].timestamp(),
                scores=tuple(math.nan if score is None else score for score in row["scores"] or ()),
                predictions=tuple(row["predictions"] or ()),
            )
            if not self.paired:
                self._count(arm, answer)
                self._await_labels(row["request_id"], {arm: answer})
            else:
                halves = self._halves.setdefault(row["request_id"], {})
                halves.setdefault(arm, answer)
                if len(halves) == len(ARMS):
                    del self._halves[row["request_id"]]
                    self._pair(row["request_id"], halves)

    def settle(self, table: pa.Table) -> None:
        """Requests from before the stage counts: they say how long answers take, and are told where an arm fails."""
        for row in table.to_pylist():
            arm = self._arm(row)
            if arm is not None:
                self._settling[arm].append(row["status"] >= 400)

    def _arm(self, row: Mapping[str, Any]) -> str | None:
        """Whose answer a row is; None where it is of neither arm in this stage."""
        arm = self._arm_of.get(row["entity"])
        if arm is None or row["shadow"] != (self.paired and arm == self._copies):
            return None
        self._longest[arm] = max(self._longest.get(arm, 0.0), row["milliseconds"] / 1000.0)
        return arm

    def _pair(self, request: str, halves: Mapping[str, _Answer]) -> None:
        both = not any(answer.failed for answer in halves.values())
        rows = zip(*(answer.scores for answer in halves.values()), strict=False)
        scored = [place for place, pair in enumerate(rows) if not any(map(math.isnan, pair))]
        for arm, answer in halves.items():
            scores = tuple(answer.scores[place] for place in scored)
            self._count(arm, replace(answer, scores=scores), scored=both)
        if both:
            self._await_labels(request, halves)

    def _count(self, name: str, answer: _Answer, *, scored: bool = True) -> None:
        arm = self.arms[name]
        arm.requests += 1
        arm.errors += answer.unanswered > 0
        arm.failed.add(answer.unanswered)
        if not answer.failed and scored:
            arm.milliseconds.add(answer.milliseconds)
            arm.answered.add(answer.answered)
            for score in answer.scores:
                if not math.isnan(score):
                    arm.scores.add(score)

    # Labels

    def _await_labels(self, request: str, answers: Mapping[str, _Answer]) -> None:
        if self._plan.quality is None:
            return
        for place in range(min(len(answer.predictions) for answer in answers.values())):
            self._unlabelled[request, place] = {
                arm: (
                    answer.predictions[place],
                    answer.scores[place] if place < len(answer.scores) else math.nan,
                )
                for arm, answer in answers.items()
                if not answer.failed
            }

    @property
    def unlabelled(self) -> list[str]:
        """Requests whose labels have not come yet."""
        return list(dict.fromkeys(request for request, _ in self._unlabelled))

    def label(self, labels: Mapping[Key, str]) -> None:
        """Labels by request and row, in the order in which they came; a label that came before counts once."""
        if self._loss is None:
            return
        for key, label in labels.items():
            for arm, (prediction, score) in self._unlabelled.pop(key, {}).items():
                self.arms[arm].losses.add(self._loss(label, prediction, score))

    # The analysis

    def counts(self) -> tuple[int, int]:
        """Requests that count, of challenger and champion."""
        return self.arms[CHALLENGER].requests, self.arms[CHAMPION].requests

    def look(self, at: datetime) -> Look:
        """What the tests say now."""
        readings = [self._reading(name, at) for name in self._plan.tests]
        quality = self._plan.quality
        decisive = [
            reading.verdict
            for reading in readings
            if reading.test != "quality" or reading.verdict is Verdict.FAIL or (quality and quality.wait)
        ]
        edges, bins = self._edges()
        return Look(
            at=at,
            state=self._stage.state,
            step=self._stage.step,
            percentage=self._stage.percentage,
            requests={name: arm.requests for name, arm in self.arms.items()},
            errors={name: arm.errors for name, arm in self.arms.items()},
            latency_p50={name: _quantile(arm.milliseconds.array, 0.5) for name, arm in self.arms.items()},
            latency_p95={name: _quantile(arm.milliseconds.array, 0.95) for name, arm in self.arms.items()},
            scores={
                name: tuple(int(count) for count in np.histogram(arm.scores.array, bins)[0])
                for name, arm in self.arms.items()
                if len(edges) > 1
            },
            score_edges=tuple(float(edge) for edge in edges),
            readings=tuple(readings),
            verdict=overall(decisive),
        )

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """The edges of the bins that scores are counted in, and the same with the open bins beyond them.

        A regression's lie around its cuts, and not around what was seen: one caller can ask for any number.
        """
        if self._target.kind is not TaskKind.REGRESSION:
            edges = np.linspace(0.0, 1.0, _EDGES + 1)
            return edges, edges
        if len(self._cuts) < 2:
            return np.empty(0), np.empty(0)
        low, high = min(self._cuts), max(self._cuts)
        edges = np.linspace(low - (high - low) / 2, high + (high - low) / 2, _EDGES + 1)
        return edges, np.concatenate([[-math.inf], edges, [math.inf]])

    def _reading(self, name: str, at: datetime) -> Reading:
        """One test's finding, as a record of it."""
        tests: dict[str, Callable[[], Finding]] = {
            "error_rate": self._error_rate,
            "latency": self._latency,
            "scores": self._scores,
            "sample_ratio": lambda: self._sample_ratio(at),
            "quality": self._quality,
        }
        found = tests[name]()
        return Reading(
            test=name,
            estimate=found.estimate,
            low=found.low,
            high=found.high,
            verdict=found.verdict,
            challenger=found.counts.challenger,
            champion=found.counts.champion,
            reason=found.reason + (self._failed_before() if name == "sample_ratio" else ""),
        )

    def _failed_before(self) -> str:
        """What failed of the challenger's answers before the stage counted: after some, a gateway asks it no more."""
        failed, of = sum(self._settling[CHALLENGER]), len(self._settling[CHALLENGER])
        if not failed or self.arms[CHALLENGER].requests:
            return ""
        return f" Before the step counted, {failed} of {of} answers of the challenger failed; it was asked no more."

    @property
    def _share(self) -> float:
        """The challenger's part of the requests of both arms: a half where each request has two answers."""
        return 0.5 if self.paired else self._stage.percentage / 100.0

    @property
    def _both(self) -> tuple[Arm, Arm]:
        return self.arms[CHALLENGER], self.arms[CHAMPION]

    def _error_rate(self) -> Finding:
        ours, theirs = self._both
        return analysis.error_rate(
            ours.failed.array,
            theirs.failed.array,
            share=self._share,
            harm=_harm(self._plan.error_rate),
            alpha=self._alpha,
            minimum=self._stage.minimum_requests,
        )

    def _latency(self) -> Finding:
        assert self._plan.latency is not None
        ours, theirs = self._both
        return analysis.latency(
            ours.milliseconds.array,
            theirs.milliseconds.array,
            times=(ours.answered.array, theirs.answered.array),
            quantile=self._plan.latency.quantile,
            harm=_harm(self._plan.latency),
            alpha=self._alpha,
            minimum=self._stage.minimum_requests,
        )

    def _scores(self) -> Finding:
        ours, theirs = self._both
        harm = _harm(self._plan.scores)
        if self.paired and self._target.kind is not TaskKind.REGRESSION:
            return analysis.paired_scores(
                ours.scores.array,
                theirs.scores.array,
                lowest=0.0,
                highest=1.0,
                harm=harm,
                alpha=self._alpha,
                minimum=self._stage.minimum_requests,
            )
        return analysis.scores(
            ours.scores.array,
            theirs.scores.array,
            cuts=self._cuts,
            share=self._share,
            harm=harm,
            alpha=self._alpha,
            minimum=self._stage.minimum_requests,
        )

    def _arrivals(self, at: datetime) -> tuple[int, int]:
        """Requests of challenger and champion that came so long ago that their answers are known, slow ones too.

        That is longer than the longest answer of either took; where an arm has none, it may take up to the timeout.
        """
        longest = max(self._longest.get(arm, self._timeout_seconds) for arm in ARMS)
        known = at.timestamp() - longest
        ours, theirs = (int(np.count_nonzero(self._arrived[arm].array <= known)) for arm in ARMS)
        return ours, theirs

    def _sample_ratio(self, at: datetime) -> Finding:
        copied = self._stage.percentage / 100.0
        copies = copied / (1.0 + copied)
        share = (copies if self._copies == CHALLENGER else 1.0 - copies) if self.paired else copied
        effect = _harm(self._plan.sample_ratio)
        smaller = min(share, 1.0 - share)
        return analysis.sample_ratio(
            *self._arrivals(at),
            share=share,
            harm=Harm(effect.effect * smaller, effect.tolerated * smaller),
            alpha=self._alpha,
            minimum=self._stage.minimum_requests,
        )

    def _quality(self) -> Finding:
        quality = self._plan.quality
        assert quality is not None
        ours, theirs = self._both
        return analysis.quality(
            ours.losses.array,
            theirs.losses.array,
            bound=quality.bound,
            share=None if self.paired else self._share,
            harm=_harm(quality),
            alpha=self._alpha,
            minimum=quality.minimum_labels,
        )


def explained(look: Look) -> str:
    """Why a look's verdict is what it is: the tests that failed, else those that cannot tell yet."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        found = [reading for reading in look.readings if reading.verdict is verdict]
        if found and look.verdict is verdict:
            return "; ".join(f"{reading.test.replace('_', ' ')}: {reading.reason}" for reading in found)
    return "all tests passed" if look.verdict is Verdict.PASS else "nothing was tested"


def _harm(effect: Any) -> Harm:
    return Harm(effect.effect, effect.tolerated)


def _quantile(values: np.ndarray, quantile: float) -> float | None:
    return float(np.quantile(values, quantile)) if len(values) else None


def _loss(quality: QualityEffect, target: Target, declared: ColumnType) -> Loss:
    """The loss of one row from its label, prediction and score, at most the bound.

    An answer that is no number, or none, is as wrong as one can be: it would otherwise be no evidence against a model.
    """

    def zero_one(label: str, prediction: str | None, _: float) -> float:
        return float(prediction is None or class_of(label, declared) != class_of(prediction, declared))

    def brier(label: str, _: str | None, score: float) -> float:
        assert target.positive is not None
        outcome = class_of(label, declared) == class_of(target.positive, declared)
        return (score - outcome) ** 2 if math.isfinite(score) else 1.0

    def absolute(label: str, prediction: str | None, _: float) -> float:
        return math.inf if prediction is None else abs(float(prediction) - float(label))

    def squared(label: str, prediction: str | None, score: float) -> float:
        distance = absolute(label, prediction, score)
        return distance * distance

    losses: dict[str, Loss] = {"zero_one": zero_one, "brier": brier, "absolute": absolute, "squared": squared}
    chosen = losses[quality.loss]
    return lambda label, prediction, score: min(chosen(label, prediction, score), quality.bound)
