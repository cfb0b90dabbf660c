"""What may be transferred: a version of one environment, with its documents, once all that is said of it agrees."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from deployments import model_file
from deployments.environment import load_environment
from deployments.errors import BadInputError
from deployments.spec import LoadedSpec, ModelSpec
from platforms import platform_for
from platforms.platform import Platform
from tasks.champion import (
    ChampionMissing,
    ChampionRef,
    NoChampionYet,
    standing_champion,
    trained_query,
    version_ref,
)
from tasks.gate import GateReport
from tasks.ledger import Entry
from tasks.register import PROMOTED, REGISTERED, REJECTED, RESTORED, PromotionRefusedError, ledger_of
from tasks.tracking import TAG, Tracking
from tasks.train import TrainedModel

__all__ = ["RECEIVED", "SENT", "Cargo", "environment_of", "load_cargo", "require_one_key", "require_passed"]

SENT, RECEIVED = "transfer.sent", "transfer.received"
RELEASED, ROLLED_BACK = "release.promoted", "release.rolled_back"


@dataclass(frozen=True)
class Cargo:
    """What is transferred, checked: the version, its documents, and by which promotion it passed, where it did."""

    source: Platform
    ref: ChampionRef
    loaded: LoadedSpec
    trained: TrainedModel
    gates: GateReport
    tags: Mapping[str, str]
    history: tuple[Entry, ...]
    passed: Entry | None

    @property
    def name(self) -> str:
        """What the target calls the version's origin."""
        return f"{self.source.environment.name}/{self.ref.name}/{self.ref.version}"

    @property
    def model(self) -> str:
        """The model's own name."""
        return self.loaded.name

    @property
    def subject(self) -> str:
        """What the source's ledger calls the version."""
        return f"{self.ref.name}/{self.ref.version}"

    @property
    def author(self) -> str:
        """Who trained it, by the source's ledger: tags in a registry are easily changed."""
        ours = [entry for entry in self.history if entry.subject == self.subject]
        received = [str(entry.details["author"]) for entry in ours if entry.event == RECEIVED]
        return received[0] if received else next(e.actor for e in ours if e.event in {REGISTERED, REJECTED})

    def approvers(self) -> list[str]:
        """Names and identities of those whose approvals the version's releases in the source used.

        Raises:
            PromotionRefusedError: the source asks for approvals, and its ledger does not say who gave them.
        """
        releases = [
            entry for entry in self.history if entry.event == RELEASED and entry.subject == self.subject
        ]
        said = [entry.details.get("approvers") for entry in releases]
        named = [one for names in said if isinstance(names, list) for one in names]
        if (self.source.environment.approvals and not named) or any(
            not isinstance(one, str) for one in named
        ):
            raise PromotionRefusedError(
                f"{self.ref.name} version {self.ref.version} is not transferred: the ledger of environment "
                f"{self.source.environment.name!r} does not say who approved its release"
            )
        return list(dict.fromkeys(map(str, named)))

    def digest_of(self, version: str | None) -> str | None:
        """The model file of a version that the source promoted, by its ledger."""
        subject = f"{self.ref.name}/{version}"
        for entry in reversed(self.history):
            if entry.event == PROMOTED and entry.subject == subject:
                return str(entry.details["model_digest"])
        return None


def require_passed(platform: Platform, model: str, ref: ChampionRef) -> None:
    """Refuse a version that has not passed in the environment from which this one takes its models, if it names one.

    Asked is the other environment's ledger, by the digest of the model file. A version that was champion here
    before needs nobody else's word to come back.

    Raises:
        PromotionRefusedError: says what the other ledger lacks.
        BadInputError: there is no such environment.
    """
    wanted = platform.environment.takes_from
    if wanted is None:
        return
    ours = list(ledger_of(platform).entries(model))
    if any(
        entry.event == PROMOTED
        and entry.subject == f"{ref.name}/{ref.version}"
        and entry.details.get("model_digest") == ref.digest
        for entry in ours
    ):
        return
    source = environment_of(wanted)
    passed = _passed(source, _history(source, model), model, ref.digest)
    pinned = next(
        (
            entry.details.get("passed")
            for entry in reversed(ours)
            if entry.event == RECEIVED and entry.subject == f"{ref.name}/{ref.version}"
        ),
        None,
    )
    if pinned is not None and pinned not in [entry.hash for entry in passed]:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} is not promoted: the ledger of environment {wanted!r} no longer "
            "holds the promotion that it was transferred on"
        )


def environment_of(name: str) -> Platform:
    """The platform of an environment by its name."""
    return platform_for(load_environment(name))


def _history(source: Platform, model: str) -> tuple[Entry, ...]:
    """An environment's ledger of one model, once all of it has been verified.

    Raises:
        PromotionRefusedError: it was changed by something other than an append.
    """
    ledger = ledger_of(source)
    found = ledger.verify()
    if not found.ok:
        raise PromotionRefusedError(
            f"the ledger of environment {source.environment.name!r} does not verify, and nothing is taken on its "
            f"word ({found.problems[0]})"
        )
    return tuple(ledger.entries(model))


