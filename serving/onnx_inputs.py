"""What a converted model is fed: the columns of a request as one matrix of numbers and one of category codes.

The layout travels in the ONNX file. Texts are looked up here, since ONNX Runtime is slow with them; that also makes
missing and unknown categories exact, which they would not be in ONNX's own encoders.
"""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property

import numpy as np

from deployments.declared import Declared

LARGEST = 1e30
"""The largest magnitude that conversion was proven for; what is beyond goes to scikit-learn."""


class CategoryCodes(Declared):
    """The codes of one text column: its values in order, and what stands for a missing and for any other value.

    None where scikit-learn refuses such a value, so that it is left to refuse it.
    """

    column: str
    values: tuple[str, ...]
    missing: int | None
    unknown: int | None

    @cached_property
    def codes(self) -> dict[str | None, int]:
        """The code of each known value, and of None where it has one."""
        found: dict[str | None, int] = {value: place for place, value in enumerate(self.values)}
        return found if self.missing is None else found | {None: self.missing}


class DatePart(Declared):
    """One number taken from a moment."""

    column: str
    part: str


class OnnxInputs(Declared):
    """The columns of the two matrices, and how scores become answers.

    `numbers` and then `dates` are the columns of the first matrix; `certain` are those in it that may not be missing.
    A binary model has a `threshold` and the index of the positive class, others answer with the likeliest class,
    and a regression has no `classes`.
    """

    numbers: tuple[str, ...]
    dates: tuple[DatePart, ...] = ()
    certain: tuple[int, ...] = ()
    categories: tuple[CategoryCodes, ...] = ()
    classes: tuple[bool | int | float | str, ...] | None = None
    positive: int | None = None
    threshold: float | None = None

    def feed(self, columns: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray] | None:
        """The graph's inputs by name, or None where a row holds what conversion was not proven for."""
        fed: dict[str, np.ndarray] = {}
        if self.numbers or self.dates:
            numbers = self._one(columns) if rows == 1 else self._many(columns, rows)
            if numbers is None:
                return None
            fed["numbers"] = numbers
        if self.categories:
            codes = [_codes(category, columns[category.column]) for category in self.categories]
            if any(None in some for some in codes):
                return None
            fed["codes"] = np.array(codes, dtype=np.int64).T
        return fed

    def _one(self, columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The matrix of one row, by plain Python: numpy is slow with single numbers."""
        values = [columns[name].item() for name in self.numbers]
        values += [_part_of_one(columns[wanted.column], wanted.part) for wanted in self.dates]
        odd = [place for place, value in enumerate(values) if not -LARGEST <= value <= LARGEST]
        if odd and any(place in self.certain or not math.isnan(values[place]) for place in odd):
            return None
        return np.array([values], dtype=np.float64)

    def _many(self, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray | None:
        width = len(self.numbers)
        numbers = np.empty((rows, width + len(self.dates)))
        for place, name in enumerate(self.numbers):
            numbers[:, place] = columns[name]
        for place, wanted in enumerate(self.dates, start=width):
            numbers[:, place] = DATE_PARTS[wanted.part](columns[wanted.column])
        # The comparison is false for a missing value, which is then looked at.
        if not np.abs(numbers).max(initial=0.0) <= LARGEST and self._refuses(numbers):
            return None
        return numbers

    def _refuses(self, numbers: np.ndarray) -> bool:
        missing = np.isnan(numbers)
        too_large = bool((np.abs(numbers[~missing]) > LARGEST).any())
        return too_large or bool(missing[:, list(self.certain)].any())

    def answers(self, said: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Predictions and scores, shape (rows,) each, from what the graph says."""
        if self.classes is None:
            return said, None
        positive = self.positive
        if positive is None:
            return self._labels[said.argmax(axis=1)], said.max(axis=1)
        # Of two classes that are as likely, and without a threshold, scikit-learn takes the first.
        least = self.threshold if self.threshold is not None else np.nextafter(0.5, 1) if positive else 0.5
        if len(said) == 1:
            return self._label[positive if said.item() >= least else 1 - positive], said
        yes = said >= least
        return self._labels[np.where(yes, positive, 1 - positive)], said

    @cached_property
    def _label(self) -> tuple[np.ndarray, ...]:
        """Each class as the predictions of one row."""
        found = tuple(np.asarray([label], dtype=self._labels.dtype) for label in self._labels)
        for one in found:
            one.setflags(write=False)
        return found

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.asarray(self.classes)


def _codes(category: CategoryCodes, texts: np.ndarray) -> list[int | None]:
    """The code of each text, None for one that scikit-learn refuses."""
    known, unknown = category.codes, category.unknown
    if category.missing is None:
        return [known.get(text, None if text is None else unknown) for text in texts]
    return [known.get(text, unknown) for text in texts]


def _part_of_one(moments: np.ndarray, part: str) -> float:
    """A part of the only moment there is, NaN where it is missing."""
    moment = moments.item()
    # Python has no moments after the year 9999, and numpy gives None for a missing one.
    if isinstance(moment, datetime):
        return _OF_ONE[part](moment)
    return float(DATE_PARTS[part](moments)[0])


def _since(moments: np.ndarray, unit: str) -> np.ndarray:
    return np.asarray(moments.astype(f"datetime64[{unit}]").astype(np.int64))


def _part(compute: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Missing moments have missing parts."""

    def part(moments: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(np.isnat(moments), np.nan, compute(moments).astype(np.float64)))

    return part


def _days_since(moments: np.ndarray, unit: str) -> np.ndarray:
    day, start = (moments.astype(f"datetime64[{one}]").astype("datetime64[D]") for one in ("D", unit))
    return np.asarray((day - start).astype(np.int64))


DATE_PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "year": _part(lambda moments: _since(moments, "Y") + 1970),
    "month": _part(lambda moments: _since(moments, "M") % 12 + 1),
    "day": _part(lambda moments: _days_since(moments, "M") + 1),
    # The first of January 1970 was a Thursday.
    "weekday": _part(lambda moments: (_since(moments, "D") + 3) % 7),
    "hour": _part(lambda moments: _since(moments, "h") % 24),
    "day_of_year": _part(lambda moments: _days_since(moments, "Y") + 1),
}
"""Parts of naive UTC moments, by name; each takes and gives shape (rows,)."""

_OF_ONE: dict[str, Callable[[datetime], int]] = {
    "year": lambda moment: moment.year,
    "month": lambda moment: moment.month,
    "day": lambda moment: moment.day,
    "weekday": lambda moment: moment.weekday(),
    "hour": lambda moment: moment.hour,
    "day_of_year": lambda moment: moment.timetuple().tm_yday,
}
"""The same of a single moment, some ten times as fast."""
