"""A scorer answers by MLflow's protocol, logs all it answers, and says plainly what it will not do."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.environment import PredictionLogConfig, RequestLimits, Serving
from deployments.model_file import SKOPS_FILE, canonicalise, file_digest
from deployments.personal_data import keyed_hash
from serving import scorer
from serving.application import NotReadyError, Scorer
from serving.engine import Answers, UnansweredError
from serving.folders import Folders
from serving.prediction_log import LogFullError, PredictionLog, read_segment, segment_files
from serving.served_model import ServedColumn, ServedModel, write_served

COLUMNS = (
    ServedColumn(name="x", kind="double", required=True),
    ServedColumn(name="note", kind="string", required=False),
)


def served(**changes) -> ServedModel:
    given = {
        "name": "churn",
        "version": "3",
        "model": "models:/churn/3",
        "model_digest": "0" * 64,
        "run_id": "run",
        "flavor": "skops",
        "engine": "sklearn",
        "engine_reason": "there is no converter",
        "columns": COLUMNS,
        "target": "binary",
        "positive": "yes",
        "entity": ("customer_id",),
        "example": ({"x": 1.0, "note": "a"}, {"x": 2.0, "note": None}),
    }
    return ServedModel(**given | changes)


class Halving:
    """Says yes above one; fails at 13, refuses 14, and waits at 15 until it is let go."""

    name = "halving"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.free = threading.Event()
        self.asked = 0

    def predict(self, columns, rows):
        self.asked += 1
        time.sleep(self.seconds)
        x = columns["x"]
        if (x == 13).any():
            raise RuntimeError("a secret of the model")
        if (x == 14).any():
            raise UnansweredError("the model cannot answer: 14")
        if (x == 15).any():
            assert self.free.wait(10)
        return Answers(np.where(x > 1, "yes", "no"), x / 100)


SLOW = 0.001


class Running:
    """A scorer in process, with its log."""

    def __init__(
        self, root: Path, engine, model: ServedModel, limits: RequestLimits, log: PredictionLogConfig
    ):
        self.folders = Folders(root)
        self.engine = engine
        self.log = PredictionLog(
            self.folders.log("churn"),
            model,
            endpoint="churn",
            entity="champion",
            worker=2,
            config=log,
            pii_key=b"k",
        )
        self.scorer = Scorer(
            model,
            engine,
            self.log,
            endpoint="churn",
            entity="champion",
            worker=2,
            limits=limits,
            online=self.folders.online("churn"),
            pii_key=b"k",
        )

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.scorer), base_url="http://scorer")

    def ask(self, method="POST", path="/invocations", **request) -> httpx.Response:
        async def asked():
            async with self.client() as client:
                return await client.request(method, path, **request)

        return asyncio.run(asked())

    def records(self) -> list[dict]:
        return records(self.folders)


def records(folders: Folders) -> list[dict]:
    found = []
    for path in segment_files(folders.log("churn")):
        with read_segment(path) as segment:
            found += [record for _, record in segment.records()]
    return found


@pytest.fixture
def run(tmp_path):
    """Makes scorers in process, and closes them."""
    made = []

    def running(engine=None, *, model=None, limits=None, log=None) -> Running:
        one = Running(
            tmp_path,
            engine or Halving(),
            model or served(),
            limits or RequestLimits(),
            log or PredictionLogConfig(),
        )
        made.append(one)
        return one

    yield running
    for one in made:
        one.scorer.close()


def body(*values, **columns):
    return {"dataframe_records": [{"x": value, **columns} for value in values]}


# Answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, SLOW])
def test_an_answer_has_predictions_scores_and_says_who_gave_it(run, seconds) -> None:
    one = run(Halving(seconds))

    answer = one.ask(json=body(0.5, 2.0), headers={"x-request-id": "abc-1"})

    assert answer.status_code == 200
    assert answer.json() == {"predictions": ["no", "yes"], "scores": [0.005, 0.02]}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-served-entity"] == "champion"
    assert answer.headers["x-served-version"] == "3"


def test_many_predictions_are_answered_in_order(run) -> None:
    class Plain(Halving):
        def predict(self, columns, rows):
            return Answers(columns["x"] * 2, None)

    values = [float(value) for value in range(1000)]

    answer = run(Plain()).ask(
        json={"dataframe_split": {"columns": ["x"], "data": [[value] for value in values]}}
    )

    assert answer.json() == {"predictions": [value * 2 for value in values]}


@pytest.mark.parametrize("given", ["", "x" * 129, "ü", "a\tb"])
def test_a_request_id_that_is_not_fit_is_replaced(run, given) -> None:
    answer = run().ask(json=body(1.0), headers={b"x-request-id": given.encode("latin-1")})

    fresh = answer.headers["x-request-id"]
    assert len(fresh) == 32
    assert int(fresh, 16) >> 76 & 0xF == 4


def test_a_model_is_given_the_digests_of_personal_data_that_it_was_trained_on(run) -> None:
    class Remembering(Halving):
        seen: object = None

        def predict(self, columns, rows):
            self.seen = columns["note"].tolist()
            return super().predict(columns, rows)

    one = run(Remembering(), model=served(hashed=("note",)))

    one.ask(json=body(2.0, note="Anna"))

    digest = keyed_hash("Anna", b"k")
    assert one.engine.seen == [digest]
    logged = json.dumps(one.records()[0])
    assert digest in logged
    assert "Anna" not in logged


def test_csv_is_answered_too(run) -> None:
    answer = run().ask(content="x,note\n2,a\n", headers={"content-type": "text/csv"})

    assert answer.json()["predictions"] == ["yes"]


def test_what_curl_sends_by_default_is_taken_for_json(run) -> None:
    answer = run().ask(
        content=json.dumps(body(2.0)), headers={"content-type": "application/x-www-form-urlencoded"}
    )

    assert answer.status_code == 200


# The log ----------------------------------------------------------------------------------------------------


def test_each_answer_is_a_record_before_it_is_sent(run) -> None:
    one = run()

    headers = {"x-request-id": "r1", "x-contender-caller": "shop", "host": "champion-shadow:8500"}
    one.ask(json=body(2.0, note="n", customer_id=7), headers=headers)
    one.ask(json=body("x"), headers={"x-request-id": "r2"})
    first, second = one.records()

    assert (first["id"], first["requester"], first["shadow"], first["status"]) == ("r1", "shop", True, 200)
    assert (first["rows"], first["keys"]) == (1, {"customer_id": [7]})
    assert first["columns"] == [[2.0], ["n"]]
    assert (first["predictions"], first["scores"], first["error"]) == (["yes"], [0.02], None)
    assert first["ms"] > 0
    assert (second["id"], second["requester"], second["shadow"], second["status"]) == ("r2", None, False, 400)
    assert "column 'x', row 0" in second["error"]


def test_a_full_log_answers_503_and_no_prediction(run) -> None:
    one = run()

    def full(_record):
        raise LogFullError("the log is full")

    one.log.append = full
    answer = one.ask(json=body(2.0))

    assert answer.status_code == 503
    assert answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert "predictions" not in answer.json()


async def spoken(scorer, messages, *, method="POST", path="/invocations", headers=(), gone=False):
    """What a scorer sends to a caller that speaks these ASGI messages, and then is silent or gone."""
    left, sent = list(messages), []

    async def receive():
        if left:
            return left.pop(0)
        if gone:
            return {"type": "http.disconnect"}
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await scorer(scope, receive, send)
    return sent


def part(content, more=False):
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_caller_that_leaves_before_the_answer_is_logged_with_the_answer(run) -> None:
    one = run()

    asyncio.run(spoken(one.scorer, [part(orjson.dumps(body(2.0)))], gone=True))

    assert [record["status"] for record in one.records()] == [200]


def test_a_caller_that_leaves_before_the_body_is_complete_is_not_answered(run) -> None:
    one = run()

    sent = asyncio.run(spoken(one.scorer, [part(b'{"data', more=True)], gone=True))
    after = one.ask(json=body(2.0))

    assert sent == []
    assert after.status_code == 200
    assert len(one.records()) == 1
    assert one.ask("GET", "/health").json()["in_flight"] == 0


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/invocations", 405, "POST"),
        ("PUT", "/invocations", 405, "POST"),
        ("POST", "/ping", 405, "GET, HEAD"),
        ("GET", "/", 404, None),
        ("POST", "/invocations/", 404, None),
    ],
)
def test_other_paths_and_methods_are_refused_in_json(run, method, path, status, allow) -> None:
    answer = run().ask(method, path)

    assert answer.status_code == status
    assert set(answer.json()) == {"error_code", "message"}
    assert answer.headers.get("allow") == allow


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"json": {}}, 400, "BAD_REQUEST"),
        ({"content": b"a,b", "headers": {"content-type": "text/html"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ({"json": body(*range(6))}, 413, "REQUEST_TOO_LARGE"),
        ({"content": b" " * 2000}, 413, "REQUEST_TOO_LARGE"),
        ({"json": body(14)}, 400, "BAD_REQUEST"),
    ],
)
def test_a_refusal_has_a_status_a_code_and_a_sentence(run, request_, status, code) -> None:
    one = run(limits=RequestLimits(body_bytes=1024, rows=5))

    answer = one.ask(**request_)

    assert answer.status_code == status
    assert answer.json()["error_code"] == code
    assert answer.json()["message"]
    assert answer.headers["x-served-version"] == "3"
    assert [record["status"] for record in one.records()] == [status]


def test_a_body_in_pieces_is_read_no_further_than_it_may_be_long(run) -> None:
    one = run(limits=RequestLimits(body_bytes=1024))
    pieces = [part(b" " * 600, more=True) for _ in range(3)] + [part(b"")]

    sent = asyncio.run(spoken(one.scorer, pieces))

    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_body_that_says_it_is_too_long_is_not_read_at_all(run) -> None:
    one = run(limits=RequestLimits(body_bytes=1024))

    sent = asyncio.run(spoken(one.scorer, [], headers=[(b"content-length", b"9" * 30)], gone=True))

    assert sent[0]["status"] == 413


def test_a_body_in_pieces_is_put_together(run) -> None:
    whole = orjson.dumps(body(2.0))

    sent = asyncio.run(spoken(run().scorer, [part(whole[:9], True), part(b"", True), part(whole[9:])]))

    assert sent[0]["status"] == 200


def test_a_body_that_does_not_come_is_given_up_with_408(run) -> None:
    one = run(limits=RequestLimits(timeout_seconds=0.05))

    sent = asyncio.run(spoken(one.scorer, [part(b"{", more=True)]))

    assert sent[0]["status"] == 408
    assert one.records()[0]["status"] == 408


def test_a_model_that_fails_answers_500_with_the_request_and_without_its_secrets(run, caplog) -> None:
    one = run()

    answer = one.ask(json=body(13), headers={"x-request-id": "r9"})
    after = one.ask(json=body(2.0))

    assert answer.status_code == 500
    assert "r9" in answer.json()["message"]
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "a secret of the model" in caplog.text
    assert "r9" in caplog.text
    assert after.status_code == 200


def test_a_full_queue_answers_429_and_when_to_come_again(run) -> None:
    one = run(Halving(SLOW), limits=RequestLimits(queue=1))

    async def scenario():
        async with one.client() as client:
            begun = one.engine.asked
            held = [asyncio.ensure_future(client.post("/invocations", json=body(15.0)))]
            while one.engine.asked == begun:
                await asyncio.sleep(0.005)
            held.append(asyncio.ensure_future(client.post("/invocations", json=body(2.0))))
            while (await client.get("/health")).json()["queue"] < 1:
                await asyncio.sleep(0.005)
            refused = await client.post("/invocations", json=body(2.0))
            one.engine.free.set()
            return refused, await asyncio.gather(*held)

    refused, held = asyncio.run(scenario())

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert [answer.status_code for answer in held] == [200, 200]


def test_an_answer_that_takes_too_long_is_504(run) -> None:
    one = run(Halving(SLOW), limits=RequestLimits(timeout_seconds=0.1))

    answer = one.ask(json=body(15.0))
    one.engine.free.set()

    assert answer.status_code == 504
    assert one.records()[0]["status"] == 504


def test_a_draining_scorer_refuses_what_is_new_and_finishes_what_it_has(run) -> None:
    one = run(Halving(SLOW))

    async def scenario():
        async with one.client() as client:
            begun = one.engine.asked
            held = asyncio.ensure_future(client.post("/invocations", json=body(15.0)))
            while one.engine.asked == begun:
                await asyncio.sleep(0.005)
            one.scorer.drain()
            refused = await client.post("/invocations", json=body(2.0))
            health = [(await client.get(path)).status_code for path in ("/ping", "/health")]
            one.engine.free.set()
            return refused, health, await held

    refused, health, held = asyncio.run(scenario())

    assert refused.status_code == 503
    assert refused.headers["connection"] == "close"
    assert health == [503, 503]
    assert held.status_code == 200


# Readiness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"example": ({"x": 13.0},)}, "does not answer its own example"),
        ({"example": ({"x": "text"},)}, "column 'x', row 0"),
    ],
)
def test_a_model_that_does_not_answer_its_example_is_not_served(run, changes, said) -> None:
    with pytest.raises(NotReadyError, match=said):
        run(model=served(**changes))


def test_a_model_without_an_example_is_served_though_untried(run, caplog) -> None:
    one = run(model=served(example=()))

    assert one.ask(json=body(2.0)).json()["predictions"] == ["yes"]
    assert "without having been tried" in caplog.text


# Pages ------------------------------------------------------------------------------------------------------


def test_health_says_which_engine_answers_and_why(run) -> None:
    one = run()
    for value in (1.0, 2.0, "x"):
        one.ask(json=body(value))

    health = one.ask("GET", "/health").json()

    assert health["status"] == "ready"
    assert (health["endpoint"], health["served_entity"], health["version"]) == ("churn", "champion", "3")
    assert (health["engine"], health["engine_reason"], health["worker"]) == (
        "halving",
        "there is no converter",
        2,
    )
    assert (health["requests"], health["queue"], health["in_flight"]) == (3, 0, 0)
    assert 0 < health["p50_milliseconds"] <= health["p95_milliseconds"]
    assert one.ask("GET", "/ping").status_code == 200
    assert one.ask("HEAD", "/ping").status_code == 200
    assert one.ask("GET", "/version").json()["version"] == "3"


def test_metrics_are_prometheus_text_and_count_what_was_answered(run) -> None:
    one = run()
    one.ask(json=body(1.0, 2.0))
    one.ask(json=body("x"))
    one.ask(json=body(1.0), headers={"host": "a-shadow"})

    answer = one.ask("GET", "/metrics")

    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    requests = {
        (sample.labels["status"], sample.labels["shadow"]): sample.value
        for sample in families["contender_requests"].samples
    }
    assert requests == {("200", "false"): 1, ("400", "false"): 1, ("200", "true"): 1}
    labels = families["contender_in_flight"].samples[0].labels
    assert labels == {"endpoint": "churn", "served_entity": "champion", "version": "3", "worker": "2"}
    seconds = {
        sample.labels["le"]: sample.value
        for sample in families["contender_request_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert {"5e-05", "10", "+Inf"} <= set(seconds)
    assert seconds["+Inf"] == 3
    assert list(seconds.values()) == sorted(seconds.values())
    rows = {sample.name: sample.value for sample in families["contender_request_rows"].samples}
    assert (rows["contender_request_rows_count"], rows["contender_request_rows_sum"]) == (2, 3)
    assert answer.headers["content-type"].startswith("text/plain")


def test_the_openapi_document_and_its_page_are_served(run) -> None:
    one = run()

    assert one.ask("GET", "/openapi.json").json()["openapi"] == "3.1.0"
    assert one.ask("GET", "/docs").text.startswith("<!doctype html>")


# Look-ups ---------------------------------------------------------------------------------------------------


def published(folder: Path, rows, **changes) -> None:
    import pyarrow as pa

    from serving.online import OnlineFeatureSet, publish

    features = {
        "entity": {"customer_id": "long"},
        "columns": {"x": "double", "note": "string"},
        "snapshot": "gold/churn@1",
        "as_of": "2026-01-31T00:00:00",
    }
    batch = pa.RecordBatch.from_pylist(
        rows,
        schema=pa.schema([("customer_id", pa.int64()), ("x", pa.float64()), ("note", pa.string())]),
    )
    publish(folder, [batch], OnlineFeatureSet(**features | changes))


def test_a_key_alone_is_answered_from_the_published_features(run) -> None:
    one = run()
    asked = {"dataframe_records": [{"customer_id": 7}]}

    before = one.ask(json=asked)
    published(one.folders.online("churn"), [{"customer_id": 7, "x": 2.0, "note": None}])
    found = one.ask(json=asked)
    unknown = one.ask(json={"dataframe_records": [{"customer_id": 7}, {"customer_id": 8}]})
    wrong = one.ask(json={"dataframe_records": [{"customer_id": "seven"}]})
    published(one.folders.online("churn"), [{"customer_id": 7, "x": 0.5, "note": None}])
    anew = one.ask(json=asked)

    assert (before.status_code, unknown.status_code, wrong.status_code) == (400, 404, 400)
    assert "no features were published" in before.json()["message"]
    assert found.json() == {"predictions": ["yes"], "scores": [0.02]}
    assert "row 1: nothing is known of customer_id=8" in unknown.json()["message"]
    assert "customer_id" in wrong.json()["message"]
    assert anew.json()["predictions"] == ["no"]
    assert one.records()[1]["columns"] == [[2.0], [None]]
    assert one.records()[1]["keys"] == {"customer_id": [7]}


def test_an_unknown_key_has_the_declared_default(run) -> None:
    one = run()
    published(one.folders.online("churn"), [], default={"x": 3.0})

    assert one.ask(json={"inputs": {"customer_id": [1]}}).json()["scores"] == [0.03]


def test_features_that_lack_what_the_model_requires_are_a_clear_404(run) -> None:
    one = run()
    published(one.folders.online("churn"), [{"customer_id": 7, "x": None, "note": "a"}])

    answer = one.ask(json={"inputs": {"customer_id": [7]}})

    assert answer.status_code == 404
    assert "column 'x', row 0" in answer.json()["message"]


def test_features_that_cannot_be_read_are_503_and_the_model_still_answers_what_is_sent(run) -> None:
    from serving.online import POINTER

    one = run()
    (one.folders.online("churn") / POINTER).write_text("no pointer")

    assert one.ask(json={"inputs": {"customer_id": [7]}}).status_code == 503
    assert one.ask(json=body(2.0)).status_code == 200


# The process ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """A fetched version: a small scikit-learn model."""
    import pandas as pd
    import skops.io
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path / "churn-v3"
    (folder / "model").mkdir(parents=True)
    inputs = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0]})
    path = folder / "model" / SKOPS_FILE
    skops.io.dump(LogisticRegression().fit(inputs, ["no", "no", "yes", "yes"]), path)
    canonicalise(path)
    write_served(
        folder,
        served(model_digest=file_digest(path), columns=COLUMNS[:1], example=({"x": 1.0},), entity=()),
    )
    return folder


class Process:
    """A scorer as the supervisor starts it."""

    def __init__(self, folder: Path, root: Path, settings: Serving) -> None:
        file = root / "settings.json"
        root.mkdir(exist_ok=True)
        file.write_text(settings.model_dump_json())
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = listening.getsockname()[1]
        self.errors = (root / "errors.txt").open("w+")
        command = [sys.executable, "-m", "serving.scorer", "--model", str(folder), "--endpoint", "churn"]
        command += ["--entity", "champion", "--root", str(root), "--settings", str(file)]
        command += ["--fd", str(listening.fileno()), "--tether"]
        with listening:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stderr=self.errors,
                pass_fds=[listening.fileno()],
                cwd=Path(__file__).parents[2],
            )

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, document):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations",
            json.dumps(document).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait(10)
        self.errors.close()


@pytest.fixture
def start(tmp_path, folder):
    """Starts scorers, and ends them."""
    started = []

    def process(settings=None) -> Process:
        started.append(Process(folder, tmp_path / "root", settings or Serving()))
        return started[-1]

    yield process
    for one in started:
        one.end()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "tether"])
def test_a_process_serves_and_ends_in_order_when_told_or_left(start, tmp_path, how) -> None:
    one = start()

    health = one.get("/health")
    answered = one.post({"inputs": {"x": [3.0]}})
    refused = one.post({"inputs": {"x": ["a"]}})
    if how == "signal":
        one.process.send_signal(signal.SIGTERM)
    else:
        one.process.stdin.close()

    assert health["status"] == "ready"
    assert health["engine"] == "sklearn"
    assert answered[0] == 200
    assert answered[1]["predictions"] == ["yes"]
    assert refused[0] == 400
    assert one.process.wait(20) == 0
    assert [record["status"] for record in records(Folders(tmp_path / "root"))] == [200, 400]
    assert one.said() == ""


@pytest.mark.parametrize("fast", [True, False])
def test_answers_are_the_same_with_and_without_the_fast_parser(run, monkeypatch, fast) -> None:
    one = run()
    ending = types.SimpleNamespace(serving=None)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    monkeypatch.setattr("serving.scorer.find_spec", lambda _name: fast or None)

    serving = threading.Thread(target=scorer.serve, args=(one.scorer, listening, RequestLimits(), ending))
    serving.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answers = [client.post("/invocations", json=body(2.0)) for _ in range(3)]
        pieces = client.post("/invocations", content=iter([b'{"inputs": ', b'{"x": [2.0]}}']))
        health = client.get("/health")
        ending.serving()
    serving.join(10)

    assert not serving.is_alive()
    for answer in [*answers, pieces]:
        assert answer.json() == {"predictions": ["yes"], "scores": [0.02]}
    assert health.json()["requests"] == 4


@pytest.mark.slow
def test_a_killed_process_has_logged_all_it_answered(start, tmp_path) -> None:
    one = start()

    one.post({"inputs": {"x": [3.0]}})
    one.process.kill()
    one.process.wait(10)

    assert [record["status"] for record in records(Folders(tmp_path / "root"))] == [200]


@pytest.mark.slow
def test_a_caller_that_never_finishes_does_not_hold_up_the_end(start) -> None:
    one = start(Serving(limits=RequestLimits(drain_seconds=0.5)))
    one.get("/health")

    with socket.create_connection(("127.0.0.1", one.port)) as silent:
        silent.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.2)
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(20) == 0
        with contextlib.suppress(ConnectionError):
            assert b" 503 " in silent.recv(4096)


@pytest.mark.slow
def test_a_body_that_is_too_large_is_told_so_before_the_connection_ends(start) -> None:
    one = start(Serving(limits=RequestLimits(body_bytes=1024)))
    one.get("/health")

    with socket.create_connection(("127.0.0.1", one.port), timeout=10) as caller:
        caller.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            caller.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        answer = caller.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert one.get("/health")["status"] == "ready"


@pytest.mark.slow
def test_a_model_file_that_was_changed_ends_the_process_with_a_sentence(start, folder) -> None:
    path = folder / "model" / SKOPS_FILE
    path.write_bytes(path.read_bytes() + b"x")

    one = start()

    assert one.process.wait(30) == 1
    assert "its digest is" in one.said()
    assert "Traceback" not in one.said()


@pytest.mark.slow
def test_one_thread_serves_numerical_libraries_and_neither_mlflow_nor_prefect_is_loaded(
    folder, tmp_path
) -> None:
    watched = (
        "import os, sys, threading, serving.scorer as s\n"
        "s.serve = lambda *_: None\n"
        f"code = s.main(['--model', {str(folder)!r}, '--endpoint', 'churn', '--entity', 'champion',"
        f" '--root', {str(tmp_path / 'root')!r}, '--port', '0'])\n"
        "print(code, os.environ['OMP_NUM_THREADS'], sorted({'mlflow', 'prefect', 'pyarrow', 'deltalake'}"
        " & set(sys.modules)))\n"
    )

    said = subprocess.run(
        [sys.executable, "-c", watched],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "7"},
        check=True,
    )

    assert said.stdout.split(maxsplit=2)[:2] == ["0", "1"]
    assert "mlflow" not in said.stdout
    assert "prefect" not in said.stdout
