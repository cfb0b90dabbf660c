"""Monitor: what the champion met in one window of live traffic, how well it did, and who must know."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from prefect import flow, task

from deployments.errors import ContenderError
from deployments.spec import LoadedSpec
from flows.events import emit
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import HOUR, about, prepare, run_name
from platforms.platform import Platform
from tasks import monitor as parts
from tasks.late_labels import Late, judged_again, late_windows
from tasks.metering import metered
from tasks.mlflow_pages import run_links
from tasks.monitor_window import Watched, watch, window_of
from tasks.monitoring_record import MetricRow, MonitoringTable, MonitorOutcome, Window
from tasks.progress import stage
from tasks.publish import artifact_key, links_markdown
from tasks.steps import STEP

__all__ = ["monitor"]


@task(name="fold", task_run_name="fold the prediction log", **STEP)
@metered(rows=False)
def fold(loaded: LoadedSpec, platform: Platform, window: Window) -> Watched:
    """Everything logged until now in its table, and who answered in the window."""
    with stage("fold the prediction log"):
        return watch(platform, loaded, window)


@task(name="service levels", task_run_name="service levels", **STEP)
@metered(rows=False)
def service_levels(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:  # noqa: ARG001
    """Latency, errors and availability; the platform is where its cost is written down."""
    with stage("service levels"):
        return parts.service_part(loaded, watched)


@task(name="inputs", task_run_name="live inputs", **STEP)
@metered(rows=False)
def inputs(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:
    """What callers sent, against the contract."""
    with stage("live inputs"):
        return parts.inputs_part(loaded, platform, watched)


@task(name="drift", task_run_name="drift", **STEP)
@metered(rows=False)
def drift(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:
    """Inputs against training data, answers against those about the holdout."""
    with stage("drift"):
        return parts.drift_part(loaded, platform, watched)


@task(name="quality", task_run_name="quality", **STEP)
@metered(rows=False)
def quality(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:
    """Answers against the labels that are known by now."""
    with stage("quality"):
        return parts.quality_part(loaded, platform, watched)


@task(name="budget", task_run_name="budget", **STEP)
@metered(rows=False)
def budget(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[MetricRow]:
    """What the line has cost, against what it may."""
    from tasks.costs import budget_rows

    return list(budget_rows(platform, loaded, watched.version, watched.window))


@task(name="keep", task_run_name="keep and report", **STEP)
@metered(rows=False)
def keep(
    loaded: LoadedSpec, platform: Platform, watched: Watched, rows: Sequence[MetricRow]
) -> MonitorOutcome:
    """The window's rows in the table and beside the version's run, its page, and its alerts."""
    with stage("keep and report"):
        return parts.concluded(loaded, platform, watched, rows)


@task(name="late labels", task_run_name="late labels", **STEP)
@metered(rows=False)
def late(loaded: LoadedSpec, platform: Platform, watched: Watched) -> list[Late]:
    """Earlier windows whose labels came since they were judged."""
    with stage("late labels"):
        return late_windows(loaded, platform, watched)


@task(name="judge again", task_run_name="judge {one.window.end:%Y-%m-%d %H:%M} again", **STEP)
@metered(rows=False)
def judge_again(loaded: LoadedSpec, platform: Platform, one: Late) -> tuple[MonitorOutcome, list[MetricRow]]:
    """The quality of an earlier window by the labels that are known now."""
    with stage(f"judge {one.window.end:%Y-%m-%d %H:%M} again"):
        return judged_again(loaded, platform, one)


@flow(name="monitor", flow_run_name=run_name("monitor"), description=__doc__, timeout_seconds=2 * HOUR)
def monitor(
    model: ModelName,
    env: EnvironmentName = "dev",
    window: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> MonitorOutcome:
    """Fold the log, join labels, and look at drift, quality, service levels, inputs and costs of one window.

    A window that is looked at again replaces what was found in it before, and tells no alert twice. Where neither
    `since` nor `until` is given, earlier windows of the same length whose labels came meanwhile are judged again.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        window: How long it is, as 7d, 12h or 30min; as the spec says by default.
        since: Its first moment (UTC where it has no zone).
        until: The first moment after it; the last multiple of the spec's `every_hours` by default.

    Raises:
        BadInputError: no champion, or a window that is none or is still to come.
        BusyError: somebody monitors the model already.
        ContenderError: the log cannot be read, or the champion's files are not what was recorded.
    """
    loaded, platform = prepare(model, env)
    span = window_of(loaded.spec.monitoring, window, since, until)
    name = platform.endpoint(loaded.name)
    with platform.alone(f"monitor-{name}", f"{name} is being monitored by another process"):
        watched = fold(loaded, platform, span)
        rows = [
            row
            for part in (service_levels, inputs, drift, quality, budget)
            for row in part(loaded, platform, watched)
        ]
        outcome = keep(loaded, platform, watched, rows)
        about(outcome.version)
        for alert in outcome.alerts:
            emit(platform, alert, outcome)
        if since is None and until is None:
            outcome = _with_late_labels(loaded, platform, watched, outcome)
    _publish(outcome, rows, run_links(platform, watched.ref.run_id, {}))
    return outcome


def _with_late_labels(
    loaded: LoadedSpec, platform: Platform, watched: Watched, outcome: MonitorOutcome
) -> MonitorOutcome:
    """Judge earlier windows again by labels that came late; one that cannot be stops no other."""
    again, problems = [], list(outcome.problems)
    for one in late(loaded, platform, watched):
        try:
            earlier, rows = judge_again(loaded, platform, one)
        except ContenderError as error:
            problems.append(
                f"the window that ended {one.window.end:%Y-%m-%d %H:%M} UTC was not judged again: {error}"
            )
            continue
        # Told before it is kept: once kept, its labels are no news, and a run that was killed would never tell.
        for alert in earlier.alerts:
            emit(platform, alert, earlier)
        MonitoringTable(platform, loaded.name).put(rows)
        again.append(earlier)
    return outcome.model_copy(update={"again": tuple(again), "problems": tuple(problems)})


def _publish(outcome: MonitorOutcome, rows: Sequence[MetricRow], links: Mapping[str, str]) -> None:
    """The window in the Prefect UI: what it came to, and every row that was judged."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    from tasks.monitoring_report import monitoring_markdown

    key = artifact_key(outcome.name, "monitoring")
    create_markdown_artifact(
        key=key,
        markdown=f"{monitoring_markdown(outcome)}\n{links_markdown(links)}\n",
        description=f"{outcome.name} version {outcome.version}",
    )
    judged = [
        {
            "part": row.kind,
            "metric": row.metric,
            "of": row.subject,
            "verdict": str(row.verdict),
            "value": "" if row.value is None else f"{row.value:,.4g}",
            "bound": "" if row.threshold is None else f"{row.threshold:,.4g}",
            "reason": row.reason,
        }
        for row in rows
        if row.verdict is not None
    ]
    create_table_artifact(key=f"{key}-rows", table=judged, description="Every row that was judged.")
