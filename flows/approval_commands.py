"""The commands of approvals: keys, giving an approval or a rejection, and how those of a version stand."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.errors import BadInputError
from flows.options import EnvOption, JsonOption, ModelOption
from flows.serving_commands import platform_of
from flows.session import session

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from platforms.platform import Platform
    from tasks.approvals import Approvals
    from tasks.champion import ChampionRef

approval_app = typer.Typer()
keys_app = typer.Typer(help="Keys that approvals are signed with.", no_args_is_help=True)
approval_app.add_typer(keys_app, name="keys")

VersionOption = Annotated[str | None, typer.Option("--version", help="A version; the challenger by default.")]
PassphraseOption = Annotated[
    str | None,
    typer.Option(
        "--passphrase-env",
        help="The environment variable that holds the key's passphrase; else it is asked for.",
    ),
]


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Who you are, as it is to stand on approvals.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file of the private key; in ~/.config/contender/keys by default."),
    ] = None,
    passphrase_env: PassphraseOption = None,
    env: EnvOption = "dev",
) -> None:
    """Make a key for yourself, and print what to enter under an environment's approvers."""
    from pydantic import TypeAdapter, ValidationError

    from deployments.environment import PersonName
    from flows import console
    from tasks.approver_keys import new_key

    try:
        TypeAdapter(PersonName).validate_python(name)
    except ValidationError:
        raise BadInputError(
            f"{name!r} cannot stand as an approver's name: it must not be blank, or have a comma or a line end"
        ) from None
    path = out or _key_folder() / f"{_file_name(name)}.pem"
    identity = platform_of(env).identity()
    passphrase = _passphrase_from(passphrase_env)
    if passphrase is None and sys.stdin.isatty():
        asked = typer.prompt(
            "Passphrase (empty: none)",
            default="",
            hide_input=True,
            confirmation_prompt=True,
            show_default=False,
        )
        passphrase = asked.encode() or None
    public = new_key(path, passphrase)
    kept = "with a passphrase" if passphrase else "without a passphrase"
    console.err.print(f"wrote {path}, {kept}: keep it to yourself", markup=False, soft_wrap=True)
    console.err.print(
        "enter this in the environment's YAML, with your roles and all your git addresses, and have it reviewed:",
        markup=False,
        soft_wrap=True,
    )
    print(_entry(name, identity, public))


@keys_app.command("show")
def keys_show(
    file: Annotated[Path, typer.Argument(help="The file of a private key.")],
    passphrase_env: PassphraseOption = None,
) -> None:
    """Print the public key of a private one."""
    from tasks.approver_keys import public_key_of

    print(public_key_of(_key(file, passphrase_env)))


@approval_app.command()
def approve(
    model: ModelOption,
    role: Annotated[str, typer.Option("--role", help="The role you approve as.")],
    ticket: Annotated[str, typer.Option("--ticket", help="The change ticket it belongs to.")],
    key: Annotated[Path, typer.Option("--key", help="The file of your private key.")],
    env: EnvOption = "dev",
    version: VersionOption = None,
    comment: Annotated[str, typer.Option("--comment", help="One line, kept with it.")] = "",
    reject: Annotated[
        bool, typer.Option("--reject", help="Reject it instead; that outweighs every approval.")
    ] = False,
    days: Annotated[
        float | None, typer.Option("--days", help="How long it is valid; as long as allowed by default.")
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="Print it as one line to be pasted, and submit nothing.")
    ] = False,
    passphrase_env: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a version with your signature, or reject it."""
    from datetime import UTC, datetime

    from flows import console
    from tasks import approvals

    session.as_json |= as_json
    platform, name, ref = _meant(model, env, version)
    signing = _key(key, passphrase_env)
    approver, now = approvals.approver_with(platform.environment, signing), datetime.now(UTC)
    said = approvals.draft(
        platform,
        name,
        ref,
        role=role,
        approver=approver.name,
        ticket=ticket,
        decision="reject" if reject else "approve",
        comment=comment,
        days=days,
        now=now,
    )
    signed = approvals.sign(said, signing)
    if token:
        approvals.check(platform, signed, now)
        print(json.dumps({"token": signed.to_token()}) if session.as_json else signed.to_token())
        return
    entry = approvals.submit(platform, signed, now)
    stand = approvals.standing(platform, name, ref, datetime.now(UTC))
    if session.as_json:
        given = said.model_dump(mode="json", exclude={"nonce"}) | {"digest": said.digest, "ledger": entry.seq}
        print(json.dumps({"given": given, "standing": _as_json(stand)}))
        return
    done = "rejected" if reject else "approved"
    console.out.print(
        f"{said.approver} {done} {ref.name} version {ref.version} as {said.role} ({said.ticket}), "
        f"until {said.expires_at:%Y-%m-%d %H:%M} UTC",
        markup=False,
        soft_wrap=True,
    )
    console.out.print()
    _show(stand)


@approval_app.command("approvals")
def show_approvals(
    model: ModelOption,
    env: EnvOption = "dev",
    version: VersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who has approved a version, until when, and what is missing."""
    from datetime import UTC, datetime

    from tasks.approvals import standing

    session.as_json |= as_json
    platform, name, ref = _meant(model, env, version)
    stand = standing(platform, name, ref, datetime.now(UTC))
    if session.as_json:
        print(json.dumps(_as_json(stand)))
    else:
        _show(stand)


