"""Proposal: from a survey, what to predict, what tells rows apart, and what each column is for.

Every choice is a guess by names and values, made to be read and changed by a person.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from deployments.contract import ColumnType, Scalar
from deployments.errors import BadInputError
from deployments.measures import TaskKind
from tasks.survey import Column, Survey, held_columns

LISTED_VALUES = 20
"""At most this many different texts are categories to be listed in a contract."""

LISTED_SHARE = 0.05
"""And they are at most this share of the rows, or they only happen to be few."""

LEAST_ROWS = 80
"""With fewer rows a random split may leave less than ten to choose by, or to judge by."""

_CATEGORY_SHARE = 0.2
_MOST_CLASSES = 50
_EMPTY_SHARE = 0.95
_MOST_KEY_COLUMNS = 8

_TARGET_NAMES = (
    *("target", "label", "churn", "churned", "y", "outcome", "class", "response", "fraud", "is_fraud"),
    *("default", "defaulted", "converted", "survived", "exited", "attrition", "diagnosis", "species"),
)
_AFFIRMATIVE = {"yes", "y", "true", "t", "1", "1.0", "positive", "pos"}
_TIMES = ("time", "timestamp", "ts", "datetime", "date", "created", "event", "recorded", "observed", "day")
_CODES = {"index", "number", "no", "nr", "code", "zip", "postcode"}
_IDENTIFIERS = {
    *("id", "ids", "uuid", "guid", "key", "pk"),
    *(f"{owner}id" for owner in ("user", "customer", "client", "account", "member", "patient", "employee")),
    *(f"{owner}id" for owner in ("order", "product", "store", "device", "session", "item", "transaction")),
}
_PEOPLE = {
    *(
        "first",
        "last",
        "full",
        "middle",
        "given",
        "family",
        "maiden",
        "customer",
        "client",
        "member",
        "patient",
    ),
    *("person", "employee", "user", "holder", "contact", "cardholder", "applicant", "insured"),
}
_PHONES = {"phone", "telephone", "tel", "mobile", "cell", "fax"}
_NATIONAL = {"ssn", "nin", "passport", "iban", "national", "social", "tax", "taxid", "nationalid"}
_BORN = {"birth", "born", "birthday", "birthdate", "birthyear", "dob"}
_NAMES = {"surname", "firstname", "lastname", "fullname"}
_PLACES = {"address", "street", "addr"}
_SENSITIVE = {"gender", "sex", "race", "ethnicity", "religion", "nationality", "disability", "marital", "age"}


@dataclass(frozen=True)
class Target:
    """The column to predict, how it was found, and the classes with their rows; none for regression."""

    column: Column
    kind: TaskKind
    classes: Mapping[Scalar, int]
    positive: Scalar | None
    why: str

    @property
    def rows(self) -> int:
        """Rows that can be learned from."""
        return self.column.present - self.column.infinite

    @property
    def rarest(self) -> int:
        """Rows of the rarest class, or all."""
        return min(self.classes.values(), default=self.rows)


@dataclass(frozen=True)
class Key:
    """The columns that tell rows apart, and those of which each would do alone.

    `groups` is how many different keys there are among the `rows`. A key that is an identifier is nothing else;
    the columns of any other key only happen to tell rows apart, and are there to be learned from.
    """

    columns: tuple[str, ...]
    rows: int
    groups: int
    is_identifier: bool
    others: tuple[str, ...] = ()

    @property
    def is_unique(self) -> bool:
        """Whether no two rows share a key."""
        return self.groups == self.rows


@dataclass(frozen=True)
class Proposal:
    """What a model could be made of the columns of a survey. Groups of features hold column names."""

    found: Survey
    target: Target
    key: Key
    personal: dict[str, str]
    time: str | None
    features: dict[str, tuple[str, ...]]
    left_out: dict[str, str]

    @cached_property
    def groupings(self) -> tuple[str, ...]:
        """Identifiers that are left out, and no mere codes: rows that share one may be alike."""
        return tuple(name for name in self.left_out if set(_words(name)[-1:]) & _IDENTIFIERS)

    @cached_property
    def divisions(self) -> tuple[str, ...]:
        """Features of few values, by which people look at results; the sensitive ones first."""
        names = (*self.features["categorical"], *self.features["boolean"])
        return tuple(sorted(names, key=lambda name: not is_sensitive(name)))


def propose(found: Survey, asked: str | None) -> Proposal:
    """A model for a survey's columns that predicts the column `asked`, or the likeliest one.

    Raises:
        BadInputError: no such column, none that can be guessed or predicted, or nothing to learn from.
    """
    target = _target(found, asked)
    others = {name: column for name, column in found.columns.items() if name != target.column.name}
    personal = {name: why for name, column in others.items() if (why := personal_data(column)) is not None}
    key = _key(found, others, personal)
    time = _time_column(column for name, column in others.items() if name not in personal)
    groups: dict[str, list[str]] = {"numeric": [], "categorical": [], "boolean": [], "dates": []}
    left_out: dict[str, str] = {}
    for name, column in others.items():
        if name in personal or (key.is_identifier and name in key.columns):
            continue
        group, why = ("", "the time") if name == time else _use(column)
        if group:
            groups[group].append(name)
        else:
            left_out[name] = why
    if not any(groups.values()):
        reasons = ", ".join(f"{name}: {why}" for name, why in left_out.items())
        raise BadInputError(
            f"{found.path}: no column is left to learn from" + (f" ({reasons})" if reasons else "")
        )
    features = {group: tuple(names) for group, names in groups.items()}
    return Proposal(found, target, key, personal, time, features, left_out)


def _target(found: Survey, asked: str | None) -> Target:
    column, why = _guessed(found) if asked is None else (_asked(found, asked), "")
    kind = _task(column)
    if kind is None:
        raise BadInputError(
            f"{found.path}: {column.name!r} cannot be predicted: {_unfit(column)}; name another column (--target)"
        )
    classes = {} if kind is TaskKind.REGRESSION else _finite(column)
    positive = _positive(classes) if kind is TaskKind.BINARY else None
    target = Target(column, kind, classes, positive, why)
    if target.rows < LEAST_ROWS:
        raise BadInputError(
            f"{found.path}: {target.rows:,} rows have a value of {column.name!r}; at least {LEAST_ROWS} are needed "
            "to train, choose and judge a model"
        )
    return target


def _asked(found: Survey, asked: str) -> Column:
    if asked in found.foreign:
        raise BadInputError(
            f"{found.path}: {asked!r} cannot be predicted: its type is {found.foreign[asked]}"
        )
    if asked not in found.columns:
        near = difflib.get_close_matches(asked, found.columns, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadInputError(
            f"{found.path}: there is no column {asked!r}{hint} (columns: {enumerated(found.columns)})"
        )
    return found.columns[asked]


def _guessed(found: Survey) -> tuple[Column, str]:
    by_name = {"_".join(_words(name)): column for name, column in found.columns.items()}
    for name in _TARGET_NAMES:
        if name in by_name and _task(by_name[name]) is not None:
            return by_name[name], "a guess by its name"
    for column in reversed(found.columns.values()):
        if _task(column) is TaskKind.BINARY:
            return column, "a guess: the last column with two values"
    raise BadInputError(
        f"{found.path}: which column is to be predicted? Name it (--target COLUMN); "
        f"the columns are {enumerated(found.columns)}"
    )


def _task(column: Column) -> TaskKind | None:
    """What predicting a column would be: few values are classes, other numbers are regression."""
    if column.is_moment or (column.is_number and column.low is None):
        return None
    classes = len(_finite(column)) if column.counts is not None else math.inf
    few = classes <= max(3, LISTED_SHARE * column.present)
    if classes < 2:
        return None
    if column.type is ColumnType.NUMBER:
        whole = classes == 2 and all(float(value).is_integer() for value in _finite(column))
        return TaskKind.BINARY if whole else TaskKind.REGRESSION
    if classes == 2:
        return TaskKind.BINARY
    if column.type is ColumnType.INTEGER:
        return TaskKind.MULTICLASS if few and classes <= LISTED_VALUES else TaskKind.REGRESSION
    return TaskKind.MULTICLASS if few and classes <= _MOST_CLASSES else None


def _finite(column: Column) -> dict[Scalar, int]:
    """A column's values and their rows, less those that are no number."""
    counts = (column.counts or {}).items()
    return {value: count for value, count in counts if not isinstance(value, float) or math.isfinite(value)}


