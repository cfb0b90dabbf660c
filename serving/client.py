"""The `mlflow.deployments` plugin: `get_deploy_client("contender:/dev")`, with Databricks' methods and config shape.

A target names an environment (`contender:/dev`), the YAML of one, or a data root. What a client changes is the desired
state on disk; the supervisor brings it into effect. Its own additions stand beside Databricks' keys.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import orjson
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException

from deployments.environment import home, known_environments, load_environment
from deployments.errors import BadInputError, ContenderError
from serving import control
from serving.desired import EndpointExistsError, EndpointStore, MissingEndpointError
from serving.endpoint import Endpoint, EndpointConfig
from serving.folders import Folders

NOT_FOUND, INVALID, EXISTS, TEMPORARY = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_ALREADY_EXISTS",
    "TEMPORARILY_UNAVAILABLE",
)


class EndpointError(BadInputError, MlflowException):  # type: ignore[misc]
    """An endpoint that cannot be had or changed as was asked; an error of MLflow's as well as of ours."""

    def __init__(self, message: str, code: str = INVALID) -> None:
        MlflowException.__init__(self, message, error_code=_code(code))

    def __str__(self) -> str:
        return str(self.message)


def _code(name: str) -> int:
    from mlflow.protos.databricks_pb2 import ErrorCode

    return int(ErrorCode.Value(name))


def target_help() -> str:
    """For `mlflow deployments help -t contender`."""
    return (
        "Targets: contender:/ENVIRONMENT (dev, test, prod, or an environment's YAML), contender:/DATA/ROOT.\n"
        "`create` makes an endpoint that serves one registered version: -m models:/NAME/VERSION or\n"
        "models:/NAME@ALIAS; with --endpoint it adds a served entity without traffic to an endpoint that stands.\n"
        "The data plane is started and stopped by `python -m flows.run up` and `down`; what is created while it is\n"
        "down is served once it is up."
    )


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> Any:
    """The same as creating a deployment in the dev environment."""
    return ContenderDeploymentClient("contender:/dev").create_deployment(name, model_uri, flavor, config)


