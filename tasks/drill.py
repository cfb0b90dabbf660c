"""The drill: a rollback on the live endpoint and back again, watched by requests of its own, and written down."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from platforms.platform import Platform, TrafficLease
from tasks.champion import ChampionMissing, ChampionRef, standing_champion, version_ref
from tasks.register import ledger_of
from tasks.release_record import ReleaseStore, State, sole
from tasks.score import require_champion
from tasks.tracking import Tracking
from tasks.traffic import all_to, entity_name, workloads
from tasks.train import TrainedModel

PAUSE_SECONDS = 0.01
LEASE_SECONDS = 20.0
"""How long the earlier version answers at most, where the drill is killed before it puts the champion back."""
STAY_SECONDS = 1.0
"""How long the earlier version answers before the champion is put back."""


class DrillOutcome(Declared):
    """How long it took to restore the earlier version and then the champion, and how the requests fared."""

    model: str
    endpoint: str
    champion: str
    previous: str
    seconds_to_previous: float
    seconds_to_champion: float
    requests: int
    failed: int
    problems: tuple[str, ...]
    at: datetime


class DrillFailedError(ContenderError):
    """Requests failed while traffic was shifted, or somebody else shifted it meanwhile; the message says which."""


class _Drill(Declared):
    """A drill that is under way: on disk while the traffic is not the champion's, by served entity."""

    endpoint: str
    name: str
    champion: str
    previous: str
    began: datetime
    by: str