def _meant(model: str, env: str, version: str | None) -> "tuple[Platform, str, ChampionRef]":
    """The platform, the model's name, and the version that is asked about."""
    from deployments.spec import load_spec
    from tasks.champion import ChampionMissing, version_ref
    from tasks.register import challenger_of

    platform, name = platform_of(env), load_spec(model).name
    ref = version_ref(platform, name, version) if version else challenger_of(platform, name)
    if isinstance(ref, ChampionMissing):
        raise BadInputError(ref.reason)
    return platform, name, ref


def _key(path: Path, passphrase_env: str | None) -> "Ed25519PrivateKey":
    """A private key; its passphrase is asked for where it has one and somebody can be asked."""
    from tasks.approver_keys import PassphraseNeededError, load_key

    passphrase = _passphrase_from(passphrase_env)
    try:
        return load_key(path, passphrase)
    except PassphraseNeededError as error:
        if not sys.stdin.isatty():
            raise BadInputError(f"{error}; name the variable that holds it with --passphrase-env") from None
    return load_key(path, typer.prompt(f"Passphrase of {path}", hide_input=True, err=True).encode())


def _passphrase_from(variable: str | None) -> bytes | None:
    if variable is None:
        return None
    found = os.environ.get(variable)
    if not found:
        raise BadInputError(f"--passphrase-env: the environment variable {variable} is not set, or is empty")
    return found.encode()


def _key_folder() -> Path:
    return Path.home() / ".config" / "contender" / "keys"


def _file_name(name: str) -> str:
    """A file's name for a person's."""
    found = re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")
    if not found:
        raise BadInputError(f"{name!r} makes no file name; say with --out where the key is to be kept")
    return found


def _entry(name: str, identity: str, public: str) -> str:
    """What is to be entered for a new approver; JSON's strings are YAML's."""
    return "\n".join(
        [
            "approvers:",
            f"  - name: {json.dumps(name, ensure_ascii=False)}",
            f"    identities: [{json.dumps(identity, ensure_ascii=False)}]",
            "    roles: []",
            f"    public_key: {json.dumps(public)}",
        ]
    )


def _show(stand: "Approvals") -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from flows import console

    heading = f"Approvals of {stand.name} version {stand.version} in {stand.environment}"
    table = Table(
        title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False
    )
    for column in ("role", "approver", "ticket", "until", "counts"):
        table.add_column(column, overflow="fold")
    for one in stand.roles:
        if one.approval is None:
            table.add_row(Text(one.role), "–", "–", "–", Text(f"no: {one.reason}", style="yellow"))
            continue
        said = one.approval.approval
        until = f"{said.expires_at:%Y-%m-%d %H:%M} UTC"
        table.add_row(
            Text(said.role), Text(said.approver), Text(said.ticket), until, Text("yes", style="green")
        )
    if stand.roles:
        console.out.print(table, "")
    if not stand.roles and not stand.problem:
        console.out.print(Text(f"{heading}: none is asked for.", style="bold"))
    elif stand.complete:
        console.out.print(Text("Complete: it may be released.", style="bold green"))
    elif stand.rejected is not None or stand.problem:
        console.out.print(Text(f"Not approved: {stand.why_not}.", style="bold red"), soft_wrap=True)
    else:
        missing = ", ".join(one.role for one in stand.roles if one.approval is None)
        console.out.print(Text(f"Not approved yet: {missing} missing.", style="bold yellow"), soft_wrap=True)


def _as_json(stand: "Approvals") -> dict[str, Any]:
    rejected = stand.rejected.approval if stand.rejected else None
    return {
        "model": stand.model,
        "name": stand.name,
        "version": stand.version,
        "environment": stand.environment,
        "complete": stand.complete,
        "why_not": stand.why_not,
        "rejected": rejected and rejected.model_dump(mode="json") | {"digest": rejected.digest},
        "roles": [
            {
                "role": one.role,
                "counts": one.approval is not None,
                "reason": one.reason,
                "approver": one.approval and one.approval.approval.approver,
                "ticket": one.approval and one.approval.approval.ticket,
                "until": one.approval and one.approval.approval.expires_at.isoformat(),
                "digest": one.approval and one.approval.approval.digest,
            }
            for one in stand.roles
        ],
    }
