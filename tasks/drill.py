"""The drill: a rollback on the live endpoint and back again, watched by requests of its own, and written down."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from platforms.platform import Platform
from tasks.champion import ChampionMissing, ChampionRef, standing_champion, version_ref
from tasks.register import ledger_of
from tasks.release_record import LIVE, ReleaseStore
from tasks.score import require_champion
from tasks.tracking import Tracking
from tasks.traffic import all_to, entity_name, workloads
from tasks.train import TrainedModel

PAUSE_SECONDS = 0.01
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
    """Requests failed while traffic was shifted; the champion has it again."""


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

    What it took goes into the ledger, also where requests failed.

    Raises:
        BadInputError: nothing is served, there is no earlier champion, or a release is under way.
        DrillFailedError: requests failed.
    """
    newest = ReleaseStore(platform, model).newest()
    if newest is not None and newest.state in LIVE:
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
    with caller.asking():
        time.sleep(STAY_SECONDS / 2)
        try:
            there = platform.shift_traffic(endpoint, entity_name(previous))
            time.sleep(STAY_SECONDS)
        finally:
            back = platform.shift_traffic(endpoint, entity_name(champion))
        time.sleep(STAY_SECONDS / 2)
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
