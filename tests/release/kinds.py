"""The kinds of model that releases are tested with: what each predicts, and what would have been right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One kind of target, of rows with the numbers `a` and `b`.

    `truth` is the label of a row by its `a - b`. `estimator` is one of tests.release.chameleon by its name among
    the candidates, `parameter` what marks a challenger, and `metric` what it must have 0.5 of to pass its gate.
    """

    target: dict[str, Any]
    column: dict[str, Any]
    estimator: tuple[str, str]
    parameter: str
    metric: str
    truth: Callable[[float], Any]

    @property
    def name(self):
        return self.target["kind"]

    def document(self, model, release):
        """The spec of a model of this kind, with its release plan."""
        numbers = {name: {"type": "number"} for name in ("a", "b")}
        columns = {"id": {"type": "string"}, **numbers, self.target["column"]: self.column}
        name, estimator = self.estimator
        return {
            "name": model,
            "governance": {"owner": "tests", "purpose": "Be released."},
            "target": self.target,
            "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
            "contract": {"rows": {"columns": columns}},
            "features": {"entity": ["id"], "numeric": ["a", "b"]},
            "split": {"kind": "random", "holdout": 0.3, "validation": 0.2, "min_rows": 20},
            "training": {
                "metric": self.metric,
                "folds": 2,
                "threshold": 0.5,
                "candidates": [{"name": name, "estimator": f"tests.release.chameleon.{estimator}"}],
            },
            "evaluation": {"metrics": [self.metric], "bootstrap": 200},
            "gates": [{"kind": "metric", "metric": self.metric, "min": 0.5}],
            "release": release,
        }

    def rows(self, count, random_numbers):
        """Lines of a csv file to be trained on; what is true of a row is not quite what `truth` says."""
        lines = [f"id,a,b,{self.target['column']}"]
        for place in range(count):
            a, b = random_numbers.gauss(0, 2), random_numbers.gauss(0, 2)
            label = as_text(self.truth(a - b + random_numbers.gauss(0, 1)))
            lines.append(f"p{place},{a:.4f},{b:.4f},{label}")
        return lines


def as_text(label):
    """A label as a csv file has it."""
    return str(label).lower()


BINARY = Kind(
    target={"kind": "binary", "column": "sick", "positive": True},
    column={"type": "boolean"},
    estimator=("logistic", "Chameleon"),
    parameter="C",
    metric="roc_auc",
    truth=lambda difference: difference > 0,
)
MULTICLASS = Kind(
    target={"kind": "multiclass", "column": "size"},
    column={"type": "string", "values": ["low", "middle", "high"]},
    estimator=("logistic", "Chameleon"),
    parameter="C",
    metric="accuracy",
    truth=lambda difference: "low" if difference < -1.5 else "middle" if difference < 1.5 else "high",
)
REGRESSION = Kind(
    target={"kind": "regression", "column": "amount"},
    column={"type": "number"},
    estimator=("ridge", "NumberChameleon"),
    parameter="alpha",
    metric="r2",
    truth=lambda difference: difference,
)
