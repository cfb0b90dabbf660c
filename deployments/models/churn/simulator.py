"""A seeded subscription shop for the churn model: its customers' events, and the labels that follow.

`simulate("events" | "labels", seed=…, until=…, **options)` answers an Arrow stream; the options are the fields of
`Scenario`. The past does not depend on the future: a later `end` only adds rows, and a change (see `changes`) only
alters what comes after it.

The simulation goes day by day, one function a stage: sign up, decide to leave, visit, act. Every stage draws
from random streams of its own, so a stage can change without disturbing the draws of the others.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from math import ceil
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deployments.models.churn.changes import Change, Today, change_sign_ups, sign_up_pace, today

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

BATCH_ROWS = 65_536
DAY_SECONDS = 86_400
DAY_MICROSECONDS = DAY_SECONDS * 1_000_000
# A label asks for an event in this many days before the cut-off: who left long ago is nobody's target.
LOOKBACK_DAYS = 90
# The shop opens this long before the first day told, so that day finds customers of every age and mood.
OPEN_BEFORE_DAYS = 730
MAX_CUSTOMERS = 9_999_999
# Customers of a new channel visit so much more often, in standard deviations of the log pace.
CHANNEL_ENGAGEMENT = 1.5
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2099, 12, 31)

EVENT_TYPES = ("view", "cart", "purchase", "support")
VIEW, CART, PURCHASE, SUPPORT = range(4)

_TIMESTAMP = pa.timestamp("us", tz="UTC")
EVENTS_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("amount", pa.float64(), nullable=False),
        pa.field("event_time", _TIMESTAMP, nullable=False),
    ]
)
LABELS_SCHEMA = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("as_of", _TIMESTAMP, nullable=False),
        pa.field("churned", pa.bool_(), nullable=False),
        pa.field("known_at", _TIMESTAMP, nullable=False),
    ]
)


@dataclass(frozen=True)
class Scenario:
    """What is simulated. `start` and `end` are whole days in UTC, both included.

    `customers` counts those who have signed up by the end of the first year, evenly since the shop opened two
    years before `start`; sign-ups go on at that pace, and some have left before `start`.
    `sessions_per_week` is the median customer's pace, `engagement_spread` the standard deviation of its
    logarithm over customers, `leave_share_per_month` the share that an ordinary month sees decide to leave.
    A customer is taken to have churned after `inactivity_days` without an event. `changes` are what becomes otherwise
    in the shop, and when.
    """

    customers: int = 4_000
    start: date = date(2025, 1, 1)
    end: date = date(2025, 12, 31)
    inactivity_days: int = 30
    products: int = 40
    sessions_per_week: float = 0.6
    engagement_spread: float = 0.75
    leave_share_per_month: float = 0.03
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        _require_whole("customers", self.customers, 1, MAX_CUSTOMERS)
        _require_whole("inactivity_days", self.inactivity_days, 1, 365)
        _require_whole("products", self.products, 1, 999)
        _require_number("sessions_per_week", self.sessions_per_week, 0.01, 50)
        _require_number("engagement_spread", self.engagement_spread, 0, 2)
        _require_number("leave_share_per_month", self.leave_share_per_month, 0, 0.99)
        _require_day("start", self.start)
        _require_day("end", self.end)
        if self.end < self.start:
            raise ValueError(f"`end` ({self.end}) lies before `start` ({self.start})")
        for change in self.changes:
            _require_day("changes: day", change.day)
            if change.day < self.start:
                raise ValueError(
                    f"`changes`: {change.kind} on {change.day} lies before `start` ({self.start})"
                )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The scenario of `options`, days as dates or ISO texts; raises ValueError on anything else."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; the churn simulator knows {', '.join(known)}")
        given = {name: _day(name, v) if name in {"start", "end"} else v for name, v in options.items()}
        if "changes" in given:
            given["changes"] = _changes(given["changes"])
        return cls(**given)

    def until(self, moment: datetime, *, open_ended: bool) -> Self:
        """The same as far as the day of `moment`, which has a time zone; `open_ended` lets it go on beyond `end`.

        Raises ValueError where that is before it starts.
        """
        last = (moment.astimezone(UTC) - timedelta(microseconds=1)).date()
        if last < self.start:
            raise ValueError(
                f"at {moment:%Y-%m-%d %H:%M} nothing had happened yet: it starts on {self.start}"
            )
        return replace(self, end=last if open_ended else min(last, self.end))

    @property
    def days(self) -> int:
        """How many days are simulated."""
        return (self.end - self.start).days + 1


def simulate(table: str, *, seed: int, until: datetime | None = None, **options: Any) -> pa.RecordBatchReader:
    """The table `events` or `labels` of a scenario, as a stream of batches of up to 65,536 rows.

    Events come ordered by `event_time`, `event_id`; labels by `as_of`, `customer_id`. With `until`, a moment with a
    time zone, they are those known at that moment, in place of those known at the end of a default `end`; an `end`
    among the options still ends them. Raises ValueError for an unknown table or option, or a value that makes no
    sense.
    """
    tables = {"events": (EVENTS_SCHEMA, _event_batches), "labels": (LABELS_SCHEMA, _label_batches)}
    if table not in tables:
        raise ValueError(f"unknown table {table!r}; the churn simulator has {', '.join(tables)}")
    _require_whole("seed", seed, 0, 2**64 - 1)
    scenario = Scenario.of(options)
    if until is not None:
        scenario = scenario.until(until, open_ended="end" not in options)
    schema, batches = tables[table]
    found = batches(scenario, seed, _population(scenario, seed))
    if until is not None:
        found = _known(found, schema, until)
    return pa.RecordBatchReader.from_batches(schema, _rebatched(schema, found))


def _known(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, moment: datetime
) -> Iterator[pa.RecordBatch]:
    """The rows that had happened, or were known, by a moment: the last day may have only begun."""
    column = "event_time" if "event_time" in schema.names else "known_at"
    for batch in batches:
        yield batch.filter(pc.less_equal(batch.column(column), pa.scalar(moment, _TIMESTAMP)))


class _Stage(IntEnum):
    """The first key of a stage's random streams; a number is never reused."""

    CATALOGUE = 0
    SIGN_UP = 1
    LEAVE = 2
    VISIT = 3
    ACT = 4
    CHANNEL = 5
    EXCHANGE = 6


