"""Pages: everything that was found is on them, nothing else is, and nobody's data is."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.measures import TaskKind
from deployments.spec import Target
from tasks.evaluate import Calibration, SliceResult
from tasks.gate import GateReport, GateResult
from tasks.metrics import Estimate
from tasks.probe import Swing
from tasks.report import (
    HIDDEN,
    MISSING,
    bound,
    contract_page,
    count,
    declared,
    interval,
    number,
    percent,
    quantity,
    settings,
    signed,
    spread,
    standing,
    summary,
    training_page,
)
from tasks.validate import CheckResult, Sample
from tasks.verdict import Verdict

VOID = {"meta", "img", "br", "link", "input"}
SCRIPT = "<script>alert('site')</script>"


class Outline(HTMLParser):
    """A page's elements, its visible text, its tables as lists of cells, and what it was not well-formed in."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.mistakes: list[str] = []
        self._open: list[str] = []
        self._cells: list[list[str]] = []
        self.feed(page)
        self.close()
        self.mistakes += [f"<{tag}> is never closed" for tag in self._open]
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self._cells.append([])
        if tag in {"td", "th"}:
            self._cells[-1].append("")

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.mistakes.append(f"</{tag}> closes something else")
        if tag == "tr":
            self.rows.append([" ".join(cell.split()) for cell in self._cells.pop()])

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if self._cells and self._cells[-1]:
            self._cells[-1][-1] += data

    def row(self, *starts: str) -> list[str]:
        """The one row whose first cells are these."""
        found = [row for row in self.rows if tuple(row[: len(starts)]) == starts]
        assert len(found) == 1, (starts, found)
        return found[0]


def page_of(finished: Any, version: str | None = "2", **changes: Any) -> str:
    documents = replace(finished, **changes)
    return training_page(
        documents.loaded,
        tables=documents.tables,
        parts=documents.parts,
        leaderboard=documents.leaderboard,
        trained=documents.trained,
        evaluation=documents.evaluation,
        gates=documents.gates,
        plots=documents.plots,
        version=version,
        run=documents.run,
        mlflow_hint="mlflow ui --port 5000",
    )


def with_gates(finished: Any, *verdicts: Verdict) -> GateReport:
    results = tuple(
        GateResult(
            gate=f"gate {place}", verdict=verdict, value=None, threshold=None, reason=f"reason {place}"
        )
        for place, verdict in enumerate(verdicts)
    )
    return finished.gates.model_copy(update={"results": results})


@pytest.fixture(scope="module")
def training(finished_training):
    return Outline(page_of(finished_training))


@pytest.fixture(scope="module")
def contract(finished_training):
    return Outline(contract_page(finished_training.loaded, finished_training.tables))


@pytest.fixture(params=["training", "contract"])
def either(request):
    return request.getfixturevalue(request.param)


def test_a_page_is_well_formed(either):
    assert either.mistakes == []


def test_a_page_asks_the_network_for_nothing(either):
    addresses = [
        value
        for _, attributes in either.elements
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action", "data"}
    ]

    assert {tag for tag, _ in either.elements}.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)


def test_a_page_forbids_itself_scripts_and_requests(either):
    policies = [attributes.get("content") for _, attributes in either.elements if "http-equiv" in attributes]

    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_a_page_leads_only_to_sections_it_has(either):
    ids = {attributes.get("id") for _, attributes in either.elements}
    links = [attributes["href"] for tag, attributes in either.elements if tag == "a"]

    assert all(link.removeprefix("#") in ids for link in links)


def test_markup_in_data_stays_text(either):
    assert SCRIPT in either.text


def test_the_same_documents_give_the_same_page(finished_training):
    first, second = page_of(finished_training), page_of(finished_training)

    assert first == second


def test_the_contract_page_counts_rows_and_names_snapshots(contract, finished_training):
    table = finished_training.tables[0]

    assert table.invalid_rows == 3
    assert "Invalid rows3, 0.53% (at most 5% may be)" in contract.text.replace("rows 3", "rows3")
    for snapshot in (table.bronze, table.silver, table.quarantine):
        assert f"{snapshot.table} v{snapshot.version} {snapshot.rows:,} rows" in contract.text
    assert "distribution checks not run: there is no champion to compare with" in contract.text


