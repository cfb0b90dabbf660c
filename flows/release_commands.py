"""The commands of releases: release, rollback and the rollback drill."""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import EnvOption, JsonOption, ModelOption
from flows.serving_commands import platform_of
from flows.session import session

if TYPE_CHECKING:
    from tasks.decide import Action
    from tasks.release_control import Controller

release_app = typer.Typer()
drill_app = typer.Typer(help="Show that what is needed in an emergency works.", no_args_is_help=True)
release_app.add_typer(drill_app, name="drill")


@release_app.command()
def release(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    version: Annotated[
        str | None, typer.Option("--version", help="A version; the challenger by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take the challenger through its release plan on real traffic; Ctrl-C asks what to do."""
    session.as_json |= as_json
    from flows import prepare, release_view
    from flows import release as releases
    from flows.server import served

    with served(partial(prepare.opened, model, env)):
        shown = nullcontext() if session.as_json else release_view.shown()
        with shown as view, _asked(view), releases.viewed_by(view or _nothing):
            outcome = releases.release(model, env, version)
    if session.as_json:
        print(outcome.model_dump_json())
    else:
        release_view.show_outcome(outcome)


@release_app.command("release-sizes")
def release_sizes(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    errors: Annotated[
        float, typer.Option("--errors", min=0, max=1, help="The champion's error rate: 0.01 is 1 %.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """How many requests each step of the release plan needs, by the plan's effect on the error rate."""
    session.as_json |= as_json
    from deployments.environment import load_environment
    from deployments.errors import BadInputError
    from deployments.spec import load_spec
    from flows import console
    from tasks.release_sizes import POWER, step_sizes

    plan = load_spec(model).spec.release.plan_for(load_environment(env).name)
    try:
        sizes = step_sizes(plan, errors)
    except ValueError as error:
        raise BadInputError(str(error)) from None
    if session.as_json:
        print(json.dumps([one.model_dump(mode="json") for one in sizes]))
        return
    for one in sizes:
        console.out.print(
            f"{one.state} at {one.percentage} %: {one.minimum:,} requests of the challenger at least; "
            f"{_number(one.to_fail)} show the plan's effect on errors (power {POWER:g}), "
            f"{_number(one.to_pass)} exclude it where nothing fails",
            soft_wrap=True,
        )


def _number(found: int | None) -> str:
    return "no number" if found is None else f"{found:,}"


def _nothing(control: "Controller", action: "Action") -> None:
    """Nobody watches."""


@contextmanager
def _asked(view: Any) -> Iterator[None]:
    """Within it Ctrl-C asks a person, while the release goes on and its lease is renewed."""
    from flows import release as releases

    def interrupted(*_: object) -> None:
        if view is None or not sys.stdin.isatty():
            releases.leave()
        else:
            threading.Thread(target=view.ask, args=(releases.leave,), daemon=True).start()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@release_app.command()
def rollback(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the ledger.")] = "",
    to: Annotated[
        str | None, typer.Option("--to", help="A version that was champion; the one before by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give an earlier champion all traffic at once, and make it champion again; needs no approval."""
    from deployments.spec import load_spec
    from tasks.rollback import roll_back

    session.as_json |= as_json
    # Not as a flow: nothing may stand between a person and the way back, not even a server that starts.
    platform = platform_of(env)
    outcome = roll_back(platform, load_spec(model), reason=reason, to=to)
    from flows import console

    if session.as_json:
        print(outcome.model_dump_json(), flush=True)
    else:
        took = "the data plane is down" if outcome.seconds is None else f"after {outcome.seconds:.2f} s"
        back = (
            f"version {outcome.version} has all traffic again ({took}), instead of version {outcome.left}"
            if outcome.version
            else f"version {outcome.left} is withdrawn, and nothing is served: there was no champion before it"
        )
        console.out.print(
            f"{outcome.endpoint}: {back}; the registry and the ledger say so", soft_wrap=True, markup=False
        )
    from flows.rollback import tell_if_heard, write_down

    for problem in write_down(platform, outcome):
        console.show_error(problem)
    tell_if_heard(platform, outcome)


@drill_app.command("rollback")
def drill_rollback(model: ModelOption = "churn", env: EnvOption = "dev", as_json: JsonOption = False) -> None:
    """Roll back on the live endpoint and forth again under requests; the time to restore goes into the ledger."""
    from deployments.spec import load_spec
    from flows import console
    from tasks import drill

    session.as_json |= as_json
    with console.waiting("rolling back, and forth again"):
        outcome = drill.drill_rollback(platform_of(env), load_spec(model).name)
    if session.as_json:
        print(json.dumps(outcome.model_dump(mode="json")))
        return
    console.out.print(
        f"{outcome.endpoint}: version {outcome.previous} had all traffic after {outcome.seconds_to_previous:.3f} s, "
        f"and version {outcome.champion} again after {outcome.seconds_to_champion:.3f} s; {outcome.requests:,} "
        "requests meanwhile, none failed",
        soft_wrap=True,
    )
