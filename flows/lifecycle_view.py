"""What a person sees of a life: each fact as it becomes known, and at the end what came of it and where to read on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.padding import Padding
from rich.text import Text

from deployments.declared import Declared
from flows import console
from flows.lifecycle import told_to
from tasks.life import LifecycleOutcome, Month
from tasks.life_told import Told, drifted, quality_of, told
from tasks.verdict import Verdict

_SIGNS = {
    Verdict.PASS: ("✓", "green"),
    Verdict.FAIL: ("✕", "bold red"),
    Verdict.INCONCLUSIVE: ("?", "yellow"),
    None: ("·", "dim"),
}


@contextmanager
def shown() -> Iterator[None]:
    """Print the facts of lives while the block runs."""
    with told_to(_show):
        yield


def _show(number: int, fact: Declared) -> None:
    if isinstance(fact, Month):
        heading = f"Month {number} · {fact.begins:%B %Y} · {fact.title}"
        console.out.print(Text(f"\n{heading}", style="bold"))
        return
    for line in told(fact):
        _say(line)


def _say(line: Told) -> None:
    sign, style = _SIGNS[line.verdict]
    console.out.print(Padding(Text.assemble((f"{sign} ", style), line.text), (0, 0, 0, 2)))


def show_life(outcome: LifecycleOutcome, keep_up: bool) -> None:
    """The timeline of a life, what went otherwise than usual, and what to do next."""
    console.out.print("")
    console.out.print(_timeline(outcome), "")
    took = f"{outcome.seconds / 60:.1f} min" if outcome.seconds >= 100 else f"{outcome.seconds:.0f} s"
    console.out.print(
        f"{outcome.requests:,} requests over HTTP, {outcome.failed:,} failed; version {outcome.champion} serves. "
        + (
            "This life was lived before; --fresh lives it anew."
            if outcome.known
            else f"It took {took} from its beginning."
        )
    )
    for surprise in outcome.surprises:
        console.out.print(Text(f"Another way than usual: {surprise}", style="yellow"))
    python = f"{sys.executable} -m flows.run"
    env = f"--env {outcome.environment}"
    lines = [("Timeline", outcome.timeline)]
    lines += [("Dashboard", outcome.dashboard)] if outcome.dashboard else []
    lines += [("Evidence", outcome.evidence)] if outcome.evidence else []
    lines += [
        ("Releases", f"{python} history {env}"),
        ("For an auditor", f"{python} audit verify {env}; {python} audit export {env}"),
        (
            "Serve it",
            f"{python} up {env}" if not keep_up else f"{outcome.endpoint} (end it: {python} down {env})",
        ),
        ("Your own model", f"{python} spec init NAME --from FILE"),
    ]
    console.show_where(lines)


def _timeline(outcome: LifecycleOutcome) -> object:
    table = console.new_table(
        "Timeline", "month", "champion", "drift", "#quality", "release", "what happened"
    )
    for month in outcome.months:
        own = [one for one in month.monitored if one.month == month.number]
        columns = sorted({row.subject for one in own for row in drifted(one)})
        # The quality of a month is known later, so it stands where its labels came.
        quality = [quality_of(one) for one in month.monitored]
        measured = [row for row in quality if row is not None and row.value is not None]
        release = month.release
        ended = (
            f"v{release.release.challenger.version} {str(release.release.state).replace('_', ' ')}"
            if release
            else "–"
        )
        table.add_row(
            f"{month.begins:%b %Y}",
            f"v{month.champion}",
            Text(", ".join(columns) or ("none" if own else "–"), style="bold red" if columns else ""),
            f"{measured[-1].metric} {measured[-1].value:.3f}" if measured else "–",
            ended,
            month.title,
        )
    return table
