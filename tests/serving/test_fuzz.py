"""Whatever is sent, a scorer answers below 500 in JSON, or closes the connection; and then it answers the next."""

import asyncio
import json
import random
import socket
import string
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.environment import PredictionLogConfig, RequestLimits
from deployments.model_file import SKOPS_FILE, canonicalise, file_digest
from serving.application import Scorer
from serving.engine import Answers
from serving.folders import Folders
from serving.prediction_log import PredictionLog
from serving.served_model import ServedColumn, ServedModel, write_served

COLUMNS = (
    ServedColumn(name="x", kind="double", required=True),
    ServedColumn(name="n", kind="long", required=True),
    ServedColumn(name="flag", kind="boolean", required=True),
    ServedColumn(name="note", kind="string", required=False),
    ServedColumn(name="at", kind="datetime", required=False),
)
ROW = {"x": 1.5, "n": 3, "flag": True, "note": "a", "at": "2026-01-31"}
GOOD = orjson.dumps({"dataframe_records": [ROW]})
LIMITS = RequestLimits(body_bytes=20_000, rows=50, timeout_seconds=2)


def served(**changes) -> ServedModel:
    given_ = {
        "name": "churn",
        "version": "3",
        "model": "m",
        "model_digest": "0" * 64,
        "run_id": "run",
        "flavor": "skops",
        "engine": "sklearn",
        "engine_reason": "",
        "columns": COLUMNS,
        "target": "regression",
        "entity": ("id",),
        "example": (ROW,),
    }
    return ServedModel(**given_ | changes)


class Strict:
    """Answers rows that are exactly as an engine is promised them, and fails at any other."""

    name = "strict"
    kinds = {"x": "f8", "n": "i8", "flag": "b1", "note": "O", "at": "M8[us]"}

    def predict(self, columns, rows):
        for name, kind in self.kinds.items():
            values = columns[name]
            assert values.shape == (rows,), name
            assert values.dtype == np.dtype(kind), name
        assert np.isfinite(columns["x"]).all()
        assert all(text is None or type(text) is str for text in columns["note"])
        return Answers(columns["x"] + columns["n"], None)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folders = Folders(tmp_path_factory.mktemp("fuzz"))
    log = PredictionLog(
        folders.log("churn"),
        served(),
        endpoint="churn",
        entity="champion",
        worker=0,
        config=PredictionLogConfig(),
        pii_key=None,
    )
    made = Scorer(
        served(),
        Strict(),
        log,
        endpoint="churn",
        entity="champion",
        worker=0,
        limits=LIMITS,
        online=folders.online("churn"),
    )
    yield made
    made.close()


