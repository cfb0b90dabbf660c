import json
import shutil
import signal
from pathlib import Path

import pytest

from deployments.environment import load_environment
from flows.deliver import DeliveryOutcome
from platforms import platform_for
from tasks.evidence import bundles, verify_bundle
from tasks.register import ledger_of
from tasks.tracking import Tracking

pytestmark = pytest.mark.slow

KILLER = Path(__file__).with_name("kill_after.py")
TASKS = (
    "ingest",
    "validate",
    "contract",
    "split",
    "open run",
    "candidate",
    "candidate:2",
    "train",
    "evaluate",
    "gate",
    "register",
    "report",
    "promote",
    "score everyone",
)
"""Every task of a whole run of a model with one table, in order."""


def test_a_run_killed_after_every_task_in_turn_ends_like_one_that_was_not(
    command_line, promoted_once, home, tmp_path
):
    model = shutil.copytree(promoted_once / "binary_model", tmp_path / "binary_model") / "model.yaml"

    done = command_line(",".join(TASKS), "run", "--model", model, "--json", program=(KILLER,))

    assert done.returncode == 0, done.stderr
    *last, ended = done.stdout.strip().splitlines()
    killed = dict(zip((*TASKS, "nothing"), json.loads(ended), strict=True))
    assert killed == dict.fromkeys(TASKS, -signal.SIGKILL) | {"nothing": 0}, done.stderr
    found = DeliveryOutcome.model_validate_json(last[-1])
    expected = DeliveryOutcome.model_validate_json((promoted_once / "outcome.json").read_bytes())
    assert found.trained.trained.digest == expected.trained.trained.digest
    assert found.trained.evaluation.metrics == expected.trained.evaluation.metrics
    assert found.trained.gold.digest == expected.trained.gold.digest
    assert found.champion.version == expected.champion.version == "1"
    assert found.scored.mean_score == expected.scored.mean_score
    _assert_nothing_is_doubled(home)


def _assert_nothing_is_doubled(home):
    environment = load_environment("dev")
    platform = platform_for(environment)
    client = Tracking(platform).client
    name = platform.registered_model("binary_model")
    experiment = client.get_experiment_by_name(platform.experiment("binary_model"))
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags.get("contender.candidate", "parent") for run in runs) == [
        "linear",
        "parent",
        "tree",
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [str(version.version) for version in client.search_model_versions(f"name = '{name}'")] == ["1"]
    aliases = dict(client.get_registered_model(name).aliases)
    assert {alias: str(number) for alias, number in aliases.items()} == {"champion": "1"}
    for layer in ("bronze", "silver"):
        snapshot = platform.tables.latest(platform.table(layer, "binary_model", "rows"))
        assert snapshot.version == 0
    ledger = ledger_of(platform)
    assert ledger.verify().ok
    assert [entry.event for entry in ledger.entries()] == [
        "model.registered",
        "evidence.written",
        "environment.first_used",
        "promotion.started",
        "model.promoted",
    ]
    assert [verify_bundle(platform, folder) for folder in bundles(platform)] == [()]
