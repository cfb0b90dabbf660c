"""The export of a version's evidence: one zip that an auditor opens, reads and verifies without us and offline.

The newest bundle of a version and the whole ledger go in. The same content makes the same bytes: names are sorted,
times are fixed, and nothing says when it was exported.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.declared import Declared
from deployments.errors import BadInputError
from platforms.platform import Platform
from platforms.scratch import scratch_folder
from tasks.audit import audit_release
from tasks.evidence import MANIFEST, Manifest, as_json, newest_bundle, read_manifest, verify_bundle
from tasks.ledger import Entry, Ledger, LedgerError
from tasks.register import ledger_of

__all__ = ["Export", "export_bundle"]

INDEX, SUMS, SCRIPT, RESULT = "index.html", "SHA256SUMS", "verify.py", "verification.json"
_EVIDENCE, _LEDGER = "evidence", "ledger"
_MOMENT = (1980, 1, 1, 0, 0, 0)
_READABLE = 0o100644 << 16

_WHAT = {
    "manifest.json": "What the bundle holds, with the SHA-256 of each file; its own stands in the ledger.",
    "model_card.md": "What the model is for, what it was trained on, how good it is, and its limits.",
    "report.html": "The training: gates, metrics, champion, slices, candidates, data.",
    "contract.html": "What the data contract found.",
    "contract.json": "What the data contract found, for programs.",
    "data.json": "The snapshots it was trained and judged on, with their digests.",
    "code.json": "The commit and digest of the code, and whether it was committed.",
    "environment.txt": "The versions of all packages.",
    "model.yaml": "The model spec as it was declared.",
    "features.sql": "The query of its features.",
    "leaderboard.json": "All candidates and their scores.",
    "model.json": "The winner, its parameters and its file's digest.",
    "evaluation.json": "What was measured on the holdout, with intervals, slices and groups.",
    "gates.json": "What the gates decided, and on what.",
    "timeline.json": "The ledger's entries of this version.",
    "ledger_head.json": "How long the ledger was, and its last hash, when the bundle was written.",
}
_WHAT_OF_A_RELEASE = {
    "release.json": "The record of a release: its plan and every step, with times and reasons.",
    "looks.jsonl": "Everything the analysis of a release saw, one look a line.",
    "report.html": "The report of a release: timeline, traffic, tests.",
}
_VERIFY = '''\
"""Checks the files of this export, the manifest and the hash chain of the ledger; needs Python alone."""

import hashlib
import json
import sys
from pathlib import Path

here, problems = Path(__file__).resolve().parent, []


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def canonical(content):
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


# 1. Every file is the one whose digest is listed.
for line in (here / "SHA256SUMS").read_text().splitlines():
    wanted, name = line.split("  ", 1)
    if digest(here / name) != wanted:
        problems.append(f"{name}: not the file that was exported")

# 2. The bundle holds what its manifest says, and nothing else.
bundle = here / "evidence"
files = json.loads((bundle / "manifest.json").read_text())["files"]
found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
for name in sorted(found.symmetric_difference({*files, "manifest.json"})):
    problems.append(f"evidence/{name}: missing, or not in the manifest")
for name, wanted in sorted(files.items()):
    if digest(bundle / name) not in (wanted, "missing"):
        problems.append(f"evidence/{name}: changed")

# 3. Each entry of the ledger has the hash of what it says, and names the hash of the entry before it.
lines = (here / "ledger" / "ledger.jsonl").read_bytes().splitlines()
previous, recorded = "0" * 64, set()
for number, line in enumerate(lines, 1):
    entry = json.loads(line)
    claimed = entry.pop("hash")
    if hashlib.sha256(canonical(entry)).hexdigest() != claimed:
        problems.append(f"ledger line {number}: changed")
    if entry["previous"] != previous or entry["seq"] != number:
        problems.append(f"ledger line {number}: does not follow from the line before it")
    previous = claimed
    if entry["event"] == "evidence.written":
        recorded.add(entry["details"]["manifest"])

# 4. The head says that this is the whole ledger, and the ledger knows this manifest.
head = json.loads((here / "ledger" / "ledger.head.json").read_text())
if (head["entries"], head["last"]) != (len(lines), previous):
    problems.append("ledger: it does not end where its head says")
if digest(bundle / "manifest.json") not in recorded:
    problems.append("evidence/manifest.json: its digest is not in the ledger")

print("\\n".join(problems) or f"ok: {len(files)} files of evidence, {len(lines)} ledger entries")
sys.exit(1 if problems else 0)
'''


class Export(Declared):
    """Where the zip lies, its SHA-256, what it is of, and what is wrong with what it holds."""

    path: str
    sha256: str
    model: str
    version: str
    bundle: str
    files: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """One file as the index names it."""

    name: str
    what: str
    size: int
    digest: str


def export_bundle(
    platform: Platform,
    model: str,
    version: str | None = None,
    out: Path | None = None,
    *,
    force: bool = False,
) -> Export:
    """Write the newest bundle of a version, with the ledger and an index, into one zip; whole or not at all.

    Without a version it is the one whose evidence was written last. What is found wrong stands in the index and in
    the answer; it is exported all the same, since that is what an auditor wants to see.

    Raises:
        BadInputError: there is no such bundle, or a file stands at `out` and `force` does not say to replace it.
    """
    folder = newest_bundle(platform, model, version)
    if folder is None:
        wanted = f"version {version} of {model}" if version is not None else model
        raise BadInputError(f"there is no evidence of {wanted} in environment {platform.environment.name!r}")
    manifest = read_manifest(folder)
    path = (out or Path(f"{manifest.name}-{folder.name}-evidence.zip")).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise BadInputError(f"{path}: this is no place for a file")
    if path.exists() and not force:
        raise BadInputError(f"{path}: a file stands here; name another, or say --force to replace it")
    content, problems = _content(platform, folder, manifest)
    with scratch_folder(platform.folder("scratch")) as scratch:
        zipped = scratch / "export.zip"
        _write_zip(zipped, f"{manifest.name}-{folder.name}", content)
        # A rename holds only within one disk, so the last stretch of the way is beside where it goes.
        staged = path.with_name(f".{path.name}.partial")
        try:
            staged.write_bytes(zipped.read_bytes())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    return Export(
        path=str(path),
        sha256=_digest(path.read_bytes()),
        model=model,
        version=manifest.version,
        bundle=folder.name,
        files=len(content),
        problems=tuple(problems),
    )


def _content(platform: Platform, folder: Path, manifest: Manifest) -> tuple[dict[str, bytes], list[str]]:
    """Every file of the export by name, and what is wrong with the evidence."""
    ledger = ledger_of(platform)
    evidence = {
        f"{_EVIDENCE}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    books = {
        f"{_LEDGER}/{path.name}": path.read_bytes()
        for path in (ledger.path, ledger.path.with_suffix(".head.json"))
        if path.is_file()
    }
    entries, problems = _verified(platform, ledger, folder, manifest)
    content = evidence | books | {SCRIPT: _VERIFY.encode()}
    content[RESULT] = as_json(
        {
            "bundle": folder.name,
            "entries": len(entries),
            "last": entries[-1].hash if entries else None,
            "manifest": _digest(evidence[f"{_EVIDENCE}/{MANIFEST}"]),
            "problems": problems,
            "verdict": "fail" if problems else "pass",
        }
    ).encode()
    content[INDEX] = _index(platform, folder, manifest, entries, problems, content).encode()
    content[SUMS] = "".join(f"{_digest(content[name])}  {name}\n" for name in sorted(content)).encode()
    return content, problems


def _verified(
    platform: Platform, ledger: Ledger, folder: Path, manifest: Manifest
) -> tuple[list[Entry], list[str]]:
    """The ledger's entries, and what is wrong with it, with the bundle and with the releases of the version."""
    problems = [f"ledger: {problem}" for problem in ledger.verify().problems]
    problems += [f"{_EVIDENCE}/{problem}" for problem in verify_bundle(platform, folder)]
    for release in sorted({name.split("/")[1] for name in manifest.files if name.startswith("release/")}):
        problems += [
            f"release {release}: {problem}" for problem in audit_release(platform, manifest.model, release)
        ]
    try:
        return list(ledger.entries()), problems
    except LedgerError:
        return [], problems


