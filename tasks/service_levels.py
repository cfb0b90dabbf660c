"""Service levels of a window: what callers were promised, against what they got."""

import math
from collections.abc import Sequence
from datetime import datetime

from deployments.monitoring import ServicePlan
from tasks.live_window import Calls
from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict

__all__ = ["lost_within", "service_rows"]


def lost_within(lost: Sequence[tuple[datetime, int]], window: Window) -> int:
    """Requests of a window that were answered and not logged."""
    return sum(count for at, count in lost if window.start <= at < window.end)


def service_rows(
    plan: ServicePlan, calls: Sequence[Calls], window: Window, version: str, lost: int = 0
) -> list[MetricRow]:
    """The service levels of each version that answered callers; those of `version` are judged, others are told.

    Availability is the part of logged requests that did not fail on our side. What never reached a scorer, as while
    nothing was up, is in no log and counts for nothing here. Rates have Wilson's 95 % interval (1927), latencies that
    of the order statistics around them.
    """
    of_callers = [one for one in calls if not one.shadow]
    nothing = Calls(version, False, 0, 0, 0, 0, None, None, None, None)
    judged = next((one for one in of_callers if one.version == version), nothing)
    rows = _of_version(plan, judged, window)
    if lost:
        rows.append(
            MetricRow(
                version=version,
                window=window,
                kind="service",
                metric="lost",
                value=float(lost),
                rows=judged.requests,
                reason=f"{lost:,} requests were answered and not logged: nothing here knows of them",
            )
        )
    for other in of_callers:
        if other.version != version:
            rows += [
                row.model_copy(update={"verdict": None, "threshold": None, "reason": ""})
                for row in _of_version(plan, other, window)
            ]
    return rows


def _of_version(plan: ServicePlan, calls: Calls, window: Window) -> list[MetricRow]:
    requests, answered = calls.requests, calls.requests - calls.failed - calls.refused
    error_low, error_high = wilson(calls.failed, requests)
    judged = {
        "p95_milliseconds": (calls.p95, calls.p95_low, calls.p95_high, plan.p95_milliseconds, True),
        "error_rate": (_part(calls.failed, requests), error_low, error_high, plan.error_rate, True),
        "availability": (
            _part(requests - calls.failed, requests),
            _other(error_high),
            _other(error_low),
            plan.availability,
            False,
        ),
    }
    rows = []
    for metric, (value, low, high, threshold, at_most) in judged.items():
        verdict, reason = _judge(plan, requests, value, threshold, at_most=at_most)
        of = answered if metric == "p95_milliseconds" else requests
        rows.append(
            MetricRow(
                version=calls.version,
                window=window,
                kind="service",
                metric=metric,
                value=value,
                low=low,
                high=high,
                threshold=threshold,
                verdict=verdict,
                rows=of,
                reason=reason,
            )
        )
    told = {
        "p50_milliseconds": calls.p50,
        "requests": float(requests),
        "refused": _part(calls.refused, requests),
        "predicted_rows": float(calls.rows),
    }
    rows += [
        MetricRow(
            version=calls.version, window=window, kind="service", metric=metric, value=value, rows=requests
        )
        for metric, value in told.items()
    ]
    return rows


def _judge(
    plan: ServicePlan, requests: int, value: float | None, threshold: float, *, at_most: bool
) -> tuple[Verdict, str]:
    if requests < plan.minimum_requests:
        return (
            Verdict.INCONCLUSIVE,
            f"{requests:,} requests in the window; {plan.minimum_requests:,} are needed",
        )
    if value is None or not math.isfinite(value):
        return Verdict.INCONCLUSIVE, "no request was answered, so there is no latency"
    kept = value <= threshold if at_most else value >= threshold
    said = f"{value:.4g} where {'at most' if at_most else 'at least'} {threshold:g} is promised"
    return (Verdict.PASS if kept else Verdict.FAIL), said


def wilson(count: int, of: int) -> tuple[float | None, float | None]:
    """The 95 % interval of a share; None where there is nothing to have a share of."""
    if of == 0:
        return None, None
    from scipy.stats import binomtest

    found = binomtest(count, of).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _part(count: int, of: int) -> float | None:
    return count / of if of else None


def _other(share: float | None) -> float | None:
    return None if share is None else 1 - share
