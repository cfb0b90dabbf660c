"""Requests that no scorer answered: what a gateway answered in their place with a 5xx, by the second they came.

They stand in no prediction log: nobody was there to write them down. Both gateways note each of them as a JSON line,
in a file that outlives them: `second` (of its arrival, in epoch seconds), `endpoint`, `path` and `served_entity`, which
is null where the answer is the gateway's own.
"""

from collections import Counter
from pathlib import Path

import orjson

__all__ = ["FILE", "unanswered"]

FILE = "failed.log"
"""Beside the access log; it has all answers of 5xx, those of scorers among them, since no filter tells them apart."""


def unanswered(logs: Path, endpoint: str) -> list[tuple[int, int]]:
    """When how many requests for predictions of an endpoint had no scorer's answer: epoch seconds and counts.

    They go back as far as the file and the one before it do, which hold half a million such requests each.
    """
    found: Counter[int] = Counter()
    for file in (logs / f"{FILE}.1", logs / FILE):
        try:
            lines = file.open("rb")
        except FileNotFoundError:
            continue
        with lines:
            for line in lines:
                try:
                    noted = orjson.loads(line)
                except orjson.JSONDecodeError:
                    # The last line of a gateway that was killed may be cut.
                    continue
                asked = noted["endpoint"] == endpoint and str(noted["path"]).endswith("/invocations")
                if asked and noted["served_entity"] is None:
                    found[int(noted["second"])] += 1
    return sorted(found.items())
