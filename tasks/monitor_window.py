"""Which span of the prediction log is looked at, and which version is judged in it."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deployments.errors import BadInputError, ContenderError
from deployments.monitoring import MonitoringSpec
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform, Predictions
from tasks.champion import ChampionMissing, ChampionRef, standing_champion, trained_spec, version_ref
from tasks.live_window import Calls, EndpointCalls, endpoint_calls
from tasks.monitoring_record import Window
from tasks.register import PROMOTED, RESTORED, ledger_of
from tasks.score import require_champion

__all__ = ["Watched", "champion_at", "watch", "window_of"]

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min)")
_HOURS = {"d": 24.0, "h": 1.0, "min": 1 / 60}
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Watched:
    """One window of one model: the version that is judged, what it was trained with, and what was answered.

    `log` is None where nothing was ever logged. `problems` is what people should know of all this.
    """

    model: str
    ref: ChampionRef
    spec: ModelSpec
    window: Window
    log: Predictions | None
    calls: EndpointCalls
    problems: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """The number of the version that is judged."""
        return self.ref.version

    @property
    def judged(self) -> Calls | None:
        """What it answered to callers; None where it answered nobody."""
        return next(
            (one for one in self.calls.versions if not one.shadow and one.version == self.version), None
        )


def window_of(
    plan: MonitoringSpec,
    length: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    now: datetime | None = None,
) -> Window:
    """The window to look at.

    Without `since` and `until` it ends at the last multiple of `every_hours` from midnight UTC (from Monday's, where
    that is more than a day), so that whoever looks again before the next one looks at the same window.

    Args:
        plan: how long windows are, and when they end.
        length: another length: 7d, 12h or 30min.
        since: its first moment; in UTC where it has no zone.
        until: the first moment after it; now where only `since` is given.
        now: when this is asked.

    Raises:
        BadInputError: a length that is none, a window that ends before it begins, or later than now.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    hours = plan.window_hours if length is None else _hours(length)
    if since is not None and length is not None and until is not None:
        raise BadInputError("give two of --window, --since and --until at most: they say the third")
    begin, end = _aware(since), _aware(until)
    if begin is None:
        end = end or _last_multiple(plan.every_hours, moment)
        begin = end - timedelta(hours=hours)
    elif end is None:
        end = begin + timedelta(hours=hours) if length is not None else moment
    if end <= begin:
        raise BadInputError(f"the window ends at {end:%Y-%m-%d %H:%M:%S} UTC, before it begins")
    if end > moment:
        raise BadInputError(
            f"the window ends at {end:%Y-%m-%d %H:%M:%S} UTC, which is still to come; give --until, or an earlier one"
        )
    return Window(start=begin, end=end)


def _hours(length: str) -> float:
    found = _SPAN.fullmatch(length.strip().lower())
    hours = float(found[1]) * _HOURS[found[2]] if found else 0.0
    if not 0 < hours < 24 * 366 * 10:
        raise BadInputError(f"--window: {length!r} is no length of time; write 7d, 12h or 30min")
    return hours


def _aware(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _last_multiple(hours: float, moment: datetime) -> datetime:
    first = moment.replace(hour=0, minute=0, second=0, microsecond=0) if hours <= 24 else _MONDAY
    step = timedelta(hours=hours)
    return first + ((moment - first) // step) * step


def watch(platform: Platform, loaded: LoadedSpec, window: Window, version: str | None = None) -> Watched:
    """Fold the log, see who answered callers in the window, and choose the version that is judged.

    That is the champion at the window's end, as the ledger has it, so that looking again after a promotion judges the
    same version; where that one answered nobody, it is the version that answered most. With `version` it is that one.

    Raises:
        BadInputError: the model has no champion, and nobody answered in its name.
        ContenderError: the log cannot be read, or the version's documents are not what they must be.
    """
    log = platform.predictions(platform.endpoint(loaded.name))
    calls = endpoint_calls(platform, log, window) if log is not None else EndpointCalls()
    answered = {one.version: one.requests for one in calls.versions if not one.shadow}
    standing, problems = standing_champion(platform, loaded.name), []
    now = standing.version if isinstance(standing, ChampionRef) else None
    chosen = version or champion_at(platform, loaded.name, window.end) or now
    why = "which was judged before" if version else "which was champion when the window ended"
    if answered and chosen not in answered and not version:
        chosen = max(answered, key=lambda version: (answered[version], len(version), version))
        why = "which answered most in this window"
    if chosen is None or chosen == now:
        ref = require_champion(platform, loaded.name, standing)
    else:
        found = version_ref(platform, loaded.name, chosen)
        if isinstance(found, ChampionMissing):
            raise ContenderError(found.reason)
        ref = found
        problems.append(
            f"version {chosen} is judged, {why}; "
            + (f"version {now} is champion now" if now else "there is no champion now")
        )
    if not answered:
        problems.append(
            f"nobody asked {platform.endpoint(loaded.name)} between {window.start:%Y-%m-%d %H:%M:%S} and "
            f"{window.end:%Y-%m-%d %H:%M:%S} UTC; --since looks at what came later"
        )
    problems += [f"the prediction log is damaged: {where}" for where in (log.corrupt if log else ())]
    return Watched(
        model=loaded.name,
        ref=ref,
        spec=trained_spec(platform, ref),
        window=window,
        log=log,
        calls=calls,
        problems=tuple(problems),
    )


def champion_at(platform: Platform, model: str, moment: datetime) -> str | None:
    """The version that was champion at a moment, by the ledger; None before the first."""
    version = None
    for entry in ledger_of(platform).entries(model):
        if entry.event in {PROMOTED, RESTORED} and datetime.fromisoformat(entry.time) <= moment:
            version = str(entry.details["version"])
    return version
