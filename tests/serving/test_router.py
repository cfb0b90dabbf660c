"""The router in Python: its decisions without sockets, and its process."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.environment import GatewayConfig, RequestLimits
from serving.endpoint import Lease, TrafficConfig
from serving.gateway import PythonGateway
from serving.plan import arms, salt_of
from serving.routing import Allowance, Passed, RoutingPlan, Split, read_plan
from tests.serving.gateways import Backend, ask, free_port, plan_of, traffic, until

CHAMPION, CHALLENGER, OTHER = (9001,), (9002, 9003), (9004,)


def split_of(salt="release-1", **shares) -> Split:
    ready = {("churn", "champion"): CHAMPION, ("churn", "challenger"): CHALLENGER, ("churn", "other"): OTHER}
    plan = plan_of(("churn", traffic(salt=salt, **shares)), ready=ready)
    return RoutingPlan.of(plan, GatewayConfig(), RequestLimits()).endpoints["churn"]


def drawn(split: Split, ports: tuple[int, ...], callers=range(4000)) -> set[int]:
    return {caller for caller in callers if split.candidates(str(caller))[0] == ports}


# Who answers ------------------------------------------------------------------------------------------------


@given(low=st.integers(0, 100), high=st.integers(0, 100))
def test_raising_a_share_moves_nobody_back(low, high):
    low, high = sorted((low, high))
    callers = range(300)

    before = drawn(split_of(champion=100 - low, challenger=low), CHALLENGER, callers)
    after = drawn(split_of(champion=100 - high, challenger=high), CHALLENGER, callers)

    assert before <= after


@given(first=st.integers(0, 50), second=st.integers(0, 50), more=st.integers(0, 50))
def test_raising_one_of_two_challengers_moves_nobody_of_the_other(first, second, more):
    callers = range(300)
    more = min(50, first + more)

    before = split_of(champion=100 - first - second, challenger=first, other=second)
    after = split_of(champion=100 - more - second, challenger=more, other=second)

    assert drawn(before, CHALLENGER, callers) <= drawn(after, CHALLENGER, callers)
    assert drawn(before, OTHER, callers) == drawn(after, OTHER, callers)


@pytest.mark.parametrize("share", [1, 10, 50, 99])
def test_sticky_callers_are_split_as_declared(share):
    split = split_of(champion=100 - share, challenger=share)

    found = len(drawn(split, CHALLENGER))

    assert abs(found - 40 * share) < 5 * (4000 * share / 100 * (1 - share / 100)) ** 0.5


def test_requests_without_an_id_are_split_as_declared():
    random.seed(7)
    split = split_of(champion=75, challenger=25)

    found = Counter(split.candidates(None)[0] for _ in range(4000))

    assert abs(found[CHALLENGER] - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("share", [0, 100])
def test_all_and_nothing_are_exact(share):
    split = split_of(champion=100 - share, challenger=share)

    assert len(drawn(split, CHALLENGER)) == 40 * share


def test_another_salt_or_endpoint_draws_other_callers():
    one, other = (
        split_of("release-1", champion=80, challenger=20),
        split_of("release-2", champion=80, challenger=20),
    )

    both = len(drawn(one, CHALLENGER) & drawn(other, CHALLENGER))

    # By chance a fifth of a fifth: 160 of 4,000.
    assert abs(both - 160) < 5 * (4000 * 0.04 * 0.96) ** 0.5
    assert salt_of("churn", traffic(champion=100)) != salt_of("fraud", traffic(champion=100))


def test_an_entity_without_workers_hands_its_share_to_the_fallback():
    plan = plan_of(("churn", traffic(champion=90, challenger=10)), ready={("churn", "champion"): CHAMPION})

    assert [(arm.entity, arm.share, arm.ports) for arm in arms(plan, "churn")] == [
        ("champion", 90, CHAMPION),
        ("champion", 10, CHAMPION),
    ]


def test_the_fallback_of_a_lease_stands_behind_all_even_without_a_share():
    leased = TrafficConfig.model_validate(
        traffic(challenger=100).model_dump()
        | {"lease": Lease(expires_at="2199-01-01T00:00:00Z", fallback="stable").model_dump()}
    )
    plan = plan_of(
        ("churn", leased), ready={("churn", "stable"): CHAMPION, ("churn", "challenger"): CHALLENGER}
    )

    split = RoutingPlan.of(plan, GatewayConfig(), RequestLimits()).endpoints["churn"]

    assert split.candidates("anybody") == (CHALLENGER, CHAMPION)


# Whom to try first ------------------------------------------------------------------------------------------


def test_ports_are_tried_group_by_group_the_idle_first():
    assert Passed().order((CHALLENGER, CHAMPION), {9002: 3}) == [9003, 9002, 9001]
    assert Passed().order((CHALLENGER, CHAMPION), {9003: 1}) == [9002, 9003, 9001]
    assert Passed().order((CHAMPION, CHAMPION), {}) == [9001]


def test_a_port_that_refused_is_tried_last_until_its_time_is_over():
    passed, brief = Passed(seconds=60), Passed(seconds=0)
    passed.add(9001)
    brief.add(9001)

    assert passed.order((CHAMPION, OTHER), {}) == [9004, 9001]
    assert brief.order((CHAMPION, OTHER), {}) == [9001, 9004]


# How often --------------------------------------------------------------------------------------------------


def test_a_bucket_holds_one_second_and_fills_at_its_rate():
    allowance = Allowance()

    at_once = [allowance.spend("shop", 3, now=0.0) for _ in range(4)]
    later = [allowance.spend("shop", 3, now=0.34) for _ in range(2)]

    assert at_once == [True, True, True, False]
    assert later == [True, False]
    assert [allowance.spend("shop", 3, now=1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_rate_below_one_still_lets_one_pass():
    allowance = Allowance()

    assert [allowance.spend("shop", 0.5, now=now) for now in (0.0, 1.9, 2.1)] == [True, False, True]


def test_only_the_callers_seen_last_are_remembered():
    allowance = Allowance(most=2)

    for caller in ("a", "b", "c"):
        assert allowance.spend(caller, 1, now=0.0)

    assert not allowance.spend("c", 1, now=0.0)
    assert allowance.spend("a", 1, now=0.0)


# The plan's file and the process ----------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = plan_of(
        ("churn", traffic(champion=90, challenger=10, mirror=("challenger", 5))),
        ready={("churn", "champion"): CHAMPION, ("churn", "challenger"): CHALLENGER},
        callers={"a" * 64: "shop"},
        status_port=9,
        version=12,
    )
    config, limits = GatewayConfig(requests_per_second=2.5), RequestLimits()

    PythonGateway(tmp_path, config, limits).prepare(plan, 1, 2)

    assert read_plan(tmp_path / "router") == RoutingPlan.of(plan, config, limits)


@pytest.fixture
def router(tmp_path):
    """A router's process with one endpoint, and its ports."""
    backend = Backend("champion")
    gateway = PythonGateway(tmp_path, GatewayConfig(), RequestLimits())
    plan = plan_of(("churn", traffic(champion=100)), ready={("churn", "champion"): (backend.port,)})
    port = free_port()
    command = gateway.prepare(plan, port, free_port())
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=(tmp_path / "err").open("wb"), cwd=Path(__file__).parents[2]
    )
    until(gateway.healthy, "the router is healthy")
    yield gateway, process, port
    process.kill()
    process.wait()
    process.stdin.close()
    backend.kill()


