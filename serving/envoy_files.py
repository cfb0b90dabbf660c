"""Envoy's files, made of a plan: the bootstrap document, which never changes, and the clusters and routes, which do.

Every document is a dictionary in the shape of Envoy's v3 API, as JSON. Nothing here touches a disk or a process.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.environment import GatewayConfig, RequestLimits
from serving import unanswered
from serving.endpoint import fallback_of
from serving.plan import GatewayPlan, arms, salt_of

__all__ = ["LISTENER", "ROUTES", "STATUS_PATHS", "bootstrap", "clusters", "routes"]

Document = dict[str, Any]

LISTENER = "gateway"
ROUTES = "endpoints"
SUPERVISOR = "supervisor"
STATUS_PATHS = ("/", "/health", "/metrics", "/status", "/version")
OPEN_PATHS = frozenset({"/health"})
"""What load balancers ask without a key."""

CALLERS = Path(__file__).with_name("callers.lua")
HOST = "contender"
"""Sent to scorers instead of the caller's host, for it is by the host that they tell a mirrored request."""

KEEP_ALIVE_SECONDS = 4
"""Shorter than any scorer's own, so that no request is sent into a connection that is just being closed."""

MANY = 10_000
"""Callers whose rate is counted at a time, and connections that are taken."""

_NOTHING_TO_ASK = [
    {"name": "authorization", "present_match": False},
    {"name": "x-api-key", "present_match": False},
    {
        "name": "x-request-id",
        "string_match": {"safe_regex": {"regex": "[[:graph:]]{1,40}"}},
    },
]
"""Headers with which the Lua filter would change nothing, so that it need not be run where no key is required.

Longer ids that are sane as well take the way through it, for Envoy takes no regular expression of their length.
"""

_TYPE = "type.googleapis.com/envoy"
_LUA = "envoy.filters.http.lua"
_RATE = "envoy.filters.http.local_ratelimit"


def bootstrap(
    config: GatewayConfig,
    limits: RequestLimits,
    address: str,
    port: int,
    admin_port: int,
    files: Path,
    log: Path,
) -> Document:
    """What Envoy is started with; clusters and routes are read from folders below `files`."""
    return {
        "node": {"id": "contender", "cluster": "contender"},
        "admin": {
            "address": _socket("127.0.0.1", admin_port),
            "allow_paths": [
                *({"exact": path} for path in ("/ready", "/reopen_logs", "/server_info")),
                *({"prefix": path} for path in ("/clusters", "/config_dump", "/stats")),
            ],
        },
        "dynamic_resources": {"cds_config": _watched(files / "clusters")},
        "overload_manager": {
            "resource_monitors": [
                _typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=MANY,
                )
            ]
        },
        "static_resources": {
            "listeners": [
                {
                    "name": LISTENER,
                    "address": _socket(address, port),
                    # With it, a second gateway would share the port instead of being told that it is taken.
                    "enable_reuse_port": False,
                    "filter_chains": [{"filters": [_connection_manager(config, limits, files, log)]}],
                }
            ]
        },
    }


def clusters(plan: GatewayPlan, limits: RequestLimits) -> dict[str, Document]:
    """All clusters of a plan by name.

    For each served entity that is ready its workers, those once more for mirrored requests (so that shadow traffic
    takes no place in line from anybody), and, unless it is the fallback, itself with the fallback behind it.
    """
    found = {}
    for endpoint, traffic in plan.endpoints.items():
        fallback = fallback_of(traffic)
        names = {name for known, name in plan.ready if known == endpoint} | {fallback}
        for name in sorted(names):
            ports = plan.ready.get((endpoint, name), ())
            if ports or name == fallback:
                found[_direct(endpoint, name)] = _workers(ports, limits, last=name == fallback)
            if ports and traffic.mirror and traffic.mirror.served_entity_name == name:
                found[_mirrored(endpoint, name)] = _unwatched(ports, limits.queue * len(ports))
            if ports and name != fallback:
                found[_backed(endpoint, name, fallback)] = _either(
                    _direct(endpoint, name), _direct(endpoint, fallback), limits
                )
    if plan.status_port is not None:
        found[SUPERVISOR] = _unwatched((plan.status_port,), 1024)
    return {
        name: {"@type": f"{_TYPE}.config.cluster.v3.Cluster", "name": name} | cluster
        for name, cluster in found.items()
    }


