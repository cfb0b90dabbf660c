from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from deployments.contract import ColumnType
from deployments.release import AnalysisPlan
from deployments.spec import Target
from serving.observe import SCHEMA
from tasks.analysis import Family
from tasks.decide import Stage
from tasks.release_data import StageData
from tasks.release_record import State
from tasks.verdict import Verdict


def stage(kind, declared, *, loss, positive=None, bound=1.0, cuts=()):
    """A canary step that is judged by labels."""
    plan = AnalysisPlan.model_validate({"quality": {"loss": loss, "effect": 0.5, "bound": bound}})
    return StageData(
        plan,
        Stage(State.CANARY, 0, 50, minimum_requests=1, minimum_seconds=0, maximum_seconds=60),
        Target(kind=kind, column="y", positive=positive),
        declared,
        names=("v2", "v1"),
        steps=1,
        cuts=cuts,
    )


def answered(predictions, scores, request="r"):
    row = dict.fromkeys(SCHEMA.names) | {
        "request_id": request,
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "entity": "v2",
        "shadow": False,
        "status": 200,
        "milliseconds": 1.0,
        "predictions": predictions,
        "scores": scores,
    }
    return pa.Table.from_pylist([row], SCHEMA)


def losses(data):
    return data.arms["challenger"].losses.array.tolist()


@pytest.mark.parametrize(
    ("declared", "positive", "yes", "no"),
    [
        (ColumnType.BOOLEAN, True, "true", "false"),
        (ColumnType.BOOLEAN, 1, "true", "false"),
        (ColumnType.INTEGER, 1, "1", "0"),
        (ColumnType.INTEGER, 1.0, "1", "0"),
        (ColumnType.NUMBER, 1, "1.0", "0.0"),
        (ColumnType.STRING, "Yes", "Yes", "No"),
        (ColumnType.STRING, 1, "1", "0"),
        (ColumnType.STRING, True, "True", "False"),
    ],
)
def test_a_brier_loss_knows_the_positive_class_however_spec_and_labels_write_it(declared, positive, yes, no):
    data = stage("binary", declared, loss="brier", positive=positive)

    data.add(answered([yes, no], [0.75, 0.25]))
    data.label({("r", 0): yes, ("r", 1): no})

    assert losses(data) == [0.0625, 0.0625]


def test_a_class_that_is_a_number_is_right_however_it_is_written():
    data = stage("multiclass", ColumnType.NUMBER, loss="zero_one")

    data.add(answered(["2", "2.0", "3.0"], [0.9, 0.9, 0.9]))
    data.label({("r", 0): "2.0", ("r", 1): "2", ("r", 2): "2"})

    assert losses(data) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("loss", "bound", "expected"), [("absolute", 3.0, [0.5, 3.0]), ("squared", 2.0, [0.25, 2.0])]
)
def test_a_regressions_loss_ends_at_its_bound(loss, bound, expected):
    data = stage("regression", ColumnType.NUMBER, loss=loss, bound=bound)

    data.add(answered(["1.5", "1e200"], [1.5, 1e200]))
    data.label({("r", 0): "1.0", ("r", 1): "1.0"})

    assert losses(data) == expected


@pytest.mark.parametrize(
    ("kind", "declared", "loss", "label"),
    [
        ("regression", ColumnType.NUMBER, "absolute", "1.0"),
        ("regression", ColumnType.NUMBER, "squared", "1.0"),
        ("binary", ColumnType.BOOLEAN, "brier", "true"),
        ("binary", ColumnType.BOOLEAN, "zero_one", "true"),
        ("multiclass", ColumnType.NUMBER, "zero_one", "1.0"),
    ],
)
def test_an_answer_of_null_is_as_wrong_as_can_be_and_the_row_after_it_has_its_own_score(
    kind, declared, loss, label
):
    data = stage(kind, declared, loss=loss, positive=True if kind == "binary" else None)

    data.add(answered([None, label], [None, 1.0]))
    data.label({("r", 0): label, ("r", 1): label})

    assert losses(data) == [1.0, 0.0]
    assert data.arms["challenger"].scores.array.tolist() == [1.0]


def test_numbers_far_beyond_the_cuts_are_counted_in_bins_at_the_ends():
    data = stage("regression", ColumnType.NUMBER, loss="absolute", cuts=(0.0, 5.0, 10.0))

    data.add(answered(["-1.7e308", "5.1", "1.7e308", "1.6e308"], [-1.7e308, 5.1, 1.7e308, 1.6e308]))
    look = data.look(datetime.now(UTC))

    assert (look.score_edges[0], look.score_edges[-1], len(look.score_edges)) == (-5.0, 15.0, 21)
    counts = look.scores["challenger"]
    assert (counts[0], counts[11], counts[-1], sum(counts), len(counts)) == (1, 1, 2, 4, 22)


