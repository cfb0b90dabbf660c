"""A served version as an ASGI application: MLflow's protocol in, answers out, every invocation in the prediction log.

It is one plain callable: between a request and its answer stand only the checker, the batcher and the log.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from deployments.environment import RequestLimits
from deployments.errors import BadInputError, ContenderError
from deployments.personal_data import keyed_hash
from serving import openapi
from serving.batching import Batcher, QueueFullError, TooLateError, one_row_seconds
from serving.engine import Answers, Engine, UnansweredError
from serving.prediction_log import LogFullError, PredictionLog, Record
from serving.scorer_metrics import CONTENT_TYPE, ScorerMetrics
from serving.served_model import ServedModel
from serving.signature import BadRequestError, Request, Signature

if TYPE_CHECKING:
    from serving.online import OnlineFeatures

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_CODES = {
    400: "BAD_REQUEST",
    404: "RESOURCE_DOES_NOT_EXIST",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_JSON = (b"content-type", b"application/json")
_CLOSE = (b"connection", b"close")

_UNTRIED_ROW_SECONDS = 0.01
_TOO_LATE = "the body took too long"
_LINGER_BYTES = 4 * 1024 * 1024
_LINGER_SECONDS = 1.0
_UUID4_FIXED = (0x4 << 76) | (0x2 << 62)
_UUID4_FREE = ((1 << 128) - 1) & ~((0xF << 76) | (0x3 << 62))

_logger = logging.getLogger(__name__)


class NotReadyError(ContenderError):
    """The version does not answer its own example, so nobody is sent to it."""


class _GoneError(Exception):
    """The caller left before its request was complete."""


class _RefusedError(Exception):
    """What a caller is told instead of predictions."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, list(headers)


@dataclass(slots=True)
class _Invocation:
    """One request on its way to an answer, and to its record."""

    time_ns: int
    began: float
    request_id: str
    requester: str | None
    shadow: bool
    complete: bool = False
    request: Request | None = None
    answers: Answers | None = None


