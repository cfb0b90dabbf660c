"""What a training came to, as one document: what the command line prints, the UI shows and a re-run finds."""

import hashlib
from datetime import datetime

from deployments.declared import Declared
from deployments.errors import ContenderError
from platforms.snapshot import Snapshot
from tasks.evaluate import Evaluation
from tasks.gate import GateReport
from tasks.register import Version, refusals
from tasks.split import Parts
from tasks.train import Leaderboard, TrainedModel
from tasks.validate import TableResult
from tasks.verdict import Verdict


class Reports(Declared):
    """Where a person reads on: files on this machine."""

    contract: str
    training: str
    evidence: str | None


class TrainOutcome(Declared):
    """One training from data to verdict. `version` is None where gates refused before anything was registered."""

    model: str
    environment: str
    run_id: str
    key: str
    as_of: datetime
    tables: tuple[TableResult, ...]
    gold: Snapshot
    parts: Parts
    leaderboard: Leaderboard
    trained: TrainedModel
    evaluation: Evaluation
    gates: GateReport
    version: Version | None
    reports: Reports
    unchanged: bool = False

    @property
    def verdict(self) -> Verdict:
        """What the gates said."""
        return self.gates.verdict


class GatesRefusedError(ContenderError):
    """A challenger that some gate did not pass; `outcome` tells all of it."""

    exit_code = 3

    def __init__(self, outcome: TrainOutcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        return f"{self.outcome.model}: not promoted; {'; '.join(refusals(self.outcome.gates))}"


def contract_digest(tables: tuple[TableResult, ...]) -> str:
    """SHA-256 over what the contracts found."""
    whole = hashlib.sha256()
    for table in tables:
        whole.update(table.model_dump_json().encode())
    return whole.hexdigest()
