"""A Prefect server asked over HTTP, as a person's script would ask it."""

import time

import httpx

BUSY_SECONDS = 60


def asked(method, url, **body):
    """What the server answers; anything but success fails the test.

    A server on SQLite answers 503 while somebody else writes. As Prefect's own client does, it is asked again then.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        answer = httpx.request(method, url, json=body, timeout=60)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert answer.is_success, f"{method} {url}: {answer.text}"
    return answer.json() if answer.content else None
