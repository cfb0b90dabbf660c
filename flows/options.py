"""Options that several commands take."""

from typing import Annotated

import typer

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A shipped model, or the path of a model.yaml.")
]
EnvOption = Annotated[
    str, typer.Option("--env", "-e", help="The environment: dev, test, prod, or a YAML file.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else.")
]
