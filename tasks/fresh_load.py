"""`python -m tasks.fresh_load`: load a registered version in a process of its own and answer its input example.

Reads one JSON object from standard input, writes one line of JSON with `scores` and `predictions`.
"""

import json
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Answer the question on standard input; a reason on standard error and exit code 1 where that fails."""
    import mlflow
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.models import Model

    from deployments import model_file
    from deployments.errors import ContenderError
    from deployments.spec import Target
    from tasks.metrics import outputs_of

    asked = json.load(sys.stdin)
    mlflow.set_tracking_uri(asked["tracking_uri"])
    mlflow.set_registry_uri(asked["registry_uri"])
    client = MlflowClient(asked["tracking_uri"], asked["registry_uri"])
    location = client.get_model_version_download_uri(asked["name"], asked["version"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=folder))
        # MLflow's loader runs what its own files tell it to, so they are looked at before anything is loaded.
        found = model_file.folder_digests(path)
        odd = sorted(name for name, _ in found.items() ^ asked["files"].items())
        if odd:
            print(
                f"changed, missing or added since it was saved: {', '.join(dict.fromkeys(odd))}",
                file=sys.stderr,
            )
            return 1
        try:
            model = model_file.load_model(
                path / model_file.SKOPS_FILE,
                digest=asked["digest"],
                allowed_packages=asked["allowed_packages"],
            )
        except ContenderError as error:
            print(error, file=sys.stderr)
            return 1
        described = Model.load(str(path))
        example = described.load_input_example(str(path))
        served = mlflow.pyfunc.load_model(str(path))
        predictions = np.asarray(served.predict(example)).tolist()
    target = Target.model_validate(asked["target"])
    scores = outputs_of(model, example, target).score
    print(json.dumps({"scores": [float(value) for value in scores], "predictions": predictions}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
