"""Acknowledged drift: shifts that a person expects (a season, a campaign), for some columns, until a moment.

Acknowledgements are entries of the ledger. An alert of drift whose every column is covered keeps standing in reports
and is neither sent as an event nor a reason to retrain; loss of quality cannot be acknowledged.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from deployments.declared import Declared
from deployments.errors import BadInputError
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.ledger import Entry
from tasks.monitoring_record import Alert, Window
from tasks.register import ledger_of

__all__ = ["ACKNOWLEDGED", "PREDICTION", "DriftAck", "acknowledge", "acknowledged", "acknowledgements"]

ACKNOWLEDGED = "drift.acknowledged"
PREDICTION = "prediction"
"""What the model's own answers are called among the columns."""
_KINDS = {"drift", "prediction_drift"}


class DriftAck(Declared):
    """One acknowledgement: which columns (none: all of them, and the predictions), until when, why and by whom."""

    model: str
    columns: tuple[str, ...]
    until: datetime
    reason: str
    by: str
    at: datetime
    entry: int

    def covers(self, column: str, window: Window) -> bool:
        """Whether drift of a column in a window was expected: the window ends by `until`."""
        return window.end <= self.until and (not self.columns or column in self.columns)


def acknowledge(
    platform: Platform,
    loaded: LoadedSpec,
    columns: Sequence[str],
    until: datetime,
    reason: str,
    now: datetime | None = None,
) -> DriftAck:
    """Write an acknowledgement into the ledger.

    Args:
        platform: whose ledger.
        loaded: the model; its features are the columns that can drift, and `prediction` is its answers.
        columns: which of them; none for all, and the predictions.
        until: windows that end by then are covered; with a time zone.
        reason: why it was to be expected.
        now: the moment it is given; now by default.

    Raises:
        BadInputError: no reason, an unknown column, or a moment that has passed.
    """
    moment, until = (now or datetime.now(UTC)).astimezone(UTC), until.astimezone(UTC)
    if not reason.strip():
        raise BadInputError("say why, with --reason: it is what the ledger is asked about later")
    if until <= moment:
        raise BadInputError(f"--until {until:%Y-%m-%d %H:%M} UTC has passed; name a later moment")
    known = (*loaded.spec.features.columns, PREDICTION)
    strangers = [column for column in columns if column not in known]
    if strangers:
        raise BadInputError(
            f"{', '.join(map(repr, strangers))}: {loaded.name} has no such feature (known: {', '.join(known)})"
        )
    named = sorted(set(columns))
    entry = ledger_of(platform).append(
        ACKNOWLEDGED,
        model=loaded.name,
        subject=", ".join(named) or "all columns",
        details={"columns": named, "until": until.isoformat(), "reason": reason.strip()},
        key=f"{ACKNOWLEDGED}/{platform.registered_model(loaded.name)}/{moment.isoformat()}/{','.join(named)}",
        actor=platform.identity(),
    )
    return _of(entry)


def acknowledgements(platform: Platform, model: str, at: datetime | None = None) -> tuple[DriftAck, ...]:
    """The acknowledgements of a model, the oldest first; of them, those that still cover windows ending `at`."""
    found = [_of(entry) for entry in ledger_of(platform).entries(model) if entry.event == ACKNOWLEDGED]
    return tuple(one for one in found if at is None or at <= one.until)


def acknowledged(
    platform: Platform, model: str, alerts: Sequence[Alert], window: Window
) -> tuple[Alert, ...]:
    """The alerts of a window; those of drift whose every column is covered carry the reason, and by whom.

    An alert that names no column is covered by an acknowledgement of all columns only.
    """
    standing = acknowledgements(platform, model, at=window.end)
    return tuple(_said(alert, standing, window) for alert in alerts)


def _said(alert: Alert, standing: Sequence[DriftAck], window: Window) -> Alert:
    if alert.kind not in _KINDS or not standing:
        return alert
    covering = []
    for subject in alert.subjects or ("",):
        found = next((one for one in reversed(standing) if one.covers(subject, window)), None)
        if found is None:
            return alert
        covering.append(found)
    said = dict.fromkeys(f"{one.reason} ({one.by}, until {one.until:%Y-%m-%d %H:%M} UTC)" for one in covering)
    return alert.model_copy(update={"acknowledged": "; ".join(said)})


def _of(entry: Entry) -> DriftAck:
    told = entry.details
    return DriftAck.model_validate(
        {
            "model": entry.model,
            "columns": told["columns"],
            "until": told["until"],
            "reason": told["reason"],
            "by": entry.actor,
            "at": entry.time,
            "entry": entry.seq,
        }
    )
