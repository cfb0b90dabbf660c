"""Models that are good wherever they are trained and judged, and online behave as a file tells them to."""

import os
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

BEHAVIOUR = "CHAMELEON"
"""The environment variable that names the file; without it a model is what it was trained to be."""

CHALLENGER = 0.5
"""The parameter C, or alpha, of those that obey the file; the champion has another."""


def told(parameter):
    """What a model with that parameter is to do to its answer: one of good, shift (other scores), worse (wrong ones).

    Of what there is no answer to, it is done: error, slow, exit (the process ends).
    """
    path = os.environ.get(BEHAVIOUR)
    behaviour = Path(path).read_text().strip() if path and parameter == CHALLENGER else "good"
    if behaviour == "error":
        raise RuntimeError("the chameleon was told to fail")
    if behaviour == "exit":
        os._exit(9)
    if behaviour == "slow":
        time.sleep(0.8)
    return behaviour


class Chameleon(LogisticRegression):
    """Of classes; a shift is to the last of them, and the worse give each class's probability to the next one."""

    def predict_proba(self, X):
        behaviour = told(self.C)
        said = super().predict_proba(X)
        if behaviour == "worse":
            return np.roll(said, 1, axis=1)
        if behaviour == "shift":
            said /= 10
            said[:, -1] += 0.9
        return said

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class NumberChameleon(Ridge):
    """Of numbers; the worse answer what is as far on the other side of the mean, so that labels alone can tell."""

    def predict(self, X):
        behaviour = told(self.alpha)
        said = super().predict(X)
        if behaviour == "worse":
            return 2 * self.intercept_ - said
        if behaviour == "shift":
            return said + 10
        return said
