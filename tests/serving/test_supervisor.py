"""The supervisor makes what is match what is desired: real processes, real Envoy, a real registry."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from mlflow.deployments.cli import commands as deployments_cli
from mlflow.exceptions import MlflowException

from deployments.errors import BadInputError
from serving import control
from serving.client import EndpointError
from serving.folders import Folders
from tests.serving.conftest import MODEL, routes

pytestmark = pytest.mark.slow


def eventually(condition, seconds=30.0):
    """Wait until something is so; what it was found to be."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)
    return found


def family(pid):
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def live(processes):
    return [
        process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def entity(name):
    return {"name": name, "entity_name": MODEL, "entity_version": "1"}


def test_a_registered_version_is_served_through_the_gateway(plane):
    plane.up()

    plane.serve()

    status, document, headers = plane.ask()
    assert status == 200
    assert set(document) == {"predictions", "scores"}
    assert (headers["x-served-entity"], headers["x-served-version"]) == ("champion", "1")
    for page in ("health", "version", "openapi.json"):
        assert plane.ask(path=page)[0] == 200
    assert plane.ask(records=[{"a": "much"}])[0] == 400
    assert plane.status()["endpoints"][MODEL]["entities"][0]["engine"] == "onnx"


def test_up_again_changes_nothing_and_down_leaves_no_process(plane):
    first = plane.up()
    plane.serve()
    processes = family(first["pid"])

    again = plane.up()
    was_up = control.down(plane.root)

    assert (first["started_now"], again["started_now"]) == (True, False)
    assert again["pid"] == first["pid"]
    assert was_up
    assert not live(processes)
    assert not control.down(plane.root)
    assert plane.status() is None


def test_what_was_served_is_served_again_after_everything_was_killed(plane):
    first = plane.up()
    plane.serve(champion=75, challenger=25)
    processes = family(first["pid"])

    os.kill(first["pid"], signal.SIGKILL)
    eventually(lambda: not live(processes))
    plane.up()
    found = plane.client.wait(MODEL)

    assert found["config"]["traffic_config"]["routes"] == routes(champion=75, challenger=25)
    assert plane.ask()[0] == 200


def test_a_fetched_version_is_served_though_the_registry_is_gone(plane):
    plane.up()
    plane.serve()
    control.down(plane.root)
    (plane.root / "mlflow.db").unlink()

    plane.up()
    plane.client.wait(MODEL)

    assert plane.ask()[0] == 200


def test_other_settings_are_refused_while_it_is_up(plane):
    plane.up()

    with pytest.raises(BadInputError, match="up with other settings; run `down` first"):
        plane.up(environment="another")


def test_a_port_that_is_taken_is_named(plane):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = {**plane.given["serving"]["gateway"], "port": port}

        with pytest.raises(
            BadInputError, match=rf"port {port} of 127\.0\.0\.1, .*the gateway.*serving\.gateway\.port"
        ):
            plane.up(serving={**plane.given["serving"], "gateway": gateway})

    assert plane.status() is None


def test_a_second_supervisor_of_a_root_is_refused(plane):
    plane.up()

    second = subprocess.run(
        [sys.executable, "-m", "serving.supervisor", str(control.instructions_file(Folders(plane.root)))],
        capture_output=True,
        text=True,
        check=False,
    )

    assert second.returncode == 2
    assert "another supervisor serves" in second.stderr


def test_killed_workers_and_gateways_are_started_again(plane):
    plane.up()
    plane.serve()
    worker = plane.workers("champion")[0]
    gateway = plane.status()["gateway"]["pid"]

    os.kill(worker["pid"], signal.SIGKILL)
    os.kill(gateway, signal.SIGKILL)

    def both_back():
        said = plane.status()
        again = plane.workers("champion")[0]
        return (
            said["gateway"]["pid"] not in {None, gateway} and again["ready"] and again["pid"] != worker["pid"]
        )

    eventually(both_back)
    assert eventually(lambda: plane.ask()[0] == 200)
    assert plane.workers("champion")[0]["restarts"] == 1


def test_a_worker_that_hangs_is_started_anew(plane):
    limits = {**plane.given["serving"]["limits"], "silent_seconds": 0.5}
    plane.up(serving={**plane.given["serving"], "limits": limits})
    plane.serve()
    worker = plane.workers("champion")[0]

    os.kill(worker["pid"], signal.SIGSTOP)

    def back():
        again = plane.workers("champion")[0]
        return again["ready"] and again["pid"] != worker["pid"]

    eventually(back)
    assert eventually(lambda: plane.ask()[0] == 200)
    assert plane.workers("champion")[0]["restarts"] == 1


def test_a_version_that_is_not_there_leaves_the_traffic_as_it_was(plane):
    plane.up()
    plane.serve()
    missing = {**entity("challenger"), "entity_version": "99"}

    plane.client.update_endpoint_config(
        MODEL,
        {
            "served_entities": [entity("champion"), missing],
            "traffic_config": {"routes": routes(champion=50, challenger=50)},
        },
    )
    with pytest.raises(EndpointError, match="99"):
        plane.client.wait(MODEL)

    found = plane.client.get_endpoint(MODEL)
    assert found["state"] == {"ready": "READY", "config_update": "UPDATE_FAILED"}
    champion, challenger = (one["state"] for one in found["config"]["served_entities"])
    assert champion == {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""}
    assert challenger["deployment"] == "DEPLOYMENT_FAILED"
    assert "99" in challenger["deployment_state_message"]
    assert plane.status()["endpoints"][MODEL]["traffic"]["routes"] == routes(champion=100)
    assert {plane.ask()[2]["x-served-entity"] for _ in range(20)} == {"champion"}


def test_a_changed_model_file_is_not_served(plane):
    plane.up()
    plane.serve()
    control.down(plane.root)
    (file,) = Folders(plane.root).models.glob("*/model/model.skops")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b" ")

    plane.up()

    said = eventually(lambda: plane.status()["endpoints"].get(MODEL, {}).get("problem"))
    assert "digest" in said
    assert plane.ask()[0] == 503