def _passed(
    source: Platform, history: tuple[Entry, ...], model: str, digest: str, version: str | None = None
) -> list[Entry]:
    """The promotions, oldest first, by which a model file passed in an environment; as one version, or as any.

    Raises:
        PromotionRefusedError: there is none, or the last one's release was rolled back since.
    """
    name = source.registered_model(model)
    promotions = [
        entry
        for entry in history
        if entry.event == PROMOTED
        and entry.details.get("model_digest") == digest
        and entry.subject.rpartition("/")[0] == name
        and version in {None, entry.subject.rpartition("/")[2]}
    ]
    what = f"{name} version {version}" if version else f"the model file {digest[:12]}…"
    if not promotions:
        raise PromotionRefusedError(
            f"{what} has not passed in environment {source.environment.name!r}: its ledger holds no promotion of it"
        )
    last = promotions[-1]
    if _left(history, last):
        raise PromotionRefusedError(
            f"{what} has not passed in environment {source.environment.name!r}: it was rolled back there"
        )
    return promotions


def _left(history: tuple[Entry, ...], promotion: Entry) -> bool:
    """Whether a version was rolled back after a promotion, and did not come back since."""
    name, _, version = promotion.subject.rpartition("/")
    left = False
    for entry in history:
        if entry.seq <= promotion.seq:
            continue
        if entry.event == RESTORED and entry.subject.rpartition("/")[0] == name:
            if entry.subject == promotion.subject:
                left = False
            elif entry.details.get("leaves") == version:
                left = True
        elif entry.event == ROLLED_BACK and entry.subject == promotion.subject:
            left = True
    return left


def load_cargo(source: Platform, target: Platform, model: str, number: str | None) -> Cargo:
    """The version to transfer with its documents, once all that its source says of it agrees."""
    ref = _sent(source, model, number)
    history = _history(source, model)
    what, environment = f"{ref.name} version {ref.version}", source.environment.name
    tracking = Tracking(source)
    trained = tracking.document(ref.run_id, "trained", TrainedModel)
    if trained is None or (trained.digest, trained.model_id) != (ref.digest, ref.model_id):
        raise model_file.UntrustedModelError(
            f"{what}: what its run in environment {environment!r} recorded is of another model file"
        )
    gates = tracking.document(ref.run_id, "gates", GateReport)
    settled = [
        entry
        for entry in history
        if entry.event in {REGISTERED, REJECTED} and entry.subject == f"{ref.name}/{ref.version}"
    ]
    said = settled[-1].details if settled else {}
    wanted = {"run_id": ref.run_id, "model_digest": ref.digest, "gate_report": gates.digest if gates else ""}
    if (
        gates is None
        or settled[-1:] == []
        or settled[-1].event != REGISTERED
        or {key: said.get(key) for key in wanted} != wanted
    ):
        raise PromotionRefusedError(
            f"{what} is not transferred: the ledger of environment {environment!r} does not say that the gates "
            "passed this model file with this report"
        )
    tags = dict(tracking.client.get_model_version(ref.name, ref.version).tags)
    if tags.get(f"{TAG}dirty") != "false" and not target.environment.allow_dirty_tree:
        raise PromotionRefusedError(
            f"{what} is not transferred: it was trained from uncommitted code, and environment "
            f"{target.environment.name!r} takes committed code only"
        )
    loaded = trained_query(source, ref)
    if loaded.name != model:
        raise model_file.UntrustedModelError(f"{what}: the spec that its run recorded is of {loaded.name}")
    require_one_key(loaded.spec, source, target, what)
    passed = None
    if target.environment.takes_from is not None:
        passed = _passed(source, history, model, ref.digest, ref.version)[-1]
    cargo = Cargo(source, ref, loaded, trained, gates, tags, history, passed)
    cargo.approvers()
    return cargo


def _sent(source: Platform, model: str, number: str | None) -> ChampionRef:
    found = standing_champion(source, model) if number is None else version_ref(source, model, number)
    if isinstance(found, NoChampionYet):
        raise BadInputError(
            f"{source.registered_model(model)} has no champion to transfer; promote one, or name a version"
        )
    if isinstance(found, ChampionMissing):
        raise BadInputError(found.reason)
    return found


def require_one_key(spec: ModelSpec, source: Platform, target: Platform, what: str) -> None:
    """Refuse a model that is given hashes, or whose rows are told apart by them, where the target hashes otherwise."""
    columns = spec.training_contract.columns
    asked = dict.fromkeys((*spec.features.columns, *spec.row_key))
    hashed = [name for name in asked if columns[name].pii == "hash"]
    if hashed and not hmac.compare_digest(source.pii_key(), target.pii_key()):
        raise PromotionRefusedError(
            f"{what} is not transferred: it knows {', '.join(hashed)} as hashes, and environments "
            f"{source.environment.name!r} and {target.environment.name!r} hash with different keys; give both the "
            "same key before training"
        )