class ContenderDeploymentClient(BaseDeploymentClient):  # type: ignore[misc]
    """Endpoints of one data root."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        self._folders = Folders(_root(target_uri))
        self._store = EndpointStore(self._folders)

    # Endpoints, as on Databricks

    def create_endpoint(
        self, name: str | None = None, config: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Create an endpoint from `{name, config: {served_entities, traffic_config}, tags}` or the inner config alone.

        Raises:
            EndpointError: it exists, or the config is not what it must be.
        """
        given = dict(config or {})
        inner = given.pop("config", None)
        if inner is None:
            inner = {key: value for key, value in given.items() if key not in {"name", "tags", "creator"}}
        name = name or given.get("name")
        if not name:
            raise EndpointError("an endpoint needs a name")
        tags = {item["key"]: item.get("value", "") for item in given.get("tags", ())}
        return self._described(
            _ours(lambda: self._store.create(str(name), inner, creator=given.get("creator", ""), tags=tags))
        )

    def update_endpoint_config(self, endpoint: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Replace served entities, traffic or both; what is not given stays as it is.

        Raises:
            EndpointError: there is no such endpoint, or the config is not what it must be.
        """
        unknown = sorted(set(config) - {"served_entities", "traffic_config"})
        if unknown:
            raise EndpointError(
                f"endpoint config: {unknown[0]!r} is not a key (known: served_entities, traffic_config)"
            )

        def change(before: EndpointConfig) -> object:
            return before.model_dump(mode="json") | dict(config)

        return self._described(_ours(lambda: self._store.change(endpoint, change)))

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same as `update_endpoint_config`; Databricks' older name of it."""
        return self.update_endpoint_config(endpoint, (config or {}).get("config", config or {}))

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """One endpoint: what it should be, and whether it is.

        Raises:
            EndpointError: there is no such endpoint.
        """
        return self._described(_ours(lambda: self._store.get(endpoint)))

    def list_endpoints(self) -> list[dict[str, Any]]:
        """All endpoints."""
        return [self.get_endpoint(name) for name in self._store.names()]

    def delete_endpoint(self, endpoint: str) -> None:
        """Take an endpoint away; its workers finish what they have.

        Raises:
            EndpointError: there is no such endpoint.
        """
        _ours(lambda: self._store.delete(endpoint))

    def wait(self, endpoint: str, timeout_seconds: float = 120) -> dict[str, Any]:
        """The endpoint once its newest config is in effect.

        Raises:
            EndpointError: the update failed, or it is not in effect in time; the config before still is.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = self.get_endpoint(endpoint)
            state = found["state"]
            if state["config_update"] == "NOT_UPDATING" and state["ready"] == "READY":
                return found
            if state["config_update"] == "UPDATE_FAILED" or time.monotonic() >= deadline:
                why = found["problem"] or f"not in effect after {timeout_seconds:g} s"
                raise EndpointError(f"endpoint {endpoint!r}: {why}", TEMPORARY)
            time.sleep(0.02)

    # Deployments, as MLflow's own command line speaks of them

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,  # noqa: ARG002
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """An endpoint with one served version; or, with `endpoint`, a served entity without traffic in it."""
        served = self._entity(name if endpoint else "champion", model_uri, config)
        if endpoint is None:
            self.create_endpoint(name, {"served_entities": [served]})
            return {"name": name, "flavor": None}

        def change(before: EndpointConfig) -> object:
            plain = before.model_dump(mode="json")
            if name in [entity.name for entity in before.served_entities]:
                raise EndpointError(f"endpoint {endpoint!r} serves {name!r} already", EXISTS)
            return plain | {"served_entities": [*plain["served_entities"], served]}

        _ours(lambda: self._store.change(endpoint, change))
        return {"name": name, "flavor": None}

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,  # noqa: ARG002
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Serve another version or workload size under the same name; the one before serves until it is ready."""
        served_as = name if endpoint else "champion"

        def change(before: EndpointConfig) -> object:
            plain = before.model_dump(mode="json")
            standing = next((item for item in plain["served_entities"] if item["name"] == served_as), None)
            if standing is None:
                raise EndpointError(f"endpoint {endpoint or name!r} serves no {served_as!r}", NOT_FOUND)
            standing.update(self._entity(served_as, model_uri, config) if model_uri else dict(config or {}))
            return plain

        _ours(lambda: self._store.change(endpoint or name, change))
        return {"name": name, "flavor": None}

    def delete_deployment(
        self,
        name: str,
        config: Mapping[str, Any] | None = None,  # noqa: ARG002
        endpoint: str | None = None,
    ) -> None:
        """Take the endpoint away; or, with `endpoint`, one served entity, which must have no traffic."""
        if endpoint is None:
            self.delete_endpoint(name)
            return

        def change(before: EndpointConfig) -> object:
            plain = before.model_dump(mode="json")
            kept = [item for item in plain["served_entities"] if item["name"] != name]
            routes = plain["traffic_config"]["routes"]
            plain["traffic_config"]["routes"] = [
                route
                for route in routes
                if route["served_entity_name"] != name or route["traffic_percentage"]
            ]
            return plain | {"served_entities": kept}

        _ours(lambda: self._store.change(endpoint, change))

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Endpoints; or the served entities of one."""
        if endpoint is None:
            return self.list_endpoints()
        served: list[dict[str, Any]] = self.get_endpoint(endpoint)["config"]["served_entities"]
        return served

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One endpoint; or one served entity of it."""
        if endpoint is None:
            return self.get_endpoint(name)
        found = [item for item in self.list_deployments(endpoint) if item["name"] == name]
        if not found:
            raise EndpointError(f"endpoint {endpoint!r} serves no {name!r}", NOT_FOUND)
        return found[0]

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> Any:
        """Ask an endpoint through the gateway; `inputs` is a frame, or JSON-like data in MLflow's protocol.

        The API key, where one is needed, is taken from the environment variable CONTENDER_API_KEY.

        Raises:
            EndpointError: the data plane is down, or refuses the request and says why.
        """
        name = endpoint or deployment_name
        if not name:
            raise EndpointError("say which endpoint to ask")
        said = control.status(self._folders.root)
        if said is None:
            raise EndpointError("the data plane is not up; start it with `python -m flows.run up`", TEMPORARY)
        key = os.environ.get("CONTENDER_API_KEY")
        request = Request(  # noqa: S310 - our own gateway
            f"{said['gateway']['url']}/serving-endpoints/{name}/invocations",
            data=_body(inputs),
            headers={"content-type": "application/json"}
            | ({"authorization": f"Bearer {key}"} if key else {}),
        )
        try:
            with urlopen(request, timeout=60) as answer:  # noqa: S310 - our own gateway
                return PredictionsResponse(json.loads(answer.read()))
        except HTTPError as error:
            message = read_error(error.read()) or f"HTTP {error.code}"
            code = INVALID if error.code < 500 else TEMPORARY
            raise EndpointError(f"endpoint {name!r}: {message}", code) from None
        except URLError as error:
            raise EndpointError(
                f"endpoint {name!r}: the gateway does not answer ({error.reason})", TEMPORARY
            ) from None

    def _entity(self, name: str, model_uri: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
        registered, version = self._version(model_uri)
        return {"name": name, "entity_name": registered, "entity_version": version, **dict(config or {})}

    def _version(self, model_uri: str) -> tuple[str, str]:
        """Name and version behind `models:/NAME/VERSION` or `models:/NAME@ALIAS`."""
        rest = model_uri.removeprefix("models:/").lstrip("/")
        name, at, alias = rest.partition("@")
        if not model_uri.startswith("models:/") or not rest:
            raise EndpointError(
                f"{model_uri!r}: give a registered version: models:/NAME/VERSION or models:/NAME@ALIAS"
            )
        if at:
            return name, str(self._registry().get_model_version_by_alias(name, alias).version)
        name, _, version = rest.rpartition("/")
        if not name or not version.isdigit():
            raise EndpointError(
                f"{model_uri!r}: give a registered version: models:/NAME/VERSION or models:/NAME@ALIAS"
            )
        return name, version

    def _registry(self) -> Any:
        from mlflow import MlflowClient

        given = control.read_json(control.instructions_file(self._folders))
        if given is None:
            raise EndpointError("an alias is looked up where `up` was told that models are; run `up` first")
        return MlflowClient(given["tracking_uri"], given["registry_uri"])

    def _described(self, endpoint: Endpoint) -> dict[str, Any]:
        """An endpoint in Databricks' shape; `problem`, `generation` and `url` are ours."""
        said = control.status(self._folders.root) or {}
        seen = said.get("endpoints", {}).get(endpoint.name, {})
        # Its creation, too: one that was deleted and made again begins with the first generation again.
        this = (endpoint.generation, endpoint.created_at.isoformat())
        up_to_date = (seen.get("generation_in_effect"), seen.get("created_at_in_effect")) == this
        known = (seen.get("generation"), seen.get("created_at")) == this
        failed = known and seen.get("config_update") == "UPDATE_FAILED"
        update = "NOT_UPDATING" if up_to_date else "UPDATE_FAILED" if failed else "IN_PROGRESS"
        url = f"{said['gateway']['url']}/serving-endpoints/{endpoint.name}/invocations" if said else None
        return {
            "name": endpoint.name,
            "id": endpoint.name,
            "creator": endpoint.creator,
            "creation_timestamp": int(endpoint.created_at.timestamp() * 1000),
            "last_updated_timestamp": int(endpoint.updated_at.timestamp() * 1000),
            "state": {"ready": "READY" if seen.get("ready") else "NOT_READY", "config_update": update},
            "config": self._described_config(endpoint, seen, up=bool(said)),
            "tags": [{"key": key, "value": value} for key, value in endpoint.tags.items()],
            "generation": endpoint.generation,
            "problem": seen.get("problem", "") if said else "the data plane is not up",
            "url": url,
        }

    @staticmethod
    def _described_config(endpoint: Endpoint, seen: Mapping[str, Any], *, up: bool) -> dict[str, Any]:
        """The config, each served entity with its `state` as Databricks has it; `restarts` of its workers are ours."""
        config = endpoint.config.model_dump(mode="json")
        standing = {
            (unit["name"], unit["entity_name"], unit["entity_version"]): unit
            for unit in seen.get("entities", ())
        }
        for entity in config["served_entities"]:
            unit = standing.get((entity["name"], entity["entity_name"], entity["entity_version"]), {})
            problem = unit.get("problem", "") if up else "the data plane is not up"
            deployment = "READY" if unit.get("ready") else "FAILED" if unit.get("problem") else "CREATING"
            entity["state"] = {
                "deployment": f"DEPLOYMENT_{deployment}",
                "deployment_state_message": problem,
            }
            entity["restarts"] = sum(worker["restarts"] for worker in unit.get("workers", ()))
        return config | {"config_version": endpoint.generation}


def _root(target_uri: str) -> Path:
    """The data root that a target names.

    Raises:
        EndpointError: it names none.
    """
    target = target_uri.partition(":")[2].strip("/")
    if not target:
        raise EndpointError(f"{target_uri!r}: name an environment (contender:/dev) or a data root")
    # An environment first: there is a folder /dev on most machines.
    path = Path("/", target)
    if target not in known_environments() and path.is_dir():
        return path
    try:
        environment = load_environment(path if path.suffix in {".yaml", ".yml"} else target)
    except ContenderError as error:
        raise EndpointError(str(error)) from None
    return home() / environment.platform.data_root


def _body(inputs: Any) -> bytes:
    if hasattr(inputs, "to_json"):
        split = inputs.to_json(orient="split", index=False, date_format="iso", double_precision=15)
        return b'{"dataframe_split": %s}' % split.encode()
    protocol = {"dataframe_split", "dataframe_records", "inputs", "instances"}
    wrapped = isinstance(inputs, Mapping) and protocol & set(inputs)
    return orjson.dumps(inputs if wrapped else {"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def read_error(body: bytes) -> str:
    """The message in an answer that is an error."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]


def _ours(work: Callable[[], Endpoint]) -> Endpoint:
    """What `work` gives; our errors about bad input become errors that MLflow's callers know, too."""
    try:
        return work()
    except EndpointError:
        raise
    except MissingEndpointError as error:
        raise EndpointError(str(error), NOT_FOUND) from None
    except EndpointExistsError as error:
        raise EndpointError(str(error), EXISTS) from None
    except BadInputError as error:
        raise EndpointError(str(error)) from None