def _random(seed: int, stage: _Stage, stream: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stage, stream)))


def _random_of_day(seed: int, stage: _Stage, day: int) -> np.random.Generator:
    return _random(seed, stage, OPEN_BEFORE_DAYS + day)


@dataclass(frozen=True)
class _Catalogue:
    """The products: the cumulative share of interest that each draws, and its price."""

    cumulative_interest: Floats
    price: Floats


def _catalogue(scenario: Scenario, seed: int) -> _Catalogue:
    random = _random(seed, _Stage.CATALOGUE)
    interest = 1 / (np.arange(scenario.products) + 2.0)
    price = random.lognormal(3.3, 0.6, scenario.products).round(2)
    return _Catalogue(np.cumsum(interest / interest.sum()), price)


@dataclass(frozen=True)
class _Population:
    """Who the customers are, in order of sign-up; `sign_up` counts days from the first simulated one.

    `engagement` is standard normal, `support_share` the share of sessions that begin with a complaint,
    `fade_days` how long activity takes to die away once a customer has decided to leave. Who came through a new
    channel visits more often, complains more, and once they decide to leave is gone within a week.
    """

    sign_up: Integers
    engagement: Floats
    support_share: Floats
    fade_days: Floats


def _population(scenario: Scenario, seed: int) -> _Population:
    # Each trait has its own stream, so a longer scenario adds customers and changes none.
    sign_up, engagement, support, fade = (_random(seed, _Stage.SIGN_UP, trait) for trait in range(4))
    per_day = scenario.customers / (OPEN_BEFORE_DAYS + 365)
    changed = change_sign_ups(scenario.changes)
    days = [scenario.start + timedelta(days=day) for day in range(scenario.days)]
    pace, channel = sign_up_pace(scenario.changes, days)
    # Rounded up: the last one may sign up on the last day, as in a longer scenario.
    ordinary = per_day * (OPEN_BEFORE_DAYS + scenario.days)
    count = ceil(ordinary if changed is None else per_day * (OPEN_BEFORE_DAYS + pace.sum()))
    if count > MAX_CUSTOMERS:
        raise ValueError(f"`changes` bring {count:,} customers; the most is {MAX_CUSTOMERS:,}")
    places = np.arange(count) + sign_up.random(count)
    day = np.floor(places / per_day).astype(np.int64) - OPEN_BEFORE_DAYS
    population = _Population(
        sign_up=day,
        engagement=engagement.standard_normal(count),
        support_share=0.12 * support.beta(1.2, 3.0, count),
        fade_days=np.clip(fade.gamma(4.0, 7.0, count), 7, 70),
    )
    if changed is None or changed > scenario.end:
        return population
    # Until the first change they sign up as they would without it, and after it at the pace of the day.
    before = (changed - scenario.start).days
    signed_up = per_day * np.concatenate([[OPEN_BEFORE_DAYS], OPEN_BEFORE_DAYS + np.cumsum(pace)])
    later = np.maximum(np.searchsorted(signed_up, places, side="right") - 1, before)
    day = np.where(day < before, day, later)
    share = np.where(day < 0, 0.0, channel[np.clip(day, 0, scenario.days - 1)])
    newcomer = _random(seed, _Stage.CHANNEL).random(count) < share
    return _Population(
        sign_up=day,
        engagement=np.where(newcomer, population.engagement + CHANNEL_ENGAGEMENT, population.engagement),
        support_share=np.where(
            newcomer, np.minimum(3 * population.support_share, 0.5), population.support_share
        ),
        fade_days=np.where(newcomer, 7.0, population.fade_days),
    )


