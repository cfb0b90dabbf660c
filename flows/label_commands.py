"""The commands of labels: what the answers to served requests should have been."""

from pathlib import Path
from typing import Annotated

import typer

from flows.options import EnvOption, JsonOption, ModelOption
from flows.session import session

labels_app = typer.Typer(
    help="What the answers to served requests should have been, once it is known.", no_args_is_help=True
)


@labels_app.command("add")
def labels_add(
    file: Annotated[
        Path,
        typer.Argument(
            help="csv or Parquet with request_id, label, and row if there are several; or with the columns of "
            "the entity, as_of (or time), and label."
        ),
    ],
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    look_up: Annotated[
        bool,
        typer.Option("--look-up/--no-look-up", help="Count the labels of requests that nobody logged."),
    ] = True,
    within: Annotated[
        float,
        typer.Option(
            "--within",
            min=0,
            help="Hours before as_of in which the request of a label by entity was answered, at the longest.",
        ),
    ] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Add labels; one that comes again counts once, and one that is corrected counts as it was received last."""
    from flows import console
    from flows.prepare import prepare
    from tasks.labels import add_labels

    session.as_json |= as_json
    loaded, platform = prepare(model, env)
    with console.waiting("adding labels"):
        added = add_labels(platform, loaded, file, look_up=look_up, within_hours=within)
    if session.as_json:
        typer.echo(added.model_dump_json())
        return
    said = (
        f"{added.rows:,} labels: {added.new:,} new, {added.corrected:,} corrected, {added.unchanged:,} known"
    )
    said += f", {added.repeated:,} repeated in the file" if added.repeated else ""
    console.out.print(f"{said}; {added.snapshot.rows:,} labels of {loaded.name} by now", soft_wrap=True)
    if added.unknown:
        console.out.print(f"Requests of these that no prediction log has: {added.unknown:,}", style="yellow")
    if added.unmatched:
        console.out.print(
            f"Labels of entities that nobody was told of within {within:g} hours before: {added.unmatched:,}; they are "
            "not kept, and the file may be added again",
            style="yellow",
            soft_wrap=True,
        )
