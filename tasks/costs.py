"""Costs: what each task of each flow used, priced by the environment's rates, and held against a model's budgets.

A flow run has a file of JSON lines to which its tasks append (`tasks.metering` measures them); sums and verdicts come
out. A task writes its line anew while it lasts, and the last one counts: one that was killed has cost what it is known
to have used, to within `tasks.metering.BEAT_SECONDS`.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pydantic import AwareDatetime, ValidationError

from deployments.declared import Declared
from deployments.environment import Rates
from deployments.errors import ContenderError
from deployments.monitoring import RetrainSpec
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict

__all__ = [
    "BudgetUsedUpError",
    "Cost",
    "CostLog",
    "Spent",
    "SpentOn",
    "budget_problems",
    "budget_rows",
    "price",
    "require_budget",
    "spent",
    "spent_on",
    "start_of_day",
    "start_of_month",
]


class BudgetUsedUpError(ContenderError):
    """A model's budget for a day or a month does not let another expensive step begin."""

    exit_code = 3


class Cost(Declared):
    """What one task of one flow run used so far; `amount` is in the unit of `currency`, at the rates of that moment.

    `peak_megabytes` is the most memory that its process was seen to hold, other tasks of the same process included;
    `rows` those of the tables that it was given or made. `ended` is false where nobody heard of it again.
    """

    id: str
    flow: str
    flow_run: str
    task: str
    began: AwareDatetime
    seconds: float
    peak_megabytes: float
    rows: int
    amount: float
    currency: str
    ended: bool

    @property
    def heard(self) -> datetime:
        """When it was last heard of, in UTC; the moment that its cost is counted at."""
        return self.began.astimezone(UTC) + timedelta(seconds=self.seconds)


def price(rates: Rates, *, seconds: float, peak_megabytes: float, rows: int) -> float:
    """What a task costs: its time, its peak memory for that time (1 gigabyte = 1,000 megabytes), and its rows."""
    hours = seconds / 3600
    memory = peak_megabytes / 1000 * rates.gigabyte_hour
    return hours * (rates.hour + memory) + rows / 1e6 * rates.million_rows


