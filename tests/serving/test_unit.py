"""A version that cannot be served says why and is tried again, and holds up nobody else."""

import asyncio
import sys

import aiohttp
from aiohttp import test_utils, web

from deployments.environment import RequestLimits, Serving
from serving.endpoint import ServedEntity
from serving.folders import Folders
from serving.process import Child
from serving.served_model import ServedModel
from serving.unit import Sources, Unit, Worker

ENTITY = ServedEntity(name="champion", entity_name="loans", entity_version="1")
SERVED = ServedModel(
    name="loans",
    version="1",
    model="loans",
    model_digest="0" * 64,
    run_id="",
    flavor="skops",
    engine="sklearn",
    engine_reason="",
    columns=(),
)


def unit_under(root):
    folders = Folders(root)
    settings = folders.run / "settings.json"
    serving = Serving(limits=RequestLimits(drain_seconds=0))
    settings.write_text(serving.model_dump_json())
    return Unit("loans", ENTITY, folders, Sources("", "", (), serving, settings))


def test_a_worker_that_cannot_be_started_is_told_and_waited_for(tmp_path):
    unit = unit_under(tmp_path)
    unit.folder = tmp_path
    unit.served = SERVED.model_copy(update={"python": str(tmp_path / "gone" / "python")})

    asyncio.run(unit.tend())

    assert "a worker cannot be started" in unit.problem
    assert "gone/python" in unit.problem
    assert not unit.workers[0].child.may_start
    assert unit.ready == ()


def test_a_version_whose_interpreter_is_gone_is_made_ready_anew(tmp_path):
    unit = unit_under(tmp_path)
    unit.folder = tmp_path
    unit.served = SERVED.model_copy(update={"python": str(tmp_path / "gone" / "python")})

    asyncio.run(unit.tend())

    assert unit.folder is None


def test_a_spoilt_description_of_a_version_is_told(tmp_path):
    unit = unit_under(tmp_path)
    spoilt = Folders(tmp_path).models / f"loans-v1-{'0' * 16}"
    spoilt.mkdir()
    (spoilt / "served.json").write_text("{")

    async def tended():
        await unit.tend()
        while not unit.problem:
            await asyncio.sleep(0.01)
        return unit.problem

    assert "ServedModel" in asyncio.run(asyncio.wait_for(tended(), 20))


def test_a_worker_too_many_lives_until_nobody_is_sent_to_it(tmp_path):
    unit = unit_under(tmp_path)
    unit.folder, unit.served = tmp_path, SERVED
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]

    async def tended():
        for name in ("kept", "surplus"):
            worker = Worker(Child(name, tmp_path / f"{name}.log"))
            await worker.child.start(waiting)
            worker.ready = True
            unit.workers.append(worker)
        await unit.tend()
        routed, released = len(unit.ready), unit.released()
        lived = [worker.child.alive for worker in released]
        await unit.end([*released, *unit.workers])
        return routed, lived, unit.released()

    assert asyncio.run(tended()) == (1, [True], [])


def test_a_worker_whose_engine_is_stuck_is_killed(tmp_path):
    async def health(_):
        return web.json_response({"status": "stuck"}, status=503)

    async def scenario():
        app = web.Application()
        app.router.add_get("/health", health)
        async with test_utils.TestServer(app) as server, aiohttp.ClientSession() as session:
            child = Child("worker", tmp_path / "worker.log")
            await child.start([sys.executable, "-c", "import time; time.sleep(60)"])
            worker = Worker(child)
            worker.port, worker.ready = server.port, True
            unit = unit_under(tmp_path)
            unit.workers = [worker]
            await unit.look(session)
            while child.alive:
                await asyncio.sleep(0.01)
            return worker.ready

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) is False
