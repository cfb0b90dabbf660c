"""What the line is doing right now, for whoever watches; without a watcher it costs nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A step under way: what it is, and how far (`done` of `total` units; total is None where it is unknown)."""

    name: str
    done: int = 0
    total: int | None = None
    finished: bool = False


_watchers: list[Callable[[Stage], None]] = []


@contextmanager
def watched_by(watcher: Callable[[Stage], None]) -> Iterator[None]:
    """Tell `watcher` of every stage while the block runs."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell(stage: Stage) -> None:
    """Tell whoever watches."""
    for watcher in _watchers:
        watcher(stage)


@contextmanager
def stage(name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Announce a stage; the block gets a function to call with the units done since the last call."""
    done = 0

    def advance(units: int) -> None:
        nonlocal done
        done += units
        tell(Stage(name, done, total))

    tell(Stage(name, 0, total))
    yield advance
    tell(Stage(name, done, total, finished=True))
