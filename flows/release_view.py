"""What a person sees of a release while it runs, and what Ctrl-C asks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from flows import console
from tasks.decide import Action, Wait, stages
from tasks.release_control import Controller
from tasks.release_record import Look, Release, State

if TYPE_CHECKING:
    from flows.release import ReleaseOutcome

_CHOICES = {
    "h": ("hold", "hold it: the shares stay as they are until somebody goes on"),
    "g": ("resume", "go on"),
    "r": ("roll_back", "roll back: the champion gets all traffic, now"),
    "l": ("leave", "leave it to the lease: the champion gets all traffic once that ends"),
}


class View:
    """Shows every look; on a terminal in place, elsewhere a line for each state."""

    def __init__(self, live: Live | None) -> None:
        self._live = live
        self._control: Controller | None = None
        self._said = 0
        self._waiting = ""
        self._lock = Lock()
        self._asking = False

    def __call__(self, control: Controller, action: Action) -> None:
        """One look, and what was decided on it."""
        with self._lock:
            self._control = control
            if self._live is not None and not self._asking:
                self._live.update(_page(control.release, control.look, action), refresh=True)
            if self._live is None:
                self._say(control.release, action)

    def _say(self, release: Release, action: Action) -> None:
        for done in release.history[self._said :]:
            share = f" {done.percentage} %" if done.percentage else ""
            console.err.print(f"  {done.state}{share}: {done.reason}", markup=False, soft_wrap=True)
        self._said = len(release.history)
        quiet = release.state in {State.PROPOSED, State.APPROVED} and isinstance(action, Wait)
        if quiet and action.reason != self._waiting:
            self._waiting = action.reason
            console.err.print(f"  waits: {action.reason}", markup=False, soft_wrap=True)

    def ask(self, leave: Callable[[], None]) -> None:
        """What to do now, of a person at the terminal; the release goes on, and its lease is renewed, meanwhile."""
        with self._lock:
            if self._asking:
                return
            control, self._asking = self._control, True
            if self._live is not None:
                self._live.stop()
        choices = "\n".join(f"  {key}  {meaning}" for key, (_, meaning) in _CHOICES.items())
        console.err.print(f"\nThe release goes on until you choose:\n{choices}", markup=False)
        chosen = ""
        while chosen not in _CHOICES:
            try:
                chosen = input("> ").strip().lower()[:1]
            except EOFError:
                # The terminal is gone, and with it whoever could answer.
                chosen = "l"
        wish = _CHOICES[chosen][0]
        if wish == "leave" or control is None:
            leave()
        elif wish == "resume" and not control.release.held:
            # It goes on anyhow; as a wish it would lift the next hold, too.
            control.wish = None
        elif wish in {"hold", "resume", "roll_back"}:
            control.wish = wish  # type: ignore[assignment]
        with self._lock:
            self._asking = False
            if self._live is not None:
                self._live.start()


@contextmanager
def shown() -> Iterator[View]:
    """Show releases while the block runs."""
    if not console.err.is_terminal:
        yield View(None)
        return
    with Live(console=console.err, transient=True, auto_refresh=False) as live:
        yield View(live)


def show_outcome(outcome: "ReleaseOutcome") -> None:
    """How a release ended: the way it took, the last readings, and where to read on."""
    release = outcome.release
    console.out.print(Text(_heading(release), style="bold"), "")
    console.out.print(_timeline(release), "")
    if outcome.look is not None:
        console.out.print(_readings(outcome.look), "")
    lines = [("Report", outcome.report)] if outcome.report else []
    console.show_where(lines)
    for problem in outcome.problems:
        console.show_error(problem)


def _heading(release: Release) -> str:
    before = f"version {release.champion.version}" if release.champion else "nothing"
    after = f"{release.challenger.name}: version {release.challenger.version}"
    return f"{after} instead of {before}, in {release.environment}"


def _page(release: Release, look: Look | None, action: Action) -> RenderableType:
    now = datetime.now(UTC)
    state = f"{release.state}".replace("_", " ")
    stage = next(
        (one for one in stages(release.plan) if (one.state, one.step) == (release.state, release.step)), None
    )
    share = f" · {stage.percentage} %" if stage else ""
    lines = [
        Text(_heading(release), style="bold"),
        Text(f"{state}{share} · since {_span(now, release.entered)}"),
    ]
    if release.held:
        lines.append(Text(f"held: {release.held}", style="yellow"))
    elif isinstance(action, Wait):
        left = f" · at most {_span(action.until, now)} more" if action.until else ""
        lines.append(Text(f"waits: {action.reason}{left}", style="dim"))
    parts: list[RenderableType] = [Group(*lines), "", _way(release)]
    if look is not None:
        parts += ["", _readings(look)]
    return Group(*parts)


def _way(release: Release) -> Text:
    """The plan's stages in one line, with where the release is."""
    names = [("approve", State.PROPOSED, 0), ("start", State.APPROVED, 0)]
    names += [
        (
            f"shadow {one.percentage} %" if one.state is State.SHADOW else f"{one.percentage} %",
            one.state,
            one.step,
        )
        for one in stages(release.plan)
    ]
    names.append(("champion", State.PROMOTED, release.step))
    place = next(
        (n for n, (_, state, step) in enumerate(names) if (state, step) == (release.state, release.step)), -1
    )
    way = Text()
    for number, (name, _, _) in enumerate(names):
        style = "green" if number < place else "bold cyan" if number == place else "dim"
        way.append(name, style=style)
        way.append(" → " if number < len(names) - 1 else "", style="dim")
    return way


def _timeline(release: Release) -> RenderableType:
    table = console.new_table("The way", "state", "#share", "#seconds", "at (UTC)", "why")
    for done in release.history:
        effective = done.effective or done.at
        table.add_row(
            str(done.state).replace("_", " "),
            f"{done.percentage} %" if done.percentage else "",
            f"{(effective - done.observed).total_seconds():.2f}",
            f"{effective:%H:%M:%S}",
            done.reason,
        )
    return table


def _readings(look: Look) -> RenderableType:
    ours, theirs = look.requests["challenger"], look.requests["champion"]
    table = console.new_table(
        f"{ours:,} requests to the challenger, {theirs:,} to the champion",
        "test",
        "#estimate",
        "#low",
        "#high",
        "verdict",
        "why",
    )
    for reading in look.readings:
        table.add_row(
            reading.test.replace("_", " "),
            f"{reading.estimate:+.4g}",
            f"{reading.low:+.4g}",
            f"{reading.high:+.4g}",
            console.coloured(reading.verdict),
            reading.reason,
        )
    return table


def _span(later: datetime, earlier: datetime) -> str:
    seconds = max(0, int((later - earlier).total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )
