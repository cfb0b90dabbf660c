"""Releases as they could have gone, for tests that read records, looks and ledger entries."""

from datetime import UTC, datetime, timedelta

from deployments.release import ReleasePlan, Step
from tasks.champion import ChampionRef
from tasks.register import ledger_of
from tasks.release_record import Look, Reading, Release, ReleaseStore, State, Transition
from tasks.verdict import Verdict, overall

NAME = "dev_patients"
BEGUN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
WAY = ((State.SHADOW, 0, 100), (State.CANARY, 0, 5), (State.CANARY, 1, 50))
PLAN = ReleasePlan(steps=(Step(percentage=5), Step(percentage=50)))
HARM = "The error rate differs by 0.05 (0.02 to 0.08), so harm above 0 is shown."


def version_ref(version="7"):
    return ChampionRef(
        name=NAME, version=version, run_id=f"run-{version}", model_id=f"m-{version}", digest=version[0] * 64
    )


def transition(state, step=0, percentage=0, *, minute, reason="all tests passed"):
    at = BEGUN + timedelta(minutes=minute)
    return Transition(
        state=state,
        step=step,
        percentage=percentage,
        reason=reason,
        observed=at,
        at=at + timedelta(milliseconds=200),
        effective=at + timedelta(milliseconds=250),
    )


def released(end=State.PROMOTED, *, after=3, **changed):
    """A release that went `after` steps and then came to its end; one that is rejected had none."""
    live = () if end is State.REJECTED else WAY[:after]
    history = [] if end is State.REJECTED else [transition(State.APPROVED, minute=30, reason="approved")]
    history += [transition(*stage, minute=31 + 5 * place) for place, stage in enumerate(live)]
    reason = {State.PROMOTED: "all tests passed", State.ROLLED_BACK: HARM}.get(end, "nobody approved it")
    history.append(
        transition(end, 0, 100 if end is State.PROMOTED else 0, minute=31 + 5 * len(live), reason=reason)
    )
    fields = {
        "id": "dev_patients-7-20260302t090000",
        "model": "patients",
        "environment": "dev",
        "endpoint": "dev_patients",
        "challenger": version_ref(),
        "champion": version_ref("6"),
        "gate_report": "e" * 64,
        "author": "ada@example.com",
        "started_by": "grace@example.com",
        "plan": PLAN,
        "state": end,
        "begun": BEGUN,
        "entered": history[-1].effective,
        "history": tuple(history),
        "closed": end is not State.PROMOTED,
    }
    return Release(**(fields | changed))


def reading(test="error rate", verdict=Verdict.PASS, *, estimate=0.001, low=-0.01, high=0.012, reason="fine"):
    return Reading(
        test=test,
        estimate=estimate,
        low=low,
        high=high,
        verdict=verdict,
        challenger=400,
        champion=410,
        reason=reason,
    )


def look(state=State.SHADOW, step=0, percentage=100, *, seconds, requests=200, readings=None, **changed):
    """One look, `seconds` after the release went live."""
    readings = (reading(), reading("latency p90")) if readings is None else readings
    fields = {
        "at": BEGUN + timedelta(minutes=31, seconds=seconds),
        "state": state,
        "step": step,
        "percentage": percentage,
        "requests": {"challenger": requests, "champion": requests + 10},
        "errors": {"challenger": 1, "champion": 2},
        "latency_p50": {"challenger": 3.1, "champion": 3.0},
        "latency_p95": {"challenger": 6.1, "champion": 6.0},
        "scores": {"challenger": (5, 10, 3), "champion": (6, 9, 4)},
        "score_edges": (0.0, 0.3, 0.6, 1.0),
        "readings": readings,
        "verdict": overall(one.verdict for one in readings),
    }
    return Look(**(fields | changed))


def looks(each=3, *, failing=False):
    """`each` looks in every state; the last says that the challenger does harm."""
    made = [
        look(*stage, seconds=300 * place + 290 * number / each, requests=100 * number)
        for place, stage in enumerate(WAY)
        for number in range(1, each + 1)
    ]
    if failing:
        bad = reading(verdict=Verdict.FAIL, estimate=0.05, low=0.02, high=0.08, reason=HARM)
        made[-1] = made[-1].model_copy(
            update={"readings": (reading("latency p90"), bad), "verdict": Verdict.FAIL}
        )
    return made


def told(platform, release, *, without=(), approvals=()):
    """Write what the ledger says of a release, as its controller does, and answer it."""
    ledger = ledger_of(platform)

    def write(event, details, key):
        if event not in without:
            ledger.append(
                event,
                model=release.model,
                subject=release.subject,
                details={"release": release.id, "model_digest": release.challenger.digest} | details,
                key=f"{event}/{release.id}/{key}",
                actor="grace@example.com",
            )

    replaced = release.champion.version if release.champion else None
    write("release.started", {"replaces": replaced}, "")
    for place, one in enumerate(release.history):
        event = f"release.{one.state}" if one.state not in {State.SHADOW, State.CANARY} else "release.step"
        write(
            event,
            {
                "state": str(one.state),
                "step": one.step,
                "percentage": one.percentage,
                "reason": one.reason,
                "seconds": round((one.effective - one.observed).total_seconds(), 3),
                "approvals": list(release.approvals),
            },
            str(place),
        )
    return release


def kept(platform, release, seen=()):
    """Write the record of a release and its looks, and answer it."""
    store = ReleaseStore(platform, release.model)
    store.save(release)
    for one in seen:
        store.add_look(release, one)
    return release