def _unfit(column: Column) -> str:
    if column.is_moment:
        return "it holds moments"
    if column.counts is not None and len(_finite(column)) < 2:
        return "it has fewer than two different values"
    return "it has too many different texts to be classes"


def _positive(classes: Mapping[Scalar, int]) -> Scalar:
    """The class that says yes; the rarer one, if neither does."""
    yes = [value for value in classes if str(value).strip().lower() in _AFFIRMATIVE]
    return yes[0] if len(yes) == 1 else min(classes, key=lambda value: (classes[value], str(value)))


def _key(found: Survey, columns: Mapping[str, Column], personal: Collection[str]) -> Key:
    """One column whose values all differ, by name or place; else a few that tell rows apart together."""
    first = next(iter(found.columns))
    alone = [
        name for name in found.keys if name in columns and (name == first or _is_no_accident(columns[name]))
    ]
    if alone:
        alone.sort(key=lambda name: (name in personal, not is_identifier(name), columns[name].is_moment))
        others = tuple(name for name in alone[1:] if name not in personal)
        return Key((alone[0],), found.rows, found.rows, is_identifier=True, others=others)
    candidates = [
        column
        for name, column in columns.items()
        if name not in personal and not column.missing and not column.infinite
    ]
    candidates.sort(
        key=lambda column: (
            not is_identifier(column.name),
            not column.is_moment,
            column.counts is not None,
        )
    )
    names = [column.name for column in candidates[:_MOST_KEY_COLUMNS]]
    if not names:
        raise BadInputError(
            f"{found.path}: nothing tells rows apart: every column lacks values or is personal; add an identifier"
        )
    with held_columns(found.source, names) as distinct:
        chosen: list[str] = []
        groups = 0
        for name in names:
            if groups < found.rows and (reached := distinct([*chosen, name])) > groups:
                chosen, groups = [*chosen, name], reached
        for name in chosen[:-1]:
            fewer = [other for other in chosen if other != name]
            if distinct(fewer) == groups:
                chosen = fewer
    meant = all(is_identifier(name) or columns[name].is_moment for name in chosen)
    return Key(tuple(chosen), found.rows, groups, is_identifier=meant)


