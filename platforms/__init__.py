"""Places to run: local, docker, databricks behind one protocol."""

from deployments.environment import Environment
from platforms.platform import Platform


def platform_for(environment: Environment) -> Platform:
    """The platform that an environment names."""
    from platforms.local import local_platform

    return local_platform(environment)
