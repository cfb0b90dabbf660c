"""Live rows against training rows, by Evidently: what drifts, what does not, and what cannot be said."""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from deployments.monitoring import DriftPlan
from deployments.spec import ModelSpec
from tasks import drift
from tasks.drift import drift_rows
from tasks.monitoring_record import Window
from tasks.unlearned import Unlearned
from tasks.verdict import Verdict

WINDOW = Window(start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 1, 8, tzinfo=UTC))
PLAN = DriftPlan(minimum_rows=100)
COLUMNS = {
    "id": {"type": "string"},
    "pace": {"type": "number"},
    "visits": {"type": "integer", "nullable": True},
    "tier": {"type": "string"},
    "rooms": {"type": "integer"},
    "member": {"type": "boolean", "nullable": True},
    "joined": {"type": "timestamp"},
    "street": {"type": "string", "pii": "hash"},
    "label": {"type": "string"},
}


def spec(kind="binary", **monitoring):
    metric = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "mae"}[kind]
    label = {"type": "number"} if kind == "regression" else COLUMNS["label"]
    return ModelSpec.model_validate(
        {
            "name": "stays",
            "governance": {"owner": "us", "purpose": "To be tested."},
            "target": {"kind": kind, "column": "label", **({"positive": "yes"} if kind == "binary" else {})},
            "sources": {"stays": {"kind": "csv", "path": "stays.csv"}},
            "contract": {"stays": {"columns": COLUMNS | {"label": label}}},
            "features": {
                "entity": ["id"],
                "numeric": ["pace", "visits"],
                "categorical": ["tier", "rooms", "street"],
                "boolean": ["member"],
                "dates": ["joined"],
            },
            "training": {
                "metric": metric,
                "candidates": [{"name": "tree", "estimator": "sklearn.tree.DecisionTreeClassifier"}],
            },
            "evaluation": {"metrics": [metric]},
            "gates": [{"kind": "latency", "max_p95_milliseconds": 100}],
            "monitoring": monitoring,
        }
    )


def frame(seed, rows=1_000):
    random = np.random.default_rng(seed)
    joined = pd.Timestamp("2025-06-01", tz="UTC") + pd.to_timedelta(random.integers(0, 10**7, rows), unit="s")
    visits = random.poisson(4, rows).astype(float)
    return pd.DataFrame(
        {
            "pace": random.normal(5, 2, rows),
            "visits": np.where(random.random(rows) < 0.1, np.nan, visits),
            "tier": random.choice(["gold", "silver", "bronze"], rows, p=[0.2, 0.3, 0.5]),
            "rooms": random.integers(1, 5, rows),
            "member": pd.Series(random.random(rows) < 0.5)
            .astype(object)
            .mask(random.random(rows) < 0.05, None),
            "joined": joined,
            "street": random.choice(["a1", "b2"], rows),
            "prediction": random.beta(2, 5, rows),
        }
    )


REFERENCE = frame(0)


def judged(live, reference=REFERENCE, plan=PLAN, kind="binary", html=None, unlearned=None):
    return drift_rows(
        plan,
        spec(kind),
        version="3",
        window=WINDOW,
        reference=reference,
        live=live,
        reference_rows=len(reference),
        live_rows=50_000,
        html=html,
        unlearned=unlearned,
    )


def verdicts(rows):
    return {(row.subject, row.metric.startswith("missing_")): row.verdict for row in rows}


def failed(rows):
    return {row.subject for row in rows if row.subject and row.verdict is Verdict.FAIL}


# What drifts --------------------------------------------------------------------------------------------------


def test_rows_from_the_same_source_pass_each_feature_by_its_own_distance():
    rows = judged(frame(1))

    assert {row.subject: row.metric for row in rows if not row.metric.startswith("missing_")} == {
        "pace": "wasserstein",
        "visits": "wasserstein",
        "joined": "wasserstein",
        "tier": "jensenshannon",
        "rooms": "jensenshannon",
        "member": "jensenshannon",
        "": "drifted_columns",
        "prediction": "wasserstein",
    }
    assert {row.verdict for row in rows} == {Verdict.PASS}
    assert {row.kind for row in rows if row.subject == "prediction"} == {"prediction_drift"}
    assert all(row.value < row.threshold for row in rows)
    assert "1,000 of 50,000 rows against 1,000 of 1,000" in rows[0].reason