def _is_no_accident(column: Column) -> bool:
    """Whether values that all differ mean a key: an identifier by name, text, a moment, or a running number."""
    if is_identifier(column.name) or column.type is not ColumnType.INTEGER:
        return True
    return bool(column.high - column.low + 1 == column.rows)


def is_identifier(name: str) -> bool:
    """Whether a column's name ends as those of identifiers do."""
    words = _words(name)
    return bool(words) and words[-1] in _IDENTIFIERS | _CODES


def is_sensitive(name: str) -> bool:
    """Whether a column's name is one by which people are treated unequally."""
    return bool(_SENSITIVE & set(_words(name)))


def _words(name: str) -> list[str]:
    """A column's name in lower-case words: customerID, customer_id and Customer Id are the same two."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.findall(r"[^\W_]+", spaced.lower())


def personal_data(column: Column) -> str | None:
    """What personal data a column probably is, by its name and what it holds; None if it seems to be none."""
    words = set(_words(column.name))
    many = column.counts is None or len(column.counts) > LISTED_VALUES
    texts = many and column.type is ColumnType.STRING
    low, high = (column.low, column.high) if column.type is ColumnType.INTEGER and column.present else (0, 0)
    long, years = many and low >= 1_000_000, 1850 <= low <= high <= 2100
    phones = many and column.shape == "a phone number"
    told = (
        (many and column.shape is not None and not phones, column.shape),
        (words & _PHONES and (phones or long), "a phone number"),
        (words & _NATIONAL and (texts or long), "a personal number"),
        (words & _BORN and (column.is_moment or texts or years), "a date of birth"),
        (texts and (words & _NAMES or words == {"name"}), "a person's name"),
        (texts and "name" in words and words & _PEOPLE, "a person's name"),
        (texts and words & _PLACES, "an address"),
        (texts and words in ({"email"}, {"mail"}, {"e", "mail"}), "an e-mail address"),
    )
    return next((what for applies, what in told if applies), None)


def _use(column: Column) -> tuple[str, str]:
    """The group of features a column goes into; or none, and why."""
    different = None if column.counts is None else len(column.counts)
    if column.missing > _EMPTY_SHARE * column.rows:
        return "", "almost always empty"
    if different == 1 or (column.low is not None and column.low == column.high):
        return "", "one value only"
    if column.type is ColumnType.BOOLEAN:
        return "boolean", ""
    if column.is_moment:
        return "dates", ""
    if column.type is ColumnType.STRING:
        few = different is not None and different <= max(3, _CATEGORY_SHARE * column.present)
        return ("categorical", "") if few else ("", "too many different texts")
    if column.type is ColumnType.INTEGER and is_identifier(column.name):
        few = different is not None and different <= LISTED_VALUES
        return ("categorical", "") if few else ("", "an identifier by its name")
    return "numeric", ""


def _time_column(columns: Iterable[Column]) -> str | None:
    """The column that says when a row became known: timestamps before dates, the likeliest name first."""

    def rank(column: Column) -> tuple[bool, int]:
        named = [place for place, word in enumerate(_TIMES) if word in _words(column.name)]
        return column.type is ColumnType.DATE, min(named, default=len(_TIMES))

    moments = [column for column in columns if column.is_moment]
    return min(moments, key=rank).name if moments else None


def enumerated(names: Iterable[str], most: int = 30) -> str:
    """Names in a sentence: the first `most`, each cut where it is long, and how many more there are."""
    shown = [name if len(name) <= 40 else f"{name[:39]}…" for name in names]
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
