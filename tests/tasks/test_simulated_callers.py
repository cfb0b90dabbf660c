"""Simulated callers against a real HTTP server: every answer is counted and kept, and failures are failures."""

import csv
import json
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deployments.errors import ContenderError
from tasks.monitoring_record import Window
from tasks.simulated_callers import Callers, answers_since, asked_within, body_of

BEGINNING = datetime(2020, 1, 1, tzinfo=UTC)
ROWS = [(f"C{place}", body_of({"a": place})) for place in range(5)]


@pytest.fixture
def server():
    """Answers 200 as version 1, unless `status` says otherwise; keeps whom it heard from."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            made.heard.append((self.headers["x-caller-id"], json.loads(body), self.headers["x-request-id"]))
            status = made.status(len(made.heard))
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("x-served-version", "1")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.heard, made.status = [], lambda number: 200
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{made.server_port}/invocations"
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def callers(server, tmp_path):
    return Callers(
        server.url, ROWS, sticky="x-caller-id", file=tmp_path / "asked" / "requests.csv", rate=2000
    )


def lines(callers):
    with callers.file.open() as file:
        return list(csv.DictReader(file))


def test_everyone_is_asked_for_in_turn_and_every_answer_is_kept(server, callers):
    asked = callers.ask(12)

    assert (asked.requests, asked.failed) == (12, 0)
    assert len(server.heard) == 12
    assert Counter(caller for caller, _, _ in server.heard) == {"C0": 3, "C1": 3, "C2": 2, "C3": 2, "C4": 2}
    assert all(body == {"dataframe_records": [{"a": int(caller[1:])}]} for caller, body, _ in server.heard)
    assert {(row["request_id"], row["customer"]) for row in lines(callers)} == {
        (request, caller) for caller, _, request in server.heard
    }
    assert callers.counted == {"asked": 12, "failed": 0, "version 1": 12}


def test_a_second_round_goes_on_behind_the_first(server, callers):
    first, second = callers.ask(3), callers.ask(2)

    assert [caller for caller, _, _ in sorted(server.heard)] == ["C0", "C1", "C2", "C3", "C4"]
    assert first.window.end <= second.window.start
    assert len(lines(callers)) == 5


def test_requests_are_found_by_window_and_those_that_failed_are_not(server, callers):
    server.status = lambda number: 503 if number == 2 else 200
    first, second = callers.ask(4), callers.ask(3)

    found = asked_within(callers.file, first.window)

    assert first.failed == 1
    assert len(found) == 3
    assert len(asked_within(callers.file, second.window)) == 3
    nothing = Window(start=second.window.end, end=second.window.end + timedelta(seconds=1))
    assert asked_within(callers.file, nothing) == {}


def test_a_connection_that_ends_without_an_answer_is_a_failure_and_callers_go_on(server, callers):
    server.status = lambda number: 0 if number == 3 else 200

    asked = callers.ask(8)

    assert (asked.requests, asked.failed) == (8, 1)
    assert Counter(row["status"] for row in lines(callers)) == {"200": 7, "0": 1}


def test_where_most_requests_fail_nobody_should_go_on(server, callers):
    server.status = lambda number: 500

    with pytest.raises(ContenderError, match="6 of 6 requests failed"):
        callers.ask(6)


def test_an_endpoint_that_is_not_there_is_said_so(tmp_path):
    nowhere = Callers(
        "http://127.0.0.1:9/invocations", ROWS, sticky="x-caller-id", file=tmp_path / "requests.csv"
    )

    with pytest.raises(ContenderError, match="3 of 3 requests failed"):
        nowhere.ask(3)


def test_callers_ask_in_the_background_until_the_block_ends(server, callers):
    callers.rate = 200
    with callers.keep_asking():
        deadline = time.monotonic() + 20
        while len(server.heard) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    heard = len(server.heard)

    time.sleep(0.1)

    assert heard >= 20
    assert len(server.heard) == heard == len(lines(callers)) == callers.counted["asked"]


def test_a_file_cut_by_a_kill_is_read_as_far_as_it_goes(server, callers):
    asked = callers.ask(3)
    with callers.file.open("a") as file:
        file.write("abc,C1")

    assert len(asked_within(callers.file, asked.window)) == 3

    again = callers.ask(2)

    assert len(asked_within(callers.file, again.window)) == 2


def test_answers_are_counted_from_a_moment_on_whichever_process_asked_and_a_cut_line_is_none(callers, server):
    earlier = callers.ask(5).window
    server.status = lambda number: 500 if number == 7 else 200
    callers.ask(4)
    with callers.file.open("a") as file:
        file.write("r9,C1,2026-01-0")

    found = answers_since(callers.file, earlier.end)

    assert dict(found) == {"asked": 4, "failed": 1, "version 1": 4}
    assert answers_since(callers.file.with_name("nobody.csv"), earlier.end) == Counter()


def test_what_callers_got_is_on_disk_while_they_still_ask(callers):
    with callers.keep_asking():
        deadline = time.monotonic() + 10
        while not answers_since(callers.file, BEGINNING)["asked"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