def test_shares_are_followed_and_a_caller_stays_with_its_version(plane):
    plane.up()
    plane.serve(champion=50, challenger=50)

    seen = {
        caller: {plane.ask(x_caller_id=f"caller-{caller}")[2]["x-served-entity"] for _ in range(3)}
        for caller in range(40)
    }

    assert all(len(entities) == 1 for entities in seen.values())
    assert set.union(*seen.values()) == {"champion", "challenger"}


def test_a_lease_that_lapses_gives_everything_back_to_the_champion(plane):
    plane.up()
    plane.serve(champion=100, challenger=0)
    eventually(lambda: plane.workers("challenger")[0]["ready"])
    expires = datetime.now(UTC) + timedelta(seconds=4)
    traffic = {
        "routes": routes(champion=0, challenger=100),
        "lease": {"expires_at": expires.isoformat(), "fallback": "champion"},
    }

    plane.client.update_endpoint_config(MODEL, {"traffic_config": traffic})
    plane.client.wait(MODEL)
    held = plane.ask()[2]["x-served-entity"]
    eventually(lambda: plane.ask()[2]["x-served-entity"] == "champion")
    lapsed = datetime.now(UTC)

    assert held == "challenger"
    assert lapsed >= expires
    # The gateway is asked first, and status is written once it said that it does.
    eventually(lambda: plane.status()["endpoints"][MODEL]["traffic"]["routes"] == routes(champion=100))


def test_a_lease_that_lapsed_while_nothing_was_up_is_not_served(plane):
    plane.up()
    plane.serve(champion=100, challenger=0)
    expires = datetime.now(UTC) + timedelta(seconds=1)
    traffic = {
        "routes": routes(champion=0, challenger=100),
        "lease": {"expires_at": expires.isoformat(), "fallback": "champion"},
    }
    plane.client.update_endpoint_config(MODEL, {"traffic_config": traffic})
    control.down(plane.root)
    time.sleep(max(0.0, (expires - datetime.now(UTC)).total_seconds()))

    plane.up()
    plane.client.wait(MODEL)

    assert {plane.ask()[2]["x-served-entity"] for _ in range(10)} == {"champion"}


