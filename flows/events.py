"""What the line tells others: events of Prefect's, and messages through its notification blocks.

Events go to the Prefect server that the run has, where automations may take them up. Messages go through Prefect's
own notification blocks (Slack, Teams, e-mail, a webhook), to those that the environment names: by default to nobody.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.events import emit_event
from prefect.logging import get_logger

from deployments.errors import first_line
from platforms.platform import Platform
from tasks.monitoring_record import Alert, MonitorOutcome

__all__ = ["emit", "tell"]


def emit(platform: Platform, alert: Alert, outcome: MonitorOutcome) -> bool:
    """Tell of an alert, unless it was acknowledged, or told already; whether it was told now.

    A window that is looked at again tells nothing twice: each alert of a window and version is told once for each
    set of subjects. It is noted after it was told, so that a run killed in between tells it again rather than never.
    """
    if alert.acknowledged:
        return False
    folder = platform.folder("monitoring") / outcome.model / "told"
    told = (outcome.version, outcome.window.model_dump_json(), alert.event, *sorted(alert.subjects))
    mark = folder / hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]
    if mark.exists():
        return False
    tell(
        alert.event,
        model=outcome.model,
        environment=outcome.environment,
        name=outcome.name,
        payload={
            "model": outcome.model,
            "environment": outcome.environment,
            "version": outcome.version,
            "kind": alert.kind,
            "reason": alert.reason,
            "subjects": list(alert.subjects),
            "window_start": outcome.window.start.isoformat(),
            "window_end": outcome.window.end.isoformat(),
            "report": outcome.report,
        },
        subject=f"{outcome.name} version {outcome.version}: {alert.kind.replace('_', ' ')}",
        said=alert.reason,
        blocks=platform.environment.notify,
    )
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return True


def tell(
    event: str,
    *,
    model: str,
    environment: str,
    name: str,
    payload: Mapping[str, Any],
    subject: str,
    said: str,
    blocks: Sequence[str],
) -> None:
    """Emit an event about a model, and send a message to each block; one that cannot be sent stops nothing.

    Args:
        event: the event's name.
        model: the model in the spec's words; with the environment it names the event's resource.
        environment: where it is.
        name: the model's name in the registry.
        payload: what automations may use.
        subject: the message's subject.
        said: the message.
        blocks: notification blocks, as slack-webhook/releases.
    """
    emit_event(
        event,
        resource={
            "prefect.resource.id": f"contender.model.{environment}.{model}",
            "prefect.resource.name": name,
        },
        payload=dict(payload),
    )
    for slug in blocks:
        try:
            _block(slug).notify(body=said, subject=subject)
        except Exception as error:  # noqa: BLE001 - whatever the messenger lacks, the work goes on
            get_logger("contender").warning("%s was not told: %s: %s", slug, subject, first_line(error))


def _block(slug: str) -> Any:
    """The notification block of that name, as `slack-webhook/releases`; its `notify` is synchronous here."""
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    block = Block.load(slug)
    if not isinstance(block, NotificationBlock):
        raise TypeError(f"{slug} is no notification block")
    return block
