"""Where candidates train: the task runner that an environment names."""

from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from deployments.environment import DaskRunner, Environment, ProcessRunner


def task_runner(environment: Environment) -> TaskRunner[Any]:
    """Threads, processes or a Dask cluster."""
    config = environment.task_runner
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=config.workers)
    if isinstance(config, ProcessRunner):
        runner = ProcessPoolTaskRunner(max_workers=config.workers)
    elif isinstance(config, DaskRunner):
        from prefect_dask import DaskTaskRunner

        local = {"n_workers": config.workers, "threads_per_worker": 1, "dashboard_address": None}
        cluster = {"address": config.address} if config.address is not None else {"cluster_kwargs": local}
        runner = DaskTaskRunner(**cluster)
    return runner