def test_shadow_requests_are_logged_beside_what_callers_got(plane):
    from serving.fold import fold, joined

    plane.up()
    plane.serve(champion=100, challenger=0)
    mirror = {"served_entity_name": "challenger", "traffic_percentage": 100}
    plane.client.update_endpoint_config(
        MODEL, {"traffic_config": {"routes": routes(champion=100, challenger=0), "mirror": mirror}}
    )
    plane.client.wait(MODEL)

    ids = {plane.ask()[2]["x-request-id"] for _ in range(20)}
    eventually(lambda: plane.workers("challenger")[0]["health"].get("requests", 0) >= 20)
    control.down(plane.root)
    result = fold(plane.root, MODEL)

    assert result.rows == 40
    pairs = joined(plane.root, MODEL)
    assert set(pairs["databricks_request_id"].to_pylist()) == ids


def test_blue_green_is_observed_as_it_happens_the_champion_answering_copies(plane):
    from platforms.observations import LocalObservations

    plane.up()
    plane.serve(champion=100, challenger=0)
    began = datetime.now(UTC)
    expires = (began + timedelta(minutes=5)).isoformat()
    traffic = {
        "routes": routes(champion=0, challenger=100),
        "mirror": {"served_entity_name": "champion", "traffic_percentage": 100},
        "lease": {"expires_at": expires, "fallback": "champion"},
        "sticky_header": "x-customer",
    }
    plane.client.update_endpoint_config(MODEL, {"traffic_config": traffic})
    plane.client.wait(MODEL)

    with LocalObservations(plane.root, MODEL, began, timeout_seconds=60) as requests:
        requests.poll()
        mine = {plane.ask(x_customer=str(place))[2]["x-request-id"] for place in range(20)}
        found = []
        eventually(lambda: found.extend(requests.poll().table.to_pylist()) or len(found) >= 40)

    direct = {one["request_id"] for one in found if (one["entity"], one["shadow"]) == ("challenger", False)}
    copies = {one["request_id"] for one in found if (one["entity"], one["shadow"]) == ("champion", True)}
    assert direct == copies == mine
    assert len(found) == 40
    assert all(one["version"] == "1" and one["status"] == 200 and len(one["scores"]) == 1 for one in found)


def test_a_version_without_traffic_is_kept_warm_and_has_its_callers_at_once(plane):
    plane.up()
    plane.serve(v1=100, v2=0)
    eventually(lambda: plane.workers("v2")[0]["ready"])
    before = plane.workers("v2")[0]["pid"]

    os.kill(before, signal.SIGKILL)
    eventually(lambda: (again := plane.workers("v2")[0])["ready"] and again["pid"] != before)
    entities = {one["name"]: one for one in plane.client.get_endpoint(MODEL)["config"]["served_entities"]}
    plane.client.update_endpoint_config(MODEL, {"traffic_config": {"routes": routes(v1=0, v2=100)}})
    plane.client.wait(MODEL)
    answered = {plane.ask()[2]["x-served-entity"] for _ in range(10)}
    plane.client.update_endpoint_config(MODEL, {"traffic_config": {"routes": routes(v1=100, v2=0)}})
    plane.client.wait(MODEL)

    assert answered == {"v2"}
    assert {plane.ask()[2]["x-served-entity"] for _ in range(10)} == {"v1"}
    assert {name: (one["state"]["deployment"], one["restarts"]) for name, one in entities.items()} == {
        "v1": ("DEPLOYMENT_READY", 0),
        "v2": ("DEPLOYMENT_READY", 1),
    }
    assert plane.client.get_deployment("v2", MODEL)["restarts"] == 1


def test_the_python_router_serves_the_same_and_says_what_it_lacks(plane):
    gateway = {**plane.given["serving"]["gateway"], "kind": "python"}

    said = plane.up(serving={**plane.given["serving"], "gateway": gateway})
    plane.serve(champion=50, challenger=50)

    assert said["gateway"]["kind"] == "PythonGateway"
    assert said["gateway"]["lacks"]
    assert {plane.ask()[2]["x-served-entity"] for _ in range(40)} == {"champion", "challenger"}


def test_an_endpoint_that_is_deleted_ends_its_workers(plane):
    plane.up()
    plane.serve()
    worker = psutil.Process(plane.workers("champion")[0]["pid"])

    plane.client.delete_endpoint(MODEL)

    eventually(lambda: not live([worker]))
    eventually(lambda: plane.status()["endpoints"] == {})


