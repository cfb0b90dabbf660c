"""Rollback: back to an earlier champion, now."""

from prefect import flow

from flows.prepare import prepare, run_name
from tasks.rollback import RollbackOutcome, roll_back


@flow(name="rollback", flow_run_name=run_name("rollback"), description=__doc__)
def rollback(model: str, reason: str, env: str = "dev", to: str | None = None) -> RollbackOutcome:
    """Give an earlier champion all traffic, and make it champion again; it needs no approval.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        reason: Why; it stands in the ledger.
        env: An environment under deployments/environments.
        to: A version that was champion; by default the release under way is ended, or the champion before is back.

    Raises:
        BadInputError: there is nothing to go back to.
        PromotionRefusedError: `to` never was champion.
    """
    loaded, platform = prepare(model, env)
    return roll_back(platform, loaded, reason=reason, to=to)
