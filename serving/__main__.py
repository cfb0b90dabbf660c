"""The data plane, for programs: `python -m serving` with up, down, status, shift or callers.

Each prints one JSON line. Exit codes are the command line's own: 0, 1 for what broke, 2 for bad input; errors are a
sentence on standard error.
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from deployments.errors import BadInputError, ContenderError
from serving import control
from serving.folders import Folders

USAGE = (
    "usage: python -m serving up FILE | down ROOT | status ROOT | shift ROOT ENDPOINT ENTITY [FALLBACK UNTIL] | "
    "callers ROOT [add NAME [EXPIRES] | revoke NAME [KEY]]"
)


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
            return control.up(json.loads(Path(file).read_bytes()))
        case ["down", root]:
            return control.down(Path(root))
        case ["status", root]:
            return control.status(Path(root))
        case ["shift", root, endpoint, entity]:
            return control.shift(Path(root), endpoint, entity)
        case ["shift", root, endpoint, entity, fallback, until]:
            lease = {"expires_at": until, "fallback": fallback}
            return control.shift(Path(root), endpoint, entity, lease)
        case ["callers", root, *rest]:
            return _callers(Folders(Path(root)).keys, rest)
        case _:
            raise BadInputError(USAGE)


def _callers(path: Path, arguments: list[str]) -> Any:
    from serving import keys

    match arguments:
        case []:
            return [_shown(key) for key in keys.listed(path)]
        case ["add", caller, *until]:
            expires = datetime.fromisoformat(until[0]) if until else None
            return keys.new_key(path, caller, expires)
        case ["revoke", caller, *name]:
            ended = keys.revoke(path, caller, name[0] if name else None)
            return [_shown(key) for key in ended]
        case _:
            raise BadInputError(USAGE)


def _shown(key: Any) -> dict[str, Any]:
    return {"key": key.name, **key.model_dump(mode="json", exclude={"digest"})}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
