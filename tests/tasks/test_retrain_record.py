import pytest

from deployments.spec import load_spec
from tasks.retrain_policy import last_started
from tasks.retrain_record import begin_retraining, end_retraining, open_retraining


@pytest.fixture
def loaded():
    return load_spec("churn")


def test_a_retraining_that_broke_starts_no_cooldown_and_any_other_end_does(platform, loaded):
    first = begin_retraining(platform, loaded, "drift", "drift", None)
    end_retraining(platform, first, "rolled_back", ("scores",))
    broken = begin_retraining(platform, loaded, "again", None, None)
    assert open_retraining(platform, "churn").id == broken.id

    end_retraining(platform, broken, "failed", ("the registry is gone",))

    assert open_retraining(platform, "churn") is None
    assert last_started(platform, "churn").details["retraining"] == broken.id
    assert last_started(platform, "churn", broken=False).details["retraining"] == first.id
    assert last_started(platform, "telco", broken=False) is None
