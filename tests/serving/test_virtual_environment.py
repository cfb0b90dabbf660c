"""A version's environment: when ours will do, and what is built when it will not."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

from deployments.errors import BadInputError
from serving import virtual_environment
from serving.virtual_environment import (
    EnvironmentNotBuiltError,
    contents,
    differences,
    digest_of,
    find_uv,
    interpreter,
    read_requirements,
)

HERE = {"scikit-learn": "1.9.1", "numpy": "2.4.6", "skops": "0.16.0", "torch": "2.9.0+cpu"}
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


def compared(text, python=""):
    return differences(read_requirements(text, "requirements.txt"), python, HERE.get)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("scikit-learn==1.9.1\nnumpy==2.4.6\n", []),
        ("scikit_learn==1.9.1", []),
        ("scikit-learn==1.9.0", ["scikit-learn==1.9.0 (here 1.9.1)"]),
        ("scikit-learn<1.9\nnumpy", ["scikit-learn<1.9 (here 1.9.1)"]),
        ("scikit-learn>=1.9,<2\nnumpy~=2.4", []),
        ("xgboost==3.0.0", ["xgboost==3.0.0 (not installed here)"]),
        ("torch==2.9.0", []),
        ("torch==2.9.0+cu130", ["torch==2.9.0+cu130 (here 2.9.0+cpu)"]),
        ('pywin32==300; sys_platform == "win32"\n# by hand\nskops==0.16.0  # pinned\n', []),
        ("", []),
    ],
)
def test_a_requirement_that_ours_does_not_meet_is_a_difference(text, found):
    assert compared(text) == found


@pytest.mark.parametrize(
    ("python", "found"),
    [("", []), (f"{OURS}.99", []), (OURS, []), ("3.8.20", [f"Python 3.8 (here {OURS})"])],
)
def test_another_minor_version_of_python_is_a_difference(python, found):
    assert compared("", python) == found


def test_what_is_left_out_is_not_compared():
    found = read_requirements("mlflow==2.0\nskops==0.16.0", "requirements.txt", ["mlflow"])

    assert [requirement.name for requirement in found] == ["skops"]


def test_a_package_from_an_address_is_refused() -> None:
    with pytest.raises(BadInputError, match="orjson is asked for from an address"):
        read_requirements("numpy==2.0\norjson @ https://example.org/orjson.zip\n", "requirements.txt")


@pytest.mark.parametrize(
    "line", ["-r other.txt", "--index-url http://x", "./here.whl", "git+https://x/y", "a b"]
)
def test_a_line_that_names_no_package_is_told_with_its_place(line):
    with pytest.raises(BadInputError, match=r"fruit version 1: requirements\.txt:2: "):
        read_requirements(f"numpy\n{line}", "fruit version 1: requirements.txt")


def test_the_models_own_pins_come_before_ours():
    found = contents(read_requirements("numpy==1.26.4\nskops==0.13", "requirements.txt"), lambda name: "9.9")

    assert "numpy==1.26.4" in found
    assert "skops==0.13" in found
    assert "orjson==9.9" in found
    assert "numpy==9.9" not in found


def test_environments_with_other_contents_or_another_python_have_other_digests():
    found = {
        digest_of(*given)
        for given in [(["a==1"], ""), (["a==2"], ""), (["a==1"], "3.11"), (["a==1"], "3.12")]
    }

    assert len(found) == 4
    assert digest_of(["a==1"], "3.11.2") == digest_of(["a==1"], "3.11.9")


@pytest.fixture
def pretended(monkeypatch):
    """uv as a double: it writes down what it was asked and makes an interpreter, or fails as it is told to."""
    asked, failing = [], {}

    def uv(*arguments):
        asked.append(arguments)
        if arguments[0] == "venv":
            packages = Path(arguments[-1]) / "lib" / f"python{OURS}" / "site-packages"
            packages.mkdir(parents=True)
            (Path(arguments[-1]) / "bin").mkdir()
            (Path(arguments[-1]) / "bin" / "python").touch()
        if arguments[0] in failing:
            raise EnvironmentNotBuiltError(failing[arguments[0]])

    monkeypatch.setattr(virtual_environment, "_uv", uv)
    return asked, failing


def test_an_environment_is_built_once(pretended, tmp_path):
    asked, _ = pretended

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: interpreter(tmp_path, ["a==1"]), range(4)))

    (python,) = found
    assert python.exists()
    assert [arguments[0] for arguments in asked] == ["venv", "pip"]
    assert (python.parents[1] / "packages.txt").read_text() == "a==1\n"


def test_a_failed_build_leaves_nothing_that_counts(pretended, tmp_path):
    _, failing = pretended
    failing["pip"] = "uv pip failed: there is no a==1"

    with pytest.raises(EnvironmentNotBuiltError, match="there is no a==1"):
        interpreter(tmp_path, ["a==1"])

    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    failing.clear()
    assert interpreter(tmp_path, ["a==1"]).exists()


def test_what_a_killed_build_left_is_built_anew(pretended, tmp_path):
    asked, _ = pretended
    python = interpreter(tmp_path, ["a==1"])
    (python.parents[1] / "ready").unlink()
    (python.parents[1] / "half").touch()

    assert interpreter(tmp_path, ["a==1"]) == python
    assert not (python.parents[1] / "half").exists()
    assert [arguments[0] for arguments in asked] == ["venv", "pip"] * 2


def test_a_missing_uv_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(EnvironmentNotBuiltError, match="uv is needed to build the environment"):
        find_uv()


def has_index():
    """Whether uv finds a package in the index that this machine uses."""
    asked = subprocess.run(
        [
            find_uv(),
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--python",
            sys.executable,
            "--reinstall",
            "orjson",
        ],
        capture_output=True,
        check=False,
        timeout=60,
    )
    return asked.returncode == 0


@pytest.mark.slow
def test_a_built_environment_holds_the_other_version_and_our_source(tmp_path):
    if not has_index():
        pytest.skip("no package index is in reach")
    pinned = "3.10.18" if version("orjson") != "3.10.18" else "3.11.0"
    packages = contents(read_requirements(f"orjson=={pinned}", "requirements.txt"), lambda _: None)
    packages = [*packages, *(f"{name}=={version(name)}" for name in ("numpy", "pydantic", "pyyaml"))]

    python = interpreter(tmp_path, packages)

    told = (
        "import json, orjson, serving.served_model as s, importlib.util as u;"
        "print(json.dumps([orjson.__version__, s.__file__, u.find_spec('tasks') is None]))"
    )
    asked = subprocess.run(
        [
            str(python),
            "-P",
            "-c",
            told,
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    orjson_version, source, without_tasks = json.loads(asked.stdout)
    assert orjson_version == pinned
    assert Path(source).resolve() == Path(virtual_environment.__file__).with_name("served_model.py")
    assert without_tasks


@pytest.mark.slow
def test_a_version_that_is_nowhere_is_told_by_name(tmp_path):
    with pytest.raises(EnvironmentNotBuiltError, match=r"uv pip failed: .*orjson==0\.0\.99"):
        interpreter(tmp_path, ["orjson==0.0.99"])

    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