def _index(
    platform: Platform,
    folder: Path,
    manifest: Manifest,
    entries: Sequence[Entry],
    problems: Sequence[str],
    content: Mapping[str, bytes],
) -> str:
    """The page that says what is what, links to it, and tells how to check it."""
    from tasks.report import templates

    files = [_File(name, _what(name), len(data), _digest(data)) for name, data in sorted(content.items())]
    subject = f"{manifest.name}/{manifest.version}"
    return (
        templates()
        .get_template("export.html.j2")
        .render(
            environment=platform.environment.name,
            manifest=manifest,
            bundle=folder.name,
            problems=problems,
            verdict="fail" if problems else "pass",
            entries=len(entries),
            head=entries[-1] if entries else None,
            manifest_digest=_digest(content[f"{_EVIDENCE}/{MANIFEST}"]),
            groups=[
                ("To read first", [file for file in files if _is_page(file.name)]),
                (
                    "Evidence",
                    [file for file in files if file.name.startswith(_EVIDENCE) and not _is_page(file.name)],
                ),
                ("Ledger and verification", [file for file in files if not file.name.startswith(_EVIDENCE)]),
            ],
            timeline=[entry for entry in entries if entry.subject == subject],
            script=_VERIFY,
            sums=SUMS,
        )
    )


def _is_page(name: str) -> bool:
    return name.startswith(_EVIDENCE) and name.endswith((".html", ".md"))


def _what(name: str) -> str:
    """What a file is, in a sentence."""
    place, _, rest = name.partition("/")
    if place == _LEDGER:
        return (
            "How many entries the ledger has, and the last one's hash."
            if rest.endswith(".head.json")
            else "Who did what to which model, and when: one entry a line, each with the hash of the one before it."
        )
    if place != _EVIDENCE:
        return {
            SCRIPT: "Does the checks below; reads these files alone.",
            RESULT: "What the verification found when this was exported.",
        }[name]
    parts = rest.split("/")
    if parts[0] == "approvals":
        return "A signed approval or rejection."
    if parts[0] == "release" and len(parts) == 3:
        return _WHAT_OF_A_RELEASE.get(parts[2], "A file of a release.")
    return _WHAT.get(rest, "A file of the training.")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_zip(path: Path, folder: str, content: Mapping[str, bytes]) -> None:
    """The files under one folder, sorted, each with the same time and the same rights."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            info = zipfile.ZipInfo(f"{folder}/{name}", date_time=_MOMENT)
            info.external_attr, info.create_system = _READABLE, 3
            archive.writestr(info, content[name], zipfile.ZIP_DEFLATED)