@dataclass
class _Caller:
    """Asks the endpoint again and again."""

    platform: Platform
    endpoint: str
    example: list[dict[str, object]]
    requests: int = 0
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask from another thread while the block runs."""
        stop = threading.Event()
        thread = threading.Thread(target=self._ask, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _ask(self, stop: threading.Event) -> None:
        endpoints = self.platform.endpoints
        for row in itertools.cycle(self.example):
            if stop.is_set():
                return
            self.requests += 1
            try:
                endpoints.predict(endpoint=self.endpoint, inputs={"dataframe_records": [row]})
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a request that failed
                self.problems.append(str(error))
            time.sleep(PAUSE_SECONDS)


def drill_rollback(platform: Platform, model: str) -> DrillOutcome:
    """Give the earlier champion all traffic, and then the champion again, while the endpoint is being asked.

    What it took goes into the ledger, also where requests failed. No release is begun or carried on meanwhile. The
    traffic is shifted under a lease: where the drill is killed, the champion has it again once that ends. A rollback
    that a person makes meanwhile stands.

    Raises:
        BadInputError: nothing is served, there is no earlier champion, or a release is under way.
        BusyError: somebody controls a release of this model, or drills.
        DrillFailedError: requests failed, or somebody else changed the traffic.
    """
    with sole(platform, model):
        end_lost_drill(platform, model)
        return _drill_rollback(platform, model)


def end_lost_drill(platform: Platform, model: str) -> None:
    """Give the champion its traffic for good, and tell the ledger, where a drill was killed; to be held alone."""
    mark = _mark(platform, model)
    if not mark.exists():
        return
    lost = _Drill.model_validate_json(mark.read_bytes())
    if _has_lease(platform, lost.endpoint):
        platform.shift_traffic(lost.endpoint, lost.champion)
    ledger_of(platform).append(
        "drill.cut_short",
        model=model,
        subject=f"{lost.name}/{lost.champion.removeprefix('v')}",
        details=lost.model_dump(mode="json"),
        key=f"drill.cut_short/{lost.name}/{lost.began.isoformat()}",
        actor=platform.identity(),
    )
    mark.unlink()


def _mark(platform: Platform, model: str) -> Path:
    """Where a drill that is under way is written down."""
    return platform.folder("releases") / model / "drill.json"


def _has_lease(platform: Platform, endpoint: str) -> bool:
    """Whether the traffic is as the drill shifted it: whatever else changes it takes the lease away."""
    found = next((one for one in platform.endpoints.list_endpoints() if one["name"] == endpoint), None)
    return found is not None and found["config"]["traffic_config"].get("lease") is not None


def _drill_rollback(platform: Platform, model: str) -> DrillOutcome:
    newest = ReleaseStore(platform, model).newest()
    waits = newest is not None and newest.state is State.PROPOSED and newest.intent is None
    if newest is not None and not newest.ended and not waits:
        raise BadInputError(
            f"version {newest.challenger.version} is being released; drill once that has ended"
        )
    champion = require_champion(platform, model, standing_champion(platform, model))
    previous = _previous(platform, model, champion)
    trained = Tracking(platform).document(champion.run_id, "trained", TrainedModel)
    if trained is None or not trained.example:
        raise BadInputError(
            f"{champion.name} version {champion.version}: no example of its input was recorded"
        )
    endpoint, endpoints = platform.endpoint(model), platform.endpoints
    config = endpoints.get_endpoint(endpoint)["config"]
    before = all_to(champion, workloads(config))
    warm = entity_name(previous) in {entity["name"] for entity in config["served_entities"]}
    ready = all_to(champion, workloads(config), warm=previous)
    endpoints.update_endpoint_config(endpoint, ready)
    platform.wait_for_endpoint(endpoint)
    _until_ready(platform, endpoint, entity_name(previous))
    caller, now = _Caller(platform, endpoint, trained.example), datetime.now(UTC)
    mark = _mark(platform, model)
    mark.parent.mkdir(parents=True, exist_ok=True)
    drill = _Drill(
        endpoint=endpoint,
        name=champion.name,
        champion=entity_name(champion),
        previous=entity_name(previous),
        began=now,
        by=platform.identity(),
    )
    staged = mark.with_suffix(".partial")
    staged.write_text(drill.model_dump_json(), encoding="utf-8")
    staged.replace(mark)
    with caller.asking():
        time.sleep(STAY_SECONDS / 2)
        lease = TrafficLease(datetime.now(UTC) + timedelta(seconds=LEASE_SECONDS), drill.champion)
        back: float | None = None
        try:
            there = platform.shift_traffic(endpoint, drill.previous, lease)
            time.sleep(STAY_SECONDS)
        finally:
            if _has_lease(platform, endpoint):
                back = platform.shift_traffic(endpoint, drill.champion)
        time.sleep(STAY_SECONDS / 2)
    if back is None:
        mark.unlink()
        raise DrillFailedError(
            f"{endpoint}: somebody else changed the traffic during the drill; it is left as they want it"
        )
    if not warm:
        endpoints.update_endpoint_config(endpoint, before)
    outcome = DrillOutcome(
        model=model,
        endpoint=endpoint,
        champion=champion.version,
        previous=previous.version,
        seconds_to_previous=round(there, 4),
        seconds_to_champion=round(back, 4),
        requests=caller.requests,
        failed=len(caller.problems),
        problems=tuple(dict.fromkeys(caller.problems))[:5],
        at=now,
    )
    ledger_of(platform).append(
        "drill.rollback",
        model=model,
        subject=f"{champion.name}/{champion.version}",
        details=outcome.model_dump(mode="json"),
        key=f"drill/{champion.name}/{now.isoformat()}",
        actor=platform.identity(),
    )
    mark.unlink()
    if outcome.failed:
        raise DrillFailedError(
            f"{endpoint}: {outcome.failed:,} of {outcome.requests:,} requests failed during the drill: "
            f"{'; '.join(outcome.problems)}"
        )
    return outcome


def _previous(platform: Platform, model: str, champion: ChampionRef) -> ChampionRef:
    """The version that a rollback would go back to.

    Raises:
        BadInputError: there is none.
    """
    aliases = dict(Tracking(platform).client.get_registered_model(champion.name).aliases)
    number = aliases.get("previous")
    if number is None:
        raise BadInputError(f"{champion.name} has no previous champion, so there is nothing to drill with")
    found = version_ref(platform, model, str(number))
    if isinstance(found, ChampionMissing):
        raise BadInputError(found.reason)
    return found


def _until_ready(platform: Platform, endpoint: str, name: str, seconds: float = 120.0) -> None:
    """Wait until a served version that has no traffic yet has a worker that answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for entity in platform.endpoints.get_endpoint(endpoint)["config"]["served_entities"]:
            if entity["name"] == name and entity.get("state", {}).get("deployment") == "DEPLOYMENT_READY":
                return
        time.sleep(0.1)
    raise BadInputError(f"endpoint {endpoint!r}: {name} is not ready after {seconds:g} s")
