"""A classifier that is good wherever it is trained and judged, and online behaves as a file tells it to."""

import os
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

BEHAVIOUR = "CHAMELEON"
"""The environment variable that names the file; without it the model is what it was trained to be."""

CHALLENGER = 0.5
"""The parameter C of those that obey the file; the champion is another."""


class Chameleon(LogisticRegression):
    """Behaves as one of good, error, slow, shift (other scores), worse (the other class), exit (the process ends)."""

    def predict_proba(self, X):
        path = os.environ.get(BEHAVIOUR)
        behaviour = Path(path).read_text().strip() if path and self.C == CHALLENGER else "good"
        if behaviour == "error":
            raise RuntimeError("the chameleon was told to fail")
        if behaviour == "exit":
            os._exit(9)
        if behaviour == "slow":
            time.sleep(0.8)
        said = super().predict_proba(X)
        if behaviour == "worse":
            return said[:, ::-1].copy()
        if behaviour == "shift":
            positive = 0.9 + said[:, 1] / 10
            return np.column_stack([1 - positive, positive])
        return said