class CostLog:
    """The costs of one model in one environment: a file of JSON lines for each flow run."""

    def __init__(self, platform: Platform, model: str) -> None:
        self.folder = platform.folder("costs") / model

    def write(self, cost: Cost) -> None:
        """Append one line; threads and processes may append to the same file at once.

        A line is written by one call between line ends of its own, so a torn one swallows no other.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        line = f"\n{cost.model_dump_json()}\n".encode()
        descriptor = os.open(self._file(cost.flow_run), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def read(self, since: datetime, until: datetime | None = None) -> tuple[list[Cost], tuple[str, ...]]:
        """The costs from `since` on and before `until` (both with a time zone), and which lines are none.

        A task counts once, as it was last heard of, and at that moment.
        """
        found: dict[str, Cost] = {}
        damaged: list[str] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            # A file that nobody has appended to since then has nothing of it.
            if path.stat().st_mtime < since.timestamp():
                continue
            for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
                if not line:
                    continue
                try:
                    cost = Cost.model_validate_json(line)
                except ValidationError:
                    damaged.append(f"{path}:{number}")
                    continue
                found[cost.id] = cost
        kept = [one for one in found.values() if since <= one.heard and (until is None or one.heard < until)]
        return sorted(kept, key=lambda one: (one.began, one.id)), tuple(damaged)

    def _file(self, flow_run: str) -> Path:
        return self.folder / f"{flow_run}.jsonl"


class Spent(Declared):
    """What a model cost in a span of time, in the currency of the environment.

    `unfinished` tasks were killed, or are still under way; costs in `other_currencies`, and lines that are `damaged`,
    are not in the amount.
    """

    since: datetime
    until: datetime | None
    amount: float
    currency: str
    seconds: float
    tasks: int
    unfinished: int = 0
    other_currencies: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    @property
    def unknown(self) -> str:
        """Why the amount is not all of it; empty where it is."""
        said = []
        if self.other_currencies:
            said.append(f"some of it is in {', '.join(self.other_currencies)}, not in {self.currency}")
        if self.damaged:
            said.append(f"{len(self.damaged)} lines cannot be read (first {self.damaged[0]})")
        return "; ".join(said)

    def __str__(self) -> str:
        return f"{self.amount:.4g} {self.currency}"


class SpentOn(Declared):
    """What one task of one flow cost: how often it ran, and its sums; memory is the highest of all."""

    flow: str
    task: str
    runs: int
    seconds: float
    peak_megabytes: float
    rows: int
    amount: float
    currency: str


@dataclass
class _Sum:
    runs: int = 0
    seconds: float = 0.0
    peak_megabytes: float = 0.0
    rows: int = 0
    amount: float = 0.0

    def add(self, cost: Cost) -> None:
        self.runs += 1
        self.seconds += cost.seconds
        self.peak_megabytes = max(self.peak_megabytes, cost.peak_megabytes)
        self.rows += cost.rows
        self.amount += cost.amount


def spent(platform: Platform, model: str, since: datetime, until: datetime | None = None) -> Spent:
    """What a model cost from `since` on and before `until`; both have a time zone."""
    costs, damaged = CostLog(platform, model).read(since, until)
    return _summed(costs, damaged, platform.environment.rates.currency, since, until)


def spent_on(
    platform: Platform, model: str, since: datetime, until: datetime | None = None
) -> tuple[SpentOn, ...]:
    """The same by flow and task, the dearest first."""
    sums: dict[tuple[str, str, str], _Sum] = {}
    for cost in CostLog(platform, model).read(since, until)[0]:
        sums.setdefault((cost.flow, cost.task, cost.currency), _Sum()).add(cost)
    found = [
        SpentOn(flow=flow, task=task, currency=currency, **vars(total))
        for (flow, task, currency), total in sums.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.amount, one.flow, one.task)))


def _summed(
    costs: Sequence[Cost], damaged: tuple[str, ...], currency: str, since: datetime, until: datetime | None
) -> Spent:
    ours = [cost for cost in costs if cost.currency == currency]
    return Spent(
        since=since,
        until=until,
        amount=sum(cost.amount for cost in ours),
        currency=currency,
        seconds=sum(cost.seconds for cost in ours),
        tasks=len(ours),
        unfinished=sum(not cost.ended for cost in ours),
        other_currencies=tuple(sorted({cost.currency for cost in costs} - {currency})),
        damaged=damaged,
    )


# Budgets ----------------------------------------------------------------------------------------------------


def start_of_day(moment: datetime) -> datetime:
    """The midnight (UTC) that a moment's day began at."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def start_of_month(moment: datetime) -> datetime:
    """The midnight (UTC) that a moment's month began at."""
    return start_of_day(moment).replace(day=1)


class _Budget(NamedTuple):
    name: str
    amount: float | None
    since: datetime


def _budgets(policy: RetrainSpec, now: datetime) -> tuple[_Budget, ...]:
    return (
        _Budget("daily", policy.daily_budget, start_of_day(now)),
        _Budget("monthly", policy.monthly_budget, start_of_month(now)),
    )


def budget_problems(
    platform: Platform, model: str, policy: RetrainSpec, now: datetime | None = None
) -> tuple[str, ...]:
    """Why nothing expensive may begin at `now`: budgets that are used up, or of which nobody can tell; else empty."""
    now = now or datetime.now(UTC)
    problems = []
    for budget in _budgets(policy, now):
        if budget.amount is None:
            continue
        found = spent(platform, model, budget.since)
        if found.amount >= budget.amount:
            problems.append(
                f"the {budget.name} budget is used up: {found.amount:.4g} of {budget.amount:g} {found.currency} "
                f"since {budget.since:%Y-%m-%d %H:%M} UTC (retrain.{budget.name}_budget)"
            )
        elif found.unknown:
            problems.append(f"nobody can tell what is left of the {budget.name} budget: {found.unknown}")
    return tuple(problems)