def change(column, make):
    return lambda live: live.assign(**{column: make(live[column])})


CHANGES = {
    "numbers move": ("pace", change("pace", lambda old: old + 2)),
    "numbers spread": ("pace", change("pace", lambda old: 5 + 2 * (old - 5))),
    "a category takes over": ("tier", change("tier", lambda old: old.where(old != "gold", "bronze"))),
    "a category is new": ("tier", change("tier", lambda old: old.where(np.arange(len(old)) % 8 > 0, "tin"))),
    "whole numbers as categories move": ("rooms", change("rooms", lambda old: old.where(old != 1, 4))),
    "truths change sides": ("member", change("member", lambda old: old.where(old.isna(), True))),
    "moments move": ("joined", change("joined", lambda old: old + timedelta(days=60))),
    "numbers go missing": ("visits", change("visits", lambda old: old.mask(np.arange(len(old)) % 4 == 0))),
    "numbers are always there": ("visits", change("visits", lambda old: old.fillna(4))),
    "categories go missing": ("tier", change("tier", lambda old: old.mask(np.arange(len(old)) % 8 == 0))),
    "nothing is left": ("pace", change("pace", lambda old: old * np.nan)),
    "numbers become infinite": (
        "pace",
        change("pace", lambda old: old.mask(np.arange(len(old)) % 4 == 0, np.inf)),
    ),
    "scores move": ("prediction", change("prediction", np.sqrt)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_one_column_fails_that_column_alone(name):
    column, make = CHANGES[name]

    rows = judged(make(frame(1)))

    assert failed(rows) == {column}
    summary = next(row for row in rows if row.metric == "drifted_columns")
    inputs = column != "prediction"
    assert summary.value == (1.0 if inputs else 0.0)
    assert summary.verdict is (Verdict.FAIL if inputs else Verdict.PASS)


def test_a_certain_change_that_is_too_small_to_matter_passes():
    reference, live = frame(0, 20_000), frame(1, 20_000)

    rows = judged(live.assign(pace=live["pace"] + 0.3), reference)

    pace = next(row for row in rows if row.subject == "pace")
    assert pace.verdict is Verdict.PASS
    assert float(re.search(r"([^ ]+) adjusted", pace.reason)[1]) < 1e-6


def test_a_large_change_that_may_be_chance_passes():
    # Alternating values of little order: far apart in a few rows, and by chance.
    plan = DriftPlan(minimum_rows=5, numeric={"matters": 0.05}, categorical={"matters": 0.01})

    rows = judged(frame(3, 12), plan=plan)

    far = [row for row in rows if row.subject and row.value >= row.threshold]
    assert far
    assert {row.verdict for row in far} == {Verdict.PASS}


def test_a_column_may_have_a_distance_of_its_own():
    live = frame(1).assign(pace=frame(1)["pace"] + 2)

    assert failed(judged(live, plan=PLAN.model_copy(update={"columns": {"pace": 5.0}}))) == set()


def test_ignored_columns_and_personal_data_are_not_looked_at():
    rows = judged(frame(1), plan=PLAN.model_copy(update={"ignore": ("pace", "tier")}))

    assert {row.subject for row in rows} == {"visits", "rooms", "member", "joined", "", "prediction"}


def test_nothing_left_to_look_at_is_inconclusive():
    ignore = ("pace", "visits", "tier", "rooms", "member", "joined")

    (summary,) = judged(frame(1).drop(columns="prediction"), plan=PLAN.model_copy(update={"ignore": ignore}))

    assert summary.metric == "drifted_columns"
    assert summary.verdict is Verdict.INCONCLUSIVE
    assert summary.value is None


# What is alike however it is written ---------------------------------------------------------------------------


def test_types_that_nulls_and_formats_make_are_no_drift():
    live = frame(1)
    as_received = live.assign(
        rooms=live["rooms"].astype(float),
        member=live["member"].map({True: 1.0, False: 0.0}).astype(float),
        joined=live["joined"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        visits=live["visits"].astype(object),
        tier=live["tier"].astype("category"),
    )

    same, rows = judged(live), judged(as_received)

    assert [row.value for row in rows] == [row.value for row in same]


def test_moments_are_the_same_however_exactly_they_are_written():
    live = frame(1)
    written = [
        moment.isoformat() if place % 2 else moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        for place, moment in enumerate(live["joined"])
    ]

    rows = judged(live.assign(joined=written))

    assert [row.value for row in rows] == [row.value for row in judged(live)]


def test_days_are_moments():
    days = [side.assign(joined=side["joined"].dt.date) for side in (REFERENCE, frame(1))]

    assert failed(judged(days[1], days[0])) == set()
    assert failed(judged(days[1].assign(joined=days[1]["joined"] + timedelta(days=90)), days[0])) == {
        "joined"
    }


def test_columns_that_never_change_pass_and_those_that_begin_to_fail():
    constant = {"pace": 0.1, "tier": "gold", "member": True}
    reference = REFERENCE.assign(**constant)

    assert failed(judged(frame(1).assign(**constant), reference)) == set()
    moved = judged(frame(1).assign(pace=0.2, tier="silver", member=False), reference)
    assert failed(moved) == {"pace", "tier", "member"}


def test_small_numbers_drift_as_large_ones_do():
    live = frame(1).assign(pace=frame(1)["pace"] + 2)

    small = judged(live.assign(pace=live["pace"] * 1e-9), REFERENCE.assign(pace=REFERENCE["pace"] * 1e-9))

    assert failed(small) == {"pace"}
    assert small[0].value == pytest.approx(judged(live)[0].value)


def test_a_column_without_any_value_on_both_sides_passes():
    rows = judged(frame(1).assign(visits=np.nan), REFERENCE.assign(visits=np.nan))

    assert verdicts(rows)["visits", False] is Verdict.PASS
    assert failed(rows) == set()


def test_many_rare_categories_are_no_drift():
    # 3,000 names in 1,000 rows: most are on one side alone.
    sides = [
        frame(seed).assign(tier=np.random.default_rng(seed).integers(0, 3_000, 1_000).astype(str))
        for seed in (0, 1)
    ]

    assert failed(judged(sides[1], sides[0])) == set()


# What cannot be said ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 99])
def test_a_small_window_is_inconclusive_and_evidently_is_not_run(rows, monkeypatch, tmp_path):
    monkeypatch.setattr("tasks.drift_report.compare", lambda *_, **__: pytest.fail("Evidently was run"))

    found = judged(frame(1, rows), html=tmp_path / "drift.html")

    assert {row.verdict for row in found} == {Verdict.INCONCLUSIVE}
    assert {row.reason for row in found} == {f"the window has {rows:,} rows; drift is judged from 100 on"}
    assert {row.subject for row in found} == {*REFERENCE.columns, ""} - {"street"}
    assert {row.value for row in found} == {None}
    assert list(tmp_path.iterdir()) == []


def test_a_window_of_no_rows_and_no_columns_is_inconclusive():
    assert {row.verdict for row in judged(pd.DataFrame())} == {Verdict.INCONCLUSIVE}


def test_a_small_reference_is_inconclusive():
    rows = judged(frame(1), frame(0, 50))

    assert {row.verdict for row in rows} == {Verdict.INCONCLUSIVE}
    assert "the reference has 50 rows" in rows[0].reason


def test_a_column_that_is_absent_is_inconclusive_and_the_others_are_judged():
    rows = judged(frame(1).drop(columns="pace"))

    by_column = verdicts(rows)
    assert by_column["pace", False] is Verdict.INCONCLUSIVE
    assert by_column["", False] is Verdict.INCONCLUSIVE
    assert by_column["tier", False] is Verdict.PASS
    assert "inconclusive: pace" in next(row.reason for row in rows if not row.subject)


def test_drift_elsewhere_is_not_hidden_by_what_is_inconclusive():
    live = frame(1).drop(columns="tier")

    rows = judged(live.assign(pace=live["pace"] + 2))

    assert next(row for row in rows if not row.subject).verdict is Verdict.FAIL


def test_too_few_values_are_inconclusive_though_there_are_rows_enough():
    sparse = [
        side.assign(visits=side["visits"].where(np.arange(1_000) < 60)) for side in (REFERENCE, frame(1))
    ]

    rows = judged(sparse[1], sparse[0])

    assert verdicts(rows)["visits", False] is Verdict.INCONCLUSIVE
    assert verdicts(rows)["visits", True] is Verdict.PASS


def test_a_statistic_that_is_not_defined_is_inconclusive():
    # The t-test divides by the spread, and there is none.
    plan = PLAN.model_copy(update={"numeric": PLAN.numeric.model_copy(update={"test": "t_test"})})

    rows = judged(frame(1).assign(pace=1.0), REFERENCE.assign(pace=1.0), plan)

    assert verdicts(rows)["pace", False] is Verdict.INCONCLUSIVE
    assert "not defined" in rows[0].reason


# Predictions --------------------------------------------------------------------------------------------------


def test_frames_without_predictions_have_no_rows_of_them():
    assert {row.kind for row in judged(frame(1).drop(columns="prediction"))} == {"drift"}


@pytest.mark.parametrize(
    ("kind", "made", "metric"),
    [
        ("regression", lambda random: random.integers(0, 100, 1_000), "wasserstein"),
        ("multiclass", lambda random: random.choice(["a", "b", "c"], 1_000), "jensenshannon"),
        ("multiclass", lambda random: random.integers(0, 3, 1_000), "jensenshannon"),
        ("binary", lambda random: random.choice(["yes", "no"], 1_000), "jensenshannon"),
        ("binary", lambda random: random.random(1_000) < 0.5, "jensenshannon"),
    ],
)
def test_predictions_are_compared_as_what_they_are(kind, made, metric):
    reference, live = (frame(seed).assign(prediction=made(np.random.default_rng(seed))) for seed in (0, 1))

    row = judged(live, reference, kind=kind)[-1]

    assert (row.kind, row.subject, row.metric, row.verdict) == (
        "prediction_drift",
        "prediction",
        metric,
        Verdict.PASS,
    )


@pytest.mark.parametrize("rows", [400, 3_000])
def test_answers_are_compared_with_those_about_rows_that_were_not_learned(rows, tmp_path):
    learned = REFERENCE.assign(prediction=0.0)
    unlearned = Unlearned(frame(2, rows)["prediction"], 7_000)

    row = judged(frame(1), learned, html=tmp_path / "drift.html", unlearned=unlearned)[-1]
    moved = judged(frame(1).assign(prediction=0.9), learned, unlearned=unlearned)[-1]

    assert (row.kind, row.verdict, moved.verdict) == ("prediction_drift", Verdict.PASS, Verdict.FAIL)
    assert row.value < 0.2
    assert f"against {rows:,} of 7,000" in row.reason
    assert (tmp_path / "drift.html").exists()


def test_classes_that_were_answered_may_have_a_shorter_reference_too(tmp_path):
    live, unlearned = (frame(seed, rows)["tier"] for seed, rows in ((1, 1_000), (2, 300)))

    row = judged(
        frame(1).assign(prediction=live),
        kind="multiclass",
        html=tmp_path / "drift.html",
        unlearned=Unlearned(unlearned, 300),
    )[-1]

    assert (row.kind, row.metric, row.verdict) == ("prediction_drift", "jensenshannon", Verdict.PASS)
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert '"silver"' in page
    assert '"nan"' not in page


def test_a_few_rows_that_were_not_learned_leave_answers_inconclusive_alone():
    rows = judged(frame(1), unlearned=Unlearned(frame(2, 50)["prediction"], 50))

    assert rows[-1].verdict is Verdict.INCONCLUSIVE
    assert "the reference has 50 values" in rows[-1].reason
    assert verdicts(rows)["pace", False] is Verdict.PASS


# The page and the decision ------------------------------------------------------------------------------------


def test_the_page_shows_the_numbers_that_decided(tmp_path):
    page = tmp_path / "drift.html"
    live = frame(1).assign(pace=frame(1)["pace"] + 2)

    rows = judged(live, html=page)

    text = page.read_text(encoding="utf-8")
    for row in rows:
        assert row.reason in text
        assert f"{row.value:.4g}" in text
    # What Evidently's own picture of the column says, to three digits.
    said = re.search(r"Drift in column 'pace'[^}]*Drift score: ([0-9.]+)", text)
    assert float(said[1]) == pytest.approx(rows[0].value, abs=5e-4)
    assert rows == judged(live)
    assert "<script src" not in text
    assert 'rel="stylesheet"' not in text


def test_values_that_callers_chose_are_no_markup_in_the_page(tmp_path):
    page = tmp_path / "drift.html"
    live = frame(1)
    live["tier"] = live["tier"].where(np.arange(1_000) % 4 > 0, "</script><script>alert(1)</script>")

    rows = judged(live, html=page)

    assert failed(rows) == {"tier"}
    text = page.read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert "<script>alert(1)" not in text


@pytest.mark.parametrize("test", ["ks", "cramer_von_mises", "mannw", "t_test"])
@pytest.mark.parametrize("distance", ["wasserstein", "psi", "jensenshannon", "hellinger"])
def test_every_statistic_of_numbers_sees_a_shift_in_either_direction(test, distance):
    plan = DriftPlan(minimum_rows=100, numeric={"test": test, "distance": distance, "matters": 0.1})

    for shift in (2, -2):
        assert "pace" in failed(judged(frame(1).assign(pace=frame(1)["pace"] + shift), plan=plan))
    assert "pace" not in failed(judged(frame(1), plan=plan))


@pytest.mark.parametrize("test", ["chisquare", "g_test"])
@pytest.mark.parametrize("distance", ["psi", "jensenshannon", "hellinger", "TVD"])
def test_every_statistic_of_categories_sees_a_new_one(test, distance):
    plan = DriftPlan(minimum_rows=100, categorical={"test": test, "distance": distance, "matters": 0.1})
    _, take_over = CHANGES["a category is new"]

    assert "tier" in failed(judged(take_over(frame(1)), plan=plan))
    assert "tier" not in failed(judged(frame(1), plan=plan))


def test_categories_alarm_by_chance_as_often_as_they_say():
    from evidently.legacy.calculations.stattests.chisquare_stattest import _chi_stat_test

    from tasks.drift_report import _chisquare

    random = np.random.default_rng(0)
    sides = [[pd.Series(random.choice(list("abcdef"), 500)) for _ in range(2)] for _ in range(400)]

    ours = np.mean([_chisquare(*pair, None, 0.05)[1] for pair in sides])
    theirs = np.mean([_chi_stat_test(*pair, None, 0.05)[1] for pair in sides])

    assert 0.02 < ours < 0.09
    # Why it is ours that is used: the reference is a sample, too.
    assert theirs > 0.2


@pytest.mark.slow
def test_windows_without_drift_drift_at_most_as_often_as_alpha_says():
    # Any distance matters here, so that nothing but the p-values decides.
    plan = DriftPlan(alpha=0.1, minimum_rows=100, numeric={"matters": 1e-9}, categorical={"matters": 1e-9})

    drifted = sum(
        bool(failed([row for row in judged(frame(2 * n + 2), frame(2 * n + 1), plan) if row.kind == "drift"]))
        for n in range(100)
    )

    # 10 of 100 at most are expected; more than 20 happen once in a thousand times.
    assert drifted <= 20


def test_the_decision_is_where_callers_look_for_it():
    assert drift.alert_of(PLAN, []) is None
