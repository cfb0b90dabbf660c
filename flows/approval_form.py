"""The form by which a suspended release is approved in the Prefect UI, and what is made of it."""

from typing import TYPE_CHECKING, Literal

from prefect import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from deployments.errors import BadInputError, ContenderError, first_line
from platforms.platform import Platform

if TYPE_CHECKING:
    from tasks.approvals import SignedApproval
    from tasks.release_record import Release

__all__ = ["ApprovalForm", "ask_for_approval", "may_suspend"]

MOST_FORMS = 50
"""So many forms a release may take, wrong ones included."""


class ApprovalForm(RunInput):
    """Approve or reject a release.

    `signature` is what `python -m flows.run approve … --token` printed; decision, approver and ticket say again, for
    whoever reads this later, what was signed, and must agree with it. The comment is a note on the run, and unsigned.
    """

    decision: Literal["approve", "reject"]
    approver: str = Field(min_length=1, description="The name under `approvers` in the environment.")
    ticket: str = Field(min_length=1, description="The change ticket.")
    comment: str = Field("", description="A note that stays with this run; what counts is signed.")
    signature: str = Field(min_length=1, description="The token that `approve --token` printed.")


def may_suspend() -> bool:
    """Whether this run can wait without a process: it has a deployment, and is of no other run."""
    return deployment.id is not None and flow_run.parent_flow_run_id is None


def ask_for_approval(platform: Platform, release: "Release", missing: str, number: int) -> None:
    """Suspend the run until the form is filled in, and submit what was signed; the `number`-th form of this release.

    A form that does not count is told in the run's tags and log, and the next one is asked for.

    Raises:
        ContenderError: too many forms were of no use.
    """
    from prefect.logging import get_run_logger

    from tasks.approvals import SignedApproval, submit

    if number >= MOST_FORMS:
        raise ContenderError(
            f"{release.id}: {MOST_FORMS} forms were filled in, and approvals are still missing"
        )
    form = suspend_flow_run(
        wait_for_input=ApprovalForm.with_initial_data(
            description=(
                f"**{release.challenger.name} version {release.challenger.version}** is proposed for "
                f"{release.environment}. {missing}.\n\nSign with: `python -m flows.run approve --model "
                f"{release.model} --env {release.environment} --version {release.challenger.version} "
                "--role ROLE --ticket TICKET --key FILE --token`"
            )
        ),
        timeout=round(release.plan.approval_hours * 3600),
        key=f"approval-{number}",
    )
    try:
        signed = SignedApproval.from_token(form.signature)
        _agree(form, signed)
        submit(platform, signed)
    except ContenderError as error:
        get_run_logger().warning("form %s of %s does not count: %s", number, flow_run.name, first_line(error))


def _agree(form: ApprovalForm, signed: "SignedApproval") -> None:
    """Refuse a form that says something else than what was signed.

    Raises:
        BadInputError: names the field.
    """
    said = signed.approval
    for name in ("decision", "approver", "ticket"):
        if str(getattr(form, name)).strip() != str(getattr(said, name)):
            raise BadInputError(
                f"{name}: the form says {getattr(form, name)!r}, and what was signed says {getattr(said, name)!r}"
            )