def test_the_contract_page_shows_every_check(contract, finished_training):
    for check in finished_training.tables[0].checks:
        row = contract.row(f"✓{check.verdict}", check.column or "all", check.check)
        assert row[3:6] == [count(check.failures), quantity(check.value), declared(check.threshold)]


def test_checks_that_no_row_failed_are_named_too(contract):
    assert "sample: pattern" in contract.text
    assert "unique(sample)" in contract.text
    assert "radius: max" in contract.text
    assert "radius: min" not in contract.text
    assert "ward: values" not in contract.text


def test_failing_rows_are_shown_with_their_place_and_values(contract):
    assert contract.row("4") == ["4", "-5.0"]
    assert contract.row("12")[-2:] == ["2.5", "malignant"]


def test_failing_checks_come_first(finished_training):
    result = finished_training.tables[0]
    worse = (
        CheckResult(check="psi", column="radius", verdict=Verdict.INCONCLUSIVE),
        CheckResult(check="pattern", column="sample", verdict=Verdict.FAIL, failures=9),
    )
    result = result.model_copy(update={"checks": result.checks + worse, "verdict": Verdict.FAIL})

    page = Outline(contract_page(finished_training.loaded, [result]))

    verdicts = [row[0] for row in page.rows if row[0] in {"✕fail", "?inconclusive", "✓pass"}]
    assert verdicts[:2] == ["✕fail", "?inconclusive"]
    assert set(verdicts[2:]) == {"✓pass"}
    assert "training stops here" in page.text


def test_a_table_without_valid_rows_says_so(finished_training):
    result = finished_training.tables[0].model_copy(update={"silver": None, "quarantine": None})

    page = Outline(contract_page(finished_training.loaded, [result]))

    assert "none: no row was valid" in page.text
    assert "none: no row was set aside" in page.text


def test_no_table_at_all_is_no_pass(finished_training):
    page = Outline(contract_page(finished_training.loaded, []))

    assert "inconclusive" in page.text
    assert "training stops here" in page.text


def test_the_declared_contract_is_on_the_page(contract):
    assert contract.row("sample", "string")[2:] == ["never", "–", "–", r"S\d{4}", "–", "–"]
    assert contract.row("texture", "number")[2:] == ["may be", "–", "–", "–", "≥ 90%", "–"]
    assert contract.row("radius", "number")[3] == "0 to 1,000"
    assert "Rule symmetry_is_small" in contract.text


def test_personal_data_is_declared_and_never_shown(contract, training, finished_training):
    assert contract.row("patient", "string")[3:] == ["not shown", "–", "dropped at ingest"]
    assert contract.row("ward", "string")[3:] == ["not shown", "–", "kept as a keyed hash"]
    hashes = {item.value for item in finished_training.evaluation.slices if item.column == "ward"}
    assert len(hashes) == 2
    for page in (contract, training):
        assert not re.search(r"Ward-|Patient-", page.text)
        assert not any(value in page.text for value in hashes)


def test_samples_hide_personal_columns_and_only_those(finished_training):
    samples = (Sample(row=8, values={"ward": "Ward-Elm", "patient": "Ann", "site": "south"}),)
    check = CheckResult(check="r", column=None, verdict=Verdict.FAIL, failures=1, samples=samples)
    result = finished_training.tables[0].model_copy(update={"checks": (check,)})

    page = Outline(contract_page(finished_training.loaded, [result]))

    assert page.row("8") == ["8", HIDDEN, HIDDEN, "south"]


def test_groups_of_personal_columns_are_told_apart_by_number(training):
    assert training.row("ward", f"{HIDDEN} 1")
    assert training.row("ward", f"{HIDDEN} 2")
    assert f"({HIDDEN} 1)" in training.row("✓pass", "fairness demographic_parity_difference ward")[-1]


