"""The order of business.

Whatever imports it, a run of a worker of one's own as well, has MLflow without telemetry and progress bars, and asking
a tracking server that fails three times more; what the environment says goes before.
"""

import os

MLFLOW_SETTINGS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}

# MLflow looks at them as it is imported, which every flow does after this.
for _name, _value in MLFLOW_SETTINGS.items():
    os.environ.setdefault(_name, _value)
