"""Fetching versions: those that training registered, and those that somebody else did."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from deployments.environment import Environment, LocalPlatformConfig, Serving
from deployments.errors import ContenderError
from deployments.model_file import UntrustedModelError, file_digest
from platforms.local import LocalPlatform
from serving import fetch as fetching
from serving.engine import example_columns, load_engine
from serving.fetch import NotServableError, RegistryError, fetch, signature_columns
from serving.served_model import read_served, write_served

ROOT = Path(__file__).parents[2]

SPEC = """
    name: loans
    governance: {owner: tests, purpose: To be tested.}
    target: {kind: binary, column: repaid, positive: "yes"}
    sources:
      loans: {kind: csv, path: loans.csv}
    contract:
      loans:
        columns:
          loan: {type: integer}
          name: {type: string, pii: drop}
          iban: {type: string, pii: hash}
          amount: {type: number}
          income: {type: number, nullable: true}
          children: {type: integer}
          purpose: {type: string, nullable: true}
          secured: {type: boolean}
          since: {type: timestamp, nullable: true}
          repaid: {type: string}
    features:
      entity: [loan]
      numeric: [amount, income, children]
      categorical: [purpose]
      boolean: [secured]
      dates: [since]
    split: {kind: random, holdout: 0.3, validation: 0.2, min_rows: 30}
    training:
      metric: roc_auc
      folds: 2
      candidates:
        - {name: boosting, estimator: sklearn.ensemble.HistGradientBoostingClassifier, params: {max_iter: 10}}
    evaluation: {metrics: [roc_auc], bootstrap: 200}
    gates:
      - {kind: metric, metric: roc_auc, min: 0.5}
