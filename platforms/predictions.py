"""The prediction log of one machine, as seen from outside: `python -m serving.fold`, and the table it leaves."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.dataset as ds

from deployments.errors import BadInputError, ContenderError
from platforms.platform import Predictions
from platforms.tables import open_delta


def folded(root: Path, endpoint: str) -> Predictions | None:
    """Fold what an endpoint has logged into its table, and open that; None where nothing was ever logged.

    Raises:
        ContenderError: it could not be folded; what was not is folded the next time.
    """
    command = [sys.executable, "-m", "serving.fold", "--root", str(root), "--endpoint", endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}, and said nothing"]
        bad_input = done.returncode == BadInputError.exit_code
        raise (BadInputError if bad_input else ContenderError)(
            f"the prediction log of {endpoint} was not folded: {said[-1]}"
        )
    said_of = json.loads(done.stdout)
    if said_of["table_version"] is None:
        return None
    return Predictions(
        dataset=_in_lasting_order(open_delta(said_of["table"], said_of["table_version"])),
        new_rows=said_of["rows"],
        new_requests=said_of["requests"],
        corrupt=tuple(said_of["corrupt"]),
        lost=_at(said_of["lost_at"]),
        unanswered=_at(said_of["unanswered_at"]),
    )


def _at(counts: list[tuple[int, int]]) -> tuple[tuple[datetime, int], ...]:
    return tuple((datetime.fromtimestamp(second, UTC), count) for second, count in counts)


def _in_lasting_order(rows: ds.FileSystemDataset) -> ds.Dataset:
    """The same files by name: what a later fold adds does not move the rows that were there."""
    files = sorted(rows.get_fragments(), key=lambda fragment: str(fragment.path))
    return ds.FileSystemDataset(files, rows.schema, rows.format, rows.filesystem)