class _Standing:
    """Where each customer stands as the days pass: on the way out or not, and how annoyed.

    `left` is the day on which a customer decided to leave (infinite for one who stays), `engagement` the habit that
    a customer has, at first their own, `mood` a slow drift of the log pace, `annoyance` the count of support contacts,
    halved every fortnight.
    """

    def __init__(self, population: _Population) -> None:
        customers = len(population.sign_up)
        self.left: Floats = np.full(customers, np.inf)
        self.engagement: Floats = population.engagement.copy()
        self.mood: Floats = np.zeros(customers)
        self.annoyance: Floats = np.zeros(customers)


def _decide_to_leave(
    scenario: Scenario, seed: int, day: int, population: _Population, standing: _Standing, now: Today
) -> None:
    """Let some of today's customers decide to leave: the less engaged, the newer and the annoyed first."""
    signed_up = np.searchsorted(population.sign_up, day, side="right")
    tenure_days = day - population.sign_up[:signed_up]
    annoyance = np.minimum(standing.annoyance[:signed_up], 3)
    ordinary = -np.log1p(-scenario.leave_share_per_month) / 30
    temper = np.exp(0.6 * annoyance - 0.45 * standing.engagement[:signed_up])
    hazard_per_day = ordinary * temper * (1 + 1.5 * np.exp(-tenure_days / 60))
    if now.leaving != 1:
        hazard_per_day = hazard_per_day * now.leaving
    leaves = _random_of_day(seed, _Stage.LEAVE, day).random(signed_up) < -np.expm1(-hazard_per_day)
    standing.left[:signed_up][leaves & np.isinf(standing.left[:signed_up])] = day


def _exchange_habits(seed: int, day: int, population: _Population, standing: _Standing, share: float) -> None:
    """Let a share of today's customers who stay take over one another's pace and mood.

    All paces together stay what they are, and so does behaviour; what a customer did says less of what comes.
    """
    signed_up = int(np.searchsorted(population.sign_up, day, side="right"))
    random = _random_of_day(seed, _Stage.EXCHANGE, day)
    chosen = (random.random(signed_up) < share) & np.isinf(standing.left[:signed_up])
    (takers,) = np.nonzero(chosen)
    givers = random.permutation(takers)
    standing.engagement[takers] = standing.engagement[givers]
    standing.mood[takers] = standing.mood[givers]


def _pace(scenario: Scenario, day: int, population: _Population, standing: _Standing, now: Today) -> Floats:
    """The sessions that each customer is expected to begin today, signed up or not."""
    ordinary = scenario.sessions_per_week / 7 * _season(scenario.start + timedelta(days=day)) * now.visits
    engagement = np.exp(scenario.engagement_spread * standing.engagement + standing.mood)
    remaining = np.clip(1 - (day - standing.left) / population.fade_days, 0, 1)
    pace: Floats = ordinary * engagement * remaining
    return pace


def _season(day: date) -> float:
    """Traffic on a day as a multiple of the average: busy weekends and early Decembers."""
    weekly = (0.95, 0.92, 0.92, 0.95, 1.02, 1.15, 1.09)[day.weekday()]
    return float(weekly * (1 + 0.15 * np.cos(2 * np.pi * (day.timetuple().tm_yday - 340) / 365.25)))


@dataclass(frozen=True)
class _Sessions:
    """The day's sessions: whose they are, and whether each begins with a complaint."""

    customer: Integers
    complaint: Booleans


