import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tasks import evidence
from tasks.evidence import bundles, read_manifest, verify_bundle, write_bundle
from tasks.register import Version, ledger_of

ROOT = Path(__file__).resolve().parents[2]
FIRST = Version(name="dev_patients", version="1", run_id="run-1", model_digest="a" * 64)
DOCUMENTS = {"gates.json": "{}\n", "report.html": "<p>at noon</p>", "plots/roc.png": b"\x89PNG"}


def written(platform, version=FIRST, **changed):
    return write_bundle(platform, "patients", version, DOCUMENTS | changed)


def entries(platform):
    return [entry for entry in ledger_of(platform).entries() if entry.event == "evidence.written"]


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_holds_its_documents_and_stands_in_the_ledger(platform):
    folder = written(platform)

    assert folder == platform.folder("evidence") / "dev_patients" / "v1"
    assert set(content(folder)) == {*DOCUMENTS, "manifest.json"}
    assert set(read_manifest(folder).files) == set(DOCUMENTS)
    assert verify_bundle(platform, folder) == ()
    assert bundles(platform) == bundles(platform, "patients") == [folder]
    assert bundles(platform, "another") == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "gates.json").write_text("{ }"), "gates.json: changed"),
        (lambda folder: (folder / "plots" / "roc.png").unlink(), "plots/roc.png: missing"),
        (lambda folder: (folder / "plots" / "new.png").touch(), "plots/new.png: not in the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), "there is no evidence bundle here"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "no manifest as it was written"),
        (shutil.rmtree, "there is no evidence bundle here"),
    ],
)
def test_damage_to_a_bundle_is_found(platform, damage, problem):
    folder = written(platform)

    damage(folder)

    (found,) = verify_bundle(platform, *bundles(platform))
    assert problem in found


@pytest.mark.parametrize("key", ["files", "model_digest", "run_id", "version", "name", "model"])
def test_a_manifest_rewritten_to_fit_is_found_by_the_ledger(platform, key):
    folder = written(platform)
    (folder / "gates.json").write_text("[]")
    said = json.loads((folder / "manifest.json").read_text())
    said["files"]["gates.json"] = evidence.file_digest(folder / "gates.json")
    if key != "files":
        said[key] = "2"

    (folder / "manifest.json").write_text(json.dumps(said))

    (found,) = verify_bundle(platform, folder)
    assert found.startswith("manifest.json: ")


def test_a_bundle_put_in_the_place_of_another_is_found(platform):
    first = written(platform)
    second = written(platform, FIRST.model_copy(update={"version": "2", "run_id": "run-2"}))
    shutil.rmtree(first)
    shutil.copytree(second, first)

    assert verify_bundle(platform, second) == ()
    (found,) = verify_bundle(platform, first)
    assert "dev_patients/2, which has another place" in found


def test_a_copy_of_a_bundle_is_verified_anywhere(platform, tmp_path):
    copied = shutil.copytree(written(platform), tmp_path / "for the auditor")

    assert verify_bundle(platform, copied) == ()


def test_writing_again_with_another_moment_on_its_pages_is_the_bundle_that_stands(platform):
    first = written(platform)
    before = content(first)

    again = written(platform, **{"report.html": "<p>at one</p>"})

    assert again == first
    assert content(first) == before
    assert len(entries(platform)) == 1
    assert verify_bundle(platform, first) == ()


def test_a_crash_between_folder_and_ledger_is_made_good_by_the_next_run(platform, monkeypatch):
    monkeypatch.setattr(evidence, "ledger_of", lambda platform: broken)
    broken = type("Broken", (), {"entries": lambda self, model=None: [], "append": None})()
    with pytest.raises(TypeError):
        written(platform)
    monkeypatch.undo()
    folder = platform.folder("evidence") / "dev_patients" / "v1"
    assert verify_bundle(platform, folder) == ("manifest.json: the ledger knows nothing of it",)

    assert written(platform, **{"report.html": "later"}) == folder

    assert verify_bundle(platform, folder) == ()
    assert bundles(platform) == [folder]


def test_other_gates_or_another_model_of_the_same_number_get_a_place_of_their_own(platform):
    first = written(platform)
    judged_again = written(platform, **{"gates.json": '{"champion": "2"}'})
    recreated = written(platform, FIRST.model_copy(update={"run_id": "run-9"}))

    assert [place.name for place in (first, judged_again, recreated)] == ["v1", "v1.2", "v1.3"]
    assert bundles(platform) == [first, judged_again, recreated]
    assert [verify_bundle(platform, folder) for folder in bundles(platform)] == [(), (), ()]


def test_a_bundle_that_was_taken_away_is_missed_though_a_new_one_is_written(platform):
    first = written(platform)
    shutil.rmtree(first)

    again = written(platform, **{"report.html": "later"})

    assert again.name == "v1.2"
    assert bundles(platform) == [first, again]
    assert verify_bundle(platform, again) == ()
    assert verify_bundle(platform, first) != ()


KILLED = """
    import os, signal
    from pathlib import Path

    from deployments.environment import Environment, LocalPlatformConfig
    from platforms.local import LocalPlatform
    from tasks import evidence
    from tasks.register import Version

    class Deadly(dict):
        def items(self):
            yield "gates.json", "{}"
            os.kill(os.getpid(), signal.SIGKILL)

    platform = LocalPlatform(
        Environment(name="dev", platform=LocalPlatformConfig(data_root="data")), Path("data").absolute()
    )
    version = Version(name="dev_patients", version="1", run_id="run-1", model_digest="a" * 64)
    evidence.write_bundle(platform, "patients", version, Deadly())
"""


@pytest.mark.slow
def test_a_bundle_killed_half_written_leaves_nothing_once_it_is_written(platform):
    killed = subprocess.run(
        [sys.executable, "-c", dedent(KILLED)],
        cwd=platform.root.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(platform.folder("evidence").rglob("*")) == []
    assert list(platform.folder("scratch").rglob("gates.json")) != []

    folder = written(platform)

    assert verify_bundle(platform, folder) == ()
    assert list(platform.folder("scratch").iterdir()) == []
    assert [path.name for path in folder.parent.iterdir()] == ["v1"]