def test_skipped_slices_of_personal_columns_are_not_named(finished_training):
    skipped = ("ward=0123abcd (4 rows)", "site=east (2 rows)")
    evaluation = finished_training.evaluation.model_copy(update={"skipped_slices": skipped, "slices": ()})

    page = Outline(page_of(finished_training, evaluation=evaluation))

    assert f"ward={HIDDEN} (4 rows), site=east (2 rows)" in page.text


def test_a_plot_that_names_personal_values_is_left_out(training, finished_training):
    shown = [attributes["alt"] for tag, attributes in training.elements if tag == "img"]

    assert "slices" in finished_training.plots
    assert "roc of tumours" in shown
    assert len(shown) == len(finished_training.plots) - 1


def test_metrics_stand_beside_what_training_saw(training, finished_training):
    found, seen = finished_training.evaluation.metrics, finished_training.evaluation.train_metrics

    brier = next(row for row in training.rows if row[:2] == ["Brier score", "lower"])
    assert brier[2:] == [number(found["brier"].value), interval(found["brier"]), number(seen["brier"])]


def test_the_comparison_names_the_version_and_the_rows(training, finished_training):
    compared = finished_training.evaluation.comparison

    assert f"Version 1 on {compared.rows} rows of the holdout" in training.text
    pair = compared.metrics["brier"]
    row = next(row for row in training.rows if row[0] == "Brier score" and row[1] not in {"higher", "lower"})
    assert row[1:] == [
        number(pair.challenger),
        number(pair.champion),
        signed(pair.improvement.value),
        interval(pair.improvement),
    ]


def test_every_gate_is_on_the_page_with_its_reason(training, finished_training):
    for gate in finished_training.gates.results:
        row = training.row("✓pass", gate.gate)
        assert row[2:4] == [number(gate.value), declared(gate.threshold)]
        assert bool(row[4]) == bool(gate.reason)


def test_candidates_show_folds_and_parameters(training, finished_training):
    for item in finished_training.leaderboard.candidates:
        mean, deviation = spread(item.folds)
        row = next(row for row in training.rows if row[0].startswith(item.name))
        assert row[1:4] == [
            number(item.validation),
            f"{number(mean)} ± {number(deviation)}",
            str(item.tried),
        ]
        assert row[5] == settings(item.params)


def test_what_is_needed_to_train_it_again_is_on_the_page(training, finished_training):
    run, trained = finished_training.run, finished_training.trained
    parts = finished_training.parts

    wanted = [run.run_id, run.key, run.code.digest, trained.digest, finished_training.gates.digest]
    wanted += [finished_training.tables[0].bronze.digest, parts.holdout.snapshot.digest]
    assert all(digest in training.text for digest in wanted)
    assert "mlflow ui --port 5000" in training.text
    assert "started 20" in training.text


def test_balance_and_governance_are_on_the_page(training, finished_training):
    parts = finished_training.parts

    shares = (part.balance["benign"] for part in (parts.development.train, parts.development.validation))
    assert training.row("benign")[1:3] == [percent(share) for share in shares]
    assert "A missed sample waits longer." in training.text
    assert "Not for diagnosis." in training.text


@pytest.mark.parametrize(
    ("verdicts", "version", "said"),
    [
        ([Verdict.PASS], "4", "version 4, challenger"),
        ([Verdict.PASS], None, "not registered"),
        ([Verdict.PASS, Verdict.FAIL], None, "refused"),
        ([Verdict.PASS, Verdict.FAIL], "4", "version 4, refused"),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], "4", "version 4, refused"),
        ([], "4", "version 4, refused"),
    ],
)
def test_only_what_passed_is_called_a_challenger(finished_training, verdicts, version, said):
    gates = with_gates(finished_training, *verdicts)

    page = Outline(page_of(finished_training, version, gates=gates))

    assert standing(gates, version) == said
    assert said in page.text
    assert summary(gates).startswith("Refused") == ("refused" in said)


def test_a_refusal_names_the_gates_that_did_not_pass(finished_training):
    gates = with_gates(finished_training, Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.FAIL)

    said = summary(gates)

    assert said.startswith("Refused: gate 1 and gate 3 failed; gate 2 could not be decided.")