def test_more_workers_share_the_requests(plane):
    plane.up()
    plane.serve()

    plane.client.update_endpoint_config(
        MODEL, {"served_entities": [{**entity("champion"), "workload_size": "Medium"}]}
    )
    eventually(lambda: [worker["ready"] for worker in plane.workers("champion")] == [True, True])
    for _ in range(40):
        assert plane.ask()[0] == 200

    counts = eventually(
        lambda: (
            (found := [worker["health"].get("requests", 0) for worker in plane.workers("champion")])
            and sum(found) >= 40
            and found
        )
    )
    assert min(counts) > 0


def test_an_mlflow_server_is_started_and_ends_with_the_rest(plane):
    plane.up(mlflow_store=plane.given["tracking_uri"], mlflow_artifacts=(plane.root / "artifacts").as_uri())
    url = eventually(lambda: plane.status()["mlflow"]["pid"] and plane.status()["mlflow"]["url"], 60)

    def answers():
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    eventually(answers, 90)
    processes = family(plane.status()["mlflow"]["pid"])
    os.kill(plane.status()["pid"], signal.SIGKILL)

    eventually(lambda: not live(processes))


def test_metrics_of_all_workers_are_one_page(plane):
    from prometheus_client.parser import text_string_to_metric_families

    plane.up()
    plane.serve(champion=50, challenger=50)
    plane.ask()

    with urllib.request.urlopen(f"{plane.status()['gateway']['url']}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))

    names = [one.name for one in families]
    assert len(names) == len(set(names))
    ready = next(one for one in families if one.name == "contender_ready")
    assert {sample.labels["served_entity"]: sample.value for sample in ready.samples} == {
        "champion": 1.0,
        "challenger": 1.0,
    }


def test_a_spoilt_file_of_keys_keeps_the_callers_that_there_were(plane):
    from serving import keys

    folders = Folders(plane.root)
    key = keys.new_key(folders.keys, "shop")
    gateway = {**plane.given["serving"]["gateway"], "require_key": True}
    plane.up(serving={**plane.given["serving"], "gateway": gateway})
    plane.serve()

    folders.keys.write_text("{")

    eventually(lambda: "callers" in plane.status()["problems"])
    assert plane.ask(authorization=f"Bearer {key}")[0] == 200
    assert plane.ask()[0] == 401


def test_what_breaks_in_the_supervisor_does_not_end_what_serves(plane):
    plane.up()
    plane.serve()
    in_the_way = Folders(plane.root).run / "status.partial"
    before = plane.status()["reported"]

    eventually(lambda: not in_the_way.exists())
    in_the_way.mkdir()
    time.sleep(1.5)
    answered = plane.ask()[0]
    in_the_way.rmdir()

    assert answered == 200
    said = eventually(lambda: (found := plane.status())["reported"] > before and found)
    assert "IsADirectoryError" in eventually(lambda: plane.status()["problems"].get("reporting"))
    assert said["pid"] == plane.status()["pid"]


def test_what_is_under_way_is_answered_when_everything_is_told_to_end(plane):
    plane.up(
        serving={
            **plane.given["serving"],
            "limits": {**plane.given["serving"]["limits"], "drain_seconds": 30},
        }
    )
    plane.serve()
    many = [{"a": float(row % 9), "b": None, "ward": "x"} for row in range(100_000)]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(plane.ask, many)
        eventually(lambda: plane.ask(path="health")[1]["in_flight"] or asked.done())

        control.down(plane.root)

        status, document, _ = asked.result()
    assert status == 200
    assert len(document["predictions"]) == 100_000


def test_a_worker_too_many_is_ended_without_a_failed_request(plane):
    plane.up()
    plane.client.create_endpoint(
        MODEL, {"served_entities": [{**entity("champion"), "workload_size": "Medium"}]}
    )
    plane.client.wait(MODEL)
    eventually(lambda: [worker["ready"] for worker in plane.workers("champion")] == [True, True])
    surplus = psutil.Process(plane.workers("champion")[1]["pid"])
    ended, statuses = threading.Event(), []

    def ask():
        while not ended.is_set():
            statuses.append(plane.ask()[0])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        plane.client.update_endpoint_config(MODEL, {"served_entities": [entity("champion")]})
        try:
            eventually(lambda: not live([surplus]))
        finally:
            ended.set()
    for one in asking:
        one.result()

    assert set(statuses) == {200}


def test_two_who_start_it_at_once_both_find_it_up(plane):
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: plane.up(), range(2)))

    assert sorted(one["started_now"] for one in said) == [False, True]
    assert said[0]["pid"] == said[1]["pid"]