@pytest.mark.slow
def test_the_router_ends_when_it_is_let_go_of(router):
    _, process, _ = router

    process.stdin.close()

    assert process.wait(10) == 0


@pytest.mark.slow
def test_the_router_finishes_what_it_has_before_it_ends(router):
    import concurrent.futures

    _, process, port = router

    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, port, path="/serving-endpoints/churn/invocations?sleep=0.5")
        time.sleep(0.2)
        process.terminate()
        answer = asked.result()

    assert answer.status == 200
    assert process.wait(12) == 0


@pytest.mark.slow
def test_a_spoilt_plan_is_refused_and_the_former_stays(router, tmp_path):
    gateway, _, port = router
    plan = tmp_path / "router" / "plan.json"

    for content in ("{", "[]", json.dumps({"version": 9})):
        plan.with_suffix(".new").write_text(content)
        plan.with_suffix(".new").replace(plan)
        until(lambda: b"the former stays" in (tmp_path / "err").read_bytes(), "it says so")

    assert ask(port).status == 200
    assert gateway.version_in_effect() == 1


@pytest.mark.slow
def test_a_caller_that_hangs_up_breaks_nothing(router):
    import socket

    _, process, port = router

    for said in (
        b"POST /serving-endpoints/churn/invocations HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{",
        b"\0\1",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(said)

    assert ask(port).status == 200
    assert process.poll() is None


def test_the_router_says_what_it_wants():
    told = subprocess.run(
        [sys.executable, "-m", "serving.router", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )

    assert "--files" in told.stdout
