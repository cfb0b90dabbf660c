"""`train` through Prefect against the same functions called bare, alternating, each in a fresh process and data root.

`python -m benchmarks.orchestration [--model churn] [--rounds 3]`. Both sides count from before the first import of
theirs, and the Prefect side includes starting its server, as `python -m flows.run train` does.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from benchmarks.report import write_table


def main() -> None:
    """Measure and write benchmarks/results/orchestration.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="churn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["bare", "prefect"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        _one_side(given.side, given.model)
        return
    seconds: dict[str, list[float]] = {"bare": [], "prefect": []}
    for _ in range(given.rounds):
        for side, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "CONTENDER_HOME": folder}
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.orchestration",
                    "--side",
                    side,
                    "--model",
                    given.model,
                ]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                taken.append(float(done.stdout.strip().splitlines()[-1]))
    bare, prefect = median(seconds["bare"]), median(seconds["prefect"])
    write_table(
        "orchestration",
        "What Prefect costs: train through Prefect against the same functions called bare",
        f"python -m benchmarks.orchestration --model {given.model} --rounds {given.rounds}",
        ["side", "median s", "all rounds s", "ratio", "bound: 1.3 x bare + 5 s"],
        [
            ["bare", f"{bare:.1f}", ", ".join(f"{s:.1f}" for s in seconds["bare"]), "1.00", ""],
            [
                "Prefect, with starting its server",
                f"{prefect:.1f}",
                ", ".join(f"{s:.1f}" for s in seconds["prefect"]),
                f"{prefect / bare:.2f}",
                f"{1.3 * bare + 5:.1f} s: {'kept' if prefect <= 1.3 * bare + 5 else 'broken'}",
            ],
        ],
    )


def _one_side(side: str, model: str) -> None:
    started = time.perf_counter()
    from flows.settings import settle

    settle()

    def opened(waits: bool = True) -> None:
        from flows.prepare import opened

        opened(model, "dev", waits)

    if side == "bare":
        opened()
        from prefect import Task

        import flows.train

        Task.__call__ = lambda self, *arguments, **named: self.fn(*arguments, **named)  # type: ignore[method-assign]
        flows.train.task_runner = lambda environment: _Threads(environment.task_runner.workers)  # type: ignore[assignment]
        flows.train.train.fn(model)
    else:
        from flows.server import served

        with served(opened):
            import flows.train

            flows.train.train(model)
    print(time.perf_counter() - started)


class _Threads(ThreadPoolExecutor):
    """A task runner's `submit` over plain threads."""

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:  # type: ignore[override]
        """Run the task's own function."""
        return super().submit(task.fn, **parameters)


if __name__ == "__main__":
    main()