def test_the_client_asks_with_the_key_of_its_environment(plane, monkeypatch):
    from serving import keys

    gateway = {**plane.given["serving"]["gateway"], "require_key": True}
    plane.up(serving={**plane.given["serving"], "gateway": gateway})
    plane.serve()
    row = {"dataframe_records": [{"a": 1.0, "b": None, "ward": "x"}]}
    with pytest.raises(EndpointError, match="needs an API key"):
        plane.client.predict(endpoint=MODEL, inputs=row)

    monkeypatch.setenv("CONTENDER_API_KEY", keys.new_key(Folders(plane.root).keys, "shop"))

    def answered():
        try:
            return plane.client.predict(endpoint=MODEL, inputs=row)
        except EndpointError:
            return None

    assert len(eventually(answered)["predictions"]) == 1


def test_a_fetch_ends_with_the_supervisor(plane):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nowhere = f"http://127.0.0.1:{silent.getsockname()[1]}"
        plane.up(tracking_uri=nowhere, registry_uri=nowhere)
        missing = {**entity("champion"), "entity_version": "99"}
        plane.client.create_endpoint(MODEL, {"served_entities": [missing]})

        def fetching():
            children = psutil.Process(plane.status()["pid"]).children(recursive=True)
            return [child for child in children if "serving.fetch" in child.cmdline()]

        fetches = eventually(fetching)
        silent.accept()

        os.kill(plane.status()["pid"], signal.SIGKILL)

        eventually(lambda: not live(fetches))


# The client -------------------------------------------------------------------------------------------------


def test_mlflows_own_command_line_creates_asks_and_deletes(plane):
    plane.up()
    target = f"contender:{plane.root}"

    def mlflow(*arguments):
        done = CliRunner().invoke(deployments_cli, [*arguments, "-t", target])
        assert done.exit_code == 0, done.output
        return done.output

    mlflow("create", "--name", MODEL, "-m", f"models:/{MODEL}@champion")
    plane.client.wait(MODEL)
    rows = plane.root / "rows.json"
    rows.write_text(json.dumps({"a": [1.0], "b": [2.0], "ward": ["x"]}))
    said = mlflow("predict", "--name", MODEL, "-I", str(rows))
    listed = mlflow("list")
    mlflow("delete", "--name", MODEL)

    assert "predictions" in said
    assert MODEL in listed
    assert plane.client.list_endpoints() == []


def test_the_client_refuses_what_is_wrong_and_names_it(plane):
    client = plane.client
    create = client.create_endpoint

    for config, said in (
        ({"served_entities": [entity("a")], "traffic_config": {"routes": routes(a=90)}}, "add up to 90"),
        ({"served_entities": [entity("a")], "traffic_config": {"routes": routes(b=100)}}, "'b' is not among"),
        (
            {"served_entities": [entity("a"), entity("a")], "traffic_config": {"routes": routes(a=100)}},
            "more than once",
        ),
        ({"served_entities": [{"name": "a"}]}, "entity_name"),
        ({"served_entities": [entity("a")], "trafic_config": {}}, "trafic_config"),
    ):
        with pytest.raises(MlflowException, match=said):
            create("wrong", config)
    with pytest.raises(EndpointError, match="there is no endpoint 'none'"):
        client.get_endpoint("none")
    create("right", {"served_entities": [entity("a")]})
    with pytest.raises(EndpointError, match="not up"):
        client.predict("right", {"inputs": [1]})
    with pytest.raises(EndpointError, match="exists already"):
        create("right", {"served_entities": [entity("a")]})
    assert [found["name"] for found in client.list_endpoints()] == ["right"]
    assert not list(Path(plane.root).rglob("*.partial"))