def test_a_long_refusal_counts_the_rest(finished_training):
    said = summary(with_gates(finished_training, *[Verdict.FAIL] * 7))

    assert "gate 0, gate 1, gate 2, gate 3 and 3 more failed" in said


def test_the_first_version_has_nobody_to_compare_with(finished_training):
    evaluation = finished_training.evaluation.model_copy(update={"comparison": None, "first_version": True})

    page = Outline(page_of(finished_training, evaluation=evaluation))

    assert "First version: there is no champion to compare with." in page.text


def test_a_champion_that_was_not_scored_is_no_first_version(finished_training):
    evaluation = finished_training.evaluation.model_copy(update={"comparison": None, "first_version": False})

    page = Outline(page_of(finished_training, evaluation=evaluation))

    assert "The champion was not scored." in page.text
    assert "First version" not in page.text


def test_what_stood_in_the_way_of_a_comparison_is_said(finished_training):
    compared = finished_training.evaluation.comparison.model_copy(
        update={"metrics": {}, "problem": "champion <1> could not be loaded"}
    )
    evaluation = finished_training.evaluation.model_copy(update={"comparison": compared})

    page = Outline(page_of(finished_training, evaluation=evaluation))

    assert "champion <1> could not be loaded" in page.text
    assert page.mistakes == []


def test_what_was_not_measured_is_said_and_never_zero(finished_training):
    nothing = Estimate(value=math.nan, low=math.nan, high=math.nan, rows=0)
    evaluation = finished_training.evaluation.model_copy(
        update={
            "metrics": {"roc_auc": nothing},
            "train_metrics": {},
            "comparison": None,
            "slices": (SliceResult(column="site", value="east", metric="roc_auc", estimate=nothing),),
            "groups": (),
            "calibration": None,
            "latency": None,
            "swings": (Swing(perturbation="noise on numbers", swing=math.nan, error="<b>crashed"),),
            "single_features": (),
            "importance": {},
            "megabytes": None,
        }
    )

    page = Outline(page_of(finished_training, None, evaluation=evaluation, plots={}, tables=()))

    assert page.mistakes == []
    assert next(row for row in page.rows if row[0].startswith("ROC AUC"))[2:] == [MISSING] * 3
    assert page.row("site", "east")[2:] == ["0", MISSING, MISSING]
    assert page.row("noise on numbers") == ["noise on numbers", MISSING, "<b>crashed"]
    assert page.text.count("not measured") == 3
    assert page.text.count("Not measured.") == 2
    assert "nan" not in page.text.split()


def test_a_calibration_that_is_not_a_number_is_a_dash(finished_training):
    evaluation = finished_training.evaluation.model_copy(
        update={"calibration": Calibration(error=math.nan, bins=())}
    )

    page = Outline(page_of(finished_training, evaluation=evaluation))

    assert f"Calibration error{MISSING}" in page.text.replace("error –", "error–")


def test_a_regression_shows_its_own_units_and_no_rates(finished_training):
    spec = finished_training.loaded.spec
    target = Target(kind=TaskKind.REGRESSION, column="radius")
    training = spec.training.model_copy(update={"metric": "rmse"})
    spec = spec.model_copy(update={"target": target, "training": training})
    found = Estimate(value=1234.5, low=1100, high=1300.25, rows=171)
    evaluation = finished_training.evaluation.model_copy(
        update={"metrics": {"rmse": found}, "train_metrics": {"rmse": 12.3}, "calibration": None}
    )

    page = Outline(
        page_of(
            finished_training,
            loaded=finished_training.loaded.model_copy(update={"spec": spec}),
            leaderboard=finished_training.leaderboard.model_copy(update={"metric": "rmse"}),
            evaluation=evaluation,
        )
    )

    row = next(row for row in page.rows if row[0].startswith("Root mean squared error"))
    assert row[1:] == ["lower", "1,234", "[1,100, 1,300]", "12.30"]
    assert "True positive rate" not in page.text
    assert "Calibration error" not in page.text
    assert page.mistakes == []


