"""The online feature store of one machine, as seen from outside: `python -m serving.online`."""

import subprocess
import sys
from pathlib import Path

from deployments.errors import BadInputError, ContenderError
from deployments.online_features import OnlineFeatureSet, PublishedFeatures
from platforms.snapshot import Snapshot


def publish_online(
    root: Path, endpoint: str, snapshot: Snapshot, features: OnlineFeatureSet
) -> PublishedFeatures:
    """Publish a snapshot's features under one data root.

    Raises:
        BadInputError: a column is missing or not of its kind, or a key stands twice.
        ContenderError: it could not be done, or somebody else is at it.
    """
    place = ["--root", str(root), "--endpoint", endpoint]
    table = ["--table", snapshot.uri, "--version", str(snapshot.version)]
    done = subprocess.run(
        [sys.executable, "-m", "serving.online", "publish", *place, *table],
        input=features.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}, and said nothing"]
        bad_input = done.returncode == BadInputError.exit_code
        raise (BadInputError if bad_input else ContenderError)(
            f"the features of {endpoint} were not published: {said[-1]}"
        )
    return PublishedFeatures.model_validate_json(done.stdout)
