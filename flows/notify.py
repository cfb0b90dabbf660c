"""Notifications of a release: an event of Prefect's for each thing people wait for, and messages where asked for."""

import time

from flows.events import announce, sent
from platforms.platform import Platform
from tasks.decide import Action, Wait
from tasks.release_control import Controller
from tasks.release_record import Release, ReleaseStore, State
from tasks.rollback import RollbackOutcome
from tasks.verdict import Verdict

__all__ = ["Notifier", "tell_rollback"]

AGAIN_SECONDS = 60.0
"""A messenger that failed is not asked again for so long: looks must not wait for it."""
_ENDS = {State.PROMOTED: "promoted", State.ROLLED_BACK: "rolled_back", State.REJECTED: "rejected"}


class Notifier:
    """Watches one release, and tells each thing once.

    A message that cannot be sent stops nothing, and is tried again as long as what it says is so.
    """

    def __init__(self, store: ReleaseStore, release: Release, blocks: tuple[str, ...]) -> None:
        self._store, self._blocks = store, blocks
        self._not_before = 0.0
        self._told = len(release.history)
        self._tell(release, "started", f"Version {release.challenger.version} begins its way to champion.")

    def __call__(self, control: Controller, action: Action) -> None:
        """One look, and what was decided on it."""
        release, seen = control.release, control.last
        waits = isinstance(action, Wait) and release.state is State.PROPOSED
        missing = "; ".join(seen.approvals_missing) if seen else ""
        if waits and seen and seen.approvals is Verdict.INCONCLUSIVE and missing:
            self._tell(release, "needs_approval", f"Approvals are missing: {missing}.")
        if release.held:
            self._tell(release, "held", f"A person is asked: {release.held}.", f"-{len(release.history)}")
        for done in release.history[self._told :]:
            if done.state in _ENDS:
                self._tell(release, _ENDS[done.state], done.reason)
        self._told = len(release.history)

    def _tell(self, release: Release, what: str, said: str, which: str = "") -> None:
        """Tell it, unless this or an earlier process of the release has."""
        mark = f"told-{what}{which}"
        if self._store.first_time(release.id, mark):
            announce(
                f"contender.release.{what}",
                model=release.model,
                environment=release.environment,
                name=release.challenger.name,
                payload={
                    "release": release.id,
                    "model": release.model,
                    "environment": release.environment,
                    "version": release.challenger.version,
                    "champion": release.champion.version if release.champion else None,
                    "state": str(release.state),
                    "reason": said,
                },
            )
        subject = f"{release.challenger.name} version {release.challenger.version}: {what.replace('_', ' ')}"
        for slug in self._blocks:
            self._send(release, f"{mark}-{slug.replace('/', '-')}", slug, subject, said)

    def _send(self, release: Release, mark: str, slug: str, subject: str, said: str) -> None:
        if time.monotonic() < self._not_before or not self._store.first_time(release.id, mark):
            return
        if not sent(slug, subject, said):
            self._store.take_back(release.id, mark)
            self._not_before = time.monotonic() + AGAIN_SECONDS


def tell_rollback(platform: Platform, outcome: RollbackOutcome) -> None:
    """Tell of a rollback that a person made, unless the process that controlled the release has."""
    if outcome.release is not None:
        store = ReleaseStore(platform, outcome.model)
        release = store.load(outcome.release)
        if release.state in _ENDS and not store.first_time(release.id, f"told-{_ENDS[release.state]}"):
            return
    name = platform.registered_model(outcome.model)
    announce(
        "contender.release.rolled_back",
        model=outcome.model,
        environment=platform.environment.name,
        name=name,
        payload={
            "release": outcome.release,
            "model": outcome.model,
            "environment": platform.environment.name,
            "version": outcome.left,
            "champion": outcome.version,
            "state": str(State.ROLLED_BACK),
            "reason": outcome.reason,
        },
    )
    for slug in platform.environment.notify:
        sent(slug, f"{name}: rolled back to version {outcome.version}", outcome.reason)
