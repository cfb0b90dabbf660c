"""The model card: all that a reader of the registry must know, in what the registry has room for."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.measures import TaskKind
from deployments.spec import Target
from tasks.evaluate import SliceResult
from tasks.gate import GateResult
from tasks.metrics import Estimate
from tasks.model_card import MOST_CHARACTERS, model_card, plain
from tasks.report import HIDDEN, count, declared, interval, number
from tasks.verdict import Verdict


def card_of(finished: Any, **changes: Any) -> str:
    documents = replace(finished, **changes)
    return model_card(
        documents.loaded,
        documents.trained,
        documents.evaluation,
        documents.gates,
        documents.parts,
        documents.run,
    )


def evaluated(finished: Any, **changes: Any) -> Any:
    return finished.evaluation.model_copy(update=changes)


def sections(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, re.MULTILINE)


def rows(card: str) -> list[list[str]]:
    """Every table row as its cells; a `|` that is escaped is no border."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def slices_of(metric: str, *values: float) -> tuple[SliceResult, ...]:
    return tuple(
        SliceResult(
            column="site",
            value=f"site {place}",
            metric=metric,
            estimate=Estimate(value=value, low=value, high=value, rows=100),
        )
        for place, value in enumerate(values)
    )


@pytest.fixture(scope="module")
def card(finished_training):
    return card_of(finished_training)


def test_a_card_has_the_sections_of_a_model_card(card):
    assert card.startswith("# tumours: ")
    assert sections(card) == [
        "Model details",
        "Intended use",
        "Training and evaluation data",
        "Metrics",
        "Against the champion",
        "Slices, the weakest first",
        "Groups",
        "Gates: pass",
        "Caveats and limits",
        "Reproducibility",
    ]


def test_a_card_fits_the_registry(card):
    assert len(card) < MOST_CHARACTERS


def test_every_table_row_has_as_many_cells_as_its_header(card):
    width = 0
    for line in card.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.split(r"(?<!\\)\|", line))
        width = width or cells
        assert cells == width, line


def test_purpose_owner_risk_and_limits_are_on_the_card(card):
    for said in (
        "Say which samples look malignant",
        "- Owner: pathology",
        "- Risk: high. A missed sample waits longer.",
        "- Predicts: diagnosis (binary, positive malignant)",
        "- Not for diagnosis.",
    ):
        assert said in card


def test_data_is_named_by_snapshot_and_moment(card, finished_training):
    holdout = finished_training.parts.holdout

    assert "As of 2026-01-01 00:00 UTC; split: random." in card
    row = next(row for row in rows(card) if row[0] == "holdout")
    assert row[1:3] == [count(holdout.snapshot.rows), f"{holdout.snapshot.table} v{holdout.snapshot.version}"]
    assert "malignant" in row[3]


def test_metrics_have_intervals_and_what_training_saw(card, finished_training):
    found, seen = finished_training.evaluation.metrics, finished_training.evaluation.train_metrics

    assert ["Brier score (lower is better)", *_cells(found["brier"], seen["brier"])] in rows(card)
    assert ["ROC AUC (higher is better)", *_cells(found["roc_auc"], seen["roc_auc"])] in rows(card)


def _cells(found: Estimate, seen: float) -> list[str]:
    return [number(found.value), interval(found), number(seen)]


def test_every_gate_is_on_the_card(card, finished_training):
    for gate in finished_training.gates.results:
        assert ["pass", gate.gate, number(gate.value), declared(gate.threshold), ""] in rows(card)


def test_a_gate_that_refuses_comes_first_with_its_reason(finished_training):
    refusing = (
        GateResult(gate="size", verdict=Verdict.INCONCLUSIVE, value=None, threshold=2, reason="not measured"),
        GateResult(gate="leakage", verdict=Verdict.FAIL, value=0.99, threshold=0.9, reason="it is a|b"),
    )

    card = card_of(finished_training, gates=finished_training.gates.plus(*refusing))

    verdicts = [row for row in rows(card) if row[0] in set(Verdict)]
    assert verdicts[0] == ["fail", "leakage", "0.9900", "0.9", r"it is a\|b"]
    assert verdicts[1] == ["inconclusive", "size", "–", "2", "not measured"]
    assert "**Refused: leakage failed; size could not be decided." in card
    assert "Gates: fail" in sections(card)


def test_the_gate_report_is_named_by_what_an_approval_is_bound_to(card, finished_training):
    run, trained = finished_training.run, finished_training.trained

    for digest in (finished_training.gates.digest, trained.digest, run.key, run.run_id, run.code.digest):
        assert f"`{digest}`" in card


