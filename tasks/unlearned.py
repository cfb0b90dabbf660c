"""What a version says of rows that it did not learn: kept by evaluation, which sees such rows, for monitoring.

A model is surer of rows that it has learned than of any that callers send, a forest much surer; what it says of those
is no measure of what it says to callers. The answers are a file of the version's run, and go with it wherever it goes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from deployments.measures import TaskKind
from deployments.spec import ModelSpec
from platforms.platform import Platform
from tasks.champion import ChampionRef
from tasks.metrics import Outputs
from tasks.tracking import Tracking

__all__ = ["FILE", "Unlearned", "keep_answers", "kept_answers", "said_column"]

FILE = "unlearned_answers.parquet"
_MOST_ROWS = 20_000
_SAID, _OF = "said", b"contender.rows"


@dataclass(frozen=True)
class Unlearned:
    """What a model says of rows that it did not learn, as live rows have it; drawn from `rows` of them."""

    said: pd.Series
    rows: int


def said_column(said: Outputs, spec: ModelSpec) -> np.ndarray:
    """What is compared of predictions: the probability of the positive class, the class as text, or the number."""
    if spec.target.kind is TaskKind.MULTICLASS:
        return np.asarray([str(one) for one in said.predictions.tolist()], dtype=object)
    return said.score


def keep_answers(spec: ModelSpec, tracking: Tracking, run: str, said: Outputs) -> None:
    """Keep answers about rows that were not learned with a run; of more than 20,000 so many, spread evenly."""
    import pyarrow.parquet as pq

    column = said_column(said, spec)
    places = np.unique(np.linspace(0, len(column) - 1, min(len(column), _MOST_ROWS)).astype(int))
    table = pa.table({_SAID: column[places]}).replace_schema_metadata({_OF: str(len(column))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        pq.write_table(table, path)
        tracking.client.log_artifact(run, str(path))


def kept_answers(platform: Platform, ref: ChampionRef) -> Unlearned | None:
    """What was kept of a version; None where nothing was, as of versions that were evaluated before it was."""
    import pyarrow.parquet as pq
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Tracking(platform).client.download_artifacts(ref.run_id, FILE, folder)
        except (MlflowException, OSError):
            return None
        table = pq.read_table(file)
    return Unlearned(table.column(_SAID).to_pandas(), int(table.schema.metadata[_OF]))
