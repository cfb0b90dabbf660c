import json
import os
import shutil
import subprocess
import sys
import zipfile
from urllib.parse import unquote

import pytest

from deployments.errors import BadInputError
from tasks import bundle_export
from tasks.bundle_export import export_bundle
from tasks.evidence import complete_bundle, write_bundle
from tasks.register import Version, ledger_of
from tasks.release_record import State
from tests.tasks.made_releases import kept, released, told
from tests.tasks.test_report import Outline

VERSION = Version(name="dev_patients", version="7", run_id="run-7", model_digest="7" * 64)
TOP = "dev_patients-v7.2"


@pytest.fixture
def evidenced(platform):
    """A version with the evidence of its training and of a release that was rejected."""
    documents = {"gates.json": "{}\n", "plots/roc & more.png": b"\x89PNG", "report.html": "<p>page</p>"}
    write_bundle(platform, "patients", VERSION, documents)
    complete_bundle(platform, "patients", kept(platform, told(platform, released(State.REJECTED))))
    return platform


def exported(platform, tmp_path, **how):
    return export_bundle(platform, "patients", out=tmp_path / "export.zip", **how)


def unpacked(export, tmp_path):
    with zipfile.ZipFile(export.path) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / TOP


def test_an_export_holds_the_bundle_the_ledger_and_the_digest_of_every_file(evidenced, tmp_path):
    export = exported(evidenced, tmp_path)

    folder = unpacked(export, tmp_path)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert export.problems == ()
    assert (export.version, export.bundle, export.files) == ("7", "v7.2", len(names))
    assert {"evidence/manifest.json", "evidence/timeline.json", "evidence/plots/roc & more.png"} <= names
    assert (folder / "ledger" / "ledger.jsonl").read_bytes() == ledger_of(evidenced).path.read_bytes()
    assert json.loads((folder / "verification.json").read_text())["verdict"] == "pass"
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == names - {"SHA256SUMS"}
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_index_links_to_every_file_and_to_nothing_else(evidenced, tmp_path):
    folder = unpacked(exported(evidenced, tmp_path), tmp_path)

    outline = Outline((folder / "index.html").read_text())

    assert outline.mistakes == []
    assert "script" not in {name for name, _ in outline.elements}
    links = {unquote(attributes["href"]) for name, attributes in outline.elements if name == "a"}
    links = {link for link in links if not link.startswith("#")}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert links == files - {"index.html"}
    assert "release.rejected" in outline.text


def test_the_same_evidence_is_the_same_zip(evidenced, tmp_path):
    first = exported(evidenced, tmp_path)
    for path in evidenced.folder("evidence").rglob("*"):
        os.utime(path, (1, 1))

    again = export_bundle(evidenced, "patients", "7", tmp_path / "again.zip")

    assert again.sha256 == first.sha256


def test_a_file_that_stands_is_replaced_only_by_force(evidenced, tmp_path):
    (tmp_path / "export.zip").write_text("mine")

    with pytest.raises(BadInputError, match="a file stands here"):
        exported(evidenced, tmp_path)
    assert (tmp_path / "export.zip").read_text() == "mine"

    exported(evidenced, tmp_path, force=True)
    assert zipfile.is_zipfile(tmp_path / "export.zip")


def test_an_export_that_breaks_leaves_nothing(evidenced, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_export.Path, "write_bytes", full)

    with pytest.raises(OSError, match="No space left"):
        exported(evidenced, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert list(evidenced.folder("scratch").iterdir()) == []


@pytest.mark.parametrize("version", ["8", "7.2", ""])
def test_a_version_without_evidence_has_no_export(evidenced, tmp_path, version):
    with pytest.raises(BadInputError, match="there is no evidence of version"):
        export_bundle(evidenced, "patients", version, tmp_path / "export.zip")


def test_an_export_into_no_folder_is_refused(evidenced, tmp_path):
    with pytest.raises(BadInputError, match="no place for a file"):
        export_bundle(evidenced, "patients", out=tmp_path / "missing" / "export.zip")
    with pytest.raises(BadInputError, match="no place for a file"):
        export_bundle(evidenced, "patients", out=tmp_path)


def test_what_is_wrong_is_exported_and_said(evidenced, tmp_path):
    (evidenced.folder("evidence") / "dev_patients" / "v7.2" / "gates.json").write_text("[]")

    export = exported(evidenced, tmp_path)

    assert export.problems == ("evidence/gates.json: changed",)
    folder = unpacked(export, tmp_path)
    assert "evidence/gates.json: changed" in Outline((folder / "index.html").read_text()).text
    assert json.loads((folder / "verification.json").read_text())["verdict"] == "fail"


def run_script(folder):
    """As an auditor would, with nothing of ours at hand."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "verify.py"], cwd=folder, capture_output=True, text=True, check=False
    )


def resealed(folder):
    """Make the list of digests say what the files are now."""
    script = "find . -type f ! -name SHA256SUMS | sed 's|^./||' | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum"
    sums = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    (folder / "SHA256SUMS").write_text(sums)


def test_the_script_in_an_export_finds_it_whole(evidenced, tmp_path):
    done = run_script(unpacked(exported(evidenced, tmp_path), tmp_path))

    assert done.stdout.startswith("ok: "), done.stdout + done.stderr
    assert done.returncode == 0


def swapped(ledger):
    first, second, *rest = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([second, first, *rest]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda to: (to / "evidence" / "gates.json").write_text("[]"), "evidence/gates.json: changed"),
        (lambda to: (to / "evidence" / "gates.json").unlink(), "evidence/gates.json: missing"),
        (
            lambda to: (to / "evidence" / "new.json").touch(),
            "evidence/new.json: missing, or not in the manifest",
        ),
        (
            lambda to: shutil.copy(to / "index.html", to / "evidence" / "manifest.json.bak"),
            "manifest.json.bak: ",
        ),
        (lambda to: swapped(to / "ledger" / "ledger.jsonl"), "ledger line 1: does not follow"),
        (
            lambda to: (to / "ledger" / "ledger.jsonl").write_text(
                (to / "ledger" / "ledger.jsonl").read_text().replace("grace", "grade")
            ),
            "ledger line 2: changed",
        ),
        (
            lambda to: (to / "ledger" / "ledger.jsonl").write_text(
                "".join((to / "ledger" / "ledger.jsonl").read_text().splitlines(keepends=True)[:-1])
            ),
            "ledger: it does not end where its head says",
        ),
    ],
)
def test_the_script_finds_damage_though_the_digests_were_made_to_fit(evidenced, tmp_path, damage, said):
    folder = unpacked(exported(evidenced, tmp_path), tmp_path)

    damage(folder)
    resealed(folder)

    done = run_script(folder)
    assert done.returncode == 1, done.stderr
    assert said in done.stdout