def answers(entity, number, *, nulls=0, milliseconds=1.0, status=200, begun=datetime(2026, 1, 1, tzinfo=UTC)):
    """So many answers of a row each, to requests a hundredth of a second apart; every `nulls`-th is null."""
    return pa.Table.from_pylist(
        [
            dict.fromkeys(SCHEMA.names)
            | {
                "request_id": f"{entity}-{place}",
                "time": begun + timedelta(milliseconds=10 * place),
                "entity": entity,
                "shadow": False,
                "status": status,
                "milliseconds": milliseconds,
                "predictions": [None if nulls and place % nulls == 0 else "true"],
                "scores": [None if nulls and place % nulls == 0 else 0.7],
            }
            for place in range(number)
        ],
        SCHEMA,
    )


def canary(**changes):
    """A canary step of half the traffic, without labels."""
    return StageData(
        AnalysisPlan(),
        Stage(State.CANARY, 0, 50, minimum_requests=100, minimum_seconds=0, maximum_seconds=60),
        Target(kind="binary", column="y", positive=True),
        ColumnType.BOOLEAN,
        names=("v2", "v1"),
        **({"steps": 1} | changes),
    )


def reading(look, test):
    (found,) = (one for one in look.readings if one.test == test)
    return found


def test_a_challenger_that_answers_null_for_a_third_of_the_rows_fails_without_labels():
    data = canary()

    data.add(answers("v1", 600))
    data.add(answers("v2", 600, nulls=3))
    look = data.look(datetime.now(UTC))

    assert reading(look, "error_rate").verdict is Verdict.FAIL
    assert look.errors == {"challenger": 200, "champion": 0}


def test_nulls_that_both_arms_answer_are_no_evidence_against_either():
    data = canary()

    data.add(answers("v1", 2000, nulls=3))
    data.add(answers("v2", 2000, nulls=3))

    assert reading(data.look(datetime.now(UTC)), "error_rate").verdict is not Verdict.FAIL


def test_pairs_of_scores_leave_out_rows_that_either_arm_answered_with_null():
    data = StageData(
        AnalysisPlan(),
        Stage(State.SHADOW, 0, 100, minimum_requests=1, minimum_seconds=0, maximum_seconds=60),
        Target(kind="binary", column="y", positive=True),
        ColumnType.BOOLEAN,
        names=("v2", "v1"),
        steps=1,
    )
    rows = answered([None, "true", "true"], [None, 0.5, 0.75]).to_pylist()[0]

    data.add(pa.Table.from_pylist([rows | {"shadow": True}], SCHEMA))
    champion = {"entity": "v1", "predictions": ["true", None, "true"], "scores": [0.25, None, 0.75]}
    data.add(pa.Table.from_pylist([rows | champion], SCHEMA))

    assert [data.arms[name].scores.array.tolist() for name in ("challenger", "champion")] == [[0.75], [0.75]]


BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_slow_challenger_whose_answers_are_under_way_does_not_fail_the_sample_ratio():
    data = canary()

    data.add(answers("v1", 200))
    early = data.look(BEGUN + timedelta(seconds=2))
    data.add(answers("v2", 50, milliseconds=1500))
    later = data.look(BEGUN + timedelta(seconds=2))

    assert reading(early, "sample_ratio").verdict is Verdict.INCONCLUSIVE
    assert (reading(later, "sample_ratio").challenger, reading(later, "sample_ratio").champion) == (50, 51)


def test_a_challenger_that_is_sent_nothing_fails_the_sample_ratio_once_the_timeout_is_over():
    data = canary(timeout_seconds=30)

    data.add(answers("v1", 200))

    assert reading(data.look(BEGUN + timedelta(seconds=30)), "sample_ratio").verdict is Verdict.INCONCLUSIVE
    assert reading(data.look(BEGUN + timedelta(seconds=33)), "sample_ratio").verdict is Verdict.FAIL


def test_a_challenger_that_is_asked_no_more_since_its_first_answers_failed_is_said_to_have_failed():
    data = canary()

    data.settle(answers("v2", 10, status=500))
    data.add(answers("v1", 200))
    found = reading(data.look(BEGUN + timedelta(seconds=2)), "sample_ratio")

    assert found.verdict is Verdict.FAIL
    assert "10 of 10 answers of the challenger failed" in found.reason


def test_a_step_that_begins_anew_and_anew_spends_no_more_than_its_alpha():
    family = Family(tests=5, alpha=0.05, steps=4)

    spent = [family.each_at(attempt) for attempt in range(1, 2000)]

    assert sum(spent) < family.each
    assert sum(spent) == pytest.approx(family.each, rel=1e-3)


def test_a_later_attempt_asks_for_more_evidence():
    widths = []
    for attempt in (1, 3):
        data = canary(attempt=attempt)
        data.add(answers("v1", 400))
        data.add(answers("v2", 400))
        found = reading(data.look(datetime.now(UTC)), "error_rate")
        widths.append(found.high - found.low)

    assert widths[1] > widths[0]