def _visit(
    scenario: Scenario, seed: int, day: int, population: _Population, standing: _Standing, now: Today
) -> _Sessions:
    """Draw the day's sessions; moods drift on and annoyance takes in the day's complaints."""
    random = _random_of_day(seed, _Stage.VISIT, day)
    signed_up = int(np.searchsorted(population.sign_up, day, side="right"))
    mood = standing.mood[:signed_up]
    mood += 0.08 * random.standard_normal(signed_up) - 0.02 * mood
    count = random.poisson(_pace(scenario, day, population, standing, now)[:signed_up])
    customer = np.repeat(np.arange(signed_up), count)
    complaint = random.random(len(customer)) < population.support_share[customer]
    standing.annoyance *= 0.5 ** (1 / 14)
    standing.annoyance += np.bincount(customer[complaint], minlength=len(standing.annoyance))
    return _Sessions(customer, complaint)


@dataclass(frozen=True)
class _Events:
    """A day's events in order of time; `time` in microseconds since 1970, `session` from the day's first."""

    customer: Integers
    session: Integers
    product: Integers
    kind: Integers
    amount: Floats
    time: Integers


def _act(
    scenario: Scenario, seed: int, day: int, catalogue: _Catalogue, sessions: _Sessions, now: Today
) -> _Events:
    """Draw what happens in the day's sessions.

    A session opens with a view or a complaint; a purchase buys what the event before put in the cart.
    """
    random = _random_of_day(seed, _Stage.ACT, day)
    length = np.minimum(1 + random.geometric(0.58, len(sessions.customer)), 40)
    session = np.repeat(np.arange(len(length)), length)
    first = np.cumsum(length) - length
    opens = np.zeros(len(session), dtype=np.bool_)
    opens[first] = True

    kind = np.where(random.random(len(session)) < 0.3, CART, VIEW)
    kind[opens] = np.where(sessions.complaint, SUPPORT, VIEW)
    bought = ~opens & (np.roll(kind, 1) == CART) & (random.random(len(session)) < 0.5 * min(now.buys, 2))
    bought &= ~np.roll(bought, 1)
    kind[bought] = PURCHASE

    product = np.searchsorted(catalogue.cumulative_interest, random.random(len(session)), side="right")
    product = np.minimum(product, scenario.products - 1)
    product[bought] = np.roll(product, 1)[bought]
    discount = 1 - 0.3 * random.random(len(session)) ** 3
    amount = np.where(bought, np.round(catalogue.price[product] * now.prices * discount, 2), 0.0)

    gap_seconds = np.where(opens, 0.0, np.minimum(random.exponential(100, len(session)), 1_500))
    elapsed = np.cumsum(gap_seconds)
    within = elapsed - np.repeat(elapsed[first], length)
    lasts = within[first + length - 1]
    # Begun early enough to end the same day, so that a day is complete when it has been simulated.
    begins = random.beta(3.0, 2.2, len(length)) * (DAY_SECONDS - 1 - lasts)
    midnight = _microseconds(scenario.start) + day * DAY_MICROSECONDS
    time = midnight + ((np.repeat(begins, length) + within) * 1e6).astype(np.int64)

    order = np.argsort(time, kind="stable")
    return _Events(
        customer=sessions.customer[session][order],
        session=session[order],
        product=product[order],
        kind=kind[order],
        amount=amount[order],
        time=time[order],
    )


def _days(scenario: Scenario, seed: int, population: _Population) -> Iterator[_Events]:
    """The events of each day from `start` to `end` in turn."""
    catalogue = _catalogue(scenario, seed)
    standing = _Standing(population)
    for day in range(-OPEN_BEFORE_DAYS, scenario.days):
        now = today(scenario.changes, scenario.start + timedelta(days=day))
        if now.exchange:
            _exchange_habits(seed, day, population, standing, now.exchange)
        _decide_to_leave(scenario, seed, day, population, standing, now)
        sessions = _visit(scenario, seed, day, population, standing, now)
        if day >= 0:
            yield _act(scenario, seed, day, catalogue, sessions, now)


def _event_batches(scenario: Scenario, seed: int, population: _Population) -> Iterator[pa.RecordBatch]:
    customer_ids = _ids("C", 7, 1, len(population.sign_up))
    product_ids = _ids("P", 3, 1, scenario.products)
    events_before = sessions_before = 1
    for day in _days(scenario, seed, population):
        yield pa.record_batch(
            [
                _ids("E", 10, events_before, len(day.time)),
                customer_ids.take(pa.array(day.customer)),
                _prefixed("S", 9, pa.array(day.session + sessions_before)),
                product_ids.take(pa.array(day.product)),
                pa.array(EVENT_TYPES).take(pa.array(day.kind)),
                pa.array(day.amount),
                pa.array(day.time).cast(_TIMESTAMP),
            ],
            schema=EVENTS_SCHEMA,
        )
        events_before += len(day.time)
        sessions_before += int(day.session.max(initial=-1)) + 1


