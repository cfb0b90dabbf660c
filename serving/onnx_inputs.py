"""What a converted model is fed: the columns of a request as one matrix of numbers and one of category codes.

The layout travels in the ONNX file. Texts are looked up here, since ONNX Runtime is slow with them; that also makes
missing and unknown categories exact, which they would not be in ONNX's own encoders.
"""

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
        width = len(self.numbers)
        if width or self.dates:
            numbers = np.empty((rows, width + len(self.dates)))
            for place, name in enumerate(self.numbers):
                numbers[:, place] = columns[name]
            for place, wanted in enumerate(self.dates, start=width):
                numbers[:, place] = date_part(columns[wanted.column], wanted.part)
            # One comparison for the ordinary row: it is false for a missing value, which is then looked at.
            if not np.abs(numbers).max(initial=0.0) <= LARGEST and self._refuses(numbers):
                return None
            fed["numbers"] = numbers
        if self.categories:
            codes = np.empty((rows, len(self.categories)), dtype=np.int64)
            for place, category in enumerate(self.categories):
                found = self._codes(category, columns[category.column], rows)
                if found is None:
                    return None
                codes[:, place] = found
            fed["codes"] = codes
        return fed

    def _refuses(self, numbers: np.ndarray) -> bool:
        missing = np.isnan(numbers)
        too_large = bool((np.abs(numbers[~missing]) > LARGEST).any())
        return too_large or bool(missing[:, list(self.certain)].any())

    @staticmethod
    def _codes(category: CategoryCodes, texts: np.ndarray, rows: int) -> int | list[int] | None:
        known, unknown = category.codes, category.unknown
        if rows == 1:
            text = texts[0]
            found = known.get(text)
            return found if found is not None else None if text is None else unknown
        if unknown is not None and None in known:
            return [known.get(text, unknown) for text in texts]
        codes = [known.get(text, None if text is None else unknown) for text in texts]
        return None if None in codes else codes  # type: ignore[return-value]

    def answers(self, said: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Predictions and scores, shape (rows,) each, from what the graph says."""
        if self.classes is None:
            return said, None
        positive = self.positive
        if positive is None:
            return self._labels[said.argmax(axis=1)], said.max(axis=1)
        # Of two classes that are as likely, and without a threshold, scikit-learn takes the first.
        least = self.threshold if self.threshold is not None else np.nextafter(0.5, 1) if positive else 0.5
        yes = said >= least
        return self._labels[np.where(yes, positive, 1 - positive)], said

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.asarray(self.classes)


def date_part(moments: np.ndarray, part: str) -> np.ndarray | int:
    """A part of naive UTC moments of microseconds, NaN where they are missing; a number where there is one moment."""
    if len(moments) == 1:
        moment = moments.item()
        # Python has no moments after the year 9999, and numpy gives None for a missing one.
        if isinstance(moment, datetime):
            return _OF_ONE[part](moment)
    return DATE_PARTS[part](moments)


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
