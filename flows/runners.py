"""Where candidates train: the task runner that an environment names."""

from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from deployments.environment import DaskRunner, Environment, ProcessRunner


def task_runner(environment: Environment) -> TaskRunner[Any]:
    """Threads, processes or a Dask cluster."""
    config = environment.task_runner
    if isinstance(config, ProcessRunner):
        runner: TaskRunner[Any] = ProcessPoolTaskRunner(max_workers=config.workers)
        return runner
    if isinstance(config, DaskRunner):
        from prefect_dask import DaskTaskRunner

        if config.address is not None:
            return DaskTaskRunner(address=config.address)
        cluster = {"n_workers": config.workers, "threads_per_worker": 1, "dashboard_address": None}
        return DaskTaskRunner(cluster_kwargs=cluster)
    return ThreadPoolTaskRunner(max_workers=config.workers)
