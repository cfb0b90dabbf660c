"""Where candidates train, and where the models of a fleet are worked on: the task runner that an environment names."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Self

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from deployments.environment import DaskRunner, Environment, ProcessRunner

__all__ = ["on_a_worker", "task_runner"]

_on_a_worker: ContextVar[bool] = ContextVar("on_a_worker", default=False)


@contextmanager
def on_a_worker() -> Iterator[None]:
    """Within it, flows take one candidate after another in this thread's process.

    They are on a worker of the environment's task runner already, beside as many others as it has workers. Another
    pool in each would be that many workers too many; and workers of Dask may start no processes, and would wait for
    one another if they gave work to their own cluster.
    """
    before = _on_a_worker.set(True)
    try:
        yield
    finally:
        _on_a_worker.reset(before)


class _Processes(ProcessPoolTaskRunner):
    """Prefect's pool of processes, whose messages reach the server of the run.

    The thread that passes on events and logs of the processes knows, in Prefect 3.8, only the settings that stood when
    Prefect was imported. Without an address among them it starts a server of its own, which nobody sees or ends.
    """

    def __enter__(self) -> Self:
        """Begin, with that thread in the context of the run."""
        context, forward = copy_context(), self._forward_subprocess_messages
        self._forward_subprocess_messages = lambda: context.run(forward)  # type: ignore[method-assign]
        return super().__enter__()


def task_runner(environment: Environment, workers: int | None = None) -> TaskRunner[Any]:
    """Threads, processes or a Dask cluster; of so many workers where that is said and the cluster is not yet there."""
    config = environment.task_runner
    workers = workers or config.workers
    if _on_a_worker.get():
        return ThreadPoolTaskRunner(max_workers=1)
    if isinstance(config, ProcessRunner):
        return _Processes(max_workers=workers)
    if isinstance(config, DaskRunner):
        from prefect_dask import DaskTaskRunner

        # Where nobody says otherwise its HTTP server takes one fixed port, also where there is to be no dashboard.
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        cluster = {"address": config.address} if config.address is not None else {"cluster_kwargs": local}
        runner: TaskRunner[Any] = DaskTaskRunner(**cluster)
        return runner
    return ThreadPoolTaskRunner(max_workers=workers)
