"""The release plan of a model: by which steps real traffic decides about a challenger, and when nothing may change."""

from datetime import datetime, time, timedelta
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, ValidationError, model_validator

from deployments.declared import Declared
from deployments.explanations import DeclarationError

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Strategy = Literal["shadow_canary", "canary", "blue_green", "direct"]


class Effect(Declared):
    """How much worse a challenger may be: shown above `tolerated` it fails, excluded from `effect` on it passes."""

    effect: float = Field(gt=0, description="From here on harm matters, and must be excluded.")
    tolerated: float = Field(0.0, ge=0, description="Harm shown to be above this fails.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.tolerated >= self.effect:
            raise ValueError(f"`tolerated` ({self.tolerated:g}) must be below `effect` ({self.effect:g})")
        return self


class LatencyEffect(Effect):
    """A quantile of latency; 0.2 is 20 % slower."""

    quantile: float = Field(0.9, gt=0, lt=1)


class QualityEffect(Effect):
    """Mean loss on labels, in the unit of the loss."""

    loss: Literal["zero_one", "brier", "absolute", "squared"]
    bound: float = Field(1.0, gt=0, description="A larger loss of one row counts as this; 1 for classes.")
    minimum_labels: int = Field(100, ge=1, description="Of each arm.")
    wait: bool = Field(False, description="Whether a step waits for labels; else they count as they come.")


class AnalysisPlan(Declared):
    """Which tests a step makes, and the chance that a good challenger fails any of them, over all steps and looks.

    Leave a test out with null. Error rates differ by percentage points (0.01 is one); the sample ratio by a part of
    the smaller share; scores by the largest distance of their distribution functions.
    """

    alpha: float = Field(0.05, gt=0, lt=1)
    error_rate: Effect | None = Effect(effect=0.03)
    latency: LatencyEffect | None = LatencyEffect(effect=1.5, tolerated=0.5)
    scores: Effect | None = Effect(effect=0.25, tolerated=0.1)
    sample_ratio: Effect | None = Effect(effect=0.5, tolerated=0.1)
    quality: QualityEffect | None = None

    @property
    def tests(self) -> tuple[str, ...]:
        """The names of the tests that are made."""
        return tuple(
            name
            for name in ("error_rate", "latency", "scores", "sample_ratio", "quality")
            if getattr(self, name) is not None
        )


class Shadow(Declared):
    """The challenger is sent copies of requests, and nobody waits for its answers."""

    percentage: int = Field(100, ge=1, le=100)
    minimum_requests: int = Field(200, ge=1, description="Pairs of answers.")
    maximum_seconds: float = Field(3600, gt=0)


class Step(Declared):
    """The challenger answers a share of the callers."""

    percentage: int = Field(ge=1, le=99)
    minimum_requests: int = Field(200, ge=1, description="Of each arm.")
    minimum_seconds: float = Field(0, ge=0)
    maximum_seconds: float = Field(3600, gt=0, description="Without a verdict by then it is inconclusive.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum_seconds >= self.maximum_seconds:
            raise ValueError("`minimum_seconds` must be below `maximum_seconds`")
        return self


class ChangeWindow(Declared):
    """Days and hours when the champion may be replaced; `start` after `end` goes over midnight."""

    days: tuple[Weekday, ...] = Field(WEEKDAYS, min_length=1)
    start: time = time(0)
    end: time = time(23, 59, 59)
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _known_timezone(self) -> Self:
        if self.timezone not in available_timezones():
            raise ValueError(f"`timezone`: {self.timezone!r} is no time zone (as Europe/Vienna is)")
        return self

    def open_at(self, now: datetime) -> bool:
        """Whether `now`, which has a time zone, lies in it; a night belongs to the day on which it begins."""
        here = now.astimezone(ZoneInfo(self.timezone))
        clock, today = here.time(), WEEKDAYS[here.weekday()]
        if self.start <= self.end:
            return today in self.days and self.start <= clock <= self.end
        yesterday = WEEKDAYS[(here - timedelta(days=1)).weekday()]
        return (today in self.days and clock >= self.start) or (yesterday in self.days and clock <= self.end)


class ReleasePlan(Declared):
    """One challenger's way to champion.

    Strategies: `shadow_canary` copies requests to the challenger first and then gives it callers step by step;
    `canary` leaves the copies out; `blue_green` gives it all callers at once and copies their requests to the
    champion; `direct` puts it in place unlooked at, and is for environments that ask for no approval.
    """

    strategy: Strategy = "shadow_canary"
    shadow: Shadow = Shadow()
    steps: tuple[Step, ...] = Field(
        (Step(percentage=5), Step(percentage=25), Step(percentage=50)), min_length=1
    )
    analysis: AnalysisPlan = AnalysisPlan()
    inconclusive: Literal["roll_back", "hold"] = Field(
        "roll_back", description="What a step does that has no verdict in time; `hold` asks a person."
    )
    change_windows: tuple[ChangeWindow, ...] = Field((), description="None: at any time.")
    approval_hours: float = Field(72, gt=0, description="How long approvals are waited for.")
    sticky_header: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+$",
        description="By which callers stay with a version; the gateway's by default.",
    )
    lease_seconds: float = Field(
        15, ge=2, description="The champion has all traffic so long after the controller died."
    )
    look_seconds: float = Field(0.5, gt=0, description="How often the analysis looks.")
    rollback_hours: float = Field(
        24, ge=0, description="How long the former champion stays warm, and labels may reopen the release."
    )

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        shares = [step.percentage for step in self.steps]
        if shares != sorted(set(shares)):
            raise ValueError(f"`steps`: the percentages must rise from step to step, and these are {shares}")
        if self.look_seconds * 3 > self.lease_seconds:
            raise ValueError(
                "`lease_seconds` must be at least three times `look_seconds`, or the lease ends between two looks"
            )
        return self

    @property
    def looks(self) -> int:
        """How many steps of the release are analysed."""
        if self.strategy == "direct":
            return 0
        if self.strategy == "blue_green":
            return 1
        return len(self.steps) + (self.strategy == "shadow_canary")


class ReleaseSpec(ReleasePlan):
    """The plan of all environments, and what is different in some, by their names."""

    environments: dict[str, dict[str, Any]] = Field(
        {}, description="Keys of the plan that have another value in one environment."
    )

    @model_validator(mode="after")
    def _plans_are_plans(self) -> Self:
        for name in self.environments:
            self.plan_for(name)
        return self

    def plan_for(self, environment: str) -> ReleasePlan:
        """The plan in one environment.

        Raises:
            DeclarationError: what is different there makes no plan.
        """
        common = self.model_dump(exclude={"environments"}, mode="json")
        different = self.environments.get(environment, {})
        try:
            return ReleasePlan.model_validate(_merged(common, different))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise DeclarationError(
                ("environments", environment, *problem["loc"]),
                problem["msg"].removeprefix("Value error, "),
            ) from None


def _merged(common: dict[str, Any], different: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; everything else is replaced."""
    merged = dict(common)
    for key, value in different.items():
        standing = merged.get(key)
        if isinstance(standing, dict) and isinstance(value, dict):
            merged[key] = _merged(standing, value)
        else:
            merged[key] = value
    return merged
