"""`python -m serving up FILE | down ROOT | status ROOT`: the data plane, for programs; each prints one JSON line.

Exit codes are the command line's own: 0, 1 for what broke, 2 for bad input; errors are a sentence on standard error.
"""

import json
import sys
from pathlib import Path
from typing import Any

from deployments.errors import BadInputError, ContenderError
from serving import control
from serving.supervisor import Instructions


def main(arguments: list[str]) -> int:
    """Do what is asked."""
    try:
        print(json.dumps(_answer(arguments)))  # noqa: T201 - its answer is its standard output
    except ContenderError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _answer(arguments: list[str]) -> Any:
    match arguments:
        case ["up", file]:
            return control.up(Instructions.model_validate_json(Path(file).read_bytes()))
        case ["down", root]:
            return control.down(Path(root))
        case ["status", root]:
            return control.status(Path(root))
        case _:
            raise BadInputError("usage: python -m serving up FILE | down ROOT | status ROOT")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