def routes(plan: GatewayPlan, config: GatewayConfig, limits: RequestLimits) -> Document:
    """The route configuration of a plan, with the digests of the keys as metadata that the Lua filter reads."""
    paths: list[Document] = []
    for endpoint in sorted(plan.endpoints):
        paths.extend(_endpoint_routes(plan, endpoint, config, limits))
    paths.extend(_status_route(path, ready=plan.status_port is not None) for path in STATUS_PATHS)
    known = ", ".join(sorted(plan.endpoints)) or "none"
    paths.append(
        _reply(
            {"prefix": "/"},
            404,
            f"There is nothing at this path; endpoints are /serving-endpoints/NAME/invocations ({known}).",
        )
    )
    edition = {"metadata": {"filter_metadata": {_LUA: {"edition": _edition(plan.callers)}}}}
    return {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "request_headers_to_remove": ["x-envoy-external-address"],
        # Without it a plan that changes no route would keep the former plan's version in Envoy's statistics.
        "metadata": {"filter_metadata": {"contender": {"version": plan.version}}},
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "metadata": {"filter_metadata": {_LUA: dict(plan.callers)}},
                "routes": [path | edition for path in paths],
            }
        ],
    }


def _edition(callers: Mapping[str, str]) -> str:
    """Another text for other callers, by which the Lua filter knows when to read them again."""
    return hashlib.sha256(repr(sorted(callers.items())).encode()).hexdigest()[:16]


# Routes -----------------------------------------------------------------------------------------------------


def _endpoint_routes(
    plan: GatewayPlan, endpoint: str, config: GatewayConfig, limits: RequestLimits
) -> list[Document]:
    traffic = plan.endpoints[endpoint]
    prefix = f"/serving-endpoints/{endpoint}/"
    split = arms(plan, endpoint)
    if not any(arm.ports for arm in split):
        return [
            _reply(
                {"prefix": prefix}, 503, f"No worker of the endpoint {endpoint} is ready; come again soon."
            )
            | {"name": endpoint}
        ]
    action: Document = {
        "host_rewrite_literal": HOST,
        # The scorer's own limit comes first, so that what took too long is in its log.
        "timeout": _seconds(limits.timeout_seconds + 1),
        "weighted_clusters": {
            "use_hash_policy": True,
            "clusters": [
                {"name": _answering(endpoint, arm.entity, fallback_of(traffic)), "weight": arm.share}
                for arm in split
            ],
        },
        "hash_policy": [
            {
                "header": {
                    "header_name": traffic.sticky_header or config.sticky_header,
                    # Put in front, not around: the caller's id may hold bytes that no pattern matches.
                    "regex_rewrite": {
                        "pattern": {"regex": "^"},
                        "substitution": salt_of(endpoint, traffic) + ":",
                    },
                },
                "terminal": True,
            }
        ],
        "retry_policy": _retries(),
    }
    # A page and its metrics are not predictions: only invocations are mirrored.
    predictions = action | _mirror(plan, endpoint) | {"prefix_rewrite": "/invocations"}
    asked = {"path": f"{prefix}invocations"}
    plain = _route(endpoint, asked | {"headers": _NOTHING_TO_ASK}, predictions) | _without(_LUA)
    return [
        _route(endpoint, {"path": f"{prefix}ping"}, action | {"prefix_rewrite": "/ping"}) | _open(),
        *([] if config.require_key else [plain]),
        _route(endpoint, asked, predictions),
        _route(endpoint, {"prefix": prefix}, action | {"prefix_rewrite": "/"}),
    ]


def _mirror(plan: GatewayPlan, endpoint: str) -> Document:
    mirror = plan.endpoints[endpoint].mirror
    if (
        not mirror
        or not mirror.traffic_percentage
        or not plan.ready.get((endpoint, mirror.served_entity_name))
    ):
        return {}
    fraction = {"default_value": _percent(mirror.traffic_percentage)}
    policy = {"cluster": _mirrored(endpoint, mirror.served_entity_name), "runtime_fraction": fraction}
    return {"request_mirror_policies": [policy]}