class Scorer:
    """Answers for one served version in one process.

    `log` takes a record of every invocation before its answer is sent. `online` is the folder of the endpoint's
    published features, and `pii_key` hashes keys that are personal data.

    Raises:
        NotReadyError: the model does not answer its own example.
    """

    def __init__(
        self,
        served: ServedModel,
        engine: Engine,
        log: PredictionLog,
        *,
        endpoint: str,
        entity: str,
        worker: int,
        limits: RequestLimits,
        online: Path,
        pii_key: bytes | None = None,
    ) -> None:
        self.draining = False
        self._served, self._engine, self._log = served, engine, log
        self._endpoint, self._entity, self._worker = endpoint, entity, worker
        self._limits = limits
        self._online_folder, self._pii_key = online, pii_key
        self._online: OnlineFeatures | None = None
        self._signature = Signature(served, limits.rows)
        self._hashed_inputs = [column.name for column in served.columns if column.name in served.hashed]
        self._began = time.monotonic()
        labels = {
            "endpoint": endpoint,
            "served_entity": entity,
            "version": served.version,
            "worker": str(worker),
        }
        self._metrics = ScorerMetrics(labels)
        self._batcher = Batcher(
            engine, one_row=self._warm_up(), queue=limits.queue, timeout=limits.timeout_seconds
        )
        self._whose: Headers = [
            _JSON,
            (b"x-served-entity", entity.encode()),
            (b"x-served-version", served.version.encode()),
        ]
        self._pages: dict[str, Callable[[], tuple[int, bytes, bytes]]] = {
            "/ping": self._ping,
            "/health": self._health,
            "/version": self._version,
            "/metrics": self._metrics_page,
            "/openapi.json": self._openapi,
            "/docs": self._docs,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if path == "/invocations" and method == "POST":
            await self._invocations(scope, receive, send)
        elif path in self._pages and method in {"GET", "HEAD"}:
            status, kind, content = self._pages[path]()
            await _send(send, status, [(b"content-type", kind)], content)
        elif path == "/invocations" or path in self._pages:
            allowed = "POST" if path == "/invocations" else "GET, HEAD"
            allow = [_JSON, (b"allow", allowed.encode())]
            await _send(send, 405, allow, _error(405, f"{path} is for {allowed}"))
        else:
            known = ", ".join(["/invocations", *self._pages])
            await _send(send, 404, [_JSON], _error(404, f"there is nothing here; there are {known}"))

    def drain(self) -> None:
        """Refuse what comes from now on; what was begun is finished."""
        self.draining = True

    def close(self) -> None:
        """End the model's thread, and close the log."""
        self._batcher.close()
        self._log.close()

    # Invocations --------------------------------------------------------------------------------------------

    async def _invocations(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        caller = headers.get(b"x-contender-caller")
        one = _Invocation(
            time.time_ns(),
            time.perf_counter(),
            _request_id(headers.get(b"x-request-id")),
            caller.decode("latin-1") if caller else None,
            headers.get(b"host", b"").partition(b":")[0].endswith(b"-shadow"),
        )
        self._metrics.in_flight += 1
        try:
            status, content, extra, error = await self._answer(one, headers, receive)
            try:
                self._record(one, status, error)
            except LogFullError as full:
                status, extra = 503, []
                content = _error(503, f"this request could not be logged, so it is not answered: {full}")
        except _GoneError:
            return
        finally:
            self._metrics.in_flight -= 1
        milliseconds = (time.perf_counter() - one.began) * 1000
        rows = one.request.rows if one.request else 0
        self._metrics.answered(status, shadow=one.shadow, milliseconds=milliseconds, rows=rows)
        answer = [*self._whose, (b"x-request-id", one.request_id.encode()), *extra]
        if one.complete:
            await _send(send, status, answer, content)
        else:
            await _send_and_linger(receive, send, status, [*answer, _CLOSE], content)

    async def _answer(
        self, one: _Invocation, headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[int, bytes, Headers, str | None]:
        """Status, body and further headers of the answer, and what the log says of an error."""
        try:
            if self.draining:
                raise _RefusedError(503, "this worker is going away; send the request again")
            body = await self._body(headers, receive)
            one.complete = True
            content_type = headers.get(b"content-type", b"").decode("latin-1")
            request = one.request = self._signature.read(body, content_type)
            if request.needs_lookup:
                request.columns = self._looked_up(request)
            elif self._hashed_inputs:
                request.columns = self._with_digests(request.columns)
            answers = self._batcher.at_once(request.columns, request.rows)
            if answers is None:
                spent = time.perf_counter() - one.began
                answers = await self._batcher.predict(request.columns, request.rows, spent)
            content = _content(answers)
            one.answers = answers
        except _GoneError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing that a model does may end a worker or reach its caller
            refused = self._refusal(one, error)
            return refused.status, _error(refused.status, refused.message), refused.headers, refused.message
        except asyncio.CancelledError:
            message = "this worker went away before it had the answer; send the request again"
            return 503, _error(503, message), [_CLOSE], message
        return 200, content, [], None

    def _refusal(self, one: _Invocation, error: Exception) -> _RefusedError:
        """What a caller is told of an error."""
        if isinstance(error, _RefusedError):
            return error
        if isinstance(error, BadRequestError):
            return _RefusedError(error.status, str(error))
        if isinstance(error, UnansweredError):
            return _RefusedError(400, str(error))
        if isinstance(error, QueueFullError):
            after = (b"retry-after", str(error.retry_after_seconds).encode())
            return _RefusedError(429, str(error), after)
        if isinstance(error, TooLateError):
            return _RefusedError(504, str(error))
        _logger.error("request %s: the model failed", one.request_id, exc_info=error)
        return _RefusedError(500, f"the model failed; the scorer's log says more of request {one.request_id}")

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, read no further than it may be long, and no longer than it may take."""
        limit = self._limits.body_bytes
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        task = asyncio.current_task()
        assert task is not None
        # What asyncio.timeout does, at a fifth of its cost.
        late = asyncio.get_running_loop().call_later(self._limits.timeout_seconds, task.cancel, _TOO_LATE)
        try:
            message = await receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                body = await _rest(body, limit, receive)
            elif message["type"] == "http.disconnect":
                raise _GoneError
        except asyncio.CancelledError as cancelled:
            if cancelled.args != (_TOO_LATE,):
                raise
            task.uncancel()
            seconds = f"{self._limits.timeout_seconds:g}"
            raise _RefusedError(408, f"the body was not complete within {seconds} s") from None
        finally:
            late.cancel()
        if len(body) > limit:
            raise _too_large(limit)
        return body

    def _with_digests(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns as the model was trained on them: of personal data it has only ever seen digests."""
        assert self._pii_key is not None
        digests = dict(columns)
        for name in self._hashed_inputs:
            found = [
                None if value is None else keyed_hash(str(value), self._pii_key) for value in columns[name]
            ]
            digests[name] = np.array(found, dtype=object)
        return digests

    def _looked_up(self, request: Request) -> dict[str, np.ndarray]:
        assert request.keys is not None
        try:
            online = self._features()
        except ContenderError as error:
            _logger.warning("the published features cannot be used: %s", error)
            raise _RefusedError(
                503, "the published features cannot be used; the scorer's log says why"
            ) from None
        if online is None:
            raise BadRequestError(
                400, f"no features were published for endpoint {self._endpoint}; send them with the request"
            )
        try:
            found = online.lookup(request.keys)
        except BadInputError as error:
            raise BadRequestError(400, str(error)) from None
        records: list[Mapping[str, Any]] = []
        for row, record in enumerate(found):
            stored = record if record is not None else online.declared_default()
            if stored is None:
                key = ", ".join(f"{name}={values[row]!r}" for name, values in request.keys.items())
                raise BadRequestError(404, f"row {row}: nothing is known of {key}")
            records.append(stored)
        return self._signature.complete(records)

    def _features(self) -> "OnlineFeatures | None":
        """The published features, opened again once others were published."""
        if self._online is None or self._online.stale():
            from serving.online import OnlineFeatures

            self._online = OnlineFeatures.open(self._online_folder, pii_key=self._pii_key)
        return self._online

    def _record(self, one: _Invocation, status: int, error: str | None) -> None:
        request, answers = one.request, one.answers
        self._log.append(
            Record(
                one.time_ns,
                one.request_id,
                one.requester,
                one.shadow,
                status,
                (time.perf_counter() - one.began) * 1000,
                request.rows if request else 0,
                request.keys if request else None,
                (request.columns or None) if request else None,
                answers.predictions if answers else None,
                answers.scores if answers else None,
                error,
                hashed=request is not None and (request.needs_lookup or bool(self._hashed_inputs)),
            )
        )

    def _warm_up(self) -> float:
        """Ask the model about its own example, if it has one; seconds for one row of it.

        Raises:
            NotReadyError: it does not answer.
        """
        served = self._served
        whose = f"{served.name} version {served.version}"
        if not served.example:
            _logger.warning("%s has no example, so it is served without having been tried", whose)
            return _UNTRIED_ROW_SECONDS
        try:
            body = orjson.dumps({"dataframe_records": list(served.example)})
            request = self._signature.read(body)
            answers = self._engine.predict(request.columns, request.rows)
            if len(answers.predictions) != request.rows:
                raise NotReadyError(
                    f"{whose}: {len(answers.predictions)} predictions for an example of {request.rows} rows"
                )
            _content(answers)
            return one_row_seconds(self._engine, request.columns)
        except NotReadyError:
            raise
        except Exception as error:
            raise NotReadyError(f"{whose} does not answer its own example: {error}") from error

    # Pages --------------------------------------------------------------------------------------------------

    def _ping(self) -> tuple[int, bytes, bytes]:
        return (503 if self.draining else 200), b"application/json", b"\n"

    def _health(self) -> tuple[int, bytes, bytes]:
        served = self._served
        status = "draining" if self.draining else "stuck" if self._batcher.stuck else "ready"
        said = {
            "status": status,
            "endpoint": self._endpoint,
            "served_entity": self._entity,
            "model": served.name,
            "version": served.version,
            "worker": self._worker,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._began, 1),
            "engine": self._engine.name,
            "engine_reason": served.engine_reason,
            "queue": self._batcher.waiting,
            "in_flight": self._metrics.in_flight,
            "requests": self._metrics.requests,
            **self._metrics.summary(),
            "log_dropped": self._log.dropped,
        }
        return (200 if status == "ready" else 503), b"application/json", orjson.dumps(said)

    def _version(self) -> tuple[int, bytes, bytes]:
        served = self._served
        said = {
            "endpoint": self._endpoint,
            "served_entity": self._entity,
            "model": served.name,
            "version": served.version,
            "model_digest": served.model_digest,
            "run_id": served.run_id,
        }
        return 200, b"application/json", orjson.dumps(said)

    def _metrics_page(self) -> tuple[int, bytes, bytes]:
        batcher = self._batcher
        page = self._metrics.page(
            waiting=batcher.waiting,
            batches=batcher.batches,
            batched_rows=batcher.batched_rows,
            log_dropped=self._log.dropped,
        )
        return 200, CONTENT_TYPE.encode(), page.encode()

    def _openapi(self) -> tuple[int, bytes, bytes]:
        return 200, b"application/json", orjson.dumps(openapi.document(self._served, self._endpoint))

    def _docs(self) -> tuple[int, bytes, bytes]:
        page = openapi.page(openapi.document(self._served, self._endpoint))
        return 200, b"text/html; charset=utf-8", page.encode()


def _content(answers: Answers) -> bytes:
    """The body of an answer."""
    said: dict[str, Any] = {"predictions": _plain(answers.predictions)}
    if answers.scores is not None:
        said["scores"] = _plain(answers.scores)
    return orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(values: np.ndarray) -> Any:
    """What orjson takes: arrays of numbers as they are, anything else as a list."""
    if values.dtype.kind in "fiub" and len(values) > 8 and values.flags.c_contiguous:
        return values
    return values.tolist()


def _error(status: int, message: str) -> bytes:
    return orjson.dumps({"error_code": _CODES[status], "message": message})


def _too_large(limit: int) -> _RefusedError:
    return _RefusedError(413, f"the body is larger than the {limit} bytes that one may have")


async def _rest(body: bytes, limit: int, receive: Receive) -> bytes:
    """What follows the first part of a body, up to a little more than the limit."""
    parts, size, more = [body], len(body), True
    while more:
        if size > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


async def _send(send: Send, status: int, headers: Headers, content: bytes) -> None:
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": content})


async def _send_and_linger(
    receive: Receive, send: Send, status: int, headers: Headers, content: bytes
) -> None:
    """Answer a request whose body was not read to its end, and throw away a little of what still comes.

    A connection that is closed while its caller still sends is reset, and the caller may never see the answer.
    """
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    size = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while size < _LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


def _request_id(given: bytes | None) -> str:
    """The gateway's, if it is fit to be passed on; else a version 4 UUID, made without asking the kernel."""
    if given and len(given) <= 128:
        said = given.decode("latin-1")
        if said.isascii() and said.isprintable():
            return said
    return f"{random.getrandbits(128) & _UUID4_FREE | _UUID4_FIXED:032x}"
