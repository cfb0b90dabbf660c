"""The local platform's names."""

import pytest

from deployments.environment import known_environments, load_environment
from platforms import platform_for


def test_no_two_environments_have_an_endpoint_of_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTENDER_HOME", str(tmp_path))
    environments = [load_environment(name) for name in known_environments()]

    named = [platform_for(environment).endpoint("churn") for environment in environments]

    assert len(set(named)) == len(environments)


@pytest.mark.parametrize(
    ("prefix", "expected"), [("dev-", "dev-churn"), ("team_a_", "team_a_churn"), ("", "churn")]
)
def test_an_endpoint_is_named_by_the_environments_prefix_and_the_model(platform, prefix, expected):
    config = platform.environment.platform.model_copy(update={"model_prefix": prefix})
    environment = platform.environment.model_copy(update={"platform": config})

    assert platform_for(environment).endpoint("churn") == expected
