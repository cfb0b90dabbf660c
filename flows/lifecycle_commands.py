"""The command of the embedded shop's life, which is also what runs when no command is given."""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.errors import ContenderError
from flows.options import EnvOption, JsonOption, ModelOption
from flows.session import session

if TYPE_CHECKING:
    from tasks.life import LifecycleOutcome

lifecycle_app = typer.Typer()

FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Live anew: remove all of the demo's data root first.")
]
KeepUpOption = Annotated[
    bool, typer.Option("--keep-up", help="Leave the data plane up in the end, to be asked and looked at.")
]


class OtherwiseError(ContenderError):
    """A life that went another way than its story does."""

    exit_code = 3


@lifecycle_app.command()
def lifecycle(
    model: ModelOption = "churn",
    env: EnvOption = "demo",
    fresh: FreshOption = False,
    keep_up: KeepUpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Live four months of the embedded shop: champion, late labels, drift, retraining, and a bad challenger caught."""
    session.as_json |= as_json
    live(model, env, fresh=fresh, keep_up=keep_up)


def live(model: str = "churn", env: str = "demo", *, fresh: bool = False, keep_up: bool = False) -> None:
    """Live it, or show it again, as the options say."""
    outcome = _lived(model, env, fresh=fresh, keep_up=keep_up)
    if session.as_json:
        typer.echo(outcome.model_dump_json())
    else:
        from flows.lifecycle_view import show_life

        show_life(outcome, keep_up)
    if outcome.surprises:
        raise OtherwiseError(f"the life of {outcome.model} went another way than usual; see above")


def _lived(model: str, env: str, *, fresh: bool, keep_up: bool) -> "LifecycleOutcome":
    from flows import console, prepare
    from flows.server import served

    if fresh:
        from flows.lifecycle import begin_afresh

        begin_afresh(model, env)
    with ExitStack() as stack:
        stack.enter_context(_ended_in_order())
        if not session.as_json:
            from flows.lifecycle_view import shown

            stack.enter_context(shown())
        from flows.lifecycle import lived_before

        # No server is needed for what is only to be shown.
        standing = lived_before(model, env)
        if standing is not None:
            return standing
        if not session.verbose:
            stack.enter_context(console.stages_shown())
        stack.enter_context(served(partial(prepare.opened, model, env)))
        from flows.lifecycle import lifecycle as lifecycle_flow

        return lifecycle_flow(model, env, keep_up)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Within it a polite end (SIGTERM) is like Ctrl-C: the data plane is ended before this process is."""

    def ended(*_: object) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
