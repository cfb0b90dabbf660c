"""Beginning a release: what must hold before there is one, its record, and its first entry in the ledger."""

from datetime import UTC, datetime

from deployments.errors import BadInputError, ContenderError
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks import register
from tasks.champion import ChampionMissing, ChampionRef, NoChampionYet, standing_champion, version_ref
from tasks.register import PromotionRefusedError, ledger_of
from tasks.release_ledger import write_start
from tasks.release_record import Release, ReleaseStore, State
from tasks.tracking import TAG, Tracking

__all__ = ["ReleaseError", "begin"]


class ReleaseError(ContenderError):
    """A release that did not end in a promotion, or cannot be begun; the message says why."""

    exit_code = 3


def begin(
    platform: Platform, loaded: LoadedSpec, version: str | None = None, *, old: bool = False
) -> Release:
    """The release that is under way, or a new one, written down and in the ledger; with `old` the newest there is.

    Raises:
        ReleaseError: there is nothing to release, or another version is under way.
        PromotionRefusedError: the version's gates did not pass, or its file is another.
    """
    store = ReleaseStore(platform, loaded.name)
    newest = store.newest()
    if old and newest is not None:
        return newest
    if newest is not None and not newest.ended:
        if version not in {None, newest.challenger.version}:
            raise ReleaseError(
                f"version {newest.challenger.version} of {newest.challenger.name} is being released; "
                "roll it back, or wait for it to end"
            )
        write_start(platform, newest)
        return newest
    ref = _wanted(platform, loaded.name, version)
    if (
        version is None
        and newest is not None
        and newest.challenger == ref
        and newest.state is not State.PROMOTED
    ):
        raise ReleaseError(
            f"{ref.name} version {ref.version} was {str(newest.state).replace('_', ' ')} already "
            f"({newest.history[-1].reason}); train a better one, or name it to try again: --version {ref.version}"
        )
    standing = standing_champion(platform, loaded.name)
    if isinstance(standing, ChampionMissing):
        raise ReleaseError(f"{standing.reason}; give the alias `champion` to the version that serves")
    champion = None if isinstance(standing, NoChampionYet) else standing
    if champion is not None and champion.version == ref.version:
        raise ReleaseError(f"{ref.name} version {ref.version} is champion already")
    plan = loaded.spec.release.plan_for(platform.environment.name)
    if plan.strategy == "direct" and platform.environment.approvals:
        raise ReleaseError(
            f"{loaded.path}: release.strategy: `direct` puts a version in place unlooked at, and environment "
            f"{platform.environment.name!r} asks for approvals; choose another for it under release.environments"
        )
    history = [
        entry for entry in ledger_of(platform).entries(loaded.name) if entry.subject.startswith(ref.name)
    ]
    register.require_promotable(platform, loaded.name, ref, history, ["to be asked for"])
    register.require_compared(ref, champion.version if champion else None, history)
    tags = Tracking(platform).client.get_model_version(ref.name, ref.version).tags
    now = datetime.now(UTC)
    release = Release(
        id=f"{ref.name}-{ref.version}-{now:%Y%m%dt%H%M%S}{now.microsecond // 1000:03}".lower(),
        model=loaded.name,
        environment=platform.environment.name,
        endpoint=platform.endpoint(loaded.name),
        challenger=ref,
        champion=champion,
        gate_report=tags.get(f"{TAG}gate_report", ""),
        author=tags.get(f"{TAG}author", ""),
        started_by=platform.identity(),
        plan=plan,
        begun=now,
        entered=now,
    )
    if plan.looks and champion is not None and platform.data_plane.status() is None:
        raise BadInputError(
            "the data plane is not up, so no traffic can decide; start it with: "
            f"python -m flows.run up --env {platform.environment.name}"
        )
    if newest is not None and not newest.closed:
        store.save(newest.model_copy(update={"closed": True}))
    store.save(release)
    write_start(platform, release)
    return release


def _wanted(platform: Platform, model: str, version: str | None) -> ChampionRef:
    if version is None:
        return register.challenger_of(platform, model)
    ref = version_ref(platform, model, version)
    if isinstance(ref, ChampionMissing):
        raise PromotionRefusedError(ref.reason)
    return ref
