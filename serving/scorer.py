"""One process that answers for one served version: `python -m serving.scorer --model FOLDER …`.

It listens once the model has answered its own example. SIGTERM, or with `--tether` the end of standard input, makes
it finish what it has and end; heavy modules are imported only after the libraries under them were told to use one
thread, for a scorer's parallelism is its workers.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployments.environment import RequestLimits, Serving
    from serving.application import Scorer

KEEP_ALIVE_SECONDS = 75
"""Longer than the gateway keeps idle connections, so that none is closed under a request."""

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_HARD_END_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; the exit code is 0 then, and otherwise a sentence says why."""
    given = _parser().parse_args(arguments)
    ending = Ending()
    if given.tether:
        threading.Thread(target=ending.watch, name="tether", daemon=True).start()
    for name in _ONE_THREAD:
        os.environ[name] = "1"
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)

    from deployments.environment import Serving
    from deployments.errors import ContenderError, first_line

    try:
        settings = Serving.model_validate_json(given.settings.read_bytes()) if given.settings else Serving()
        scorer = _scorer(given, settings)
    except ContenderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{given.model}: it cannot be served: {first_line(error)}\n")
        return 1
    try:
        listener = _listener(given)
    except OSError as error:
        sys.stderr.write(f"there is nowhere to listen: {first_line(error)}\n")
        scorer.close()
        return 1
    # What was loaded stays for good: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    ending.seconds = settings.limits.drain_seconds
    try:
        serve(scorer, listener, settings.limits, ending)
    finally:
        scorer.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.scorer", description="Serve one fetched version."
    )
    parser.add_argument("--model", type=Path, required=True, help="the folder of a fetched version")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--entity", required=True, help="the served entity's name")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--root", type=Path, required=True, help="the data root")
    parser.add_argument("--settings", type=Path, help="`Serving` as JSON; the defaults without it")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="a listening socket that was inherited")
    where.add_argument("--port", type=int, help="a port on 127.0.0.1")
    parser.add_argument("--tether", action="store_true", help="end when standard input does")
    return parser


def _scorer(given: argparse.Namespace, settings: "Serving") -> "Scorer":
    """Everything that answering takes, loaded and tried."""
    from deployments.personal_data import personal_data_key
    from serving.application import Scorer
    from serving.engine import load_engine
    from serving.folders import Folders
    from serving.prediction_log import PredictionLog
    from serving.served_model import read_served

    served = read_served(given.model)
    folders = Folders(given.root)
    engine = load_engine(given.model)
    pii_key = personal_data_key(given.root) if served.hashed else None
    log = PredictionLog(
        folders.log(given.endpoint),
        served,
        endpoint=given.endpoint,
        entity=given.entity,
        worker=given.worker,
        config=settings.log,
        pii_key=pii_key,
    )
    try:
        return Scorer(
            served,
            engine,
            log,
            endpoint=given.endpoint,
            entity=given.entity,
            worker=given.worker,
            limits=settings.limits,
            online=folders.online(given.endpoint),
            pii_key=pii_key,
        )
    except BaseException:
        log.close()
        raise


def _listener(given: argparse.Namespace) -> socket.socket:
    if given.fd is not None:
        return socket.socket(fileno=given.fd)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", given.port))
    except OSError:
        listener.close()
        raise
    return listener


class _OneWrite:
    """A transport that joins the head and the body of an answer: written one by one, each is a system call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold the first part until a second follows, or until this turn of the loop ends."""
        if self._held is None:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            held, self._held = self._held, None
            self._transport.write(held + data)

    def close(self) -> None:
        """Close once everything is written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)


class Ending:
    """How a scorer is told to end: by a signal, or by the end of its standard input."""

    def __init__(self) -> None:
        self.serving: Callable[[], None] | None = None
        self.seconds = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)

    def watch(self) -> None:
        """Wait for the end of standard input; whatever then still runs long after its time is cut off."""
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.seconds + _HARD_END_SECONDS)
        os._exit(1)

    def _asked(self, *_: object) -> None:
        if self.serving is None:
            raise SystemExit(0)
        self.serving()


def serve(scorer: "Scorer", listener: socket.socket, limits: "RequestLimits", ending: Ending) -> None:
    """Answer on a listening socket until `ending` says that it is enough; on uvloop and httptools where they are."""
    import uvicorn
    from uvicorn.importer import import_from_string

    class Server(uvicorn.Server):
        """One that leaves signals to us: they end it as an ordinary end, with the exit code 0."""

        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
            return nullcontext()

    name = "httptools_impl:HttpToolsProtocol" if find_spec("httptools") else "h11_impl:H11Protocol"
    protocol: Any = import_from_string(f"uvicorn.protocols.http.{name}")

    class OneWriteProtocol(protocol):  # type: ignore[misc]
        """HTTP/1.1 with one system call an answer."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(_OneWrite(transport, self.loop))

    config = uvicorn.Config(
        scorer,  # type: ignore[arg-type]
        http=OneWriteProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=limits.drain_seconds,  # type: ignore[arg-type]
    )
    server = Server(config)

    def end() -> None:
        scorer.drain()
        server.should_exit = True

    async def run() -> None:
        ending.serving = end
        await server.serve(sockets=[listener])

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(run())


if __name__ == "__main__":
    sys.exit(main())
