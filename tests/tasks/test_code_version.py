"""The code's version: its own commit or none, and a digest of what is there."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tasks import code_version as module
from tasks.code_version import CodeVersion, code_version, environment_lock


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one module of ours, committed."""
    root = tmp_path / "checkout"
    for package in ("deployments", "platforms", "tasks", "flows"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text("")
    shutil.copy(module.__file__, root / "tasks")
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "__file__", str(root / "tasks" / "code_version.py"))
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")
    return root


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


def looked_at_anew() -> CodeVersion:
    return code_version.__wrapped__()


def test_committed_code_has_its_commit(checkout):
    found = looked_at_anew()

    assert len(found.commit) == 40
    assert not found.dirty


@pytest.mark.parametrize("change", ["edited", "added"])
def test_a_change_makes_it_dirty_and_another_digest(checkout, change):
    before = looked_at_anew()

    (checkout / "tasks" / ("__init__.py" if change == "edited" else "new.py")).write_text("x = 1\n")

    after = looked_at_anew()
    assert after.dirty
    assert after.commit == before.commit
    assert after.digest != before.digest


def test_code_installed_in_somebody_elses_checkout_has_no_commit(checkout):
    git(checkout, "rm", "-rq", "--cached", "tasks")

    found = looked_at_anew()

    assert found.commit is None
    assert found.dirty
    assert len(found.digest) == 64


def test_without_git_there_is_a_digest_all_the_same(checkout):
    shutil.rmtree(checkout / ".git")

    found = looked_at_anew()

    assert found.commit is None
    assert found.dirty
    assert len(found.digest) == 64


def test_the_lock_names_every_package_once_in_order():
    lines = environment_lock().splitlines()

    assert lines == sorted(set(lines))
    assert any(line.startswith("scikit-learn==") for line in lines)
