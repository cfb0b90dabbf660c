"""Environments: where the line runs and how strictly, read from one YAML file each."""

import base64
import binascii
import os
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, field_validator, model_validator

from deployments.declared import Declared
from deployments.documents import load_document
from deployments.errors import BadInputError
from deployments.explanations import DeclarationError
from deployments.orchestration import WorkPool

ENVIRONMENTS = Path(__file__).parent / "environments"


class LocalPlatformConfig(Declared):
    """Everything on this machine; MLflow in SQLite and a folder unless a URI says otherwise."""

    kind: Literal["local"] = "local"
    data_root: str = Field(
        description="Folder for tables, MLflow, reports and ledger; relative to CONTENDER_HOME."
    )
    tracking_uri: str | None = None
    registry_uri: str | None = None
    model_prefix: str = Field("", pattern=r"^[a-z0-9_-]*$", description="Put before registered model names.")


PlatformConfig = Annotated[LocalPlatformConfig, Field()]


class ThreadRunner(Declared):
    """Candidates train in threads of the flow's own process."""

    kind: Literal["threads"] = "threads"
    workers: int = Field(2, ge=1)


class ProcessRunner(Declared):
    """Candidates train in processes of their own."""

    kind: Literal["processes"] = "processes"
    workers: int = Field(2, ge=1)


class DaskRunner(Declared):
    """Candidates train on a Dask cluster: a local one, or the scheduler at `address`."""

    kind: Literal["dask"] = "dask"
    workers: int = Field(2, ge=1)
    address: str | None = None


TaskRunnerConfig = Annotated[ThreadRunner | ProcessRunner | DaskRunner, Field(discriminator="kind")]


class Budget(Declared):
    """What a run may use."""

    memory_megabytes: int = Field(
        2048, ge=256, description="For queries and chunks; larger work goes to disk."
    )
    training_seconds: float = Field(1800, gt=0, description="No further candidate starts after this long.")


class Rates(Declared):
    """What compute costs here, in the unit of `currency`."""

    currency: str = Field("EUR", min_length=1, max_length=8)
    hour: float = Field(0.1, ge=0, description="An hour of a task's time.")
    gigabyte_hour: float = Field(0.01, ge=0, description="A gigabyte of its peak memory, for an hour.")
    million_rows: float = Field(0.0, ge=0, description="A million rows that it read or wrote.")


class RequestLimits(Declared):
    """What one request, and all of them at once, may ask of a scorer."""

    body_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="A larger body is refused with 413.")
    rows: int = Field(100_000, ge=1, description="More rows in one request are refused with 413.")
    queue: int = Field(
        256,
        ge=1,
        description="Requests that may wait in one worker; the next is told 429 and when to come again.",
    )
    timeout_seconds: float = Field(30, gt=0)
    silent_seconds: float = Field(
        10, gt=0, description="A worker that does not say for so long how it is, is ended and started anew."
    )
    drain_seconds: float = Field(
        10, ge=0, description="How long a worker that is stopped finishes what it has."
    )


class PredictionLogConfig(Declared):
    """The log of every request served."""

    max_megabytes: int = Field(2048, ge=1, description="Of one endpoint, before it is folded into its table.")
    when_full: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Answer 503 rather than answer unlogged, or answer and count what was not logged.",
    )
    segment_megabytes: int = Field(32, ge=1)
    sync_milliseconds: int = Field(
        50, ge=1, description="How often what was written is forced onto the disk."
    )


class GatewayConfig(Declared):
    """The one address of all endpoints."""

    kind: Literal["auto", "envoy", "python"] = Field(
        "auto", description="Envoy where there is a wheel of it, else the thin router in Python."
    )
    host: str = "127.0.0.1"
    port: int = Field(8500, ge=0, le=65535, description="0 takes any that is free.")
    sticky_header: str = Field("x-caller-id", pattern=r"^[a-z0-9-]+$")
    require_key: bool = Field(False, description="Whether a request without a known API key is refused.")
    requests_per_second: float | None = Field(None, gt=0, description="Of one caller; more are told 429.")


class Serving(Declared):
    """The data plane of an environment."""

    gateway: GatewayConfig = GatewayConfig()
    limits: RequestLimits = RequestLimits()
    log: PredictionLogConfig = PredictionLogConfig()
    mlflow_port: int = Field(
        5000, ge=0, le=65535, description="Of the MLflow server that `up` starts; 0: any."
    )
    mlflow: bool = Field(
        True, description="Whether `up` starts an MLflow server, where tracking is in a file here."
    )
    other_flavors: bool = Field(
        False,
        description="Whether models other than skops files are served. Loading one runs code that it brings.",
    )
    onnx: bool = Field(True, description="Whether ONNX Runtime serves models for which it answers the same.")


_FIELD = 2**255 - 19
_WEAK_POINTS = frozenset(
    {
        0,
        1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
        _FIELD - 1,
        _FIELD,
        _FIELD + 1,
    }
)
"""The y of curve points of small order: as keys they take signatures that nobody made, and all zeros is one."""