def _retries() -> Document:
    """Ask again only where no scorer had the request.

    A request that was sent and not answered may stand in a prediction log already. Asked again it would be
    answered a second time, by another version perhaps, under the same id.
    """
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.1s"},
        "retry_host_predicate": [
            _typed(
                "envoy.retry_host_predicates.previous_hosts",
                "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )
        ],
        "host_selection_retry_max_attempts": 3,
    }


def _status_route(path: str, *, ready: bool) -> Document:
    if not ready:
        return _reply({"path": path}, 503, "The supervisor does not answer for itself.")
    route = _route(SUPERVISOR, {"path": path}, {"cluster": SUPERVISOR, "timeout": "10s"})
    return route | (_open() if path in OPEN_PATHS else {})


def _route(name: str, match: Document, action: Document) -> Document:
    return {"name": name, "match": match, "route": action}


def _reply(match: Document, status: int, message: str) -> Document:
    return {"match": match, "direct_response": {"status": status, "body": {"inline_string": message}}}


def _open() -> Document:
    """For paths that are answered to anybody, as often as they ask."""
    return {"request_headers_to_remove": ["authorization", "x-api-key"], **_without(_LUA, _RATE)}


def _without(*filters: str) -> Document:
    off = {"@type": f"{_TYPE}.config.route.v3.FilterConfig", "disabled": True}
    return {"typed_per_filter_config": dict.fromkeys(filters, off)}


def _percent(share: int) -> Document:
    return {"numerator": share, "denominator": "HUNDRED"}


# Clusters ---------------------------------------------------------------------------------------------------


def _direct(endpoint: str, entity: str) -> str:
    return f"{endpoint}/{entity}"


def _mirrored(endpoint: str, entity: str) -> str:
    return f"{endpoint}/{entity}/mirror"


def _backed(endpoint: str, entity: str, fallback: str) -> str:
    return f"{endpoint}/{entity}/or/{fallback}"


def _answering(endpoint: str, entity: str, fallback: str) -> str:
    return _direct(endpoint, entity) if entity == fallback else _backed(endpoint, entity, fallback)


def _workers(ports: tuple[int, ...], limits: RequestLimits, *, last: bool) -> Document:
    """The workers of a served entity; `last` where there is nobody to fall back to."""
    # Twice what the workers' own queues hold: a queue that is full says when to come again, a breaker cannot.
    room = 2 * limits.queue * max(1, len(ports))
    return _unwatched(ports, room) | {
        "lb_policy": "LEAST_REQUEST",
        # A worker that looks dead is still asked when nobody else is left; elsewhere the fallback takes over.
        "common_lb_config": {"healthy_panic_threshold": {"value": 50 if last else 0}},
        "health_checks": [
            {
                "timeout": "2s",
                "interval": "0.25s",
                "no_traffic_interval": "0.25s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/ping", "host": HOST},
            }
        ],
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            # A connection refused or cut means a dead process: the retry must go elsewhere already.
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            "consecutive_5xx": 10,
            "consecutive_gateway_failure": 5,
            "enforcing_consecutive_gateway_failure": 100,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "max_ejection_percent": 100,
            "interval": "0.2s",
            # Longer than health checks take to find a process dead: a worker let back in before that would be
            # asked in vain, since what fails while it is ejected is counted past the threshold.
            "base_ejection_time": "2s",
            "max_ejection_time": "5s",
            "successful_active_health_check_uneject_host": False,
        },
    }


def _unwatched(ports: tuple[int, ...], room: int) -> Document:
    """Processes on this machine that are asked as long as they stand in the plan, `room` requests at a time."""
    return {
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": _breakers(room),
        "load_assignment": {
            "cluster_name": "workers",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _socket("127.0.0.1", port)}} for port in ports]}
            ],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": _seconds(KEEP_ALIVE_SECONDS)},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _either(first: str, then: str, limits: RequestLimits) -> Document:
    """All to one cluster; to the other what it has no healthy worker for."""
    return {
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": _breakers(4 * limits.queue),
        "cluster_type": _typed(
            "envoy.clusters.aggregate",
            "extensions.clusters.aggregate.v3.ClusterConfig",
            clusters=[first, then],
        ),
    }


