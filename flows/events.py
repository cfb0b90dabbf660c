"""What the line tells others: events of Prefect's, and messages through its notification blocks.

Events go to the Prefect server that the run has, where automations may take them up. Messages go through Prefect's
own notification blocks (Slack, Teams, e-mail, a webhook), to those that the environment names: by default to nobody.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import anyio
from prefect.client.orchestration import get_client
from prefect.events import Event, emit_event
from prefect.events.related import related_resources_from_run_context
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.settings import PREFECT_API_URL
from prefect.utilities.asyncutils import run_coro_as_sync

from deployments.errors import first_line
from platforms.platform import Platform
from tasks.monitoring_record import Alert, MonitorOutcome

__all__ = ["announce", "emit", "sent"]

DELIVERY_SECONDS = 20.0
"""How long the delivery of an alert may take before it counts as failed."""


def emit(platform: Platform, alert: Alert, outcome: MonitorOutcome) -> bool:
    """Tell of an alert, unless it was acknowledged, or told already; whether its event was delivered now.

    A window that is looked at again tells nothing twice: each alert of a window and version is told once for each
    set of subjects, to each server and each notification block. It is noted once the server has taken the event, so
    that a run killed in between tells it again rather than never; it is the same event then, by its id. What could not
    be delivered is a warning of the run, and is told when the window is looked at again.
    """
    if alert.acknowledged:
        return False
    folder = platform.folder("monitoring") / outcome.model / "told"
    told = (outcome.version, outcome.window.model_dump_json(), alert.event, *sorted(alert.subjects))
    subject = f"{outcome.name} version {outcome.version}: {alert.kind.replace('_', ' ')}"
    event = Event(
        id=uuid5(NAMESPACE_URL, "\n".join((str(folder.resolve()), *told))),
        event=alert.event,
        resource=_resource(outcome.environment, outcome.model, outcome.name),
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
    )
    delivered = _once(folder, (_server(), *told), partial(_delivered, event, subject))
    for slug in platform.environment.notify:
        _once(folder, (slug, *told), partial(sent, slug, subject, alert.reason))
    return delivered


def announce(event: str, *, model: str, environment: str, name: str, payload: Mapping[str, Any]) -> None:
    """Emit an event about a model.

    It waits for nobody: a thread of Prefect's delivers it while the run goes on, and is given time to when the run
    ends.

    Args:
        event: the event's name.
        model: the model in the spec's words; with the environment it names the event's resource.
        environment: where it is.
        name: the model's name in the registry.
        payload: what automations may use.
    """
    emit_event(event, resource=_resource(environment, model, name), payload=dict(payload))


def _resource(environment: str, model: str, name: str) -> dict[str, str]:
    return {
        "prefect.resource.id": f"contender.model.{environment}.{model}",
        "prefect.resource.name": name,
    }


def _server() -> str:
    """The address of the server that this run has; empty where Prefect starts one for it."""
    return (PREFECT_API_URL.value() or "").rstrip("/")


def _once(folder: Path, told: Sequence[str], telling: Callable[[], bool]) -> bool:
    """Whether `telling` succeeded now; it is asked only where it has not succeeded before."""
    mark = folder / hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]
    if mark.exists() or not telling():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return True


def _delivered(event: Event, subject: str) -> bool:
    """Whether the server has confirmed an event; where it has not, the run says why."""
    try:
        run_coro_as_sync(_deliver(event))
    except Exception as error:  # noqa: BLE001 - whatever the server lacks, the window's figures stand
        _warn("%s: the event %s was not delivered: %s", subject, event.event, first_line(error))
        return False
    return True


async def _deliver(event: Event) -> None:
    """Send an event, with the run that it comes from, and return once the server has taken it."""
    with anyio.fail_after(DELIVERY_SECONDS):
        async with get_client() as client:
            exclude = {event.resource.id}
            event.related += await related_resources_from_run_context(client=client, exclude=exclude)
            await client.request("POST", "/events", json=[event.model_dump(mode="json")])


def sent(slug: str, subject: str, said: str) -> bool:
    """Whether a message went to a notification block; where it did not, the run says why."""
    try:
        _block(slug).notify(body=said, subject=subject)
    except Exception as error:  # noqa: BLE001 - whatever the messenger lacks, the work goes on
        _warn("%s was not told: %s: %s", slug, subject, first_line(error))
        return False
    return True


def _warn(message: str, *values: str) -> None:
    """Say it in the log of the run, or where nothing runs in the project's own."""
    try:
        get_run_logger().warning(message, *values)
    except MissingContextError:
        get_logger("contender").warning(message, *values)


def _block(slug: str) -> Any:
    """The notification block of that name, as `slack-webhook/releases`; its `notify` is synchronous here."""
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    block = Block.load(slug)
    if not isinstance(block, NotificationBlock):
        raise TypeError(f"{slug} is no notification block")
    return block
