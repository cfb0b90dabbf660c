"""Pass, fail or inconclusive: the only three things a check may say."""

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What a check decided. Nothing but `PASS` lets anything through."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Fail if any fails, else inconclusive if any is; no verdict at all is inconclusive."""
    found = set(verdicts)
    if not found:
        return Verdict.INCONCLUSIVE
    return next(v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if v in found)