def _breakers(room: int) -> Document:
    return {
        "thresholds": [
            {"max_connections": room, "max_pending_requests": room, "max_requests": room, "max_retries": room}
        ]
    }


# The listener -----------------------------------------------------------------------------------------------


def _connection_manager(config: GatewayConfig, limits: RequestLimits, files: Path, log: Path) -> Document:
    patience = _seconds(limits.timeout_seconds + 5)
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=LISTENER,
        rds={"route_config_name": ROUTES, "config_source": _watched(files / "routes")},
        access_log=[_access_log(log), _failed_log(log.with_name(unanswered.FILE))],
        use_remote_address=True,
        skip_xff_append=True,
        # Nobody is inside: without this, callers on this machine could steer Envoy by x-envoy-… headers.
        internal_address_config={"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension={
            "typed_config": {
                "@type": f"{_TYPE}.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
            }
        },
        early_header_mutation_extensions=[
            _typed(
                "envoy.http.early_header_mutation.header_mutation",
                "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=[
                    {"remove_on_match": {"key_matcher": {"prefix": prefix}}}
                    for prefix in ("x-contender-", "x-envoy-")
                ],
            )
        ],
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        max_request_headers_kb=32,
        request_headers_timeout="10s",
        request_timeout=patience,
        stream_idle_timeout=patience,
        common_http_protocol_options={"idle_timeout": "300s"},
        server_header_transformation="PASS_THROUGH",
        local_reply_config=_local_replies(limits),
        http_filters=[
            _typed(
                _LUA,
                "extensions.filters.http.lua.v3.Lua",
                default_source_code={"inline_string": _callers(require_key=config.require_key)},
            ),
            *([_rate_limit(config.requests_per_second)] if config.requests_per_second else []),
            _typed(
                "envoy.filters.http.buffer",
                "extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=limits.body_bytes,
            ),
            _typed(
                "envoy.filters.http.router",
                "extensions.filters.http.router.v3.Router",
                suppress_envoy_headers=True,
                dynamic_stats=False,
            ),
        ],
    )


def _callers(*, require_key: bool) -> str:
    return f"local REQUIRE_KEY = {str(require_key).lower()}\n{CALLERS.read_text(encoding='utf-8')}"


def _rate_limit(rate: float) -> Document:
    """A bucket for each caller, and for each address of those without a key; a second's requests fit in one."""
    rate = min(rate, 1e9)
    burst = max(1, math.ceil(rate))
    bucket = {"max_tokens": burst, "tokens_per_fill": burst, "fill_interval": _seconds(burst / rate)}
    anonymous = {
        "header_value_match": {
            "descriptor_key": "anonymous",
            "descriptor_value": "yes",
            "expect_match": False,
            "headers": [{"name": "x-contender-caller", "present_match": True}],
        }
    }
    return _typed(
        _RATE,
        "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="callers",
        token_bucket={"max_tokens": 4_000_000_000, "tokens_per_fill": 4_000_000_000, "fill_interval": "1s"},
        always_consume_default_token_bucket=False,
        filter_enabled={"default_value": _percent(100)},
        filter_enforced={"default_value": _percent(100)},
        max_dynamic_descriptors=MANY,
        rate_limits=[
            {
                "actions": [
                    {"request_headers": {"header_name": "x-contender-caller", "descriptor_key": "caller"}}
                ]
            },
            {"actions": [anonymous, {"remote_address": {}}]},
        ],
        descriptors=[
            {"entries": [{"key": "caller"}], "token_bucket": bucket},
            {
                "entries": [{"key": "anonymous", "value": "yes"}, {"key": "remote_address"}],
                "token_bucket": bucket,
            },
        ],
        response_headers_to_add=[_header("retry-after", str(max(1, math.ceil(1 / rate))))],
    )


