"""Seeded health-insurance claims for triage: one row a claim, and whether it needs a second look.

`simulate("claims", seed=…, **options)` answers an Arrow stream; the options are the fields of `Scenario`.
Every person is invented, and the national ids come from numbers that are never issued.

Fair by construction: `needs_review` follows from the facts of the claim alone. Sex has no part in those
facts; the oldest have slightly more procedures and earlier claims.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from enum import IntEnum
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

BATCH_ROWS = 65_536
DAY_MICROSECONDS = 86_400 * 1_000_000
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2099, 12, 31)
MAX_CLAIMS = 9_999_999
CLAIMS_PER_MEMBER = 2.5
PROVIDERS = 400
MAX_DAYS_TO_SUBMIT = 180
# 900 to 999, 01 to 49, 0001 to 9999: no social security number begins with 9, and taxpayer numbers that do
# have a middle part of 50 or more.
NATIONAL_NUMBERS = 100 * 49 * 9_999

SEXES = ("female", "male")
AGE_BANDS = ("18-29", "30-44", "45-64", "65+")
REGIONS = ("north", "south", "east", "west", "central")
PLANS = ("bronze", "silver", "gold", "platinum")
PLAN_PAYS = np.array([0.6, 0.7, 0.8, 0.9])
DIAGNOSES = {
    "cardiology": ("I10", "I20.9", "I25.1", "I48.0", "I48.9", "I50.9", "R00.2", "R07.4"),
    "dermatology": ("D22.9", "L03.1", "L20.9", "L40.0", "L57.0", "L70.0", "L82.1"),
    "endocrinology": ("E03.9", "E04.1", "E05.0", "E11.6", "E11.9", "E66.9", "E78.5"),
    "gastroenterology": ("K21.9", "K29.7", "K50.9", "K51.9", "K57.3", "K58.9", "K80.2", "R10.4"),
    "general_practice": ("B34.9", "J06.9", "J20.9", "J45.9", "N39.0", "R05", "R53", "Z00.0"),
    "neurology": ("G20", "G35", "G40.9", "G43.9", "G47.3", "I63.9", "R51"),
    "oncology": ("C18.9", "C34.9", "C43.9", "C50.9", "C61", "D05.1", "Z51.1"),
    "orthopedics": ("M16.1", "M17.1", "M23.2", "M54.5", "M75.1", "S52.5", "S82.6", "S83.5"),
}
SPECIALTIES = tuple(DIAGNOSES)
# One procedure's typical price, by specialty; a diagnosis varies around it.
SPECIALTY_PRICE = np.array([900, 220, 260, 650, 140, 700, 1_900, 1_200])
FEMALE_NAMES = (
    *("Ada", "Amara", "Beatriz", "Chiara", "Dalia", "Elena", "Farida", "Greta", "Hana", "Ines", "Jana"),
    *("Keiko", "Leila", "Marta", "Nadia", "Olga", "Priya", "Rosa", "Signe", "Tamar", "Vera", "Zoe"),
)
MALE_NAMES = (
    *("Adam", "Bruno", "Cyrus", "Dario", "Emil", "Felix", "Goran", "Hugo", "Ivan", "Jonas", "Karim"),
    *("Luca", "Mateo", "Nils", "Omar", "Pavel", "Rafael", "Soren", "Tariq", "Viktor", "Wei", "Yusuf"),
)
SURNAMES = (
    *("Abadi", "Almeida", "Bauer", "Berg", "Castell", "Chen", "Dahl", "Diallo", "Eriksen", "Fontana"),
    *("Garner", "Haddad", "Holm", "Ibarra", "Ito", "Jansen", "Kaya", "Keller", "Kovac", "Lindqvist"),
    *("Marek", "Mbeki", "Moreau", "Nakata", "Novak", "Okafor", "Olsen", "Petrov", "Quist", "Rahman"),
    *("Rossi", "Sato", "Silva", "Tanaka", "Torres", "Ueda", "Varga", "Weiss", "Yilmaz", "Zeller"),
)

_TIMESTAMP = pa.timestamp("us", tz="UTC")
CLAIMS_SCHEMA = pa.schema(
    [
        pa.field("claim_id", pa.string(), nullable=False),
        pa.field("member_name", pa.string(), nullable=False),
        pa.field("national_id", pa.string(), nullable=False),
        pa.field("member_id", pa.string(), nullable=False),
        pa.field("sex", pa.string(), nullable=False),
        pa.field("age_band", pa.string(), nullable=False),
        pa.field("region", pa.string(), nullable=False),
        pa.field("plan", pa.string(), nullable=False),
        pa.field("provider_id", pa.string(), nullable=False),
        pa.field("provider_specialty", pa.string(), nullable=False),
        pa.field("diagnosis_code", pa.string(), nullable=False),
        pa.field("procedure_count", pa.int64(), nullable=False),
        pa.field("billed_amount", pa.float64(), nullable=False),
        pa.field("paid_amount", pa.float64(), nullable=False),
        pa.field("prior_claims_12m", pa.int64(), nullable=False),
        pa.field("days_to_submit", pa.int64(), nullable=False),
        pa.field("service_date", _TIMESTAMP, nullable=False),
        pa.field("received_date", _TIMESTAMP, nullable=False),
        pa.field("in_network", pa.bool_(), nullable=False),
        pa.field("needs_review", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Scenario:
    """What is simulated: claims received evenly from `start` to `end`, whole days in UTC, both included."""

    claims: int = 12_000
    start: date = date(2025, 1, 1)
    end: date = date(2025, 12, 31)

    def __post_init__(self) -> None:
        _require_whole("claims", self.claims, 1, MAX_CLAIMS)
        _require_day("start", self.start)
        _require_day("end", self.end)
        if self.end < self.start:
            raise ValueError(f"`end` ({self.end}) lies before `start` ({self.start})")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The scenario of `options`, days as dates or ISO texts; raises ValueError on anything else."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; the claims simulator knows {', '.join(known)}")
        return cls(**{name: _day(name, v) if name in {"start", "end"} else v for name, v in options.items()})


def simulate(table: str, *, seed: int, until: datetime | None = None, **options: Any) -> pa.RecordBatchReader:
    """The table `claims` of a scenario, as a stream of batches of up to 65,536 rows.

    Claims come ordered by `received_date`, `claim_id`; with `until`, a moment with a time zone, those that were
    received by then. Raises ValueError for an unknown table or option, or a value that makes no sense.
    """
    if table != "claims":
        raise ValueError(f"unknown table {table!r}; the claims simulator has claims")
    _require_whole("seed", seed, 0, 2**64 - 1)
    batches = _claim_batches(Scenario.of(options), seed)
    return pa.RecordBatchReader.from_batches(
        CLAIMS_SCHEMA, batches if until is None else _received(batches, until)
    )


def _received(batches: Iterator[pa.RecordBatch], moment: datetime) -> Iterator[pa.RecordBatch]:
    """What had been received by a moment."""
    for batch in batches:
        known = batch.filter(pc.less_equal(batch.column("received_date"), pa.scalar(moment, _TIMESTAMP)))
        if known.num_rows:
            yield known


class _Stage(IntEnum):
    """The first key of a stage's random streams; a number is never reused."""

    MEMBERS = 0
    PROVIDERS = 1
    DIAGNOSES = 2
    CLAIMS = 3


