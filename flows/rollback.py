"""Rollback: back to an earlier champion, now."""

from prefect import flow
from prefect.settings import PREFECT_API_URL

from flows.notify import tell_rollback
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import HOUR, about, prepare, run_name
from flows.server import served
from platforms.platform import Platform
from tasks.release_end import write_end
from tasks.release_record import ReleaseStore
from tasks.rollback import RollbackOutcome, roll_back


@flow(name="rollback", flow_run_name=run_name("rollback"), description=__doc__, timeout_seconds=HOUR / 6)
def rollback(
    model: ModelName, reason: str, env: EnvironmentName = "dev", to: str | None = None
) -> RollbackOutcome:
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
    outcome = roll_back(platform, loaded, reason=reason, to=to)
    about(outcome.version or str(outcome.left))
    write_down(platform, outcome)
    tell_rollback(platform, outcome)
    return outcome


def write_down(platform: Platform, outcome: RollbackOutcome) -> tuple[str, ...]:
    """Write the report and the evidence of a release anew that was rolled back; what could not be written."""
    if outcome.release is None:
        return ()
    release = ReleaseStore(platform, outcome.model).load(outcome.release)
    return write_end(platform, release).problems


def tell_if_heard(platform: Platform, outcome: RollbackOutcome) -> None:
    """Tell of a rollback made without a flow, where a server listens or the environment names whom to tell."""
    if PREFECT_API_URL.value():
        tell_rollback(platform, outcome)
    elif platform.environment.notify:
        with served(lambda _: None):
            tell_rollback(platform, outcome)