def require_budget(platform: Platform, loaded: LoadedSpec, what: str, now: datetime | None = None) -> None:
    """Let an expensive step begin only while the model's budgets last; `what` names the step.

    Raises:
        BudgetUsedUpError: says which budget, what was spent of it, and since when.
    """
    problems = budget_problems(platform, loaded.name, loaded.spec.retrain, now)
    if problems:
        raise BudgetUsedUpError(f"{what} of {loaded.name} was not started: {'; '.join(problems)}")


def budget_rows(platform: Platform, loaded: LoadedSpec, version: str, window: Window) -> list[MetricRow]:
    """What monitoring says of costs: what the window cost, in all and by flow, and its day and month against budgets.

    A day counts from its midnight, and a month from its first, to the window's end: looked at again, a window says the
    same. Of several days the dearest is told. Without a budget the figures have no verdict; where costs cannot be told,
    a budget is inconclusive.
    """
    start, end = window.start.astimezone(UTC), window.end.astimezone(UTC)
    currency, policy = platform.environment.rates.currency, loaded.spec.retrain
    last = end - timedelta(microseconds=1)
    day, month = start_of_day(start), start_of_month(last)
    costs, damaged = CostLog(platform, loaded.name).read(min(month, day), end)
    spans = _Spans(costs, damaged, currency)
    within = spans.between(start, end)
    rows = [_row(version, window, "spent", within.amount, within, None, f"in the window, in {currency}")]
    rows += [
        _row(version, window, "spent", one.amount, one, None, f"by the flow, in {currency}", subject=flow)
        for flow, one in spans.by_flow(start, end)
    ]
    days = [spans.between(first, min(first + timedelta(days=1), end)) for first in _days(day, end)]
    dearest = max(days, key=lambda one: one.amount, default=within)
    whole = spans.between(month, end)
    for name, found, amount in (
        ("daily", dearest, policy.daily_budget),
        ("monthly", whole, policy.monthly_budget),
    ):
        reason = f"{found.amount:.4g} {currency} from {found.since:%Y-%m-%d %H:%M} UTC on"
        rows.append(_row(version, window, f"{name}_spend", found.amount, found, amount, reason))
    return rows


@dataclass(frozen=True)
class _Spans:
    """Costs that were read once, summed over parts of their time."""

    costs: Sequence[Cost]
    damaged: tuple[str, ...]
    currency: str

    def between(self, since: datetime, until: datetime) -> Spent:
        return _summed(self._in(since, until), self.damaged, self.currency, since, until)

    def by_flow(self, since: datetime, until: datetime) -> Iterator[tuple[str, Spent]]:
        costs = self._in(since, until)
        for flow in sorted({cost.flow for cost in costs}):
            ours = [cost for cost in costs if cost.flow == flow]
            yield flow, _summed(ours, (), self.currency, since, until)

    def _in(self, since: datetime, until: datetime) -> list[Cost]:
        return [cost for cost in self.costs if since <= cost.heard < until]


def _days(first: datetime, end: datetime) -> Iterator[datetime]:
    while first < end:
        yield first
        first += timedelta(days=1)


def _row(
    version: str,
    window: Window,
    metric: str,
    value: float,
    found: Spent,
    budget: float | None,
    reason: str,
    subject: str = "",
) -> MetricRow:
    verdict = None
    if budget is not None:
        verdict = Verdict.FAIL if value >= budget else Verdict.PASS
        reason = f"{reason}, of {budget:g}"
        if verdict is Verdict.PASS and found.unknown:
            verdict, reason = Verdict.INCONCLUSIVE, f"{reason}; {found.unknown}"
    return MetricRow(
        version=version,
        window=window,
        kind="budget",
        metric=metric,
        subject=subject,
        value=value,
        threshold=budget,
        verdict=verdict,
        rows=found.tasks,
        reason=reason,
    )
