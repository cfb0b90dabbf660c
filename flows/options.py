"""Options that several commands take."""

from datetime import datetime
from typing import Annotated

import typer

MOMENTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"]
"""How a moment may be written, as Python's `strptime` has it."""

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A shipped model, or the path of a model.yaml.")
]
EnvOption = Annotated[
    str, typer.Option("--env", "-e", help="The environment: dev, test, prod, or a YAML file.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else.")
]
WindowOption = Annotated[
    str | None, typer.Option("--window", help="Another length than the spec's: 7d, 12h or 30min.")
]
SinceOption = Annotated[
    datetime | None,
    typer.Option("--since", help="The window's first moment (UTC); it ends now.", formats=MOMENTS),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", help="The first moment after the window (UTC).", formats=MOMENTS),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it stands in the ledger.")]
ReleaseOption = Annotated[
    bool,
    typer.Option("--release/--no-release", help="Release what the gates propose, or only propose it."),
]
