"""Where the data plane of one environment keeps its files, all under one data root.

The layout, below `serving/`: desired states in endpoints/, fetched versions in models/, their virtual environments in
environments/, prediction log segments that are not folded yet in log/, online features in online/, callers and the
digests of their keys in keys.json, and in run/ the files of the running supervisor (lock, status.json, Envoy's, logs/).
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """The folders under one data root; each is made when it is asked for."""

    root: Path

    @property
    def endpoints(self) -> Path:
        """Desired states."""
        return self._made("endpoints")

    @property
    def models(self) -> Path:
        """Fetched versions."""
        return self._made("models")

    @property
    def environments(self) -> Path:
        """Virtual environments of served versions."""
        return self._made("environments")

    @property
    def run(self) -> Path:
        """Files of the running supervisor."""
        return self._made("run")

    @property
    def logs(self) -> Path:
        """Text logs of the running processes."""
        return self._made("run", "logs")

    @property
    def lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.run / "supervisor.lock"

    @property
    def status(self) -> Path:
        """What the supervisor says of itself and of all it runs."""
        return self.run / "status.json"

    @property
    def keys(self) -> Path:
        """Callers and the digests of their API keys."""
        return self._made() / "keys.json"

    def endpoint(self, name: str) -> Path:
        """The desired state of one endpoint."""
        return self.endpoints / f"{name}.json"

    def log(self, endpoint: str) -> Path:
        """Prediction log segments of one endpoint."""
        return self._made("log", endpoint)

    def online(self, endpoint: str) -> Path:
        """Online features of one endpoint."""
        return self._made("online", endpoint)

    def predictions(self, endpoint: str) -> Path:
        """The Delta table that an endpoint's prediction log is folded into; made by the first fold."""
        return self.root / "tables" / "predictions" / endpoint

    def _made(self, *parts: str) -> Path:
        whole = self.root / "serving"
        if not whole.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            # What was asked, and addresses that may hold a password, are for nobody else on this machine.
            whole.mkdir(mode=0o700, exist_ok=True)
        path = whole.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path
