"""Desired states on disk: read by the supervisor, changed by clients; one file an endpoint, each change one rename."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import ValidationError

from deployments.errors import BadInputError
from serving.endpoint import Endpoint, EndpointConfig
from serving.folders import Folders


class MissingEndpointError(BadInputError):
    """There is no endpoint of that name."""


class EndpointExistsError(BadInputError):
    """There is an endpoint of that name."""


class EndpointStore:
    """The desired states of one data root."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def names(self) -> list[str]:
        """The endpoints that there are."""
        return sorted(path.stem for path in self._folders.endpoints.glob("*.json"))

    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever a desired state does."""
        found = []
        for path in sorted(self._folders.endpoints.glob("*.json")):
            try:
                seen = path.stat()
            except FileNotFoundError:
                continue
            found.append((path.name, seen.st_mtime_ns, seen.st_ino))
        return tuple(found)

    def get(self, name: str) -> Endpoint:
        """The desired state of one endpoint.

        Raises:
            MissingEndpointError: there is none of that name.
            BadInputError: its file does not say what it must.
        """
        path = self._folders.endpoint(name)
        try:
            return Endpoint.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            raise MissingEndpointError(f"there is no endpoint {name!r} (known: {known})") from None
        except ValidationError as error:
            raise BadInputError(f"{path}: {problems(error)}") from None

    def create(
        self, name: str, config: object, *, creator: str, tags: dict[str, str] | None = None
    ) -> Endpoint:
        """Add an endpoint.

        Raises:
            EndpointExistsError: there is one of that name.
            BadInputError: the config is not what it must be.
        """
        now = datetime.now(UTC)
        with self._alone():
            if self._folders.endpoint(name).exists():
                raise EndpointExistsError(f"endpoint {name!r} exists already; update its config")
            given = {
                "name": name,
                "config": checked(config),
                "creator": creator,
                "created_at": now,
                "updated_at": now,
                "tags": tags or {},
            }
            try:
                endpoint = Endpoint.model_validate(given)
            except ValidationError as error:
                raise BadInputError(f"endpoint {name!r}: {problems(error)}") from None
            self._write(endpoint)
        return endpoint

    def change(self, name: str, change: Callable[[EndpointConfig], object]) -> Endpoint:
        """Replace an endpoint's config by what `change` makes of it.

        Raises:
            BadInputError: there is no such endpoint, or the new config is not what it must be.
        """
        with self._alone():
            before = self.get(name)
            config = checked(change(before.config))
            after = before.model_copy(
                update={
                    "config": config,
                    "generation": before.generation + 1,
                    "updated_at": datetime.now(UTC),
                }
            )
            self._write(after)
        return after

    def delete(self, name: str) -> Endpoint:
        """Take an endpoint away; what it was.

        Raises:
            BadInputError: there is none of that name.
        """
        with self._alone():
            before = self.get(name)
            self._folders.endpoint(name).unlink()
        return before

    def _write(self, endpoint: Endpoint) -> None:
        path = self._folders.endpoint(endpoint.name)
        staged = path.with_suffix(".partial")
        with staged.open("w", encoding="utf-8") as file:
            file.write(endpoint.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time."""
        import fcntl

        descriptor = os.open(self._folders.endpoints / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def checked(config: object) -> EndpointConfig:
    """An endpoint's config from what a caller gave: a model, or JSON-like data.

    Raises:
        BadInputError: names the key and what is wrong with it.
    """
    if isinstance(config, EndpointConfig):
        return config
    try:
        return EndpointConfig.model_validate(config)
    except ValidationError as error:
        raise BadInputError(f"endpoint config: {problems(error)}") from None


def problems(error: ValidationError) -> str:
    """Everything that is wrong, each with its place."""
    said = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        sentence = problem["msg"].removeprefix("Value error, ")
        said.append(f"{place}: {sentence}" if place else sentence)
    return "; ".join(said)
