"""Settings of the libraries underneath, made before they are imported: quiet, local, and no telemetry."""

import logging
import os
import warnings
from pathlib import Path

from deployments.environment import home
from deployments.errors import BadInputError


def settle(verbose: bool = False) -> None:
    """Set what is not set yet, beside what `flows` itself sets; what the user's environment says stays.

    Prefect's database is kept in a folder of this project's own, since another version's cannot be read.

    Raises:
        BadInputError: that folder cannot be made.
    """
    chosen = {
        "MLFLOW_LOGGING_LEVEL": "DEBUG" if verbose else "ERROR",
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if verbose else "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    for name, value in chosen.items():
        os.environ.setdefault(name, value)
    folder = Path(os.environ["PREFECT_HOME"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"{folder}: this folder cannot be made: {error.strerror}; CONTENDER_HOME names another for all data"
        ) from None
    if not verbose:
        warnings.filterwarnings("ignore", module=r"(mlflow|sklearn|skops)\..*")
        for name in ("mlflow", "alembic", "prefect"):
            logging.getLogger(name).setLevel(logging.ERROR)