def _random(seed: int, stage: _Stage, stream: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stage, stream)))


@dataclass(frozen=True)
class _Members:
    """Who is insured, as positions in the lists above; `claims_a_year` is each one's expectation."""

    given_name: Integers
    surname: Integers
    national_number: Integers
    sex: Integers
    age_band: Integers
    region: Integers
    plan: Integers
    claims_a_year: Floats


def _members(scenario: Scenario, seed: int) -> _Members:
    random = _random(seed, _Stage.MEMBERS)
    count = max(1, round(scenario.claims / CLAIMS_PER_MEMBER))
    age_band = random.choice(len(AGE_BANDS), count, p=[0.2, 0.28, 0.32, 0.2])
    # A prime step around the range gives every member a number of their own.
    national_number = (
        random.integers(0, NATIONAL_NUMBERS) + np.arange(count) * 15_485_863
    ) % NATIONAL_NUMBERS
    return _Members(
        given_name=random.integers(0, len(FEMALE_NAMES), count),
        surname=random.integers(0, len(SURNAMES), count),
        national_number=national_number,
        sex=random.choice(len(SEXES), count, p=[0.52, 0.48]),
        age_band=age_band,
        region=random.integers(0, len(REGIONS), count),
        plan=random.choice(len(PLANS), count, p=[0.25, 0.4, 0.25, 0.1]),
        claims_a_year=random.gamma(1.6, np.array([1.15, 1.2, 1.25, 1.35])[age_band]),
    )


def _national_ids(numbers: Integers) -> pa.Array:
    rest, serial = np.divmod(numbers, 9_999)
    area, group = np.divmod(rest, 49)
    return pc.binary_join_element_wise(
        _padded(area + 900, 3), _padded(group + 1, 2), _padded(serial + 1, 4), "-"
    )


@dataclass(frozen=True)
class _Providers:
    """Who bills: specialty, network, and by what factor (as a logarithm) they bill above their peers."""

    specialty: Integers
    in_network: Booleans
    markup: Floats


def _providers(seed: int) -> _Providers:
    random = _random(seed, _Stage.PROVIDERS)
    return _Providers(
        specialty=random.integers(0, len(SPECIALTIES), PROVIDERS),
        in_network=random.random(PROVIDERS) < 0.85,
        markup=random.normal(0, 0.15, PROVIDERS),
    )


@dataclass(frozen=True)
class _Diagnoses:
    """All codes in one list, which of them a specialty sees, and a procedure's typical price for each."""

    codes: tuple[str, ...]
    first: Integers
    count: Integers
    price: Floats


def _diagnoses(seed: int) -> _Diagnoses:
    count = np.array([len(codes) for codes in DIAGNOSES.values()])
    spread = _random(seed, _Stage.DIAGNOSES).normal(0, 0.35, count.sum())
    return _Diagnoses(
        codes=tuple(code for codes in DIAGNOSES.values() for code in codes),
        first=np.cumsum(count) - count,
        count=count,
        price=np.repeat(SPECIALTY_PRICE, count) * np.exp(spread),
    )


