"""What becomes of a release whose flow run is cancelled, or whose process is told to end: the champion is put back.

A worker cancels a run by SIGTERM to its process, and kills what has not ended 30 seconds later; a container that is
stopped gets the same. Prefect makes an exception of it, wherever the flow is at that moment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.exceptions import TerminationSignal

from deployments.spec import LoadedSpec
from flows.notify import tell_rollback
from platforms.platform import Platform
from tasks.release_end import write_end
from tasks.release_record import ReleaseStore, State
from tasks.rollback import roll_back

__all__ = ["ended_where_cancelled"]


@contextmanager
def ended_where_cancelled(platform: Platform, loaded: LoadedSpec) -> Iterator[None]:
    """End the release that is under way, as a person's rollback does, where the run within it is cancelled.

    To be entered before the controller, which must have let go by then. A process that is told to end for another
    reason leaves the release to the run that takes it up.
    """
    try:
        yield
    except TerminationSignal:
        _end(platform, loaded)
        raise


def _end(platform: Platform, loaded: LoadedSpec) -> None:
    from prefect.logging import get_run_logger

    try:
        name = _cancelled()
        release = ReleaseStore(platform, loaded.name).newest()
        # Before its approval there is nothing to take back, and a release that has ended stays as it is.
        if name is None or release is None or release.ended or release.state is State.PROPOSED:
            return
        outcome = roll_back(platform, loaded, reason=f"flow run {name!r} was cancelled")
        write_end(platform, ReleaseStore(platform, loaded.name).load(release.id))
        tell_rollback(platform, outcome)
    except Exception:  # noqa: BLE001 - whatever it was, the process is about to end
        # The run ends anyhow; the lease gives the traffic back, and whoever runs the release again mends the rest.
        get_run_logger().exception("the release of %s was not ended; roll it back by hand", loaded.name)


def _cancelled() -> str | None:
    """The name of this run, or of the one that all belongs to, whichever is cancelled; None where none is."""
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        for asked in dict.fromkeys((flow_run.id, flow_run.root_flow_run_id)):
            found = client.read_flow_run(UUID(str(asked)))
            if found.state is not None and (found.state.is_cancelling() or found.state.is_cancelled()):
                return found.name
    return None
