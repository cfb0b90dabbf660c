"""Rollback: the way back to an earlier champion, for a person, at once.

Traffic goes first, by what the endpoint and the release record say alone, so that it needs neither the registry nor
the ledger nor a controller; those are told afterwards.
"""

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from deployments.spec import LoadedSpec
from platforms.lock import BusyError
from platforms.platform import Platform
from tasks.release_record import LIVE, Release, ReleaseStore, State, sole

if TYPE_CHECKING:
    from tasks.champion import ChampionRef

CONTROLLER_SECONDS = 20.0
"""How long the controller of a release is waited for, which finds what is asked for at its next look."""


class RollbackOutcome(Declared):
    """Which version has the traffic again and which has left, and the seconds that the traffic took.

    `version` is None where a first version was withdrawn, and nothing is served.
    """

    model: str
    endpoint: str
    left: str | None
    version: str | None
    reason: str
    release: str | None
    seconds: float | None
    at: datetime


def roll_back(
    platform: Platform, loaded: LoadedSpec, *, reason: str, to: str | None = None
) -> RollbackOutcome:
    """End the release that is under way, or go back to the champion before this one, or to version `to`.

    A first release has no champion before it: while it is under way it is withdrawn, and nothing is served.

    Raises:
        BadInputError: no reason is given, or there is nothing to go back to.
        PromotionRefusedError: `to` never was champion with its model file; nothing was changed.
        ContenderError: the traffic is back, and something else is not; says what. Run it again.
    """
    if not reason.strip():
        raise BadInputError("say why, with --reason: it is what the ledger is asked about later")
    store = ReleaseStore(platform, loaded.name)
    release = store.newest()
    if release is not None and (release.closed or (release.champion is None and release.ended)):
        release = None
    if release is not None and to in {None, release.champion and release.champion.version}:
        return _of_release(platform, loaded, store, release, reason)
    if release is not None and not release.ended:
        raise BadInputError(
            f"version {release.challenger.version} is being released; roll that back first, without --to"
        )
    return _by_hand(platform, loaded, store, release, reason, to)


def _of_release(
    platform: Platform, loaded: LoadedSpec, store: ReleaseStore, release: Release, reason: str
) -> RollbackOutcome:
    """The release's own champion gets the traffic, if it has one, and its controller ends the release, or we do."""
    champion = release.champion
    store.leave_wish(release.id, "roll_back", reason=reason, who=platform.identity())
    seconds = None
    intended = release.intent.state if release.intent else None
    if champion is not None and {release.state, intended} & {State.PROMOTED, *LIVE}:
        # A former champion that is not kept warm is served anew by the controller, below.
        with suppress(BadInputError):
            seconds = platform.shift_traffic(release.endpoint, f"v{champion.version}")
    ended = _ended(platform, loaded, store, release)
    return RollbackOutcome(
        model=release.model,
        endpoint=release.endpoint,
        left=release.challenger.version,
        version=champion.version if champion else None,
        reason=reason,
        release=release.id,
        seconds=seconds,
        at=ended.entered,
    )


def _ended(platform: Platform, loaded: LoadedSpec, store: ReleaseStore, release: Release) -> Release:
    """The release once it has ended: by another process that controls it, or by this one."""
    from tasks.release_control import controlled

    deadline = time.monotonic() + CONTROLLER_SECONDS
    while time.monotonic() < deadline:
        with (
            suppress(BusyError),
            controlled(platform, loaded, release.challenger.version, old=True) as control,
        ):
            if control.release.id != release.id:
                raise ContenderError(
                    f"{release.id}: {control.release.id} was begun meanwhile; roll that back, too"
                )
            control.step()
        release = store.load(release.id)
        if release.state in {State.ROLLED_BACK, State.REJECTED} and release.intent is None:
            return release
        time.sleep(0.1)
    raise ContenderError(
        f"{release.id}: the release has not ended after {CONTROLLER_SECONDS:g} s; a champion that it had has the "
        "traffic again; end the process that controls it, if there is one, and run the same command again"
    )


def _by_hand(
    platform: Platform,
    loaded: LoadedSpec,
    store: ReleaseStore,
    release: Release | None,
    reason: str,
    to: str | None,
) -> RollbackOutcome:
    """Back to a version that no release keeps warm: it is served first, and then gets the traffic."""
    from tasks.champion import ChampionRef, standing_champion
    from tasks.register import ledger_of, require_was_champion, restore
    from tasks.traffic import all_to, entity_name, workloads

    target = _target(platform, loaded.name, to)
    standing = standing_champion(platform, loaded.name)
    left = standing if isinstance(standing, ChampionRef) else None
    if left is not None and left.version == target.version:
        raise BadInputError(f"{target.name} version {target.version} is champion already")
    # Before anybody is sent to it: what never was champion has passed no release.
    require_was_champion(platform, loaded.name, target)
    endpoint, now = platform.endpoint(loaded.name), datetime.now(UTC)
    seconds = None
    found = next((one for one in platform.endpoints.list_endpoints() if one["name"] == endpoint), None)
    if found is not None:
        names = {entity["name"] for entity in found["config"]["served_entities"]}
        if entity_name(target) in names:
            seconds = platform.shift_traffic(endpoint, entity_name(target))
        else:
            begun = time.monotonic()
            said = platform.endpoints.update_endpoint_config(
                endpoint, all_to(target, workloads(found["config"]), warm=left)
            )
            if said.get("url", endpoint) is not None:
                platform.wait_for_endpoint(endpoint)
                seconds = time.monotonic() - begun
    key = f"{target.name}/{target.version}/{now.isoformat()}"
    restore(platform, loaded.name, target, reason=reason, key=key)
    from tasks.drill import end_lost_drill

    with suppress(BusyError), sole(platform, loaded.name):
        end_lost_drill(platform, loaded.name)
    if release is not None:
        store.save(release.model_copy(update={"closed": True}))
    ledger_of(platform).append(
        "rollback.by_hand",
        model=loaded.name,
        subject=f"{target.name}/{target.version}",
        details={
            "version": target.version,
            "model_digest": target.digest,
            "left": left.version if left else None,
            "reason": reason,
            "release": release.id if release else None,
            "seconds": None if seconds is None else round(seconds, 3),
        },
        key=f"rollback/{key}",
        actor=platform.identity(),
    )
    return RollbackOutcome(
        model=loaded.name,
        endpoint=endpoint,
        left=left.version if left else None,
        version=target.version,
        reason=reason,
        release=release.id if release else None,
        seconds=seconds,
        at=now,
    )


def _target(platform: Platform, model: str, to: str | None) -> "ChampionRef":
    """The version to go back to: the one that is named, or the registry's `previous`.

    Raises:
        BadInputError: there is none.
    """
    from tasks.champion import PREVIOUS, ChampionMissing, version_ref
    from tasks.tracking import Tracking

    name = platform.registered_model(model)
    if to is None:
        aliases = dict(Tracking(platform).client.get_registered_model(name).aliases)
        if PREVIOUS not in aliases:
            raise BadInputError(
                f"{name} has no previous champion to go back to; name a version that was champion: --to VERSION"
            )
        to = str(aliases[PREVIOUS])
    found = version_ref(platform, model, to)
    if isinstance(found, ChampionMissing):
        raise BadInputError(found.reason)
    return found