@dataclass(frozen=True)
class _Book:
    """What all claims draw on."""

    members: _Members
    providers: _Providers
    diagnoses: _Diagnoses


def _claim_batches(scenario: Scenario, seed: int) -> Iterator[pa.RecordBatch]:
    book = _Book(_members(scenario, seed), _providers(seed), _diagnoses(seed))
    for number, first in enumerate(range(0, scenario.claims, BATCH_ROWS)):
        rows = np.arange(first, min(first + BATCH_ROWS, scenario.claims))
        yield _claims(scenario, book, _random(seed, _Stage.CLAIMS, number), rows)


def _claims(scenario: Scenario, book: _Book, random: np.random.Generator, rows: Integers) -> pa.RecordBatch:
    """The claims at `rows`, counted from the first claim of the scenario."""
    members, providers, diagnoses = book.members, book.providers, book.diagnoses
    size = len(rows)
    member = random.integers(0, len(members.sex), size)
    provider = random.integers(0, PROVIDERS, size)
    specialty = providers.specialty[provider]
    diagnosis = diagnoses.first[specialty] + random.integers(0, diagnoses.count[specialty])
    in_network = providers.in_network[provider]
    procedures = 1 + random.poisson(np.array([1.1, 1.1, 1.15, 1.2])[members.age_band[member]])
    prior_claims = random.poisson(members.claims_a_year[member])
    days_to_submit = np.minimum(random.gamma(1.3, 12.0, size).astype(np.int64), MAX_DAYS_TO_SUBMIT)

    excess = providers.markup[provider] + random.normal(0, 0.45, size)
    billed = np.maximum(np.round(diagnoses.price[diagnosis] * procedures**0.8 * np.exp(excess), 2), 1.0)
    pays = PLAN_PAYS[members.plan[member]] * np.where(in_network, 1.0, 0.6) * random.uniform(0.85, 1.0, size)
    # Rounded down to the cent, so that nothing is paid beyond the bill.
    paid = np.floor(billed * pays * 100) / 100

    # A bill above what is usual for its diagnosis counts most, and more so out of network; then lateness,
    # many procedures and a busy year.
    log_odds = (
        -3.8
        + 3.6 * excess
        + np.where(in_network, 0.0, 1.0 + 1.6 * np.maximum(excess, 0))
        + 1.6 * (days_to_submit > 30)
        + 0.5 * np.minimum(procedures - 1, 5)
        + 0.3 * np.minimum(prior_claims, 8)
    )
    needs_review = random.random(size) < 1 / (1 + np.exp(-log_odds))

    days = (scenario.end - scenario.start).days + 1
    received_day = ((rows + random.random(size)) / scenario.claims * days).astype(np.int64)
    received = _microseconds(scenario.start) + np.minimum(received_day, days - 1) * DAY_MICROSECONDS
    return pa.record_batch(
        [
            _prefixed("CLM-", rows + 1, 7),
            _full_names(members, member),
            _national_ids(members.national_number[member]),
            _prefixed("M", member + 1, 6),
            _picked(SEXES, members.sex[member]),
            _picked(AGE_BANDS, members.age_band[member]),
            _picked(REGIONS, members.region[member]),
            _picked(PLANS, members.plan[member]),
            _prefixed("PRV-", provider + 1, 4),
            _picked(SPECIALTIES, specialty),
            _picked(diagnoses.codes, diagnosis),
            pa.array(procedures),
            pa.array(billed),
            pa.array(paid),
            pa.array(prior_claims),
            pa.array(days_to_submit),
            pa.array(received - days_to_submit * DAY_MICROSECONDS).cast(_TIMESTAMP),
            pa.array(received).cast(_TIMESTAMP),
            pa.array(in_network),
            pa.array(needs_review),
        ],
        schema=CLAIMS_SCHEMA,
    )


def _full_names(members: _Members, member: Integers) -> pa.Array:
    names = FEMALE_NAMES + MALE_NAMES
    given = members.given_name[member] + np.where(members.sex[member] == 0, 0, len(FEMALE_NAMES))
    return pc.binary_join_element_wise(_picked(names, given), _picked(SURNAMES, members.surname[member]), " ")


def _picked(values: tuple[str, ...], positions: Integers) -> pa.Array:
    return pa.array(values).take(pa.array(positions))


def _prefixed(prefix: str, numbers: Integers, width: int) -> pa.Array:
    return pc.binary_join_element_wise(prefix, _padded(numbers, width), "")


def _padded(numbers: Integers, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


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


def _require_day(name: str, value: object) -> None:
    if not isinstance(value, date) or isinstance(value, datetime) or not FIRST_DAY <= value <= LAST_DAY:
        raise ValueError(f"`{name}` must be a day from {FIRST_DAY} to {LAST_DAY}, not {value!r}")


def _require_whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"`{name}` must be a whole number from {least:,} to {most:,}, not {value!r}")
