"""Artifacts in the Prefect UI; outside a Prefect run there is nowhere to show them, and nothing happens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.evaluate import Evaluation
from tasks.gate import GateReport
from tasks.train import Leaderboard
from tasks.validate import TableResult


def in_a_run() -> bool:
    """Whether a Prefect flow or task run is under way."""
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def publish_contract(model: str, results: Sequence[TableResult]) -> None:
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
    _table(f"{model}-contract", rows, "What the data contract found.")


def publish_leaderboard(model: str, leaderboard: Leaderboard) -> None:
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
    _table(f"{model}-leaderboard", rows, "Candidates by their score on the validation part.")


def publish_metrics(model: str, evaluation: Evaluation) -> None:
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
    _table(f"{model}-metrics", rows, f"On {evaluation.rows:,} holdout rows.")


def publish_gates(model: str, report: GateReport) -> None:
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
    _table(f"{model}-gates", rows, f"Overall: **{report.verdict}**.")


def publish_links(model: str, links: dict[str, str]) -> None:
    """Where to read on."""
    if not in_a_run():
        return
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    text = "\n".join(f"- **{name}**: `{where}`" for name, where in links.items())
    create_markdown_artifact(text, key=_key(f"{model}-links"), description="Where to read on.")
    report = links.get("training report")
    if report:
        create_link_artifact(Path(report).as_uri(), link_text="training report", key=_key(f"{model}-report"))


def _table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    if not in_a_run() or not rows:
        return
    from prefect.artifacts import create_table_artifact

    create_table_artifact(table=rows, key=_key(key), description=description)


def _key(name: str) -> str:
    return name.lower().replace("_", "-")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
