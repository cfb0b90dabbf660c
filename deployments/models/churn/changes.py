"""What may change in the simulated shop: declared changes, each from a day on, at once or gradually.

The days before a change are what they are without it. Covariate drift is what `channel`, `growth`, `price`, `outage`
and `season` make: customers behave otherwise, and what their behaviour means stays. Concept drift is what
`churn_concept` makes: behaviour stays as it is, and says something else of who will be silent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from math import pi, sin
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONCEPT_DAYS = 30
"""Customers exchange their habits on the day of a `churn_concept` change, and again after each so many days."""

# For each kind: the least and the greatest size, the shortest time that it takes, and what its size means.
KINDS: Mapping[str, tuple[float, float, int, str]] = {
    "channel": (0.0, 50.0, 0, "sign-ups through the new channel, as a multiple of the ordinary pace"),
    "growth": (-0.99, 50.0, 0, "sign-ups more than before, as a multiple of the ordinary pace"),
    "price": (-0.9, 5.0, 0, "the part by which prices rise"),
    "outage": (0.0, 1.0, 1, "the part of visits that fail, for `over_days` days"),
    "season": (-0.95, 5.0, 2, "visits more than usual at the height of a season of `over_days` days"),
    "churn_concept": (
        0.0,
        1.0,
        0,
        "the part of customers who exchange their habits with one another each time",
    ),
}


@dataclass(frozen=True)
class Change:
    """One change from midnight of `day` (UTC) on; `over_days` is 0 for at once, else how long it takes to be whole.

    An outage and a season are over after `over_days`. Raises ValueError for what makes no sense.
    """

    kind: str
    day: date
    size: float
    over_days: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"`changes`: there is no change of kind {self.kind!r} (known: {', '.join(KINDS)})"
            )
        least, most, days, meaning = KINDS[self.kind]
        if not _is_number(self.size) or not least <= self.size <= most:
            raise ValueError(
                f"`changes`: {self.kind}: `size` must be a number from {least:g} to {most:g}, not {self.size!r}: "
                f"{meaning}"
            )
        whole = isinstance(self.over_days, int) and not isinstance(self.over_days, bool)
        if not whole or not days <= self.over_days <= 3_660:
            raise ValueError(
                f"`changes`: {self.kind}: `over_days` must be a whole number from {days} to 3,660, "
                f"not {self.over_days!r}"
            )

    @classmethod
    def of(cls, given: Any, day: Any) -> Self:
        """The change of a mapping as it stands in YAML; `day` is its day, read already."""
        if not isinstance(given, Mapping):
            raise ValueError(  # noqa: TRY004 - one kind of error for whatever a scenario cannot be
                f"`changes`: each is a mapping with kind, day and size, not {given!r}"
            )
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(name) for name in set(given) - set(known))
        missing = [name for name in ("kind", "day", "size") if name not in given]
        if unknown or missing:
            what = f"unknown key {unknown[0]!r}" if unknown else f"{missing[0]!r} is missing"
            raise ValueError(f"`changes`: {what}; a change has {', '.join(known)}")
        return cls(**{**given, "day": day})

    def progress(self, day: date) -> float:
        """How much of the change there is on a day, from 0 to 1."""
        passed = (day - self.day).days
        if passed < 0:
            return 0.0
        if self.kind == "outage":
            return float(passed < self.over_days)
        if self.kind == "season":
            return sin(pi * (passed + 0.5) / self.over_days) ** 2 if passed < self.over_days else 0.0
        return min((passed + 1) / (self.over_days + 1), 1.0)


@dataclass(frozen=True)
class Today:
    """What all changes together make of one day; with none of them every factor is 1 and every share 0.

    `visits`, `leaving` and `prices` are factors of the ordinary ones; `buys` of the part of carts that are bought;
    `exchange` is the share of customers who exchange their habits today.
    """

    visits: float = 1.0
    leaving: float = 1.0
    prices: float = 1.0
    buys: float = 1.0
    exchange: float = 0.0


def today(changes: Sequence[Change], day: date) -> Today:
    """What changes make of a day.

    Visits fall as prices rise, in proportion; carts are bought and customers stay less often in the same way.
    """
    visits = leaving = prices = buys = 1.0
    exchange = 0.0
    for change in changes:
        part = change.progress(day) * change.size
        if change.kind == "outage":
            visits *= 1 - part
        elif change.kind == "season":
            visits *= 1 + part
        elif change.kind == "price":
            visits, buys = visits / (1 + part), buys / (1 + part)
            leaving, prices = leaving * (1 + part), prices * (1 + part)
        elif change.kind == "churn_concept" and part and (day - change.day).days % CONCEPT_DAYS == 0:
            exchange = max(exchange, part)
    return Today(visits, leaving, prices, buys, exchange)


def sign_up_pace(changes: Iterable[Change], days: Sequence[date]) -> tuple[Floats, Floats]:
    """Sign-ups of each day as a multiple of the ordinary pace, and the part of them through new channels; (days,)."""
    pace = np.ones(len(days))
    channel = np.zeros(len(days))
    for change in changes:
        if change.kind in {"channel", "growth"}:
            more = change.size * np.array([change.progress(day) for day in days])
            pace += more
            channel += more * (change.kind == "channel")
    pace = np.maximum(pace, 0.01)
    return pace, np.clip(channel / pace, 0, 1)


def change_sign_ups(changes: Sequence[Change]) -> date | None:
    """The first day on which a change alters who signs up; None where none does."""
    return min((one.day for one in changes if one.kind in {"channel", "growth"}), default=None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
