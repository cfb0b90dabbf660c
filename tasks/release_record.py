"""The release record: what a release is, where it stands, and every step it took; one JSON file a release.

A transition is written down before it is made (`intent`) and once more when it is in effect (`history`), so a crash
between the two is seen by whoever reads the record next.
"""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from deployments.declared import Declared
from deployments.errors import BadInputError
from deployments.release import ReleasePlan
from platforms.platform import Platform
from tasks.champion import ChampionRef
from tasks.verdict import Verdict


class State(StrEnum):
    """Where a release stands."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"


ENDED = frozenset({State.PROMOTED, State.ROLLED_BACK, State.REJECTED})
LIVE = frozenset({State.SHADOW, State.CANARY})
"""States in which the challenger has traffic."""

Wish = Literal["roll_back", "resume", "hold"]
"""What a person may ask of a release: to end it, to go on with one that is held, or to hold it."""


class Transition(Declared):
    """A step of a release: into which state, and why. `step` counts the canary steps from 0.

    `at` is when it was decided (and written down), `effective` when the traffic, aliases and ledger said so;
    `observed` is when the observation was made that decided it.
    """

    state: State
    step: int = 0
    percentage: int = 0
    reason: str
    observed: datetime
    at: datetime
    effective: datetime | None = None


class Reading(Declared):
    """What one test said at one look; the interval of `estimate` is always valid, over all looks."""

    test: str
    estimate: float
    low: float
    high: float
    verdict: Verdict
    challenger: int
    champion: int
    reason: str


class Look(Declared):
    """One look of the analysis: the state it was made in, what each arm had by then, and every test's reading.

    Rates are parts of 1, latencies milliseconds; None where an arm had no request. `scores` are counts of scores
    between `score_edges`, and for a regression beyond them at either end; in shadow the challenger's requests are the
    copies.
    """

    at: datetime
    state: State
    step: int
    percentage: int
    requests: dict[str, int]
    errors: dict[str, int]
    latency_p50: dict[str, float | None]
    latency_p95: dict[str, float | None]
    scores: dict[str, tuple[int, ...]] = {}
    score_edges: tuple[float, ...] = ()
    readings: tuple[Reading, ...]
    verdict: Verdict
    note: str = ""


class Release(Declared):
    """One release of one challenger; `champion` is None for the first that a model has."""

    id: str = Field(pattern=r"^[a-z0-9_-]+$")
    model: str
    environment: str
    endpoint: str
    challenger: ChampionRef
    champion: ChampionRef | None
    gate_report: str
    author: str
    started_by: str
    plan: ReleasePlan
    state: State = State.PROPOSED
    step: int = 0
    attempt: int = Field(1, description="How often the state was entered: once more after each crash.")
    begun: datetime
    entered: datetime
    intent: Transition | None = None
    history: tuple[Transition, ...] = ()
    approvals: tuple[str, ...] = Field((), description="Digests of the approvals that it went forward on.")
    approvers: tuple[str, ...] = Field((), description="All names of those who gave them.")
    held: str = Field("", description="Why it waits for a person; empty where it does not.")
    watch_until: datetime | None = None
    closed: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be decided, apart from what labels may still say."""
        return self.state in ENDED and self.intent is None

    @property
    def subject(self) -> str:
        """What the ledger calls it."""
        return f"{self.challenger.name}/{self.challenger.version}"


def sole(platform: Platform, model: str) -> AbstractContextManager[None]:
    """Nobody else controls a release of the model, or drills its rollback, while the block runs.

    Raises:
        BusyError: somebody does.
    """
    name = platform.registered_model(model)
    busy = f"another process controls a release of {name}, or drills its rollback"
    return platform.alone(f"release-{name}", busy)


class ReleaseStore:
    """The releases of one model in one environment, each in a folder of its own."""

    def __init__(self, platform: Platform, model: str) -> None:
        self._folder = platform.folder("releases") / model

    def folder(self, release: str) -> Path:
        """Where the files of one release are: its record, its looks and its report."""
        return self._folder / release

    def save(self, release: Release) -> Release:
        """Write the record, whole and onto the disk; gives it back."""
        folder = self.folder(release.id)
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / "release.partial"
        with staged.open("w", encoding="utf-8") as file:
            file.write(release.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(folder / "release.json")
        return release

    def load(self, release: str) -> Release:
        """One release.

        Raises:
            BadInputError: there is none of that name, or its record is none any more.
        """
        path = self.folder(release) / "release.json"
        try:
            return Release.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise BadInputError(f"there is no release {release!r}") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise BadInputError(f"{path}: this is no release record: {place}: {problem['msg']}") from None

    def all(self) -> list[Release]:
        """Every release, oldest first."""
        names = sorted(path.parent.name for path in self._folder.glob("*/release.json"))
        return sorted((self.load(name) for name in names), key=lambda release: (release.begun, release.id))

    def newest(self) -> Release | None:
        """The release that was begun last; the records of those before it need not be readable any more.

        Raises:
            BadInputError: its record is none any more.
        """
        names = [path.parent.name for path in self._folder.glob("*/release.json")]
        return self.load(max(names, key=self._begun)) if names else None

    def _begun(self, release: str) -> tuple[datetime, str]:
        """When a release was begun: by its record, or by its name where that cannot be read.

        One that neither tells counts as the newest, so that it is looked at.
        """
        try:
            found = json.loads((self.folder(release) / "release.json").read_bytes())
            return datetime.fromisoformat(found["begun"]).astimezone(UTC), release
        except (OSError, ValueError, KeyError, TypeError):
            pass
        try:
            named = datetime.strptime(release.rpartition("-")[2], "%Y%m%dt%H%M%S%f").replace(tzinfo=UTC)
        except ValueError:
            named = datetime.max.replace(tzinfo=UTC)
        return named, release

    def leave_wish(self, release: str, wish: Wish, *, reason: str, who: str) -> None:
        """Leave what a person asks for where the controller of a release finds it at its next look."""
        folder = self.folder(release)
        staged = folder / "wish.partial"
        staged.write_text(json.dumps({"wish": wish, "reason": reason, "who": who}), encoding="utf-8")
        staged.replace(folder / "wish.json")

    def wish(self, release: str) -> tuple[Wish, str] | None:
        """What a person asks for, and why; None where nobody does."""
        try:
            found = json.loads((self.folder(release) / "wish.json").read_bytes())
            wish, said = found["wish"], f"{found['reason']} ({found['who']})"
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (wish, said) if wish in get_args(Wish) else None

    def forget_wish(self, release: str) -> None:
        """It was done."""
        (self.folder(release) / "wish.json").unlink(missing_ok=True)

    def first_time(self, release: str, mark: str) -> bool:
        """Whether nobody asked this of the release and the mark before."""
        marks = self.folder(release) / "marks"
        marks.mkdir(exist_ok=True)
        try:
            (marks / mark).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def take_back(self, release: str, mark: str) -> None:
        """Let the mark be asked for the first time once more."""
        (self.folder(release) / "marks" / mark).unlink(missing_ok=True)

    def add_look(self, release: Release, look: Look) -> None:
        """Keep what one look of the analysis saw."""
        with (self.folder(release.id) / "looks.jsonl").open("a", encoding="utf-8") as file:
            file.write(look.model_dump_json() + "\n")

    def looks(self, release: str) -> Iterator[Look]:
        """What the analysis saw, oldest first; a torn last line is left out."""
        path = self.folder(release) / "looks.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield Look.model_validate_json(line)


def as_details(transition: Transition) -> dict[str, Any]:
    """A transition as details of a ledger entry."""
    return transition.model_dump(mode="json", exclude_none=True)
