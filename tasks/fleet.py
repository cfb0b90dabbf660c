"""What a fleet run came to: one row for each of its models, and what that means for the whole."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from deployments.declared import Declared
from deployments.errors import ContenderError, first_line
from tasks.monitoring_record import MonitorOutcome
from tasks.retrain_record import RetrainOutcome
from tasks.verdict import Verdict

__all__ = ["FleetError", "FleetOutcome", "FleetRow", "FleetState", "Work", "as_table", "told"]

Work = Literal["monitor", "retrain"]
"""What is done to each model of a fleet."""

FleetState = Literal["failed", "refused", "alerts", "no champion", "done"]
"""How it ended for one model; what needs a person stands first."""

_STATES: tuple[FleetState, ...] = ("failed", "refused", "alerts", "no champion", "done")
_REFUSED = 3
_NAMED = 5
_DONE: Mapping[Work, str] = {"monitor": "monitored", "retrain": "retrained"}


class FleetRow(Declared):
    """How one model fared.

    `alerts` are the events of the alerts that nobody acknowledged; `retrained` is how a retraining ended, where there
    was one; `error` is the first line of what stopped it. `seconds` is wall-clock time, waiting for a worker left out.
    """

    model: str
    spec: str
    state: FleetState
    version: str | None = None
    requests: int | None = None
    verdicts: dict[str, Verdict] = {}
    alerts: tuple[str, ...] = ()
    retrained: str = ""
    error: str = ""
    report: str = ""
    seconds: float = 0.0

    def monitored(self, outcome: MonitorOutcome) -> Self:
        """The same model after a look at its window."""
        alerts = tuple(alert.event for alert in outcome.alerts if not alert.acknowledged)
        return self.model_copy(
            update={
                "model": outcome.model,
                "state": "alerts" if alerts else "done",
                "version": outcome.version,
                "requests": outcome.requests,
                "verdicts": outcome.verdicts,
                "alerts": alerts,
                "report": outcome.report,
            }
        )

    def retrained_as(self, outcome: RetrainOutcome | None) -> Self:
        """The same model after a retraining; None where no alert asked for one."""
        if outcome is None:
            return self
        changes = {"retrained": str(outcome), "version": self.version or outcome.version}
        # After a look at a window its alerts stay what a person has to see.
        return self.model_copy(update=changes if self.alerts else changes | {"state": "done"})

    def stopped(self, error: Exception) -> Self:
        """The same model after an error: refused where that is what it says of itself, else failed."""
        refused = isinstance(error, ContenderError) and error.exit_code == _REFUSED
        said = first_line(error)
        if not isinstance(error, ContenderError) and type(error).__name__ not in said:
            said = f"{type(error).__name__}: {said}"
        return self.model_copy(update={"state": "refused" if refused else "failed", "error": said})


class FleetOutcome(Declared):
    """One run over a fleet: `rows` in the order in which the models were asked for, `seconds` from first to last."""

    environment: str
    work: Work
    at_once: int
    rows: tuple[FleetRow, ...]
    seconds: float

    def of(self, state: FleetState) -> tuple[FleetRow, ...]:
        """The models that ended so."""
        return tuple(row for row in self.rows if row.state == state)

    @property
    def urgent_first(self) -> tuple[FleetRow, ...]:
        """The rows with those first that need a person."""
        return tuple(sorted(self.rows, key=lambda row: _STATES.index(row.state)))


class FleetError(ContenderError):
    """A fleet of which some models failed or were refused; `outcome` has a row of each model, also of the others."""

    def __init__(self, outcome: FleetOutcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.exit_code = 1 if outcome.of("failed") else _REFUSED

    def __repr__(self) -> str:
        # Logs show it: a hundred rows would be a page.
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        said = [f"{state}: {_named(rows)}" for state in _STATES[:2] if (rows := self.outcome.of(state))]
        models = f"{len(self.outcome.rows)} models in {self.outcome.environment}"
        return f"not every one of {models} could be {_DONE[self.outcome.work]}; {'; '.join(said)}"


def _named(rows: Sequence[FleetRow]) -> str:
    shown = ", ".join(row.model for row in rows[:_NAMED])
    return f"{len(rows)} ({shown}{', …' if len(rows) > _NAMED else ''})"


def told(outcome: FleetOutcome) -> str:
    """The whole in one sentence."""
    counted = Counter(row.state for row in outcome.rows)
    states = ", ".join(f"{counted[state]} {state}" for state in reversed(_STATES) if counted[state])
    usual = statistics.median(row.seconds for row in outcome.rows)
    return (
        f"{len(outcome.rows)} models in {outcome.seconds:,.1f} s, {outcome.at_once} at a time "
        f"({usual:,.1f} s for the median model): {states}"
    )


def verdicts_said(row: FleetRow) -> str:
    """`pass`, or the kinds that did not."""
    said = [
        f"{verdict.value}: {', '.join(kind.replace('_', ' ') for kind in kinds)}"
        for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
        if (kinds := [kind for kind, found in row.verdicts.items() if found is verdict])
    ]
    return "; ".join(said) or ("pass" if row.verdicts else "")


def why(row: FleetRow) -> str:
    """What a person should know of it besides: alerts, how a retraining ended, what stopped it."""
    alerts = ", ".join(event.removeprefix("contender.") for event in row.alerts)
    return "; ".join(part for part in (alerts, row.retrained, row.error) if part)


def as_table(outcome: FleetOutcome) -> list[dict[str, str]]:
    """The rows as the Prefect UI shows them, those first that need a person."""
    return [
        {
            "model": row.model,
            "state": row.state,
            "version": row.version or "",
            "requests": "" if row.requests is None else f"{row.requests:,}",
            "verdicts": verdicts_said(row),
            "alerts": ", ".join(row.alerts),
            "retrained": row.retrained,
            "error": row.error,
            "seconds": f"{row.seconds:.1f}",
        }
        for row in outcome.urgent_first
    ]
