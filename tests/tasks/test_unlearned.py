"""Answers about rows that were not learned: kept by evaluation, and read again as live rows have theirs."""

import numpy as np
import pytest

from tasks.metrics import Outputs
from tasks.tracking import Tracking
from tasks.unlearned import keep_answers, kept_answers


@pytest.fixture
def keeping(binary_line, tracked):
    """`keeping(said, spec)`: what is read of answers that were kept with a run."""
    tracking = Tracking(tracked)
    run = tracking.create_run(tracking.experiment("fruit"), "a run", {})
    ref = binary_line.line.reference(binary_line.trained).model_copy(update={"run_id": run})

    def keep(said=None, spec=None):
        if said is not None:
            keep_answers(spec, tracking, run, said)
        return kept_answers(tracked, ref)

    return keep


def test_evaluation_keeps_what_the_challenger_says_of_its_holdout(binary_line):
    line = binary_line.line

    found = kept_answers(line.platform, line.reference(binary_line.trained))

    assert found.rows == len(found.said) == line.parts.holdout.snapshot.rows
    assert found.said.between(0, 1).all()


def test_of_very_many_answers_some_are_kept_from_first_to_last(keeping, make_spec):
    found = keeping(Outputs(np.arange(50_000.0)), make_spec("regression").spec)

    assert (found.rows, len(found.said)) == (50_000, 20_000)
    assert (found.said.iloc[0], found.said.iloc[-1]) == (0.0, 49_999.0)


def test_classes_are_kept_as_text(keeping, make_spec):
    classes = Outputs(
        np.array(["ripe", "green"]), np.array([[0.2, 0.8], [0.9, 0.1]]), np.array(["green", "ripe"])
    )

    assert keeping(classes, make_spec("multiclass").spec).said.tolist() == ["ripe", "green"]


def test_where_nothing_was_kept_there_is_nothing(keeping):
    assert keeping() is None
