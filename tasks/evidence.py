"""The evidence bundle: everything an auditor asks for about one version, in one folder with checksums."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from deployments.declared import Declared
from deployments.errors import BadInputError
from platforms.platform import Platform
from tasks.model_file import file_digest, folder_digests
from tasks.register import Version, ledger_of

MANIFEST = "manifest.json"


class Manifest(Declared):
    """What a bundle holds: SHA-256 by file. The manifest's own digest stands in the ledger."""

    model: str
    name: str
    version: str
    run_id: str
    model_digest: str
    files: dict[str, str]


def bundle_folder(platform: Platform, name: str, version: str) -> Path:
    """Where the bundle of a version is."""
    return platform.folder("evidence") / name / f"v{version}"


def write_bundle(
    platform: Platform, model: str, version: Version, documents: Mapping[str, str | bytes]
) -> Path:
    """Write the bundle of a version, or return the one that stands; its digest goes into the ledger.

    The folder appears whole: it is written beside its place and then renamed.
    """
    place = bundle_folder(platform, version.name, version.version)
    if not (place / MANIFEST).exists():
        staged = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
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
        (staged / MANIFEST).write_text(manifest.model_dump_json(indent=1))
        try:
            os.replace(staged, place)
        except OSError:
            if not (place / MANIFEST).exists():
                raise
            shutil.rmtree(staged)
    ledger_of(platform).append(
        "evidence.written",
        model=model,
        subject=f"{version.name}/{version.version}",
        details={"manifest": file_digest(place / MANIFEST)},
        key=f"evidence/{version.name}/{version.version}",
        actor=platform.identity(),
    )
    return place


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        BadInputError: there is no bundle there.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInputError(f"{folder}: there is no evidence bundle here")
    return Manifest.model_validate_json(path.read_bytes())


def verify_bundle(platform: Platform, folder: Path) -> tuple[str, ...]:
    """What is wrong with a bundle: files changed, missing or added, or a manifest that is not the ledger's."""
    try:
        manifest = read_manifest(folder)
    except (BadInputError, ValueError) as error:
        return (str(error).splitlines()[0],)
    found = {name: digest for name, digest in folder_digests(folder).items() if name != MANIFEST}
    problems = [f"{name}: missing" for name in manifest.files if name not in found]
    problems += [f"{name}: not in the manifest" for name in found if name not in manifest.files]
    problems += [
        f"{name}: changed" for name, digest in manifest.files.items() if found.get(name, digest) != digest
    ]
    subject = f"{manifest.name}/{manifest.version}"
    recorded = [
        entry.details.get("manifest")
        for entry in ledger_of(platform).entries(manifest.model)
        if entry.event == "evidence.written" and entry.subject == subject
    ]
    if not recorded:
        problems.append(f"{MANIFEST}: the ledger knows nothing of it")
    elif recorded[-1] != file_digest(folder / MANIFEST):
        problems.append(f"{MANIFEST}: its digest is not the one in the ledger")
    return tuple(problems)


def bundles(platform: Platform, model: str | None = None) -> list[Path]:
    """The bundles that the ledger knows, oldest first."""
    return [
        platform.folder("evidence") / name / f"v{version}"
        for entry in ledger_of(platform).entries(model)
        if entry.event == "evidence.written"
        for name, _, version in [entry.subject.rpartition("/")]
    ]


def as_json(document: object) -> str:
    """JSON with sorted keys, for files of a bundle."""
    return json.dumps(document, indent=1, sort_keys=True, default=str) + "\n"
