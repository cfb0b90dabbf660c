"""A release in the Prefect UI while it runs: a progress bar and a table of its tests, brought up to date in place.

A thread of its own sends what is newest, so that a server that is slow, or gone, never holds up a release: then
nothing is lost but the show.
"""

import contextvars
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tasks.decide import Action
from tasks.publish import artifact_key
from tasks.release_control import Controller
from tasks.release_progress import Progress, progress_of
from tasks.release_record import Release

__all__ = ["LiveArtifacts", "shown_live"]

PAUSES = (2.0, 30.0)
"""Seconds between two updates: a hundredth of a release's age, and no less and no more than these."""
ANSWER_SECONDS = 10.0
"""How long the server has to answer."""
LAST_SECONDS = 5.0
"""How long the end of a release waits for its last update."""


class LiveArtifacts:
    """Shows every look of one release; two looks within a pause are one update."""

    def __init__(self, release: Release) -> None:
        self._progress_key = artifact_key(release.endpoint, "release-progress")
        self._tests_key = artifact_key(release.endpoint, "release-tests")
        self._begun = release.begun
        self._ids: dict[str, UUID] = {}
        self._newest: Progress | None = None
        self._wake, self._ended = threading.Event(), threading.Event()
        # The flow run that artifacts belong to is known by context, which a thread does not inherit.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._go_on,), daemon=True)
        self._thread.start()

    def __call__(self, control: Controller, action: Action) -> None:
        """One look, and what was decided on it."""
        self._newest = progress_of(control.release, control.look, action, datetime.now(UTC))
        self._wake.set()

    def close(self) -> None:
        """Send what was seen last, and no more."""
        self._ended.set()
        self._wake.set()
        self._thread.join(LAST_SECONDS)

    def _go_on(self) -> None:
        from httpx import HTTPError
        from prefect.exceptions import PrefectException

        sent: Progress | None = None
        while True:
            self._wake.wait()
            self._wake.clear()
            newest = self._newest
            if newest is not None and newest != sent:
                with suppress(PrefectException, HTTPError, OSError):
                    self._send(newest)
                    sent = newest
            if self._ended.is_set() and newest is self._newest:
                return
            age = (datetime.now(UTC) - self._begun).total_seconds()
            self._ended.wait(min(max(PAUSES[0], age / 100), PAUSES[1]))

    def _send(self, progress: Progress) -> None:
        self._keep(self._progress_key, "progress", progress.percent, progress.said)
        if progress.tests:
            self._keep(self._tests_key, "table", json.dumps(progress.tests), progress.said)

    def _keep(self, key: str, kind: str, data: Any, description: str) -> None:
        """Make the artifact of this run, or bring it up to date; a run that was suspended has one already."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
        from prefect.runtime import flow_run

        # Settings of its own make it a client of its own: the flow's is in use by the flow.
        with get_client({"timeout": ANSWER_SECONDS}, sync_client=True) as client:
            if key not in self._ids:
                run = UUID(str(flow_run.id))
                standing = _standing(client, key, run)
                if standing is None:
                    made = ArtifactCreate(
                        key=key, type=kind, data=data, description=description, flow_run_id=run
                    )
                    self._ids[key] = client.create_artifact(made).id
                    return
                self._ids[key] = standing
            client.update_artifact(self._ids[key], ArtifactUpdate(data=data, description=description))


def _standing(client: Any, key: str, run: UUID) -> UUID | None:
    """The artifact of a key that an earlier process of the same run made."""
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterFlowRunId,
        ArtifactFilterKey,
    )

    wanted = ArtifactFilter(
        key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run])
    )
    found = client.read_artifacts(artifact_filter=wanted, limit=1)
    return found[0].id if found else None


@contextmanager
def shown_live(release: Release) -> Iterator[LiveArtifacts]:
    """Show the looks of a release while the block runs; the artifacts stay."""
    artifacts = LiveArtifacts(release)
    try:
        yield artifacts
    finally:
        artifacts.close()