"""


def loans(rows=400):
    import pyarrow as pa

    draw = np.random.default_rng(0)
    amount, income = draw.normal(100, 20, rows), draw.normal(50, 9, rows)
    days = np.datetime64("2001-01-01", "us") + draw.integers(0, 9000, rows).astype("timedelta64[D]")
    return pa.table(
        {
            "loan": np.arange(rows),
            "iban": [f"hashed {place}" for place in range(rows)],
            "amount": amount,
            "income": pa.array(income, mask=draw.random(rows) < 0.05),
            "children": draw.integers(0, 4, rows),
            "purpose": pa.array(draw.choice(["car", "house"], rows), mask=draw.random(rows) < 0.05),
            "secured": draw.random(rows) < 0.5,
            "since": pa.array(days, mask=draw.random(rows) < 0.05).cast(pa.timestamp("us", "UTC")),
            "repaid": np.where(income - amount / 2 + draw.normal(0, 4, rows) > 0, "yes", "no"),
        }
    )


@dataclass(frozen=True)
class Registry:
    """A registry with one version made by Contender, and how to fetch from it."""

    platform: Any
    name: str
    version: str
    trained: Any

    def fetch(self, folder, **changed):
        addresses = self.platform.mlflow
        asked = {
            "tracking_uri": addresses.tracking_uri,
            "registry_uri": addresses.registry_uri,
            "folder": folder,
            "serving": Serving(),
            "allowed_packages": ("sklearn",),
        }
        name, version = changed.pop("name", self.name), changed.pop("version", self.version)
        return fetch(name, version, **(asked | changed))

    @property
    def client(self):
        from tasks.tracking import Tracking

        return Tracking(self.platform).client


@pytest.fixture(scope="session")
def registry(tmp_path_factory, mlflow_template):
    from threadpoolctl import threadpool_limits

    from deployments.spec import load_spec
    from tasks.champion import NoChampionYet
    from tasks.evaluate import evaluate_challenger
    from tasks.register import register_version
    from tasks.split import split_table
    from tasks.train import open_run, rank, train_candidate, train_winner

    root = tmp_path_factory.mktemp("registry")
    environment = Environment(
        name="dev", platform=LocalPlatformConfig(data_root="data"), allow_dirty_tree=True
    )
    (root / "data").mkdir()
    shutil.copy(mlflow_template, root / "data" / "mlflow.db")
    platform = LocalPlatform(environment, root / "data")
    (root / "model.yaml").write_text(dedent(SPEC), encoding="utf-8")
    loaded = load_spec(root / "model.yaml")
    gold = platform.tables.write(platform.table("gold", loaded.name, "features"), loans().to_reader())
    parts = split_table(loaded, platform, gold)
    with threadpool_limits(1):
        run = open_run(loaded, platform, gold, parts, datetime(2026, 1, 1, tzinfo=UTC))
        (candidate,) = loaded.spec.training.candidates
        board = rank(loaded, [train_candidate(loaded, platform, run, parts.development, candidate)])
        trained = train_winner(loaded, platform, run, parts.development, board)
        evaluate_challenger(loaded, platform, run, trained, parts.development, parts.holdout, NoChampionYet())
    version = register_version(loaded, platform, run, trained, {})
    return Registry(platform, version.name, version.version, trained)


@pytest.fixture(scope="session")
def fetched(registry, tmp_path_factory):
    """A fetched version, to be read only."""
    return registry.fetch(tmp_path_factory.mktemp("fetched") / "models")


@pytest.fixture
def standing(fetched, tmp_path):
    """A copy of the fetched version, to be spoiled."""
    copied = tmp_path / "models" / fetched.name
    shutil.copytree(fetched, copied)
    return copied


NOWHERE = {"tracking_uri": "http://127.0.0.1:1", "registry_uri": "http://127.0.0.1:1"}


def test_a_fetched_version_says_what_a_scorer_must_know(registry, fetched):
    served = read_served(fetched)

    assert fetched.name == f"loans-v{registry.version}-{registry.trained.digest[:16]}"
    assert (served.name, served.version, served.model) == ("loans", registry.version, "loans")
    assert served.model_digest == registry.trained.digest
    assert served.flavor == "skops"
    assert (served.target, served.positive, served.entity) == ("binary", "yes", ("loan",))
    assert (served.hashed, served.hidden) == (("iban",), ("name",))
    assert {column.name: (column.kind, column.required) for column in served.columns} == {
        "amount": ("double", True),
        "income": ("double", False),
        "children": ("long", True),
        "purpose": ("string", False),
        "secured": ("boolean", True),
        "since": ("datetime", False),
    }
    assert served.expected == tuple(registry.trained.expected)
    assert served.python == ""


def test_a_convertible_version_is_served_by_onnx_after_comparison_with_the_holdout_sample(fetched):
    import pyarrow.parquet as pq

    served = read_served(fetched)

    sample = pq.read_table(fetched / "holdout_sample.parquet")
    assert served.engine == "onnx"
    assert f"over {sample.num_rows + 5 + 1500:,} rows" in served.engine_reason
    assert "iban" not in sample.column_names
    assert "repaid" not in sample.column_names


def test_a_fetched_version_answers_its_example_with_the_recorded_numbers(registry, fetched):
    served = read_served(fetched)

    said = load_engine(fetched).predict(example_columns(served.example, served.columns), 5)

    assert said.scores == pytest.approx(registry.trained.expected, abs=1e-12)
    assert said.predictions.tolist() == registry.trained.expected_predictions


def test_a_fetched_version_is_found_with_no_registry_in_reach(registry, standing):
    found = registry.fetch(standing.parent, **NOWHERE)

    assert found == standing


def test_a_name_that_another_begins_with_is_not_mixed_up(registry, standing, tmp_path):
    standing.rename(standing.parent / f"loans-v{registry.version}-v3-{registry.trained.digest[:16]}")

    assert fetching.find("loans", registry.version, standing.parent) is None


def test_a_registry_that_is_out_of_reach_is_told(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(
        RegistryError, match="loans version 1 was not fetched before, and the registry at http"
    ):
        registry.fetch(tmp_path / "models", **NOWHERE)

    assert list((tmp_path / "models").iterdir()) == []


def test_a_version_that_is_not_there_is_told(registry, tmp_path):
    with pytest.raises(NotServableError, match="the registry has no loans version 99"):
        registry.fetch(tmp_path / "models", version="99")


@pytest.mark.parametrize("file", ["model/model.skops", "model.onnx"])
def test_a_standing_folder_whose_model_was_changed_is_refused(registry, standing, file):
    with (standing / file).open("ab") as handle:
        handle.write(b"!")

    with pytest.raises(UntrustedModelError, match="its digest is"):
        registry.fetch(standing.parent, **NOWHERE)


@pytest.mark.parametrize("file", ["model/model.skops", "model.onnx"])
def test_a_standing_folder_that_lacks_its_model_is_refused(registry, standing, file):
    (standing / file).unlink()

    with pytest.raises(UntrustedModelError):
        registry.fetch(standing.parent, **NOWHERE)


@pytest.mark.parametrize("file", ["model/model.skops", "model.onnx"])
def test_an_engine_does_not_load_a_changed_file(standing, file):
    served = read_served(standing)
    write_served(
        standing, served.model_copy(update={"engine": "onnx" if file == "model.onnx" else "sklearn"})
    )
    with (standing / file).open("ab") as handle:
        handle.write(b"!")

    with pytest.raises(UntrustedModelError, match="its digest is"):
        load_engine(standing)


def test_another_digest_in_the_registry_refuses_the_version(registry, tmp_path):
    client = registry.client
    version = client.create_model_version(
        registry.name,
        source=client.get_logged_model(registry.trained.model_id).artifact_location,
        run_id=registry.trained.run_id,
        tags={"contender.model_digest": "0" * 64},
    )

    with pytest.raises(UntrustedModelError, match="its tag says that its model file is 000000000000…"):
        registry.fetch(tmp_path / "models", version=str(version.version))

    assert list((tmp_path / "models").iterdir()) == []


def test_a_model_that_answers_otherwise_than_when_it_was_trained_is_refused(fetched, tmp_path):
    served = read_served(fetched)
    trained = fetching._Trained(digest=served.model_digest, expected=tuple(v + 1e-3 for v in served.expected))

    with pytest.raises(ContenderError, match="answers its recorded example with other numbers"):
        fetching._rehearse(fetched, served, trained)


def test_what_a_killed_fetch_left_is_swept_up(registry, standing):
    left = standing.parent / ".staged-abc"
    left.mkdir()
    (left / "half.bin").write_bytes(b"half")

    with fetching._staging(standing.parent):
        assert not left.exists()

    assert [path.name for path in standing.parent.iterdir()] == [standing.name]


def test_where_two_fetch_at_once_one_wins_and_both_succeed(registry, standing, monkeypatch):
    stands = standing.rename(standing.parent.parent / "won")
    describe = fetching._describe

    def overtaken(*given):
        shutil.copytree(stands, standing)
        return describe(*given)

    monkeypatch.setattr(fetching, "_describe", overtaken)

    assert registry.fetch(standing.parent) == standing
    assert [path.name for path in standing.parent.iterdir()] == [standing.name]


def test_switching_onnx_off_and_on_again_is_heeded_without_a_registry(registry, standing):
    off = read_served(registry.fetch(standing.parent, serving=Serving(onnx=False), **NOWHERE))
    on = read_served(registry.fetch(standing.parent, **NOWHERE))

    assert (off.engine, off.engine_reason) == ("sklearn", "ONNX is switched off in this environment")
    assert on.engine == "onnx"


def test_a_model_that_cannot_be_converted_is_served_by_scikit_learn_and_says_why(
    fetched, tmp_path, monkeypatch
):
    from serving import onnx_model

    monkeypatch.delitem(onnx_model._NUMERIC, "StandardScaler")

    chosen = fetching._converted(fetched, read_served(fetched))

    assert chosen.engine == "sklearn"
    assert (
        chosen.engine_reason == "it was not converted to ONNX: there is no ONNX form of StandardScaler here"
    )


def test_a_converted_model_that_answers_otherwise_is_not_served(standing, monkeypatch):
    from serving import onnx_model

    trees = onnx_model._trees
    monkeypatch.setattr(
        onnx_model, "_trees", lambda g, rows, some, constant: trees(g, rows, some, constant + 0.01)
    )

    chosen = fetching.choose_engine(standing, read_served(standing), Serving())

    assert chosen.engine == "sklearn"
    assert chosen.engine_reason.startswith("its ONNX form does not answer the same: over ")
    assert read_served(standing) == chosen


# Versions that somebody else registered ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def foreign(registry):
    """Versions that were registered past Contender, by name: a skops file, and a pickled one."""
    import mlflow.sklearn
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    inputs = pd.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 1.0]})
    model = LinearRegression().fit(inputs, [0.0, 1.0, 2.0])
    client, made = registry.client, {}
    for kind, signed in (("skops", True), ("cloudpickle", True), ("unsigned", False)):
        folder = registry.platform.root / f"foreign-{kind}"
        mlflow.sklearn.save_model(
            model,
            str(folder),
            serialization_format="skops" if kind == "unsigned" else kind,
            signature=infer_signature(inputs, [0.0]) if signed else None,
            pip_requirements=["scikit-learn"],
        )
        client.create_registered_model(kind)
        made[kind] = str(client.create_model_version(kind, source=str(folder)).version)
    return made


@pytest.mark.parametrize(("kind", "engine"), [("skops", "sklearn"), ("cloudpickle", "pyfunc")])
def test_a_foreign_version_is_served_where_other_flavours_are_allowed(
    registry, foreign, tmp_path, monkeypatch, kind, engine
):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")

    folder = registry.fetch(
        tmp_path / "models", name=kind, version=foreign[kind], serving=Serving(other_flavors=True)
    )

    loaded = load_engine(folder)
    said = loaded.predict({"a": np.array([3.0, 4.0]), "b": np.array([0.0, 1.0])}, 2)
    assert loaded.name == engine
    assert read_served(folder).target is None
    assert said.predictions == pytest.approx([3.0, 4.0])
    assert said.scores is None


@pytest.mark.parametrize("kind", ["skops", "cloudpickle"])
def test_a_foreign_version_is_refused_where_other_flavours_are_not_allowed(registry, foreign, tmp_path, kind):
    with pytest.raises(NotServableError, match=f"{kind} version 1 was not registered by Contender"):
        registry.fetch(tmp_path / "models", name=kind, version=foreign[kind])


def test_a_foreign_version_that_stands_is_refused_once_other_flavours_are_not_allowed(
    registry, foreign, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    asked = {"name": "cloudpickle", "version": foreign["cloudpickle"]}
    registry.fetch(tmp_path / "models", serving=Serving(other_flavors=True), **asked)

    with pytest.raises(NotServableError, match="loading any other MLflow flavour runs code that it brings"):
        registry.fetch(tmp_path / "models", **asked)


def test_a_version_without_a_signature_is_refused(registry, foreign, tmp_path):
    with pytest.raises(NotServableError, match="unsigned version 1 has no signature"):
        registry.fetch(tmp_path / "models", name="unsigned", version="1", serving=Serving(other_flavors=True))


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([{"type": "binary", "name": "picture", "required": True}], "'picture' is of type 'binary'"),
        ([{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}], "has no name"),
        ([{"type": "array", "items": {"type": "long"}, "name": "list"}], "'list' is of type 'array'"),
    ],
)
def test_an_input_that_is_no_plain_column_is_refused(inputs, problem):
    described = {"signature": {"inputs": json.dumps(inputs)}}

    with pytest.raises(NotServableError, match=problem):
        signature_columns(described, "pictures version 1")


# The command ------------------------------------------------------------------------------------------------


def arguments(registry, folder, given, **changed):
    addresses = registry.platform.mlflow
    asked = {
        "name": registry.name,
        "version": registry.version,
        "tracking-uri": addresses.tracking_uri,
        "registry-uri": addresses.registry_uri,
        "folder": str(folder),
        "settings": str(given),
        "allowed-packages": "sklearn",
    } | changed
    return [part for key, value in asked.items() for part in (f"--{key}", value)]


@pytest.mark.slow
def test_the_command_prints_one_line_of_json(registry, tmp_path):
    (tmp_path / "serving.json").write_text(Serving().model_dump_json())
    command = [sys.executable, "-m", "serving.fetch"]
    command += arguments(registry, tmp_path / "models", tmp_path / "serving.json")

    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert said["engine"] == "onnx"
    assert file_digest(Path(said["folder"]) / "model" / "model.skops") == registry.trained.digest


@pytest.mark.parametrize(
    ("changed", "code", "problem"),
    [
        ({"version": "99"}, 2, "the registry has no loans version 99"),
        ({"settings": "/nowhere/serving.json"}, 2, "the settings cannot be read"),
        ({"registry-uri": "http://127.0.0.1:1"}, 1, "cannot be asked"),
    ],
)
def test_the_command_says_in_a_sentence_what_is_wrong(registry, tmp_path, capsys, changed, code, problem):
    (tmp_path / "serving.json").write_text(Serving().model_dump_json())
    given = arguments(registry, tmp_path / "models", tmp_path / "serving.json", **changed)

    with patch.dict(os.environ, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"):
        returned = fetching.main(given)

    said = capsys.readouterr()
    assert returned == code
    assert said.out == ""
    assert problem in said.err
    assert len(said.err.strip().splitlines()) == 1


# A version with an environment of its own -------------------------------------------------------------------


@pytest.fixture
def pinned_elsewhere(registry, tmp_path):
    """The same model registered anew, its requirements asking for another version of a package."""
    client, trained = registry.client, registry.trained

    def register(requirement):
        folder = tmp_path / "pinned"
        shutil.copytree(
            client.get_logged_model(trained.model_id).artifact_location.removeprefix("file://"), folder
        )
        with (folder / "requirements.txt").open("a") as handle:
            handle.write(f"\n{requirement}\n")
        tags = {"contender.model_digest": trained.digest, "contender.model_id": trained.model_id}
        made = client.create_model_version(
            registry.name, source=str(folder), run_id=trained.run_id, tags=tags
        )
        return str(made.version)

    return register


def test_a_version_whose_environment_cannot_be_built_is_refused_by_name(
    registry, pinned_elsewhere, tmp_path, monkeypatch
):
    from serving import virtual_environment

    def nowhere(*_):
        raise virtual_environment.EnvironmentNotBuiltError("uv pip failed: there is no skops==0.0.1")

    monkeypatch.setattr(virtual_environment, "interpreter", nowhere)
    version = pinned_elsewhere("skops==0.0.1")

    with pytest.raises(
        ContenderError, match=rf"loans version {version} needs skops==0\.0\.1 \(here .*\), and an environ"
    ):
        registry.fetch(tmp_path / "models", version=version)

    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_a_version_with_other_pins_answers_in_an_environment_of_its_own(registry, pinned_elsewhere, tmp_path):
    from serving.virtual_environment import EnvironmentNotBuiltError

    version = pinned_elsewhere("orjson==3.11.0")

    try:
        folder = registry.fetch(tmp_path / "models", version=version)
    except EnvironmentNotBuiltError as error:
        pytest.skip(f"no package index is in reach: {error}")

    served = read_served(folder)
    assert served.engine == "sklearn"
    assert served.engine_reason.startswith("its environment differs from ours: orjson==3.11.0 (here ")
    assert Path(served.python).is_relative_to(tmp_path / "environments")
    assert fetching._asked_there(folder, served)[1] == pytest.approx(registry.trained.expected, abs=1e-9)


@pytest.mark.slow
def test_an_environment_that_was_removed_is_built_again(registry, pinned_elsewhere, tmp_path, monkeypatch):
    from serving import virtual_environment

    built = tmp_path / "environments" / "python"

    def interpreter(*_):
        built.parent.mkdir(exist_ok=True)
        built.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        built.chmod(0o755)
        return built

    monkeypatch.setattr(virtual_environment, "interpreter", interpreter)
    version = pinned_elsewhere("orjson==3.11.0")
    folder = registry.fetch(tmp_path / "models", version=version)
    ready = (registry.name, version, tmp_path / "models", Serving())
    assert fetching.ready_folder(*ready) == folder
    built.unlink()

    assert fetching.ready_folder(*ready) is None
    assert registry.fetch(tmp_path / "models", version=version) == folder

    assert built.exists()
    assert fetching.ready_folder(*ready) == folder
