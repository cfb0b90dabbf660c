"""Prediction logs made up for tests, folded in this process and opened as a platform opens them."""

from datetime import UTC, datetime, timedelta

from deployments.environment import PredictionLogConfig
from platforms.platform import Predictions
from platforms.predictions import _in_lasting_order
from platforms.tables import open_delta
from serving.fold import PredictionTable, fold
from serving.folders import Folders
from serving.prediction_log import PredictionLog
from tasks.monitoring_record import Window
from tests.serving.test_fold import record, served_model

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = Window(start=NOON - timedelta(hours=12), end=NOON + timedelta(hours=12))


def nanoseconds(minute):
    """When a minute after noon is, as records have it."""
    return int((NOON + timedelta(minutes=minute)).timestamp() * 1e9)


def at(minute, request, **changes):
    """A record of a request that came some minutes after noon."""
    return record(request, time_ns=nanoseconds(minute), **changes)


def write_log(platform, model, records, columns=None, version="3", **served):
    """Append records to the log of a model's endpoint, by one version."""
    endpoint = platform.endpoint(model)
    log = PredictionLog(
        Folders(platform.root).log(endpoint),
        served_model(columns or {"visits": "long"}, version, **served),
        endpoint=endpoint,
        entity=f"v{version}",
        worker=0,
        config=PredictionLogConfig(),
        pii_key=platform.pii_key(),
    )
    for one in records:
        log.append(one)
    log.close()


def predictions(platform, model):
    """What `platform.predictions` gives, without a process of its own."""
    endpoint = platform.endpoint(model)
    done = fold(platform.root, endpoint)
    if done.table_version is None:
        return None
    path = Folders(platform.root).predictions(endpoint)
    lost = tuple((datetime.fromtimestamp(s, UTC), n) for s, n in PredictionTable(path).lost())
    dataset = _in_lasting_order(open_delta(str(path), done.table_version))
    return Predictions(dataset, done.rows, done.requests, done.corrupt, lost)