@dataclass(frozen=True)
class _CutOff:
    """One cut-off under observation: who was seen in the days before it, and who came back after it."""

    as_of: int
    known_at: int
    recent: Booleans
    returned: Booleans

    def observe(self, events: _Events) -> None:
        before = (events.time > self.as_of - LOOKBACK_DAYS * DAY_MICROSECONDS) & (events.time <= self.as_of)
        after = (events.time > self.as_of) & (events.time <= self.known_at)
        self.recent[events.customer[before]] = True
        self.returned[events.customer[after]] = True


def _label_batches(scenario: Scenario, seed: int, population: _Population) -> Iterator[pa.RecordBatch]:
    """Labels read off the simulated events alone, never off what the simulation knows about its customers."""
    customers = len(population.sign_up)
    cut_offs = [
        _CutOff(as_of, known_at, np.zeros(customers, dtype=np.bool_), np.zeros(customers, dtype=np.bool_))
        for as_of, known_at in _cut_off_times(scenario)
    ]
    for day in _days(scenario, seed, population):
        for cut_off in cut_offs:
            cut_off.observe(day)

    customer_ids = _ids("C", 7, 1, customers)
    for cut_off in cut_offs:
        (labelled,) = np.nonzero(cut_off.recent)
        yield pa.record_batch(
            [
                customer_ids.take(pa.array(labelled)),
                pa.array(np.full(len(labelled), cut_off.as_of)).cast(_TIMESTAMP),
                pa.array(~cut_off.returned[labelled]),
                pa.array(np.full(len(labelled), cut_off.known_at)).cast(_TIMESTAMP),
            ],
            schema=LABELS_SCHEMA,
        )


def _cut_off_times(scenario: Scenario) -> Iterator[tuple[int, int]]:
    """Each first of a month after the start whose outcome is known by the end, and when that is."""
    last = scenario.end - timedelta(days=scenario.inactivity_days)
    for ordinal in range(scenario.start.toordinal() + 1, last.toordinal() + 1):
        day = date.fromordinal(ordinal)
        if day.day == 1:
            as_of = _microseconds(day)
            yield as_of, as_of + scenario.inactivity_days * DAY_MICROSECONDS


def _rebatched(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of BATCH_ROWS; the last one may be shorter."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        if rows >= BATCH_ROWS:
            table = pa.Table.from_batches(waiting, schema).combine_chunks()
            full = rows - rows % BATCH_ROWS
            yield from table.slice(0, full).to_batches(max_chunksize=BATCH_ROWS)
            waiting, rows = table.slice(full).to_batches(), rows - full
    yield from pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()


def _ids(prefix: str, width: int, first: int, count: int) -> pa.Array:
    return _prefixed(prefix, width, pa.array(np.arange(first, first + count)))


def _prefixed(prefix: str, width: int, numbers: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(numbers.cast(pa.string()), width, "0"), "")


def _microseconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def _day(name: str, value: Any) -> Any:
    """`value` as a day if it is an ISO text; the scenario refuses whatever is no day then."""
    if not isinstance(value, str):
        return value
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"`{name}` must be a day such as 2025-01-01, not {value!r}") from None


def _changes(given: Any) -> tuple[Change, ...]:
    """Declared changes as they are, or the mappings of YAML."""
    if not isinstance(given, list | tuple):
        raise ValueError(f"`changes` must be a list of changes, not {given!r}")  # noqa: TRY004 - as all of them
    return tuple(
        one
        if isinstance(one, Change)
        else Change.of(one, _day("changes: day", one.get("day")) if isinstance(one, Mapping) else None)
        for one in given
    )


def _require_day(name: str, value: object) -> None:
    if not isinstance(value, date) or isinstance(value, datetime) or not FIRST_DAY <= value <= LAST_DAY:
        raise ValueError(f"`{name}` must be a day from {FIRST_DAY} to {LAST_DAY}, not {value!r}")


def _require_whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"`{name}` must be a whole number from {least:,} to {most:,}, not {value!r}")


def _require_number(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"`{name}` must be a number from {least:g} to {most:g}, not {value!r}")
