"""The commands of Prefect deployments: prefect.yaml from the specs, and the work pools that it names."""

from pathlib import Path
from typing import Annotated

import typer

deployments_app = typer.Typer(
    help="Prefect deployments: prefect.yaml from the specs, and its work pools.", no_args_is_help=True
)


@deployments_app.command("sync")
def deployments_sync(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 where the file is not up to date.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Another file than prefect.yaml.")] = None,
) -> None:
    """Write prefect.yaml from the models and environments that are here."""
    from flows import console
    from flows.deployment_file import FILE, changes, prefect_yaml

    path, wanted = out or FILE, prefect_yaml()
    standing = path.read_text(encoding="utf-8") if path.exists() else ""
    found = changes(standing, wanted)
    for line in found:
        console.out.print(line, markup=False, soft_wrap=True)
    if check and found:
        console.show_error(f"{path} is not up to date; write it with: python -m flows.run deployments sync")
        raise typer.Exit(1)
    if found:
        staged = path.with_name(f"{path.name}.partial")
        staged.write_text(wanted, encoding="utf-8")
        staged.replace(path)
    count = wanted.count("\n- name: ") or wanted.count("entrypoint: ")
    console.out.print(f"{path}: {count} deployments, {'written' if found else 'up to date'}", soft_wrap=True)


@deployments_app.command("pools")
def deployments_pools() -> None:
    """Make the environments' work pools on the server of PREFECT_API_URL; those that stand stay as they are."""
    from flows import console
    from flows.work_pools import make_work_pools

    for name, kind, made in make_work_pools():
        console.out.print(f"{name} ({kind}): {'made' if made else 'stands'}", markup=False)