def test_the_first_version_has_nobody_to_compare_with(finished_training):
    first = card_of(
        finished_training, evaluation=evaluated(finished_training, comparison=None, first_version=True)
    )
    unscored = card_of(finished_training, evaluation=evaluated(finished_training, comparison=None))

    assert "First version: there is no champion to compare with." in first
    assert "The champion was not scored." in unscored


def test_what_stood_in_the_way_of_a_comparison_is_said(finished_training):
    compared = finished_training.evaluation.comparison.model_copy(
        update={"metrics": {}, "problem": "the file <champion> is gone"}
    )

    card = card_of(finished_training, evaluation=evaluated(finished_training, comparison=compared))

    assert "Not compared: the file &lt;champion&gt; is gone" in card


@pytest.mark.parametrize(("metric", "weakest"), [("roc_auc", "site 1"), ("brier", "site 2")])
def test_the_weakest_slices_come_first(finished_training, metric, weakest):
    found = slices_of(metric, 0.7, 0.6, 0.9, math.nan)

    card = card_of(finished_training, evaluation=evaluated(finished_training, slices=found))

    named = [row for row in rows(card) if row[0].startswith("site = site")]
    assert named[0] == ["site = site 3", "100", "–", "–"]
    assert named[1][0] == f"site = {weakest}"


def test_long_tables_are_cut_and_say_how_much_is_missing(finished_training):
    found = slices_of("roc_auc", *(0.5 + place / 1000 for place in range(300)))

    card = card_of(finished_training, evaluation=evaluated(finished_training, slices=found))

    shown = sum(row[0].startswith("site = site") for row in rows(card))
    assert len(card) <= MOST_CHARACTERS
    assert 1 <= shown <= 12
    assert f"and {300 - shown} more in the report" in card
    assert "Reproducibility" in sections(card)


def test_a_card_that_no_cutting_of_tables_fits_is_cut_at_a_line(finished_training):
    governance = finished_training.loaded.spec.governance.model_copy(
        update={"limits": tuple(f"Limit {place}: {'words ' * 40}" for place in range(40))}
    )
    spec = finished_training.loaded.spec.model_copy(update={"governance": governance})

    card = card_of(finished_training, loaded=finished_training.loaded.model_copy(update={"spec": spec}))

    assert len(card) <= MOST_CHARACTERS
    assert card.endswith("*Cut here; the report has the rest.*\n")


def test_what_was_not_measured_is_a_dash(finished_training):
    nothing = Estimate(value=math.nan, low=math.nan, high=math.nan, rows=0)
    bare = evaluated(
        finished_training,
        metrics={"roc_auc": nothing},
        train_metrics={},
        slices=(),
        groups=(),
        latency=None,
        megabytes=None,
    )

    card = card_of(finished_training, evaluation=bare)

    assert ["ROC AUC (higher is better)", "–", "–", "–"] in rows(card)
    assert "Groups" not in sections(card)
    assert "Slices, the weakest first" not in sections(card)
    assert not re.search(r"\bnan\b|None", card)


def test_a_regression_has_no_rates(finished_training):
    spec = finished_training.loaded.spec.model_copy(
        update={"target": Target(kind=TaskKind.REGRESSION, column="radius")}
    )

    card = card_of(finished_training, loaded=finished_training.loaded.model_copy(update={"spec": spec}))

    assert "- Predicts: radius (regression)" in card
    assert "Selection rate" not in card


def test_personal_data_is_not_on_the_card(card, finished_training):
    hashes = {item.value for item in finished_training.evaluation.slices if item.column == "ward"}

    assert len(hashes) == 2
    assert not any(value in card for value in hashes)
    assert not re.search(r"Ward-|Patient-", card)
    assert f"ward = {HIDDEN} 1" in card


def test_markup_in_data_stays_text(card):
    assert "&lt;script&gt;alert('site')&lt;/script&gt;" in card
    assert "<script" not in card


def test_code_that_was_not_committed_is_marked(finished_training):
    code = finished_training.run.code.model_copy(update={"commit": None, "dirty": True})

    card = card_of(finished_training, run=finished_training.run.model_copy(update={"code": code}))

    assert "- Code `no commit` (not committed as it ran)" in card


def test_names_with_underscores_stay_as_they_are():
    assert plain("metric roc_auc") == "metric roc_auc"
    assert plain("_hidden_ *bold* [link](x) a|b `c` <d> &amp; #1\n- e") == (
        r"\_hidden\_ \*bold\* \[link\](x) a\|b \`c\` &lt;d&gt; &amp;amp; \#1 - e"
    )


@given(st.text(max_size=40))
def test_no_text_ends_a_cell_a_line_or_a_code_span(text):
    said = plain(text)

    assert len(said.splitlines()) <= 1
    assert not re.search(r"<|(?<!\\)(?:\\\\)*[|`\[]", said)
