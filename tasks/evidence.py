"""The evidence bundle: everything an auditor asks for about one version, in one folder with checksums."""

import json
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

from pydantic import ValidationError

from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from deployments.model_file import file_digest, folder_digests
from platforms.platform import Platform
from platforms.scratch import scratch_folder
from tasks.ledger import GENESIS, Entry, LedgerError
from tasks.register import Version, ledger_of
from tasks.release_record import Release, ReleaseStore
from tasks.release_report import REPORT, write_page

MANIFEST = "manifest.json"
LEDGER_HEAD = "ledger_head.json"
WRITTEN = "evidence.written"
_GATES = "gates.json"
_RECORD, _LOOKS = "release.json", "looks.jsonl"


class Manifest(Declared):
    """What a bundle holds: SHA-256 by file. The manifest's own digest stands in the ledger."""

    model: str
    name: str
    version: str
    run_id: str
    model_digest: str
    files: dict[str, str]


def write_bundle(
    platform: Platform, model: str, version: Version, documents: Mapping[str, str | bytes]
) -> Path:
    """Write the bundle of a version, or return the one that stands; its digest goes into the ledger.

    The folder appears whole: it is written among scratch and then renamed. A bundle that stands is never touched:
    where it is of another model file or of other gates, or was taken away, the new one goes beside its place.
    """
    with scratch_folder(platform.folder("scratch")) as scratch:
        staged = scratch / "bundle"
        for name, content in documents.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        manifest = Manifest(
            model=model,
            name=version.name,
            version=version.version,
            run_id=version.run_id,
            model_digest=version.model_digest,
            files=folder_digests(staged),
        )
        (staged / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        place = _place(platform, manifest, staged)
    ledger_of(platform).append(
        WRITTEN,
        model=model,
        subject=_subject(manifest),
        details={"folder": place.name, "manifest": file_digest(place / MANIFEST)},
        key=f"evidence/{version.name}/{place.name}",
        actor=platform.identity(),
    )
    return place


def complete_bundle(platform: Platform, model: str, release: Release) -> Path:
    """The bundle of a released version: all that the newest one holds, and how the release went.

    It gets a place of its own, beside those that stand. The same again is the bundle that stands; a release that
    went on since, as when labels took a promotion back, makes a new one.

    Raises:
        ContenderError: the newest bundle is not as it was written: nothing is built on it.
        BadInputError: the release has no record.
    """
    ref, store = release.challenger, ReleaseStore(platform, model)
    folder = store.folder(release.id)
    if not (folder / _RECORD).is_file():
        raise BadInputError(f"{folder}: there is no record of release {release.id!r} to keep as evidence")
    if not (folder / REPORT).is_file():
        write_page(platform, release)
    version = Version(name=ref.name, version=ref.version, run_id=ref.run_id, model_digest=ref.digest)
    documents: dict[str, str | bytes] = {**_standing_documents(platform, model, version)}
    for name in (_RECORD, _LOOKS, REPORT):
        if (folder / name).is_file():
            documents[f"release/{release.id}/{name}"] = (folder / name).read_bytes()
    for path in sorted((platform.folder("approvals") / ref.name / f"v{ref.version}").glob("*.json")):
        documents[f"approvals/{path.name}"] = path.read_bytes()
    entries = list(ledger_of(platform).entries())
    documents["timeline.json"] = as_json(
        [
            entry.model_dump(mode="json")
            for entry in entries
            if entry.subject == release.subject or entry.details.get("release") == release.id
        ]
    )
    documents[LEDGER_HEAD] = as_json(
        {"entries": len(entries), "last": entries[-1].hash if entries else GENESIS}
    )
    return write_bundle(platform, model, version, documents)


def _standing_documents(platform: Platform, model: str, version: Version) -> dict[str, bytes]:
    """The files of the newest bundle of a version; none where it was never trained here."""
    newest = newest_bundle(platform, model, version.version)
    if newest is None:
        return {}
    problems = verify_bundle(platform, newest)
    if problems:
        raise ContenderError(
            f"{newest}: this bundle is not as it was written, so none is built on it: {problems[0]}"
        )
    manifest = read_manifest(newest)
    if (manifest.run_id, manifest.model_digest) != (version.run_id, version.model_digest):
        raise ContenderError(f"{newest}: this bundle is of another model file than the release's")
    return {name: (newest / name).read_bytes() for name in manifest.files}


def newest_bundle(platform: Platform, model: str, version: str | None = None) -> Path | None:
    """Where the newest bundle of a version is, or of whichever version was written last; by the ledger.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    found = [
        entry
        for entry in ledger_of(platform).entries(model)
        if entry.event == WRITTEN and version in {None, entry.subject.rpartition("/")[2]}
    ]
    if not found:
        return None
    name = found[-1].subject.rpartition("/")[0]
    return platform.folder("evidence") / name / str(found[-1].details["folder"])


def _place(platform: Platform, manifest: Manifest, staged: Path) -> Path:
    """Move the staged bundle to the first place that is free, unless one that says the same stands before it."""
    parent = platform.folder("evidence") / manifest.name
    parent.mkdir(parents=True, exist_ok=True)
    recorded = {entry.details["folder"] for entry in _written(platform, manifest)}
    for number in count(1):
        place = parent / (f"v{manifest.version}" if number == 1 else f"v{manifest.version}.{number}")
        if _says_the_same(place, manifest):
            break
        if place.name in recorded:
            continue
        try:
            # Fails where a folder that is not empty stands.
            staged.rename(place)
        except OSError:
            if not place.exists():
                raise
            if _says_the_same(place, manifest):
                break
        else:
            break
    return place


def _says_the_same(place: Path, wanted: Manifest) -> bool:
    """Whether a bundle is of the same version, gates and releases; pages have moments in them, and differ."""
    try:
        standing = read_manifest(place)
    except BadInputError:
        return False
    return _about(standing) == _about(wanted)


def _about(manifest: Manifest) -> tuple[object, ...]:
    files = manifest.files
    releases = {
        name: digest
        for name, digest in files.items()
        if name.startswith("release/") and name.endswith((f"/{_RECORD}", f"/{_LOOKS}"))
    }
    return (
        manifest.name,
        manifest.version,
        manifest.run_id,
        manifest.model_digest,
        files.get(_GATES),
        releases,
    )


def _subject(manifest: Manifest) -> str:
    return f"{manifest.name}/{manifest.version}"


def _written(platform: Platform, manifest: Manifest) -> Iterator[Entry]:
    """What the ledger says of the bundles of one version."""
    for entry in ledger_of(platform).entries(manifest.model):
        if entry.event == WRITTEN and entry.subject == _subject(manifest):
            yield entry


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        BadInputError: there is no bundle there, or its manifest is none any more.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInputError(f"{folder}: there is no evidence bundle here")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError:
        raise BadInputError(f"{path}: this is no manifest as it was written") from None


def verify_bundle(platform: Platform, folder: Path) -> tuple[str, ...]:
    """What is wrong with a bundle: files changed, missing or added, or a manifest that is not the ledger's.

    A copy may lie anywhere; among the evidence, a bundle must be in its own place.
    """
    try:
        manifest = read_manifest(folder)
    except BadInputError as error:
        return (str(error),)
    found = {name: digest for name, digest in folder_digests(folder).items() if name != MANIFEST}
    problems = [f"{name}: missing" for name in manifest.files if name not in found]
    problems += [f"{name}: not in the manifest" for name in found if name not in manifest.files]
    problems += [
        f"{name}: changed" for name, digest in manifest.files.items() if found.get(name, digest) != digest
    ]
    try:
        recorded = {
            str(entry.details["folder"]): entry.details["manifest"] for entry in _written(platform, manifest)
        }
    except LedgerError:
        return (*problems, f"{MANIFEST}: the ledger cannot be read, so its digest cannot be compared")
    digest, place = file_digest(folder / MANIFEST), folder.resolve()
    if not recorded:
        problems.append(f"{MANIFEST}: the ledger knows nothing of it")
    elif digest not in recorded.values():
        problems.append(f"{MANIFEST}: its digest is not the one in the ledger")
    elif platform.folder("evidence").resolve() in place.parents and recorded.get(place.name) != digest:
        problems.append(f"{MANIFEST}: it is of {_subject(manifest)}, which has another place")
    return tuple(problems)


def bundles(platform: Platform, model: str | None = None) -> list[Path]:
    """The bundles that the ledger knows, oldest first, and then those that only lie there.

    Where the ledger cannot be read, what lies there is all that is known.
    """
    root = platform.folder("evidence")
    try:
        known = [
            root / entry.subject.rpartition("/")[0] / str(entry.details["folder"])
            for entry in ledger_of(platform).entries(model)
            if entry.event == WRITTEN
        ]
    except LedgerError:
        known = []
    lying = sorted(path.parent for path in root.glob(f"[!.]*/[!.]*/{MANIFEST}"))
    if model is not None:
        lying = [folder for folder in lying if folder.parent.name == platform.registered_model(model)]
    return known + [folder for folder in lying if folder not in known]


def as_json(document: object) -> str:
    """JSON with sorted keys, for files of a bundle."""
    return json.dumps(document, indent=1, sort_keys=True, default=str) + "\n"
