"""Events in a second of the churn simulator, by the size of the shop.

`python -m benchmarks.simulator [--customers 25000 100000]`. The stream is read to its end and thrown away; what its
process held at most is of a process of its own for each size.
"""

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context

from benchmarks.report import write_table

END = date(2026, 1, 1)


def measured(customers: int) -> tuple[int, float, float]:
    """Events of one shop, seconds, and the megabytes that the process held at most."""
    from deployments.models.churn.simulator import simulate

    begun = time.perf_counter()
    events = sum(batch.num_rows for batch in simulate("events", seed=1, customers=customers, end=END))
    seconds = time.perf_counter() - begun
    return events, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure each size and write benchmarks/results/simulator.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, nargs="+", default=[25_000, 100_000])
    given = parser.parse_args()
    rows = []
    for customers in given.customers:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            events, seconds, megabytes = pool.submit(measured, customers).result()
        rows.append(
            [
                f"{customers:,}",
                f"{events:,}",
                f"{seconds:.1f}",
                f"{events / seconds / 1e6:.2f}",
                f"{megabytes:,.0f}",
            ]
        )
    sizes = " ".join(str(customers) for customers in given.customers)
    write_table(
        "simulator",
        "Events of the churn simulator",
        f"python -m benchmarks.simulator --customers {sizes}",
        ["customers", "events", "seconds", "million events a second", "MB at most"],
        rows,
        note="One process, one core; a shop from its first customer to its last day.",
    )


if __name__ == "__main__":
    main()