def answered(scorer, body, *, method="POST", path="/invocations", headers=(), pieces=1):
    """Status and body of an answer to a request that is sent in some pieces."""
    size = max(1, -(-len(body) // pieces))
    parts = [body[at : at + size] for at in range(0, max(len(body), 1), size)]
    messages = [
        {"type": "http.request", "body": one, "more_body": place + 1 < len(parts)}
        for place, one in enumerate(parts)
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(scorer(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], content


def check(scorer, body, **how) -> int:
    status, content = answered(scorer, body, **how)
    assert status < 500, content
    assert b"Traceback" not in content
    if how.get("path", "/invocations") == "/invocations" and how.get("method", "POST") == "POST":
        document = orjson.loads(content)
        assert set(document) == ({"predictions"} if status == 200 else {"error_code", "message"})
        assert len(document.get("message", "")) < 2000
    assert answered(scorer, GOOD)[0] == 200
    return status


JSON_TYPE = [(b"content-type", b"application/json")]

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "NaN", "2026-13-01", "9999-12-31T23:59:59-23:59", "1e5", "\x00", "\U0001f600"]),
)
VALUES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
NAMES = st.sampled_from([*ROW, "id", "nn", "", "\x00"])
RECORDS = st.one_of(
    st.fixed_dictionaries({name: st.one_of(st.just(value), VALUES) for name, value in ROW.items()}),
    st.dictionaries(NAMES, VALUES, max_size=7),
    VALUES,
)
ROWS = st.lists(RECORDS, max_size=4)
PROTOCOLS = st.sampled_from(["dataframe_split", "dataframe_records", "inputs", "instances"])
SPLIT = st.fixed_dictionaries(
    {
        "columns": st.one_of(VALUES, st.lists(st.one_of(NAMES, VALUES), max_size=6), st.just(list(ROW))),
        "data": st.one_of(VALUES, st.lists(st.one_of(VALUES, st.lists(VALUES, max_size=6)), max_size=4)),
    },
    optional={"index": VALUES, "more": VALUES},
)
DOCUMENTS = st.one_of(
    VALUES,
    st.dictionaries(PROTOCOLS, st.one_of(ROWS, VALUES, st.dictionaries(NAMES, VALUES)), max_size=2),
    st.fixed_dictionaries({"dataframe_split": SPLIT}, optional={"params": VALUES, "extra": VALUES}),
)
PATIENT = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@PATIENT
@given(DOCUMENTS, st.integers(1, 3))
def test_any_json_is_answered_below_500(scorer, document, pieces) -> None:
    body = json.dumps(document).encode()

    check(scorer, body, headers=JSON_TYPE, pieces=pieces)


@PATIENT
@given(
    st.binary(max_size=200),
    st.sampled_from(["application/json", "text/csv", "", "x/y", "text/csv; charset=x"]),
)
def test_any_bytes_are_answered_below_500(scorer, body, content_type) -> None:
    check(scorer, body, headers=[(b"content-type", content_type.encode())])


@PATIENT
@given(st.data())
def test_a_good_body_that_was_damaged_is_answered_below_500(scorer, data) -> None:
    body = bytearray(
        orjson.dumps({"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values())] * 2}})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))

    check(scorer, bytes(body), headers=JSON_TYPE)


@PATIENT
@given(st.text(alphabet=string.printable + 'é,"\n\x00', max_size=120))
def test_any_csv_is_answered_below_500(scorer, text) -> None:
    check(scorer, b"x,n,flag,note,at\n" + text.encode(), headers=[(b"content-type", b"text/csv")])


@PATIENT
@given(
    st.sampled_from(["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "POST", "TRACE"]),
    st.one_of(
        st.sampled_from(["/", "/ping", "/health", "/docs", "/invocations", "/%00", "//"]), st.text(max_size=9)
    ),
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"content-type", b"content-length", b"x-request-id", b"host", b"x-contender-caller"]
            ),
            st.binary(max_size=20),
        ),
        max_size=4,
    ),
)
def test_any_method_path_and_headers_are_answered_below_500(scorer, method, path, headers) -> None:
    check(scorer, GOOD, method=method, path=path, headers=headers)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 19_000, 400),
        (b'{"a":' * 3_000, 400),
        (b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}", 400),
        (b'{"inputs":[NaN,' + b"[" * 900 + b"]" * 900 + b"]}", 400),
        (b" " * 20_001, 413),
        (orjson.dumps({"dataframe_records": [ROW] * 51}), 413),
        (orjson.dumps({"inputs": {name: [value] * 51 for name, value in ROW.items()}}), 413),
        (GOOD[:-5], 400),
        (b"", 400),
        (GOOD.replace(b"1.5", b"1e400"), 400),
        (GOOD.replace(b"1.5", b"-Infinity"), 400),
        (GOOD.replace(b'"a"', b'"\\ud800"'), 400),
        (GOOD.replace(b'"a"', b'"\\u0000"'), 200),
        (GOOD.replace(b'"x"', b'"\\u0078"'), 200),
    ],
)
def test_known_nasty_bodies_have_the_status_they_should(scorer, body, status) -> None:
    assert check(scorer, body, headers=JSON_TYPE) == status