def _local_replies(limits: RequestLimits) -> Document:
    """What Envoy answers itself, as JSON in the shape of the scorers' own errors, and in words for people."""
    full = "The endpoint has more requests under way than it can take; come again."
    gone = "The worker that had the request ended before it answered; whether it predicted is in its log. Ask again."
    return {
        "mappers": [
            _mapper(_flags("UO"), 429, full, retry_after=1),
            _mapper(
                _flags("UH", "NC"),
                503,
                "No worker of this endpoint is ready; come again soon.",
                retry_after=1,
            ),
            _mapper(
                _flags("UT", "SI"), 504, f"There was no answer within {limits.timeout_seconds:g} seconds."
            ),
            _mapper(_flags("UF", "UC", "UR", "LR", "URX"), 503, gone, retry_after=1),
            _mapper(
                _status(413), 413, f"The body is larger than the {limits.body_bytes} bytes that are allowed."
            ),
            _mapper(_status(431), 431, "The headers are larger than 32 KiB."),
            _mapper(
                _status(429), 429, "This caller asks more often than allowed; come again as retry-after says."
            ),
            *(_mapper(_status(status), status) for status in _CODES if status not in {413, 429, 431}),
        ],
        "body_format": _error("BAD_REQUEST"),
    }


_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    404: "RESOURCE_DOES_NOT_EXIST",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE",
    429: "REQUEST_LIMIT_EXCEEDED",
    431: "REQUEST_TOO_LARGE",
    500: "INTERNAL_ERROR",
    502: "TEMPORARILY_UNAVAILABLE",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _mapper(filtered: Document, status: int, message: str | None = None, *, retry_after: int = 0) -> Document:
    mapper: Document = {
        "filter": filtered,
        "status_code": status,
        "body_format_override": _error(_CODES[status]),
    }
    if message:
        mapper["body"] = {"inline_string": message}
    if retry_after:
        mapper["headers_to_add"] = [_header("retry-after", str(retry_after))]
    return mapper


def _error(code: str) -> Document:
    return {"json_format": {"error_code": code, "message": "%LOCAL_REPLY_BODY%"}}


def _flags(*flags: str) -> Document:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(status: int) -> Document:
    return {
        "status_code_filter": {
            "comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": "none"}}
        }
    }


def _access_log(path: Path) -> Document:
    """One JSON line a request, without what the caller sent: no query, no header but the id, no body."""
    return _typed(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(path),
        log_format={
            "json_format": {
                "time": "%START_TIME%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "caller": "%REQ(X-CONTENDER-CALLER)%",
                "address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                "method": "%REQ(:METHOD)%",
                "endpoint": "%ROUTE_NAME%",
                "path": "%PATH(NQ)%",
                "status": "%RESPONSE_CODE%",
                "flags": "%RESPONSE_FLAGS%",
                "served_entity": "%RESP(X-SERVED-ENTITY)%",
                "received_bytes": "%BYTES_RECEIVED%",
                "sent_bytes": "%BYTES_SENT%",
                "milliseconds": "%DURATION%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            }
        },
    )


def _failed_log(path: Path) -> Document:
    """One JSON line an answer of 5xx, by which requests are counted that no scorer answered."""
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "none"}}
            }
        }
    } | _typed(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(path),
        log_format={
            "json_format": {
                "second": "%START_TIME(%s)%",
                "endpoint": "%ROUTE_NAME%",
                "path": "%PATH(NQ)%",
                "served_entity": "%RESP(X-SERVED-ENTITY)%",
            }
        },
    )


# Small pieces -----------------------------------------------------------------------------------------------


def _typed(name: str, kind: str, /, **fields: Any) -> Document:
    return {"name": name, "typed_config": {"@type": f"{_TYPE}.{kind}", **fields}}


def _socket(address: str, port: int) -> Document:
    return {"socket_address": {"address": address, "port_value": port}}


def _seconds(number: float) -> str:
    return f"{number:.6f}s"


def _header(key: str, value: str) -> Document:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _watched(folder: Path) -> Mapping[str, Any]:
    path = str(folder / f"{folder.name}.json")
    source = {"path": path, "watched_directory": {"path": str(folder)}}
    return {"resource_api_version": "V3", "path_config_source": source}