def test_code_that_was_not_committed_is_marked(finished_training):
    code = finished_training.run.code.model_copy(update={"commit": None, "dirty": True})
    clean = code.model_copy(update={"commit": "abc123", "dirty": False})

    dirty_page = Outline(
        page_of(finished_training, run=finished_training.run.model_copy(update={"code": code}))
    )
    clean_page = Outline(
        page_of(finished_training, run=finished_training.run.model_copy(update={"code": clean}))
    )

    assert "The code was not committed as it ran: this was no git checkout" in dirty_page.text
    assert "not committed" not in clean_page.text
    assert "abc123" in clean_page.text


def test_long_tables_are_cut_and_say_so(finished_training):
    one = finished_training.evaluation.slices[0]
    many = tuple(one.model_copy(update={"column": "site", "value": f"site {i}"}) for i in range(75))
    evaluation = finished_training.evaluation.model_copy(update={"slices": many})

    page = Outline(page_of(finished_training, evaluation=evaluation))

    assert "site 59" in page.text
    assert "site 60" not in page.text
    assert "and 15 more in the evaluation document" in page.text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (0.0, "0.0000"),
        (-0.0, "0.0000"),
        (0.5, "0.5000"),
        (-0.01234567, "-0.0123"),
        (0.00012345678, "0.0001235"),
        (1.23456, "1.2346"),
        (12.3456, "12.35"),
        (123.456, "123.5"),
        (1234.5, "1,234"),
        (1234567.8, "1,234,568"),
    ],
)
def test_numbers(value, said):
    assert number(value) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0%"),
        (1.0, "100%"),
        (0.00001, "< 0.01%"),
        (0.99999, "> 99.99%"),
        (0.1234, "12.34%"),
    ],
)
def test_shares(share, said):
    assert percent(share) == said


def test_thresholds_are_shown_as_they_were_written():
    assert [declared(value) for value in (0.78, 100.0, 1e6, -0.01, None)] == [
        "0.78",
        "100",
        "1,000,000",
        "-0.01",
        "–",
    ]
    assert [bound(value) for value in (0.0, "2020-01-01", None)] == ["0", "2020-01-01", "…"]


def test_a_check_counts_rows_and_measures_shares():
    assert [quantity(value) for value in (12000.0, 0.9951, None)] == ["12,000", "0.9951", "–"]


def test_an_interval_without_an_end_is_no_interval():
    assert interval(Estimate(value=0.5, low=0.4, high=math.nan, rows=9)) == "–"
    assert interval(Estimate(value=0.5, low=0.4, high=0.61234, rows=9)) == "[0.4000, 0.6123]"


def test_one_fold_has_no_spread():
    mean, deviation = spread([0.5])
    assert (mean, math.isnan(deviation)) == (0.5, True)
    assert all(math.isnan(value) for value in (*spread([]), *spread([0.5, math.nan])))


def test_no_parameters_are_the_defaults():
    assert settings({}) == "defaults"
    assert (
        settings({"C": 0.123456, "class_weight": None, "kind": "a"})
        == "C = 0.1235, class_weight = none, kind = a"
    )


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_float_is_shown_as_something_that_reads_as_another(value):
    said = number(value)

    if math.isfinite(value):
        back = float(said.replace(",", ""))
        assert math.isclose(back, value, rel_tol=5e-4, abs_tol=5e-5)
        assert (back == 0) <= (abs(value) < 5e-5)
    else:
        assert said in {"–", "∞", "-∞"}


@given(st.text(max_size=30))
def test_no_value_breaks_out_of_its_cell(finished_training, text):
    sample = Sample(row=1, values={"site": text})
    check = CheckResult(check=text, column=None, verdict=Verdict.FAIL, reason=text, samples=(sample,))
    result = finished_training.tables[0].model_copy(update={"checks": (check,), "notes": (text,)})

    page = Outline(contract_page(finished_training.loaded, [result]))

    assert page.mistakes == []
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b", "i", "iframe"})
