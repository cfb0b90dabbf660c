"""Service levels of a window: what callers were promised, against what they got."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deployments.monitoring import ServicePlan
from tasks.live_window import Calls, EndpointCalls
from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict

__all__ = ["counted_within", "of_version", "service_rows"]


def counted_within(counts: Sequence[tuple[datetime, int]], window: Window) -> int:
    """How many of these requests, counted by moments, were of a window."""
    return sum(count for at, count in counts if window.start <= at < window.end)


def service_rows(
    plan: ServicePlan,
    calls: EndpointCalls,
    window: Window,
    version: str,
    *,
    lost: int = 0,
    unanswered: int = 0,
) -> list[MetricRow]:
    """The service levels of the endpoint, as rows of the window's version; figures of each version are told.

    Callers were promised an answer, not a version: judged are all requests of the window but copies, whichever version
    had them. The figures of a version carry its number and `of_version` as their subject, and no verdict.

    The error rate is of requests that a scorer answered. Availability is the part of all requests that did not fail on
    our side, `unanswered` ones among them. Rates have Wilson's 95 % interval (1927), latencies that of the order
    statistics around them.

    Args:
        plan: what callers are promised.
        calls: what was answered and logged in the window.
        window: which one.
        version: the one that the window judges.
        lost: requests that were answered and not logged.
        unanswered: requests that the gateway itself failed (5xx), since no scorer answered.
    """
    whole = _Told(window, version)
    rows = [*_judged(plan, calls.whole, whole, unanswered), *_figures(calls.whole, whole)]
    if unanswered:
        reason = f"{unanswered:,} requests found no scorer that answered, and count against availability"
        rows.append(whole.row("unanswered", float(unanswered), rows=calls.whole.requests, reason=reason))
    if lost:
        reason = f"{lost:,} requests were answered and not logged: nothing here knows of them"
        rows.append(whole.row("lost", float(lost), rows=calls.whole.requests, reason=reason))
    for one in calls.versions:
        if not one.shadow:
            told = _Told(window, one.version, of_version(one.version))
            rows += [
                row.model_copy(update={"verdict": None, "threshold": None, "reason": ""})
                for row in (*_judged(plan, one, told), *_figures(one, told))
            ]
    return rows


def of_version(version: str) -> str:
    """The subject of a version's own service figures."""
    return f"version {version}"


@dataclass(frozen=True)
class _Told:
    """Where figures belong: a window, the version it is told of, and the subject, empty for the whole endpoint."""

    window: Window
    version: str
    subject: str = ""

    def row(self, metric: str, value: float | None, **more: Any) -> MetricRow:
        return MetricRow(
            version=self.version,
            window=self.window,
            kind="service",
            metric=metric,
            subject=self.subject,
            value=value,
            **more,
        )


def _judged(plan: ServicePlan, calls: Calls, told: _Told, unanswered: int = 0) -> list[MetricRow]:
    requests, asked = calls.requests, calls.requests + unanswered
    error_low, error_high = wilson(calls.failed, requests)
    down_low, down_high = wilson(calls.failed + unanswered, asked)
    counts = {
        "p95_milliseconds": requests - calls.failed - calls.refused,
        "error_rate": requests,
        "availability": asked,
    }
    promised = {
        "p95_milliseconds": (calls.p95, calls.p95_low, calls.p95_high, plan.p95_milliseconds, True),
        "error_rate": (_part(calls.failed, requests), error_low, error_high, plan.error_rate, True),
        "availability": (
            _part(requests - calls.failed, asked),
            _other(down_high),
            _other(down_low),
            plan.availability,
            False,
        ),
    }
    rows = []
    for metric, (value, low, high, threshold, at_most) in promised.items():
        made = asked if metric == "availability" else requests
        verdict, reason = _judge(plan, made, value, threshold, at_most=at_most)
        rows.append(
            told.row(
                metric,
                value,
                low=low,
                high=high,
                threshold=threshold,
                verdict=verdict,
                rows=counts[metric],
                reason=reason,
            )
        )
    return rows


def _figures(calls: Calls, told: _Told) -> list[MetricRow]:
    figures = {
        "p50_milliseconds": calls.p50,
        "requests": float(calls.requests),
        "refused": _part(calls.refused, calls.requests),
        "predicted_rows": float(calls.rows),
    }
    return [told.row(metric, value, rows=calls.requests) for metric, value in figures.items()]


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
