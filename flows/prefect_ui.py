"""The UI of the Prefect server that we keep: served from a folder of its own, with nothing asked of anybody outside.

Prefect copies its UI into that folder when a server starts. The installed package may then be read-only.
"""

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["quieten", "ui_settings"]

_KEY = re.compile(r"return`[0-9a-f]{32}`(?=\}function \w+\(\)\{let \w+=\w+\(\);return \w+\?)")


def ui_settings(prefect_home: Path) -> Mapping[str, str]:
    """Settings of a server with our UI: no advertisements, and files that are not the package's."""
    return {
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_UI_STATIC_DIRECTORY": str(prefect_home / "ui"),
    }


def quieten(prefect_home: Path) -> int:
    """Take the key of its analytics service out of the UI's copy; how many files had one.

    The UI asks that service for its settings on every page, also where the server is told to keep no analytics.
    Without a key it does not begin to.
    """
    changed = 0
    for file in sorted((prefect_home / "ui").glob("*/assets/index*.js")):
        text = file.read_text(encoding="utf-8")
        quiet = _KEY.sub("return``", text)
        if quiet != text:
            staged = file.with_suffix(".partial")
            staged.write_text(quiet, encoding="utf-8")
            staged.replace(file)
            changed += 1
    return changed
