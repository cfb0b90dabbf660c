"""The controller of one release: observes, asks `decide` what comes next, and makes it so.

Before a transition is made it stands in the record as its intent; once the endpoint, the registry's aliases and the
ledger say so, it stands there as history. A controller killed anywhere is followed by another that reads the record:
while nobody does, the lease in the endpoint's traffic puts the champion back.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deployments.errors import BadInputError, ContenderError
from deployments.measures import TaskKind
from deployments.spec import LoadedSpec
from platforms.platform import Observations, Platform
from tasks import approvals, register
from tasks.background import in_background
from tasks.champion import (
    ChampionMissing,
    ChampionRef,
    NoChampionYet,
    standing_champion,
    version_ref,
)
from tasks.decide import Action, Close, Enter, Hold, Observation, Stage, Wait, decide, stages, taken_up
from tasks.drill import end_lost_drill
from tasks.evaluate import Evaluation
from tasks.labels import labels_for
from tasks.register import PromotionRefusedError
from tasks.release_begin import ReleaseError, begin
from tasks.release_data import StageData, explained
from tasks.release_ledger import write_entry, write_transition
from tasks.release_record import ENDED, LIVE, Look, Release, ReleaseStore, State, Transition, Wish, sole
from tasks.tracking import Tracking
from tasks.traffic import all_to, champion_with_idle, entity_name, shadowed, shared, workloads
from tasks.verdict import Verdict

__all__ = ["Controller", "ReleaseError", "controlled"]

ASKED_SECONDS = 1.0
"""How often the registry and the approvals are asked; both are files or a server, and change slowly."""
ANSWER_SECONDS = 2.0
"""How long a look waits for their answer while a lease is to be renewed; a later look gets it, and nothing goes
forward meanwhile."""
LABELS_SECONDS = 2.0
SETTLING_SECONDS = 1.0
"""What is asked so soon after shares changed counts for nobody: a worker's first answers are not its usual ones."""
KEPT_SECONDS = 1.0
"""How often a look of the analysis is kept, unless it says something new."""


@contextmanager
def controlled(
    platform: Platform, loaded: LoadedSpec, version: str | None = None, *, old: bool = False
) -> Iterator["Controller"]:
    """The controller of the release that is under way, or of a new one for `version` or the challenger.

    `old` asks for the newest release whatever became of it: labels, or a person, may take a promotion back.

    Raises:
        BusyError: another process controls a release of this model, or drills its rollback.
        ReleaseError: there is nothing to release, or another version is under way.
        BadInputError: the data plane is not up.
    """
    with sole(platform, loaded.name), ExitStack() as stack:
        end_lost_drill(platform, loaded.name)
        yield Controller(platform, loaded, begin(platform, loaded, version, old=old), stack)


@dataclass
class _Known:
    """What was asked of the registry and the approvals, and when."""

    asked: float = -math.inf
    approvals: Verdict = Verdict.INCONCLUSIVE
    missing: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    approvers: tuple[str, ...] = ()
    champion_stands: bool | None = None
    changed: str = ""
    unavailable: str = ""


@dataclass
class _Eyes:
    """One stage's requests as they come in."""

    stage: Stage
    data: StageData
    since: datetime
    until: datetime | None = None
    unlogged: int = 0
    corrupt: tuple[str, ...] = ()
    restarts: int = 0
    labels_at: float = -math.inf
    look: Look | None = None
    kept_at: float = -math.inf


