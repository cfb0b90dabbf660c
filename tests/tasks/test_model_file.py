"""Model files: the same model is the same bytes, and nothing is loaded before it was checked."""

import hashlib
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression

from deployments.measures import TaskKind
from deployments.model_file import (
    SKOPS_FILE,
    UntrustedModelError,
    canonicalise,
    file_digest,
    folder_digests,
    load_model,
    untrusted_types,
)
from tasks.frame import model_inputs, target_values
from tasks.pipeline import make_estimator, make_pipeline, with_threshold

CLASSIFIERS = {
    "calibration.CalibratedClassifierCV": {},
    "ensemble.AdaBoostClassifier": {},
    "ensemble.BaggingClassifier": {"n_estimators": 3},
    "ensemble.ExtraTreesClassifier": {"n_estimators": 5},
    "ensemble.GradientBoostingClassifier": {"n_estimators": 5},
    "ensemble.HistGradientBoostingClassifier": {"max_iter": 5},
    "ensemble.RandomForestClassifier": {"n_estimators": 5},
    "linear_model.LogisticRegression": {},
    "linear_model.SGDClassifier": {"loss": "log_loss"},
    "naive_bayes.GaussianNB": {},
    "neighbors.KNeighborsClassifier": {},
    "neural_network.MLPClassifier": {"max_iter": 5},
    "svm.LinearSVC": {},
    "svm.SVC": {},
    "tree.DecisionTreeClassifier": {},
}
REGRESSORS = {
    "ensemble.ExtraTreesRegressor": {"n_estimators": 5},
    "ensemble.GradientBoostingRegressor": {"n_estimators": 5, "loss": "huber"},
    "ensemble.HistGradientBoostingRegressor": {"max_iter": 5, "loss": "absolute_error"},
    "ensemble.RandomForestRegressor": {"n_estimators": 5},
    "linear_model.ElasticNet": {},
    "linear_model.HuberRegressor": {"max_iter": 1000},
    "linear_model.Lasso": {},
    "linear_model.PoissonRegressor": {},
    "linear_model.Ridge": {},
    "linear_model.SGDRegressor": {},
    "linear_model.TweedieRegressor": {},
    "neighbors.KNeighborsRegressor": {"algorithm": "ball_tree", "p": 1},
    "neural_network.MLPRegressor": {"max_iter": 5, "solver": "sgd"},
    "svm.SVR": {},
    "tree.DecisionTreeRegressor": {},
}
CASES = [
    *((TaskKind.BINARY, path, params) for path, params in CLASSIFIERS.items()),
    *((TaskKind.MULTICLASS, path, params) for path, params in CLASSIFIERS.items()),
    *((TaskKind.REGRESSION, path, params) for path, params in REGRESSORS.items()),
]


def all_features(document):
    document["features"]["dates"] = ["picked"]
    document["features"]["categorical"] = {"columns": ["shape"], "encode": "target"}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A small model's file."""
    path = tmp_path_factory.mktemp("model") / SKOPS_FILE
    skops.io.dump(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), path)
    return path


