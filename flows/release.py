"""Release: the challenger's way to champion on real traffic, or back out of it."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal

from deployments.declared import Declared
from deployments.errors import ContenderError
from flows.approval_form import ask_for_approval, may_suspend
from flows.ended_outside import ended_where_cancelled
from flows.notify import Notifier
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import about, prepare, run_name
from flows.release_artifacts import shown_live
from platforms.platform import Platform
from tasks.decide import Action, Close, Wait, stages
from tasks.metering import metering
from tasks.publish import artifact_key, links_markdown, publish_image
from tasks.release_control import Controller, ReleaseError, controlled
from tasks.release_record import Look, Release, ReleaseStore, State
from tasks.verdict import Verdict

__all__ = ["LeftError", "NotPromotedError", "ReleaseOutcome", "ended_together", "release", "viewed_by"]

WAITING_SECONDS = 1.0
"""How often a release that has no traffic yet looks again."""

View = Callable[[Controller, Action], None]


class ReleaseOutcome(Declared):
    """How a release ended, what the analysis saw last, and where its report is."""

    release: Release
    look: Look | None
    report: str | None
    problems: tuple[str, ...] = ()

    @property
    def promoted(self) -> bool:
        """Whether the challenger is champion now."""
        return self.release.state is State.PROMOTED


class NotPromotedError(ReleaseError):
    """A release that ended with the champion in place; `outcome` tells all of it."""

    def __init__(self, outcome: ReleaseOutcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        release = self.outcome.release
        version = f"{release.challenger.name} version {release.challenger.version}"
        return f"{version} was {str(release.state).replace('_', ' ')}: {release.history[-1].reason}"


class LeftError(ContenderError):
    """Nobody controls the release any more; the lease puts the champion back unless somebody carries on."""

    exit_code = 130


_views: ContextVar[tuple[View, ...]] = ContextVar("views", default=())
"""Of the release that is begun here: others may be under way in other threads."""
_left = threading.Event()
_told_to_end = threading.Event()


@contextmanager
def viewed_by(view: View) -> Iterator[None]:
    """Show every look of releases that are begun in here to `view`."""
    token = _views.set((*_views.get(), view))
    try:
        yield
    finally:
        _views.reset(token)


def leave() -> None:
    """Have the release of this process stop where it is, and leave its traffic to the lease."""
    _left.set()


@contextmanager
def ended_together() -> Iterator[None]:
    """Have releases in other threads put their champions back where this one is told to end: signals are its alone."""
    _told_to_end.clear()
    try:
        yield
    except TerminationSignal:
        _told_to_end.set()
        raise


@flow(name="release", flow_run_name=run_name("release"), description=__doc__)
def release(model: ModelName, env: EnvironmentName = "dev", version: str | None = None) -> ReleaseOutcome:
    """Take a challenger through its plan: approvals, shadow, canary steps, promotion or rollback.

    Run again after a crash it carries on; a promotion that is still watched is looked at once more. Cancelled, it ends
    with the champion in place.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        version: A version; the challenger by default.

    Raises:
        ReleaseError: there is nothing to release, or approvals are missing.
        NotPromotedError: it ended with the champion in place.
        LeftError: it was told to leave the rest to the lease.
    """
    loaded, platform = prepare(model, env)
    _left.clear()
    store = ReleaseStore(platform, loaded.name)
    newest = store.newest()
    watched = newest is not None and newest.state is State.PROMOTED and not newest.closed
    nothing_new = version is None and watched and not _has_challenger(platform, loaded.name)
    with (
        ended_where_cancelled(platform, loaded),
        controlled(platform, loaded, version, old=nothing_new) as control,
        viewed_by(Notifier(store, control.release, platform.environment.notify)),
        shown_live(control.release) as artifacts,
        viewed_by(artifacts),
    ):
        if nothing_new:
            task(name="watch labels", task_run_name="watch labels", cache_policy=NO_CACHE)(_look_once)(
                _Held(control)
            )
        about(control.release.challenger.version)
        forms = 0
        while not control.ended:
            name = _stage_name(control.release)
            missing = task(name=name, task_run_name=name, cache_policy=NO_CACHE)(_carry_on)(_Held(control))
            if missing and may_suspend():
                ask_for_approval(platform, control.release, missing, forms)
                control.ask_again()
                forms += 1
            elif missing:
                raise ReleaseError(_how_to_approve(control.release, missing))
        outcome = _concluded(platform, control)
    if not outcome.promoted:
        raise NotPromotedError(outcome)
    return outcome


class _Held:
    """A controller, and who sees its looks; Prefect does not look into it."""

    __slots__ = ("control", "views")

    def __init__(self, control: Controller) -> None:
        self.control, self.views = control, _views.get()

    def step(self) -> Action:
        """Look, act, and show both."""
        action = self.control.step()
        for view in self.views:
            view(self.control, action)
        return action


def _has_challenger(platform: Platform, model: str) -> bool:
    from tasks.register import PromotionRefusedError, challenger_of

    try:
        challenger_of(platform, model)
    except PromotionRefusedError:
        return False
    return True


def _stage_name(release: Release) -> str:
    """What the UI calls the state that a release is in."""
    if release.state is State.CANARY:
        stage = next(
            one for one in stages(release.plan) if (one.state, one.step) == (release.state, release.step)
        )
        return f"canary {stage.percentage} %"
    return {State.PROPOSED: "approve", State.APPROVED: "start"}.get(release.state, str(release.state))


def _look_once(held: _Held) -> None:
    """One look at what is watched after its promotion."""
    with metering(held.control.platform, held.control.release.model):
        held.step()


def _carry_on(held: _Held) -> str:
    """Look and act until the release is in another state; which approvals are missing, where only people can help."""
    with metering(held.control.platform, held.control.release.model):
        return _carried_on(held)


def _carried_on(held: _Held) -> str:
    control = held.control
    began = len(control.release.history)
    try:
        while len(control.release.history) == began and not control.ended:
            started = time.monotonic()
            action = held.step()
            if _left.is_set():
                raise LeftError(f"{control.release.id} is left as it is: {_until(control.release)}")
            if _told_to_end.is_set():
                raise TerminationSignal(signal.SIGTERM)
            if len(control.release.history) != began or isinstance(action, Close):
                break
            if missing := _missing_approvals(control, action):
                return missing
            spent = time.monotonic() - started
            live = control.release.state in {State.SHADOW, State.CANARY}
            _left.wait(control.pause_seconds(spent) if live else WAITING_SECONDS / 5)
    except LeftError:
        raise
    except BaseException:
        # Also what is no Exception: Prefect cancels a run that lost its place, and ends one whose process is told to.
        control.abandon()
        raise
    return ""


def _until(release: Release) -> str:
    return f"unless somebody carries on, the champion has all traffic again within {release.plan.lease_seconds:g} s"


def _missing_approvals(control: Controller, action: Action) -> str:
    """What approvals a release waits for, where it waits for nothing else; empty where it does not."""
    seen, release = control.last, control.release
    waits = isinstance(action, Wait) and release.state is State.PROPOSED
    if seen is None or not waits or seen.unavailable or seen.approvals is not Verdict.INCONCLUSIVE:
        return ""
    return "; ".join(seen.approvals_missing)


def _how_to_approve(release: Release, missing: str) -> str:
    return (
        f"{release.id} waits for approvals: {missing}. Once they are given "
        f"(python -m flows.run approve --model {release.model} --env {release.environment} "
        f"--version {release.challenger.version} …), run the same command again"
    )


def _concluded(platform: Platform, control: Controller) -> ReleaseOutcome:
    """The report, the completed evidence, and what came of it; what cannot be written is said, and hides nothing."""
    from prefect.artifacts import create_markdown_artifact

    from tasks.mlflow_pages import run_links
    from tasks.release_end import write_end
    from tasks.release_report import release_artifacts, share_picture

    release = control.release
    written = write_end(platform, release)
    looks = list(ReleaseStore(platform, release.model).looks(release.id))
    links = {"Release report": written.report} if written.report else {}
    links |= run_links(
        platform, release.challenger.run_id, {"Release report": f"releases/{release.id}/report.html"}
    )
    create_markdown_artifact(
        key=artifact_key(release.endpoint, "release"),
        markdown=f"{release_artifacts(release, looks)}\n{links_markdown(links)}\n",
        description=f"{release.challenger.name} version {release.challenger.version}: {release.state}",
    )
    if picture := share_picture(release, looks):
        publish_image(release.endpoint, "share", picture, "The challenger's share of traffic")
    return ReleaseOutcome(
        release=release,
        look=looks[-1] if looks else None,
        report=written.report,
        problems=written.problems,
    )