@dataclass
class Controller:
    """Takes one release through its plan; `release` is the record as it stands."""

    platform: Platform
    loaded: LoadedSpec
    release: Release
    stack: ExitStack
    wish: Wish | None = None
    last: Observation | None = None
    _known: _Known = field(default_factory=_Known)
    _question: Future[Any] | None = None
    _eyes: _Eyes | None = None
    _requests: Observations | None = None
    _lease_until: datetime | None = None
    _repaired: bool = False

    def __post_init__(self) -> None:
        self._store = ReleaseStore(self.platform, self.release.model)
        self._endpoints = self.platform.endpoints

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be done before labels come; a promotion that a person wants back is not over."""
        return self.release.ended and not (
            self.release.state is State.PROMOTED and self._wish().get("wish") == "roll_back"
        )

    @property
    def look(self) -> Look | None:
        """What the analysis said last."""
        return self._eyes.look if self._eyes else None

    def step(self) -> Action:
        """Observe once, and do what that decides; what was cut short is taken up first."""
        waits = None if self._repaired else self._take_up()
        if waits is not None:
            return waits
        now = datetime.now(UTC)
        self._renew(now)
        seen = self.last = self.observe()
        action = decide(self.release.plan, self.release, seen, datetime.now(UTC))
        match action:
            case Enter():
                self._enter(action, seen)
            case Hold() if action.reason != self.release.held:
                self._save(held=action.reason)
                write_entry(self.platform, self.release, "release.held", {"reason": action.reason}, str(now))
            case Close():
                self._close(action)
        return action

    def ask_again(self) -> None:
        """Ask registry and approvals at the next look, however lately that was done."""
        self._known.asked, self._question = -math.inf, None

    def pause_seconds(self, spent: float) -> float:
        """How long to wait after a look that took `spent` seconds.

        Slow looks take a fifth of the time at most, and no pause costs more than a quarter of the lease.
        """
        plan = self.release.plan
        wanted = plan.look_seconds - spent if spent <= plan.look_seconds else 4 * spent
        return min(wanted, plan.lease_seconds / 4)

    # Taking up what was cut short

    def _take_up(self) -> Wait | None:
        """Make true what a controller that died left half done; a stage with traffic begins anew.

        What it waits for where it cannot be told yet whether that still is allowed; nothing is changed then.
        """
        intent, release, wish = self.release.intent, self.release, self._wish()
        reached = {release.state, intent.state if intent else None}
        if wish.get("wish") == "roll_back" and reached & {*LIVE, State.PROMOTED} and not release.ended:
            reason = wish.get("wish_reason", "a person asked for it")
            self._enter(Enter(State.ROLLED_BACK, reason, release.step), Observation(at=datetime.now(UTC)))
        elif intent is not None:
            same = intent.state is release.state and intent.step == release.step
            taken = self._lost() if same else self._taken_up()
            if isinstance(taken, Wait):
                return taken
            self._enter(taken, Observation(at=intent.observed))
        elif release.state in LIVE:
            self._take_in(None)
            self._enter(self._lost(), Observation(at=datetime.now(UTC)))
        self._repaired = True
        return None

    def _taken_up(self) -> Enter | Wait:
        """What `taken_up` says of the intent, as registry and approvals are now."""
        self._ask()
        known, now = self._known, datetime.now(UTC)
        seen = self.last = Observation(
            at=now,
            approvals=known.approvals,
            approvals_missing=known.missing,
            champion_stands=known.champion_stands,
            changed=known.changed,
            unavailable=known.unavailable,
        )
        action = taken_up(self.release.plan, self.release, seen, now)
        assert isinstance(action, Enter | Wait)
        return action

    def _lost(self) -> Enter:
        """What `decide` makes of a stage whose controller was lost, or whose lease lapsed."""
        seen = Observation(at=datetime.now(UTC), ready=True, lease_lapsed=True)
        action = decide(self.release.plan, self.release, seen, seen.at)
        assert isinstance(action, Enter)
        return action

    def abandon(self) -> None:
        """Give the champion all traffic, where it still can be done; what broke is for the next controller to mend."""
        release = self.release
        reached = {release.state, release.intent.state if release.intent else None}
        if release.champion is not None and reached & LIVE:
            with suppress(Exception):
                self._serve(all_to(release.champion, self._workload()), wait=False)

    # Observing

    def observe(self) -> Observation:
        """Everything that is known now; what cannot be asked makes the release wait, and never go forward."""
        now = datetime.now(UTC)
        self._ask()
        known, problems = self._known, [self._known.unavailable]
        ready: bool | None = None
        unready, restarts, look = "", 0, None
        if self.release.state in {State.APPROVED, *LIVE} and self.release.champion is not None:
            try:
                ready, unready, ended = self._challenger_state()
                restarts = ended - self._eyes.restarts if self._eyes else 0
            except (ContenderError, OSError) as error:
                problems.append(f"the endpoint cannot be asked: {error}")
        if self.release.state in LIVE or self._watches or self._starts:
            try:
                if self._starts:
                    self._take_in(None)
                else:
                    look = self._looked(now)
            except (ContenderError, OSError) as error:
                problems.append(f"the prediction log cannot be read: {error}")
                self._let_go()
        if self._eyes and self._eyes.unlogged:
            problems.append(f"{self._eyes.unlogged:,} requests were answered and not logged")
        if self._eyes and self._eyes.corrupt:
            problems.append(f"the prediction log is damaged: {self._eyes.corrupt[0]}")
        return Observation(
            at=now,
            approvals=known.approvals,
            approvals_missing=known.missing,
            champion_stands=known.champion_stands,
            changed=known.changed,
            ready=ready,
            unready=unready,
            restarts=restarts,
            requests=self._eyes.data.counts() if self._eyes else (0, 0),
            analysis=self._judged(look),
            findings=explained(look) if look else "",
            lease_lapsed=self._lease_until is not None and now >= self._lease_until,
            **self._wish(),
            unavailable="; ".join(problem for problem in problems if problem),
        )

    def _wish(self) -> dict[str, Any]:
        """What a person asks for, at the terminal or from elsewhere; who wants the champion back is heard first."""
        found = self._store.wish(self.release.id)
        if self.wish is not None and (found is None or found[0] != "roll_back"):
            return {"wish": self.wish}
        return {"wish": found[0], "wish_reason": found[1]} if found else {}

    def _ask(self) -> None:
        """Ask the registry and the approvals, every now and then; a promotion itself asks them once more."""
        known = self._known
        if self._question is None:
            if time.monotonic() - known.asked < ASKED_SECONDS:
                return
            known.asked = time.monotonic()
            self._question = in_background(lambda: (self._stands(), self._standing_approvals()))
        try:
            # A client that tries again and again for a server that is gone must not cost the lease.
            most = min(ANSWER_SECONDS, self.release.plan.lease_seconds / 4)
            leased = self.release.state in LIVE
            (known.champion_stands, known.changed), found = self._question.result(most if leased else None)
        except Exception as error:  # noqa: BLE001 - whatever cannot be asked, nothing goes forward meanwhile
            silent = not self._question.done()
            said = ["no answer yet"] if silent else str(error).strip().splitlines() or [type(error).__name__]
            known.champion_stands, known.unavailable = None, f"registry or ledger cannot be asked: {said[0]}"
            self._question = self._question if silent else None
            return
        self._question = None
        known.unavailable = ""
        if found is None:
            known.approvals = Verdict.PASS
            return
        known.digests, known.approvers = found.digests, found.approvers
        known.missing = (found.why_not,) if found.why_not else ()
        if found.rejected is not None:
            known.approvals = Verdict.FAIL
        else:
            known.approvals = Verdict.PASS if found.complete else Verdict.INCONCLUSIVE

    def _stands(self) -> tuple[bool, str]:
        """Whether champion and challenger are still those that the release began with; what is not."""
        release = self.release
        standing = standing_champion(self.platform, release.model)
        if isinstance(standing, ChampionMissing):
            return False, standing.reason
        found = None if isinstance(standing, NoChampionYet) else standing
        promoted = release.state is State.PROMOTED
        if release.intent is not None and release.intent.state is State.PROMOTED:
            # A promotion that was cut short may have moved the alias, or not.
            promoted = found is not None and found.version == release.challenger.version
        expected = release.challenger if promoted else release.champion
        if (found and (found.version, found.digest)) != (expected and (expected.version, expected.digest)):
            return False, f"{f'version {found.version}' if found else 'nothing'} is champion now"
        ours = version_ref(self.platform, release.model, release.challenger.version)
        if isinstance(ours, ChampionMissing):
            return False, ours.reason
        if ours.digest != release.challenger.digest:
            return False, "the challenger's model file is not the one that the gates saw"
        return True, ""

    def _challenger_state(self) -> tuple[bool | None, str, int]:
        """Whether the challenger has a worker that answers (None: not yet), why not, and how many ended alone."""
        found = self._endpoints.get_endpoint(self.release.endpoint)
        name = entity_name(self.release.challenger)
        entity = next((one for one in found["config"]["served_entities"] if one["name"] == name), None)
        if entity is None:
            return (None if self.release.state is State.APPROVED else False), "it is not served any more", 0
        state = entity.get("state", {})
        said, restarts = state.get("deployment_state_message", ""), int(entity.get("restarts", 0))
        if state.get("deployment") == "DEPLOYMENT_READY":
            return True, "", restarts
        starts = self.release.state is State.APPROVED and state.get("deployment") != "DEPLOYMENT_FAILED"
        return (None if starts else False), said, restarts

    def _judged(self, look: Look | None) -> Verdict:
        """What counts of a look: all of it, and after promotion the labels alone."""
        if look is None:
            return Verdict.INCONCLUSIVE
        if self.release.state is State.PROMOTED:
            return next(reading.verdict for reading in look.readings if reading.test == "quality")
        return look.verdict

    def _looked(self, now: datetime) -> Look:
        """Take in what was logged since the last look, and ask the tests."""
        eyes = self._eyes or self._opened()
        self._take_in(eyes)
        if self.release.plan.analysis.quality and time.monotonic() - eyes.labels_at > LABELS_SECONDS:
            eyes.labels_at = time.monotonic()
            eyes.data.label(labels_for(self.platform, self.release.model, eyes.data.unlabelled))
        look = eyes.data.look(now)
        said = look.verdict is not (eyes.look.verdict if eyes.look else None)
        if said or time.monotonic() - eyes.kept_at >= KEPT_SECONDS:
            eyes.kept_at = time.monotonic()
            self._store.add_look(self.release, look)
        eyes.look = look
        return look

    def _take_in(self, eyes: _Eyes | None) -> None:
        """What was logged since the last look, for the stage that is under way; of no use before there is one.

        The log is followed from before the first stage on: to begin takes a while, which no lease should pay for.
        """
        if self._requests is None:
            since = eyes.since if eyes else datetime.now(UTC)
            self._requests = self.stack.enter_context(
                self.platform.observations(self.release.endpoint, since)
            )
        more = True
        while more:
            found = self._requests.poll()
            more = found.more
            # What came before may be much, and must not cost the lease.
            self._renew(datetime.now(UTC))
            if eyes is not None:
                eyes.unlogged += found.lost
                eyes.corrupt += found.corrupt
                times = found.table.column("time")
                wanted = pc.greater_equal(times, pa.scalar(eyes.since))
                if eyes.until is not None:
                    wanted = pc.and_(wanted, pc.less(times, pa.scalar(eyes.until)))
                eyes.data.add(found.table.filter(wanted))
                entered = pc.greater_equal(times, pa.scalar(self.release.entered))
                settles = pc.and_(entered, pc.less(times, pa.scalar(eyes.since)))
                eyes.data.settle(found.table.filter(settles))

    @property
    def _starts(self) -> bool:
        """Whether the challenger is being started, to be sent requests afterwards."""
        release = self.release
        return release.state is State.APPROVED and release.champion is not None and release.plan.looks > 0

    @property
    def _watches(self) -> bool:
        """Whether labels of what both arms answered may still take a promotion back."""
        release = self.release
        return (
            release.state is State.PROMOTED
            and not release.closed
            and release.champion is not None
            and release.plan.looks > 0
            and release.plan.analysis.quality is not None
        )

    def _opened(self) -> _Eyes:
        """Eyes for the stage that is under way; after promotion, for the stage whose labels tell most."""
        release, plan = self.release, self.release.plan
        assert release.champion is not None
        since = release.entered + timedelta(seconds=SETTLING_SECONDS)
        state, step, until = release.state, release.step, None
        if self._watches:
            # Copies of all requests, if there were any, tell more than the shares of the last step; of a stage that was
            # begun anew the last time counts, which is the one that it passed.
            entered = [place for place, past in enumerate(release.history) if past.state in LIVE]
            shadows = [place for place in entered if release.history[place].state is State.SHADOW]
            place = (shadows or entered)[-1]
            chosen, after = release.history[place], release.history[place + 1]
            assert chosen.effective is not None
            state, step, since, until = chosen.state, chosen.step, chosen.effective, after.at
        stage = next(one for one in stages(plan) if (one.state, one.step) == (state, step))
        spec = self.loaded.spec
        data = StageData(
            plan.analysis,
            stage,
            spec.target,
            spec.training_contract.columns[spec.target.column].type,
            names=(entity_name(release.challenger), entity_name(release.champion)),
            steps=plan.looks + 1,
            attempt=release.attempt,
            timeout_seconds=self.platform.environment.serving.limits.timeout_seconds,
            cuts=self._cuts(release.champion),
        )
        restarts = self._challenger_state()[2] if release.state in LIVE else 0
        self._eyes = _Eyes(stage, data, since, until, restarts=restarts)
        return self._eyes

    def _cuts(self, champion: ChampionRef) -> tuple[float, ...]:
        """Where a regression's distributions are compared: the deciles of the champion's answers in its evaluation."""
        if self.loaded.spec.target.kind is not TaskKind.REGRESSION:
            return ()
        found = Tracking(self.platform).document(champion.run_id, "evaluation", Evaluation)
        return found.deciles if found else ()

    def _let_go(self) -> None:
        """Stop reading; the next look reads the stage's requests from its beginning."""
        self.stack.close()
        self._eyes = self._requests = None

    # Making it so

    def _enter(self, action: Enter, seen: Observation) -> None:
        """Into a state: written down, made so, and confirmed."""
        release = self.release
        stage = _stage(release, action)
        intent = Transition(
            state=action.state,
            step=action.step,
            percentage=stage.percentage if stage else 100 if action.state is State.PROMOTED else 0,
            reason=action.reason,
            observed=seen.at,
            at=datetime.now(UTC),
        )
        former = release.state
        release = self._save(intent=intent)
        try:
            self._make(action, former)
        except PromotionRefusedError as error:
            # Whatever the promotion lacks, or whoever called it off: callers get the champion.
            state = State.ROLLED_BACK if former in LIVE else State.REJECTED
            self._enter(Enter(state, str(error), action.step), seen)
            return
        now = datetime.now(UTC)
        done = intent.model_copy(update={"effective": now})
        known = self._known
        self._save(
            approvals=tuple(dict.fromkeys((*release.approvals, *known.digests))),
            approvers=tuple(dict.fromkeys((*release.approvers, *known.approvers))),
        )
        ends = action.state in ENDED
        hours = release.plan.rollback_hours
        watched = action.state is State.PROMOTED and release.champion is not None and hours > 0
        done = write_transition(self.platform, self.release, done, former)
        self._save(
            intent=None,
            state=action.state,
            step=action.step,
            attempt=release.attempt + 1 if action.again else 1,
            entered=now,
            history=(*release.history, done),
            held="",
            watch_until=now + timedelta(hours=hours) if watched else None,
            closed=ends and not watched,
        )
        self._eyes = None
        if ends:
            self._let_go()
        self._forget_wish(action)

    def _make(self, action: Enter, former: State) -> None:
        """Endpoint and aliases; every way through here may be gone again."""
        release, platform = self.release, self.platform
        challenger, champion = release.challenger, release.champion
        if action.state is State.PROPOSED:
            return
        if champion is None:
            if action.state is State.PROMOTED:
                register.promote(platform, release.model, challenger, approvals=self._approved())
                self._require_unopposed()
                self._serve(all_to(challenger, None))
            elif action.state in ENDED:
                self._take_away(challenger, action)
            return
        workload = self._workload()
        if action.state is State.APPROVED:
            if release.plan.looks:
                self._serve(champion_with_idle(champion, challenger, workload, salt=release.id), wait=False)
        elif action.state in LIVE:
            self._serve(self._live(action, workload))
        elif action.state is State.PROMOTED:
            self._promote(challenger, champion, workload)
        else:
            self._put_back(champion, challenger, former, action, workload)

    def _promote(self, challenger: ChampionRef, champion: ChampionRef, workload: str | None) -> None:
        """All traffic under a lease, then the aliases, then the lease goes: killed between, the champion is back.

        Raises:
            PromotionRefusedError: approvals are missing by now, in which case nobody was sent anywhere, or the registry
                refuses it, or a person wants it back.
        """
        release, approved = self.release, self._approved()
        kept = champion if release.plan.rollback_hours else None
        if release.plan.looks:
            self._require_unopposed()
            self._serve(self._leased(challenger, champion, workload))
        register.promote(self.platform, release.model, challenger, approvals=approved)
        self._require_unopposed()
        self._serve(all_to(challenger, workload, warm=kept))

    def _require_unopposed(self) -> None:
        """Go no further with a promotion that a person wants back: the way back has shifted its traffic already.

        Raises:
            PromotionRefusedError: why it is wanted back.
        """
        asked = Observation(at=datetime.now(UTC), **self._wish())
        if asked.wish == "roll_back":
            raise PromotionRefusedError(asked.wish_reason)

    def _put_back(
        self,
        champion: ChampionRef,
        challenger: ChampionRef,
        former: State,
        action: Enter,
        workload: str | None,
    ) -> None:
        """The champion for everybody, at once; then the registry, as far as it is to be had."""
        self._serve(all_to(champion, workload))
        if former is State.PROMOTED or self._serves_by_alias(challenger):
            register.restore(
                self.platform, self.release.model, champion, reason=action.reason, key=self.release.id
            )
        register.withdraw(self.platform, challenger, str(action.state))

    def _take_away(self, challenger: ChampionRef, action: Enter) -> None:
        """A first version is served no more, and nobody is champion: there is none to be put back."""
        name = self.release.endpoint
        found = next((one for one in self._endpoints.list_endpoints() if one["name"] == name), None)
        served = {entity["name"] for entity in found["config"]["served_entities"]} if found else set()
        if served == {entity_name(challenger)}:
            self._endpoints.delete_endpoint(name)
        model, key = self.release.model, self.release.id
        register.retract(self.platform, model, challenger, reason=action.reason, key=key)
        register.withdraw(self.platform, challenger, str(action.state))

    def _serves_by_alias(self, challenger: ChampionRef) -> bool:
        """Whether a promotion that was cut short had moved the alias already."""
        standing = standing_champion(self.platform, self.release.model)
        return isinstance(standing, ChampionRef) and standing.version == challenger.version

    def _standing_approvals(self) -> approvals.Approvals | None:
        """How the approvals stand; None where the environment asks for none."""
        if not self.platform.environment.approvals:
            return None
        return approvals.standing(
            self.platform,
            self.release.model,
            self.release.challenger,
            datetime.now(UTC),
            release=self.release.id,
        )

    def _approved(self) -> Sequence[str]:
        """The approvals that stand at this moment.

        Raises:
            PromotionRefusedError: some are missing by now.
        """
        found = self._standing_approvals()
        if found is None:
            return ()
        if not found.complete:
            raise PromotionRefusedError(f"{self.release.id}: {found.why_not}")
        self._known.digests, self._known.approvers = found.digests, found.approvers
        return found.digests

    # Traffic

    def _live(self, action: Enter, workload: str | None) -> dict[str, Any]:
        release, stage = self.release, _stage(self.release, action)
        assert stage is not None
        assert release.champion is not None
        make: Callable[..., dict[str, Any]] = shadowed if stage.state is State.SHADOW else shared
        return make(
            release.champion,
            release.challenger,
            workload,
            percentage=stage.percentage,
            salt=release.id,
            until=self._lease(),
            sticky=release.plan.sticky_header,
        )

    def _leased(self, challenger: ChampionRef, champion: ChampionRef, workload: str | None) -> dict[str, Any]:
        """Everything to the challenger, for as long as the lease lasts."""
        config = all_to(challenger, workload, warm=champion)
        fallback = {"expires_at": self._lease().isoformat(), "fallback": entity_name(champion)}
        config["traffic_config"] |= {"salt": self.release.id, "lease": fallback}
        return config

    def _lease(self) -> datetime:
        self._lease_until = datetime.now(UTC) + timedelta(seconds=self.release.plan.lease_seconds)
        return self._lease_until

    def _renew(self, now: datetime) -> None:
        """Renew the lease once a third of it is over; one that lapsed is not renewed, but begun anew."""
        release = self.release
        if release.state not in LIVE or release.intent is not None or self._lease_until is None:
            return
        left = (self._lease_until - now).total_seconds()
        if not 0 < left < release.plan.lease_seconds * 2 / 3:
            return
        before = self._lease_until
        try:
            again = Enter(release.state, "", release.step)
            self._serve(self._live(again, self._workload()), wait=False)
        except (ContenderError, OSError):
            # The old lease still holds, and is tried again at the next look.
            self._lease_until = before

    def _workload(self) -> str | None:
        try:
            return workloads(self._endpoints.get_endpoint(self.release.endpoint)["config"])
        except BadInputError:
            return None

    def _serve(self, config: Mapping[str, Any], *, wait: bool = True) -> None:
        """Have the endpoint do as the config says, and wait until it does, where anything is up to do it."""
        name = self.release.endpoint
        if any(found["name"] == name for found in self._endpoints.list_endpoints()):
            said = self._endpoints.update_endpoint_config(name, config)
        else:
            said = self._endpoints.create_endpoint(name, config)
        if not config["traffic_config"].get("lease"):
            self._lease_until = None
        # Without an address nothing is up to do it; it will be done once something is.
        if wait and said.get("url", name) is not None:
            self.platform.wait_for_endpoint(name)

    # What is written of it

    def _save(self, **changes: Any) -> Release:
        self.release = self._store.save(self.release.model_copy(update=changes))
        return self.release

    def _forget_wish(self, action: Enter) -> None:
        """Forget what a person asked for once that is done; what was asked for meanwhile stands."""
        if action.state in {State.ROLLED_BACK, State.REJECTED}:
            self.wish = None
            self._store.forget_wish(self.release.id)
        elif action.again and self.wish == "resume":
            self.wish = None

    def _close(self, action: Close) -> None:
        """The window is over: the former champion is no longer kept ready."""
        release = self.release
        if self._known.champion_stands:
            self._serve(all_to(release.challenger, self._workload()), wait=False)
        self._save(closed=True)
        write_entry(self.platform, release, "release.closed", {"reason": action.reason})


def _stage(release: Release, action: Enter) -> Stage | None:
    """The plan's stage for an action that goes into one."""
    return next(
        (one for one in stages(release.plan) if (one.state, one.step) == (action.state, action.step)), None
    )