def rewritten(source: Path, target: Path, change) -> Path:
    """The file with its schema changed by `change`."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(members["schema.json"])
    members["schema.json"] = json.dumps(change(schema) or schema).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "path", "params"), CASES, ids=lambda value: str(value).partition(".")[2])
def test_the_usual_estimators_are_saved_checked_and_loaded(
    make_spec, make_rows, tmp_path, kind, path, params
):
    spec, rows = make_spec(kind.value, all_features).spec, make_rows(kind.value, rows=120)
    inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
    truth = np.abs(truth) if path.endswith(("PoissonRegressor", "TweedieRegressor")) else truth
    model = make_pipeline(spec, make_estimator(f"sklearn.{path}", params, ("sklearn",), kind, seed=0))
    if kind is not TaskKind.REGRESSION and not hasattr(model, "predict_proba"):
        model = CalibratedClassifierCV(model, cv=2)
    if kind is TaskKind.BINARY:
        model = with_threshold(model, 0.4, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(inputs, truth)
    file = tmp_path / SKOPS_FILE
    skops.io.dump(model, file)
    canonicalise(file)

    loaded = load_model(file, digest=file_digest(file))

    assert untrusted_types(file) == []
    said = "predict" if kind is TaskKind.REGRESSION else "predict_proba"
    assert (getattr(loaded, said)(inputs) == getattr(model, said)(inputs)).all()
    assert (loaded.predict(inputs) == model.predict(inputs)).all()


def test_a_changed_byte_is_refused_before_loading(saved_model, tmp_path, monkeypatch):
    content = bytearray(saved_model.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / SKOPS_FILE
    changed.write_bytes(content)
    monkeypatch.setattr(skops.io, "loads", pytest.fail)

    with pytest.raises(UntrustedModelError, match="was recorded"):
        load_model(changed, digest=file_digest(saved_model))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UntrustedModelError, match="there is no model file"):
        load_model(tmp_path / SKOPS_FILE, digest="0" * 64)


def test_a_type_that_nobody_vouched_for_is_refused_before_loading(saved_model, tmp_path, monkeypatch):
    def evil(schema):
        schema["content"]["content"]["coef_"] = {
            "__class__": "Popen",
            "__module__": "subprocess",
            "__loader__": "ObjectNode",
            "__id__": 1,
        }

    file = rewritten(saved_model, tmp_path / SKOPS_FILE, evil)
    monkeypatch.setattr(skops.io, "loads", pytest.fail)

    with pytest.raises(UntrustedModelError, match=r"not on the allow-list: subprocess\.Popen"):
        load_model(file, digest=file_digest(file), allowed_packages=("sklearn",))


def test_a_function_that_runs_commands_is_refused_before_loading(saved_model, tmp_path, monkeypatch):
    def evil(schema):
        schema["content"]["content"]["coef_"] = {
            "__class__": "function",
            "__module__": "builtins",
            "__loader__": "FunctionNode",
            "__id__": 1,
            "content": {"module_path": "os", "function": "system"},
        }

    file = rewritten(saved_model, tmp_path / SKOPS_FILE, evil)
    monkeypatch.setattr(skops.io, "loads", pytest.fail)

    with pytest.raises(UntrustedModelError, match=r"not on the allow-list: builtins\.function"):
        load_model(file, digest=file_digest(file), allowed_packages=("sklearn",))


def test_scikit_learns_own_internals_are_not_trusted_by_their_package(saved_model, tmp_path):
    def odd(schema):
        schema["content"]["content"]["coef_"] = {
            "__class__": "Bunch",
            "__module__": "sklearn.utils._bunch",
            "__loader__": "ObjectNode",
            "__id__": 1,
        }

    file = rewritten(saved_model, tmp_path / SKOPS_FILE, odd)

    assert untrusted_types(file, ("sklearn",)) == ["sklearn.utils._bunch.Bunch"]


def test_types_of_a_package_the_environment_allows_are_trusted(saved_model, tmp_path):
    def other(schema):
        schema["content"]["content"]["coef_"] = {
            "__class__": "Booster",
            "__module__": "boosters.core",
            "__loader__": "ObjectNode",
            "__id__": 1,
        }

    file = rewritten(saved_model, tmp_path / SKOPS_FILE, other)

    assert untrusted_types(file, ("sklearn", "boosters")) == []
    assert untrusted_types(file, ("sklearn", "boost")) == ["boosters.core.Booster"]


def test_what_was_checked_is_what_is_loaded(saved_model, tmp_path, monkeypatch):
    file = tmp_path / SKOPS_FILE
    file.write_bytes(saved_model.read_bytes())
    seen = skops.io.get_untrusted_types

    def swapped(**options):
        file.write_bytes(b"something else")
        return seen(**options)

    monkeypatch.setattr(skops.io, "get_untrusted_types", swapped)

    assert load_model(file, digest=file_digest(saved_model)).predict([[1.0]]).tolist() == [1]


def test_canonical_files_of_one_model_are_equal_and_load_alike(tmp_path):
    draw = np.random.default_rng(0)
    inputs = pd.DataFrame({"x": draw.normal(size=80), "z": draw.normal(size=80)})
    model = LogisticRegression().fit(inputs, inputs["x"] > 0)
    files = []
    for name in ("first", "second"):
        file = tmp_path / name
        skops.io.dump(model, file)
        canonicalise(file)
        files.append(file)

    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = load_model(files[0], digest=file_digest(files[0]))
    assert (loaded.predict_proba(inputs) == model.predict_proba(inputs)).all()


def test_another_model_has_another_digest(tmp_path):
    digests = set()
    for strength in (0.5, 1.0):
        file = tmp_path / SKOPS_FILE
        skops.io.dump(LogisticRegression(C=strength).fit([[0.0], [1.0]], [0, 1]), file)
        canonicalise(file)
        digests.add(file_digest(file))

    assert len(digests) == 2


def test_digests_of_a_folder_name_every_file(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "part.py").write_text("x = 1\n")
    (tmp_path / "MLmodel").write_text("flavors:\n")

    found = folder_digests(tmp_path)

    assert found == {
        "MLmodel": hashlib.sha256(b"flavors:\n").hexdigest(),
        "code/part.py": hashlib.sha256(b"x = 1\n").hexdigest(),
    }


FIT_AND_SAVE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd, skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from deployments.model_file import canonicalise, file_digest
from tasks.threads import limited_threads

def digest(estimator, file):
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"x": draw.normal(size=300), "kind": draw.choice(np.array(["a", "b"], object), 300)})
    columns = [("x", StandardScaler(), ["x"]), ("kind", OneHotEncoder(sparse_output=False), ["kind"])]
    model = CalibratedClassifierCV(Pipeline([("columns", ColumnTransformer(columns)), ("model", estimator)]), cv=2)
    with limited_threads(int(sys.argv[2])):
        skops.io.dump(model.fit(rows, rows["x"] > 0), file)
    canonicalise(file)
    return file_digest(file)

jobs = [(HistGradientBoostingClassifier(max_iter=5, random_state=0), Path(sys.argv[1] + "/boosting")),
        (RandomForestClassifier(5, random_state=0), Path(sys.argv[1] + "/forest"))]
if sys.argv[3] == "threads":
    with ThreadPoolExecutor(2) as pool:
        print(*pool.map(lambda job: digest(*job), jobs))
else:
    print(*(digest(*job) for job in jobs))
"""


@pytest.mark.slow
def test_the_same_training_gives_the_same_file_in_any_process_and_thread(tmp_path):
    digests = []
    for number, (openmp, where) in enumerate([("1", "threads"), ("2", "main")]):
        folder = tmp_path / where
        folder.mkdir()
        asked = subprocess.run(
            [sys.executable, "-c", FIT_AND_SAVE, str(folder), openmp, where],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": str(number), "PATH": ""},
        )
        digests.append(asked.stdout.split())

    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2