PersonName = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[^\s,\x00-\x1f]([^,\x00-\x1f\x7f]*[^\s,\x00-\x1f])?$")
]


def same_person(name: str) -> str:
    """A name or address as it is compared: capitals, and ways to write the same letter, make no other person."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


class Approver(Declared):
    """A person who may approve: their names, their roles, and the key that their signatures are checked by."""

    name: PersonName
    identities: tuple[PersonName, ...] = Field(
        min_length=1,
        description="Git addresses and logins of the same person: who trains or moves a model cannot approve it.",
    )
    roles: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    public_key: str = Field(
        description="Base64 of the 32 bytes of an ed25519 public key, as `keys new` prints it."
    )
    valid_until: AwareDatetime | None = Field(None, description="From then on nothing of theirs counts.")

    @field_validator("public_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != 32 or base64.b64encode(key).decode() != text:
            raise ValueError("this is no ed25519 public key: 32 bytes in base64 (`keys new` makes one)")
        if int.from_bytes(key, "little") & (2**255 - 1) in _WEAK_POINTS:
            raise ValueError("this key takes signatures that nobody made; make one with `keys new`")
        return text

    @property
    def key(self) -> bytes:
        """The public key's 32 bytes."""
        return base64.b64decode(self.public_key)

    @property
    def person(self) -> frozenset[str]:
        """All names of this person, as they are compared."""
        return frozenset(same_person(name) for name in (self.name, *self.identities))

    def valid(self, now: datetime) -> bool:
        """Whether they may approve at `now`, which has a time zone."""
        return self.valid_until is None or now < self.valid_until


class Environment(Declared):
    """One place to run: its platform and its strictness."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    description: str = ""
    platform: PlatformConfig
    approvals: tuple[str, ...] = Field((), description="Roles whose signed approval a promotion needs.")
    approvers: tuple[Approver, ...] = Field((), description="Who may approve.")
    approval_days: float = Field(7, gt=0, le=366, description="The longest that an approval may be valid.")
    takes_from: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9_-]*$",
        description="Another environment; only what was promoted there is promoted here.",
    )
    allow_dirty_tree: bool = Field(False, description="Whether a model may be trained from uncommitted code.")
    allowed_packages: tuple[str, ...] = Field(
        ("sklearn",),
        description="Packages that candidates, and the types inside saved models, may come from.",
    )
    notify: tuple[str, ...] = Field(
        (), description="Prefect notification blocks that are told of releases, as slack-webhook/releases."
    )
    work_pool: WorkPool = WorkPool()
    schedules_active: bool = Field(False, description="Whether the schedules of its deployments run.")
    task_runner: TaskRunnerConfig = ThreadRunner()
    budget: Budget = Budget()
    rates: Rates = Rates()
    serving: Serving = Serving()

    @model_validator(mode="after")
    def _approvers_are_different_people(self) -> Self:
        keys: dict[bytes, str] = {}
        names: dict[str, str] = {}
        for place, approver in enumerate(self.approvers):
            if approver.key in keys:
                raise DeclarationError(
                    ("approvers", place, "public_key"),
                    f"{keys[approver.key]!r} has this key already; everybody signs with a key of their own",
                )
            keys[approver.key] = approver.name
            taken = next((names[name] for name in sorted(approver.person) if name in names), None)
            if taken is not None:
                raise DeclarationError(
                    ("approvers", place),
                    f"{approver.name!r} has a name or identity of {taken!r}; one person has one entry",
                )
            names |= dict.fromkeys(approver.person, approver.name)
        return self

    @model_validator(mode="after")
    def _roles_differ(self) -> Self:
        repeated = sorted({role for role in self.approvals if self.approvals.count(role) > 1})
        if repeated:
            raise DeclarationError(("approvals",), f"{repeated[0]!r} is named twice; a role approves once")
        if self.takes_from == self.name:
            raise DeclarationError(("takes_from",), "an environment cannot take models from itself")
        return self

    @property
    def pool(self) -> str:
        """The name of the Prefect work pool that runs its flows."""
        return self.work_pool.name or f"contender-{self.name}"

    def nobody_for(self) -> tuple[str, ...]:
        """The roles that a promotion needs and no approver has."""
        held = {role for approver in self.approvers for role in approver.roles}
        return tuple(role for role in self.approvals if role not in held)


def home() -> Path:
    """The folder that data roots are relative to: CONTENDER_HOME, or `.contender` in the working directory."""
    return Path(os.environ.get("CONTENDER_HOME", ".contender")).absolute()


def known_environments(root: Path = ENVIRONMENTS) -> tuple[str, ...]:
    """The names of the environments under `root`."""
    return tuple(sorted(path.stem for path in root.glob("*.yaml")))


def load_environment(name: str | Path, root: Path = ENVIRONMENTS) -> Environment:
    """Read an environment by name, or by the path of its YAML file.

    Raises:
        BadInputError: no such environment.
        SpecError: the file does not say what an environment must.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = root / f"{name}.yaml"
        if not path.is_file():
            raise BadInputError(
                f"there is no environment {str(name)!r} (known: {', '.join(known_environments(root))})"
            )
    return load_document(path, Environment)
