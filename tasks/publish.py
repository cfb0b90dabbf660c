"""Artifacts in the Prefect UI; outside a Prefect run there is nowhere to show them, and nothing happens.

Their keys begin with the registered name, which no two environments share.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.evaluate import Evaluation
    from tasks.gate import GateReport
    from tasks.train import Leaderboard
    from tasks.validate import TableResult


def in_a_run() -> bool:
    """Whether a Prefect flow or task run is under way."""
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def publish_contract(name: str, results: "Sequence[TableResult]") -> None:
    """One row a check; failing ones first."""
    rows = [
        {
            "table": result.table,
            "check": check.check,
            "column": check.column or "",
            "verdict": check.verdict.value,
            "failing rows": check.failures,
            "value": _number(check.value),
            "threshold": _number(check.threshold),
            "reason": check.reason,
        }
        for result in results
        for check in sorted(result.checks, key=lambda check: check.verdict.value)
    ]
    _table(artifact_key(name, "contract"), rows, "What the data contract found.")


def publish_leaderboard(name: str, leaderboard: "Leaderboard") -> None:
    """One row a candidate, best first."""
    rows: list[dict[str, Any]] = [
        {
            "rank": place,
            "candidate": item.name,
            "estimator": item.estimator,
            f"validation {leaderboard.metric}": _number(item.validation),
            "cross-validation": _number(item.cross_validation),
            "tried": item.tried,
            "seconds": round(item.seconds, 1),
        }
        for place, item in enumerate(leaderboard.candidates, 1)
    ]
    _table(artifact_key(name, "leaderboard"), rows, "Candidates by their score on the validation part.")


def publish_metrics(name: str, evaluation: "Evaluation") -> None:
    """One row a holdout metric, with its interval."""
    rows = [
        {
            "metric": name,
            "holdout": _number(found.value),
            "low": _number(found.low),
            "high": _number(found.high),
            "trained on": _number(evaluation.train_metrics.get(name)),
        }
        for name, found in evaluation.metrics.items()
    ]
    _table(artifact_key(name, "metrics"), rows, f"On {evaluation.rows:,} holdout rows.")


def publish_gates(name: str, report: "GateReport") -> None:
    """One row a gate."""
    rows = [
        {
            "gate": result.gate,
            "verdict": result.verdict.value,
            "value": _number(result.value),
            "threshold": _number(result.threshold),
            "reason": result.reason,
        }
        for result in report.results
    ]
    _table(artifact_key(name, "gates"), rows, f"Overall: **{report.verdict}**.")


def publish_image(name: str, what: str, address: str, description: str) -> None:
    """A picture, at an address that browsers open, which may be its own bytes as a data URI."""
    if not in_a_run():
        return
    from prefect.artifacts import create_image_artifact

    create_image_artifact(address, key=artifact_key(name, what), description=description)


def publish_links(name: str, links: Mapping[str, str]) -> None:
    """Where to read on."""
    if not in_a_run():
        return
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(
        links_markdown(links), key=artifact_key(name, "links"), description="Where to read on."
    )


def links_markdown(links: Mapping[str, str]) -> str:
    """A list of addresses to click, and of places on a disk as text: no browser goes there from a page of a server."""
    return "\n".join(
        f"- [{what}]({where})" if where.startswith(("http://", "https://")) else f"- **{what}**: `{where}`"
        for what, where in links.items()
    )


def artifact_key(name: str, what: str) -> str:
    """The key of an artifact about a registered model; Prefect takes lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name}-{what}".lower()).strip("-")


def _table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    if not in_a_run() or not rows:
        return
    from prefect.artifacts import create_table_artifact

    create_table_artifact(table=rows, key=key, description=description)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