# Over a socket ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A real scorer of a small real model."""
    import pandas as pd
    import skops.io
    from sklearn.linear_model import LinearRegression

    root = tmp_path_factory.mktemp("process")
    folder = root / "churn-v3"
    (folder / "model").mkdir(parents=True)
    path = folder / "model" / SKOPS_FILE
    inputs = pd.DataFrame({"x": [0.0, 1.0], "n": [1, 2]})
    skops.io.dump(LinearRegression().fit(inputs, [1.0, 2.0]), path)
    canonicalise(path)
    model = served(model_digest=file_digest(path), columns=COLUMNS[:2], example=({"x": 1.5, "n": 3},))
    write_served(folder, model)
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    command = [sys.executable, "-m", "serving.scorer", "--model", str(folder), "--endpoint", "churn"]
    command += ["--entity", "champion", "--root", str(root), "--fd", str(listening.fileno()), "--tether"]
    with listening, (root / "errors.txt").open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=errors,
            pass_fds=[listening.fileno()],
            cwd=Path(__file__).parents[2],
        )
        number = listening.getsockname()[1]
    assert exchanged(number, posted(SMALL, b"connection: close\r\n"), wait=60).startswith(b"HTTP/1.1 200 ")
    yield number
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(20) == 0
    assert "Traceback" not in (root / "errors.txt").read_text()


def exchanged(port: int, *pieces: bytes, wait: float = 0.3) -> bytes:
    """What comes back, until the other side closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
        found = b""
        try:
            for piece in pieces:
                caller.sendall(piece)
            caller.settimeout(wait)
            while more := caller.recv(1 << 20):
                found += more
        except (TimeoutError, ConnectionError):
            pass
        return found


SMALL = b'{"inputs": [[1.5, 3]]}'


def posted(body: bytes, headers: bytes = b"", version: bytes = b"1.1") -> bytes:
    return (
        b"POST /invocations HTTP/%b\r\nhost: a\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
        % (version, headers, len(body), body)
    )


NASTY = {
    "garbage": [b"\x00\xff\x16\x03\x01" * 50],
    "a request, then garbage": [posted(SMALL) + b"\x00garbage\r\n\r\n"],
    "garbage in a chunk size": [
        b"POST /invocations HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    ],
    "a truncated body": [posted(SMALL)[:-4]],
    "a truncated head": [b"POST /invoc"],
    "a body in drops": [posted(SMALL)[:-6], *[bytes([byte]) for byte in SMALL[-6:]]],
    "three at once": [posted(SMALL) * 3],
    "two lengths": [posted(SMALL, b"content-length: 3\r\n")],
    "length and chunks": [posted(SMALL, b"transfer-encoding: chunked\r\n")],
    "a negative length": [b"POST /invocations HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n"],
    "an endless length": [b"POST /invocations HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\nabc"],
    "an upgrade": [posted(SMALL, b"connection: upgrade\r\nupgrade: websocket\r\n")],
    "another protocol": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    "an old protocol": [posted(SMALL, version=b"1.0")],
    "no protocol": [b"GET /\r\n\r\n"],
    "a path that is none": [b"GET http://[::1 HTTP/1.1\r\nhost: a\r\n\r\n"],
    "a star": [b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"],
    "a tunnel": [b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n"],
    "a long head": [b"GET /ping HTTP/1.1\r\n" + b"a: " + b"b" * 200_000 + b"\r\n\r\n"],
    "a waiting body": [posted(SMALL, b"expect: 100-continue\r\n")],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_a_process_survives_what_comes_over_its_socket(port, name) -> None:
    found = exchanged(port, *NASTY[name])
    after = exchanged(port, posted(SMALL, b"connection: close\r\n"), wait=10)

    statuses = [int(answer[:3]) for answer in found.split(b"HTTP/1.1 ")[1:]]
    assert all(status < 500 for status in statuses), found
    assert b"Traceback" not in found
    assert after.startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
def test_many_callers_with_damaged_requests_at_once_lose_no_worker(port) -> None:
    chance = random.Random(5)
    found: list[bytes] = []

    def damage() -> None:
        for _ in range(15):
            request = bytearray(posted(SMALL))
            for _ in range(3):
                request[chance.randrange(len(request))] = chance.randrange(256)
            found.append(exchanged(port, bytes(request), wait=0.05))

    callers = [threading.Thread(target=damage) for _ in range(6)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    time.sleep(0.1)
    after = exchanged(port, posted(SMALL, b"connection: close\r\n"), wait=10)

    assert not [answer for answer in found if b"HTTP/1.1 5" in answer or b"Traceback" in answer]
    assert after.startswith(b"HTTP/1.1 200 ")
