"""Drafts: what is seen in a file, what is made of it, and that the outcome loads and trains as it stands."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import write_deltalake
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue, RootModel
from sklearn import datasets
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from deployments.contract import ColumnType, TableContract
from deployments.documents import parse_document
from deployments.environment import Environment, LocalPlatformConfig
from deployments.errors import BadInputError
from deployments.gates import FairnessGate
from deployments.measures import TaskKind
from deployments.source import CsvSource, DeltaSource, ParquetSource
from deployments.spec import LoadedSpec, ModelSpec, load_spec
from deployments.training import RandomSearch
from platforms.local import LocalPlatform
from tasks.champion import NoChampionYet
from tasks.draft import draft_spec, write_draft
from tasks.evaluate import evaluate_challenger
from tasks.features import build_training_features, clock_of
from tasks.gate import GateReport, judge
from tasks.ingest import ingest_table
from tasks.split import split_table
from tasks.survey import survey
from tasks.train import check_candidates, open_run, rank, train_candidate, train_winner
from tasks.validate import TableResult, validate_table
from tasks.verdict import Verdict

TELCO = Path(__file__).parents[2].parent / "shared" / "data" / "telco-churn.csv"
ROWS = 120


class Anything(RootModel[dict[str, JsonValue]]):
    pass


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes columns to a csv file; a function stands for a column's value in each row."""

    def writing(columns: dict[str, Sequence[Any] | Callable[[int], Any]], rows: int = ROWS) -> Path:
        made = {name: [of(i) for i in range(rows)] if callable(of) else of for name, of in columns.items()}
        lines = [",".join(map(quoted, made))]
        lines += [",".join(quoted(made[name][i]) for name in made) for i in range(rows)]
        path = tmp_path / "rows.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return writing


def quoted(value: object) -> str:
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n\r]|^\s*$', text) else text


def answer(i: int) -> str:
    return "no" if i % 3 else "yes"


def drafted(path: Path, target: str | None = None) -> ModelSpec:
    return parse_document(draft_spec("drafted", path, target=target), ModelSpec, "model.yaml")


def contract(path: Path, target: str | None = None) -> TableContract:
    return drafted(path, target).feature_contract


def refusal(path: Path, target: str | None = None) -> str:
    with pytest.raises(BadInputError) as caught:
        draft_spec("drafted", path, target=target)
    return str(caught.value)


# From a file to a verdict -----------------------------------------------------------------------------------


def sample(name: str, folder: Path) -> Path:
    if name == "telco":
        if not TELCO.exists():
            pytest.skip("the telco file is not on this machine")
        return TELCO
    path = folder / f"{name}.csv"
    getattr(datasets, f"load_{name}")(as_frame=True).frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def shared_platform(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> LocalPlatform:
    environment = Environment(
        name="dev", platform=LocalPlatformConfig(data_root="data"), allow_dirty_tree=True
    )
    root = tmp_path_factory.mktemp("platform")
    shutil.copy(mlflow_template, root / "mlflow.db")
    return LocalPlatform(environment, root)


def validated(loaded: LoadedSpec, platform: LocalPlatform) -> TableResult:
    ((name, source),) = loaded.spec.sources.items()
    bronze = ingest_table(loaded, platform, name, source)
    return validate_table(loaded.spec.contract[name], platform, model=loaded.name, table=name, bronze=bronze)


def hurried(loaded: LoadedSpec) -> LoadedSpec:
    """The same spec with fewer draws: what is under test is that it trains, not how well."""
    spec = loaded.spec
    candidates = tuple(
        candidate.model_copy(update={"search": candidate.search.model_copy(update={"iterations": 1})})
        if isinstance(candidate.search, RandomSearch)
        else candidate
        for candidate in spec.training.candidates
    )
    training = spec.training.model_copy(update={"candidates": candidates, "folds": 2})
    evaluation = spec.evaluation.model_copy(update={"bootstrap": 100})
    return loaded.model_copy(
        update={"spec": spec.model_copy(update={"training": training, "evaluation": evaluation})}
    )


def trained(loaded: LoadedSpec, platform: LocalPlatform) -> GateReport:
    """The line from raw data to the gates."""
    table = validated(loaded, platform)
    assert table.verdict is Verdict.PASS, table.failed
    assert table.silver is not None
    clock = clock_of(loaded, None)
    gold = build_training_features(loaded, platform, {table.table: table.silver}, clock)
    parts = split_table(loaded, platform, gold)
    check_candidates(loaded, platform)
    run = open_run(loaded, platform, gold, parts, clock)
    results = [
        train_candidate(loaded, platform, run, parts.development, candidate)
        for candidate in loaded.spec.training.candidates
    ]
    winner = train_winner(loaded, platform, run, parts.development, rank(loaded, results))
    measured = evaluate_challenger(
        loaded, platform, run, winner, parts.development, parts.holdout, NoChampionYet()
    )
    return judge(loaded.spec.gates, measured)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "positive"),
    [
        ("telco", TaskKind.BINARY, "Yes"),
        ("breast_cancer", TaskKind.BINARY, 1),
        ("wine", TaskKind.MULTICLASS, None),
        ("diabetes", TaskKind.REGRESSION, None),
    ],
)
def test_a_draft_trains_as_it_stands(
    name: str, kind: TaskKind, positive: object, tmp_path: Path, shared_platform: LocalPlatform
) -> None:
    path = write_draft(name, sample(name, tmp_path), None, tmp_path / "models")

    loaded = load_spec(path)
    with threadpool_limits(1):
        report = trained(hurried(loaded), shared_platform)

    assert (loaded.spec.target.kind, loaded.spec.target.positive) == (kind, positive)
    # A gate may well fail; but each of them was measured.
    assert not [result for result in report.results if result.verdict is Verdict.INCONCLUSIVE]
    assert report.results[0].verdict is Verdict.PASS


def test_the_drafted_telco_spec_says_what_is_in_the_file() -> None:
    if not TELCO.exists():
        pytest.skip("the telco file is not on this machine")

    spec = drafted(TELCO)
    columns = spec.feature_contract.columns
    source = spec.sources["telco_churn"]

    assert spec.features.entity == ("customerID",)
    assert spec.feature_contract.unique == (("customerID",),)
    assert isinstance(source, CsvSource)
    assert source.null_values == ("", " ")
    assert columns["TotalCharges"].nullable
    assert 0.9 < (columns["TotalCharges"].min_completeness or 0) < 0.998
    assert columns["Contract"].values == ("Month-to-month", "One year", "Two year")
    assert (columns["tenure"].min, columns["tenure"].max) == (0, None)
    assert not any(column.pii for column in columns.values())
    assert set(spec.features.numeric.columns) == {"SeniorCitizen", "tenure", "MonthlyCharges", "TotalCharges"}
    assert len(spec.features.categorical.columns) == 15
    assert "# seen: 0 to 72" in draft_spec("telco", TELCO)


def test_rows_that_lack_the_target_are_allowed_for(
    write: Write, tmp_path: Path, platform: LocalPlatform
) -> None:
    write({"id": lambda i: f"a{i}", "x": lambda i: i % 7, "y": lambda i: "NA" if i % 4 == 0 else answer(i)})

    loaded = load_spec(write_draft("gaps", tmp_path / "rows.csv", None, tmp_path))
    table = validated(loaded, platform)

    assert table.verdict is Verdict.PASS
    assert table.invalid_rows == ROWS // 4
    assert 0.25 < loaded.spec.feature_contract.max_invalid_share < 0.5


@pytest.mark.parametrize("kind", ["parquet", "folder", "delta"])
def test_types_that_a_file_declares_are_kept(kind: str, tmp_path: Path, platform: LocalPlatform) -> None:
    rows = odd_rows()
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    if kind == "delta":
        rows = rows.drop_columns(["list"])
        write_deltalake(path, rows)
    elif kind == "folder":
        path.mkdir()
        for part in (0, 1):
            pq.write_table(rows.slice(part * 60, 60), path / f"part-{part}.parquet")
    else:
        pq.write_table(rows, path)

    loaded = load_spec(write_draft("odd", path, None, tmp_path))
    table = loaded.spec.feature_contract

    kinds = {name: column.type.value for name, column in table.columns.items()}
    assert kinds == {
        **{"id": "integer", "plan": "string", "paid": "number", "price": "number", "at": "timestamp"},
        **{"day": "date", "open": "boolean", "y": "integer"},
    }
    assert table.extra_columns == ("forbid" if kind == "delta" else "drop")
    assert loaded.spec.sources["rows"].kind == ("delta" if kind == "delta" else "parquet")
    assert loaded.spec.sources["rows"].time_column == "at"
    assert isinstance(loaded.spec.sources["rows"], DeltaSource | ParquetSource)
    assert validated(loaded, platform).verdict is Verdict.PASS


def odd_rows() -> pa.Table:
    plans = pa.array(["a", "b"] * (ROWS // 2))
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.int32()),
            "plan": plans.dictionary_encode(),
            "paid": pa.array([None, 1.5, float("nan"), 2.0] * (ROWS // 4), pa.float32()),
            "price": pa.array([f"{i}.25" for i in range(ROWS)]).cast(pa.decimal128(12, 2)),
            "at": pa.array(np.arange(ROWS) * 10**9, pa.timestamp("us", "UTC")),
            "day": pa.array(np.arange(ROWS) % 9, pa.int32()).cast(pa.date32()),
            "open": pa.array([True, False, None, True] * (ROWS // 4)),
            "list": pa.array([[1]] * ROWS),
            "y": pa.array([0, 1, 1] * (ROWS // 3)),
        }
    )


# What is seen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "+30"], ColumnType.INTEGER),
        (["1", "2.5", "3"], ColumnType.NUMBER),
        (["1.0", "2.0", "3.0"], ColumnType.NUMBER),
        (["1e3", ".5", "-7"], ColumnType.NUMBER),
        (["true", "False", "TRUE"], ColumnType.BOOLEAN),
        (["Yes", "No", "No"], ColumnType.STRING),
        (["t", "f", "f"], ColumnType.STRING),
        (["2024-01-31", "2024-02-01", "1999-12-31"], ColumnType.DATE),
        (["2024-01-31 10:00:00", "2024-02-01T11:30:00Z", "2024-02-01"], ColumnType.TIMESTAMP),
        (["01/02/2024", "31/01/2024", "02/03/2024"], ColumnType.STRING),
        (["00123", "45678", "90210"], ColumnType.STRING),
        (["0", "10", "200"], ColumnType.INTEGER),
        (["0.5", "0", "0.25"], ColumnType.NUMBER),
        (["12345678901234567890", "12345678901234567891", "1"], ColumnType.STRING),
        (["1,000", "2,000", "3"], ColumnType.STRING),
        (["12:30", "1:15", "2:45"], ColumnType.STRING),
        (["", " ", "NA"], ColumnType.STRING),
    ],
)
def test_a_text_column_is_of_the_first_type_that_takes_all_its_values(
    write: Write, values: list[str], kind: ColumnType
) -> None:
    path = write({"value": lambda i: values[i % 3], "y": answer})

    assert survey(path).columns["value"].type is kind


def test_one_value_among_many_batches_decides_on_a_type(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.csv_source._BLOCK_BYTES", 512)
    path = write(
        {"count": lambda i: "many" if i == 2999 else i, "plain": lambda i: i, "y": answer}, rows=3000
    )

    columns = survey(path).columns

    assert columns["count"].type is ColumnType.STRING
    assert columns["plain"].type is ColumnType.INTEGER
    assert (columns["plain"].low, columns["plain"].high) == (0, 2999)


def test_a_value_that_comes_back_batches_later_is_no_key(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.csv_source._BLOCK_BYTES", 512)
    path = write(
        {
            "once": lambda i: f"a{i}",
            "twice": lambda i: f"a{i % 2999}",
            "y": answer,
            'odd "name"': lambda i: i,
        },
        rows=3000,
    )

    assert survey(path).keys == ("once", 'odd "name"')


def test_texts_that_mean_no_value_become_null_values(write: Write) -> None:
    tokens = ["", " ", "  ", "NA", "N/A", "null", "NULL", "nan", "?", " ? "]
    path = write({"id": lambda i: f"a{i}", "x": lambda i: tokens[i % 10] if i % 2 else i / 2, "y": answer})

    spec = drafted(path)
    source, column = spec.sources["rows"], spec.feature_contract.columns["x"]

    assert isinstance(source, CsvSource)
    assert set(source.null_values) == {"", " ", "NA", "null", "nan", " ? "} | set(tokens[1::2])
    assert column.type is ColumnType.NUMBER
    assert column.nullable
    assert 0 < (column.min_completeness or 0) < 0.5


def test_seen_ranges_are_told_and_not_made_bounds(write: Write) -> None:
    path = write(
        {"id": lambda i: f"a{i}", "age": lambda i: 18 + i % 50, "net": lambda i: i - 60.5, "y": answer}
    )

    text = draft_spec("drafted", path)
    columns = contract(path).columns

    assert "age: {type: integer, min: 0}   # seen: 18 to 67" in text
    assert "net: {type: number}   # seen: -60.5 to 58.5" in text
    assert all(column.max is None for column in columns.values())


def test_few_texts_are_listed_and_many_are_not(write: Write) -> None:
    path = write(
        {
            "id": lambda i: f"a{i}",
            "few": lambda i: "abc"[i % 3],
            "some": lambda i: f"s{i % 40}",
            "many": lambda i: f"m{i}",
            "y": answer,
        },
        rows=1000,
    )

    spec = drafted(path)

    assert spec.feature_contract.columns["few"].values == ("a", "b", "c")
    assert spec.feature_contract.columns["some"].values is None
    assert spec.features.categorical.columns == ("few", "some")
    assert spec.features.categorical.min_frequency is not None
    assert "# Left out: many (too many different texts)." in draft_spec("drafted", path)


def test_columns_that_teach_nothing_are_left_out_and_said_to_be(write: Write) -> None:
    path = write(
        {
            "id": lambda i: f"a{i}",
            "store_id": lambda i: i % 50 + 100,
            "region_id": lambda i: i % 3,
            "constant": lambda i: 5,
            "empty": lambda i: "",
            "x": lambda i: i % 9,
            "y": answer,
        }
    )

    spec, text = drafted(path), draft_spec("drafted", path)

    assert spec.features.numeric.columns == ("x",)
    assert spec.features.categorical.columns == ("region_id",)
    assert "store_id (an identifier by its name), constant (one value only)" in text
    assert "empty (almost always empty)" in text
    assert "{kind: group, column: store_id}" in text


# Personal data ----------------------------------------------------------------------------------------------

PEOPLE: dict[str, Callable[[int], Any]] = {
    "full name": lambda i: f"Ann B{i}",
    "customer_name": lambda i: f"Ann {i}",
    "Email": lambda i: f"u{i}@example.org",
    "contact": lambda i: f"u{i}@example.org",
    "phone": lambda i: f"+1 555 {1000000 + i}",
    "mobileNumber": lambda i: 5550000000 + i,
    "SSN": lambda i: f"{100 + i}-12-{1000 + i}",
    "national_id": lambda i: f"X{i:07d}",
    "street_address": lambda i: f"{i} Main Street",
    "date_of_birth": lambda i: f"19{10 + i % 80}-01-02",
    "birth_year": lambda i: 1930 + i % 60,
    "last_login": lambda i: f"10.0.{i % 200}.{i % 250}",
}


@pytest.mark.parametrize("name", PEOPLE)
def test_personal_data_is_dropped_for_a_person_to_check(write: Write, name: str) -> None:
    path = write({"id": lambda i: f"a{i}", name: PEOPLE[name], "x": lambda i: i % 9, "y": answer})

    column = contract(path).columns[name]
    text = draft_spec("drafted", path)
    line = next(line for line in text.splitlines() if name in line)

    assert column.pii == "drop"
    assert "pii: drop}   # looks like" in line
    assert line.endswith("; check")
    assert not any(str(PEOPLE[name](i)) in text for i in range(ROWS))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PhoneService", lambda i: "Yes" if i % 2 else "No"),
        ("email_opens", lambda i: i % 30),
        ("product_name", lambda i: f"thing {i % 30}"),
        ("birth_weight", lambda i: 2.5 + i / 50),
        ("address_changes", lambda i: i % 25),
        ("tax_rate", lambda i: i / 100),
        ("mobile_sessions", lambda i: i % 40),
    ],
)
def test_what_only_sounds_personal_is_kept(write: Write, name: str, value: Callable[[int], Any]) -> None:
    path = write({"id": lambda i: f"a{i}", name: value, "x": lambda i: i % 9, "y": answer})

    assert contract(path).columns[name].pii is None


def test_personal_data_that_is_the_only_key_is_hashed(
    write: Write, tmp_path: Path, platform: LocalPlatform
) -> None:
    path = write({"ssn": lambda i: 100_000_000 + i, "x": lambda i: i % 9, "y": answer})

    loaded = load_spec(write_draft("people", path, None, tmp_path))

    assert loaded.spec.features.entity == ("ssn",)
    assert loaded.spec.feature_contract.columns["ssn"].pii == "hash"
    assert loaded.spec.feature_contract.columns["ssn"].type is ColumnType.STRING
    assert validated(loaded, platform).verdict is Verdict.PASS


def test_how_groups_fare_is_offered_as_a_gate(write: Write) -> None:
    path = write({"id": lambda i: f"a{i}", "sex": lambda i: "fm"[i % 2], "x": lambda i: i % 9, "y": answer})

    text = draft_spec("drafted", path)
    offered = text.replace("  # - {kind: fairness", "  - {kind: fairness")

    (gate,) = (one for one in parse_document(offered, ModelSpec, "x").gates if isinstance(one, FairnessGate))
    assert gate.attribute == "sex"


# Keys and times ---------------------------------------------------------------------------------------------


def test_an_identifier_by_name_comes_before_another_column_whose_values_differ(write: Write) -> None:
    path = write({"note": lambda i: f"n{i}", "accountId": lambda i: 7 * i, "x": lambda i: i % 9, "y": answer})

    spec = drafted(path)

    assert spec.features.entity == ("accountId",)
    assert "# All different too: note." in draft_spec("drafted", path)
    assert "accountId" not in spec.features.columns


def test_a_measurement_whose_values_happen_to_differ_is_no_key(write: Write) -> None:
    path = write({"x": lambda i: i % 9, "balance": lambda i: i * i, "y": answer})

    spec = drafted(path)

    assert "balance" in spec.features.numeric.columns
    assert spec.feature_contract.unique == ()
    assert spec.features.entity == ("balance",)
    assert "an identifier is better" in draft_spec("drafted", path)


def test_an_identifier_and_a_time_are_a_key_together(write: Write) -> None:
    path = write(
        {
            "x": lambda i: i % 9,
            "device_id": lambda i: f"d{i % 12}",
            "day": lambda i: f"2024-01-{1 + i // 12:02d}",
            "y": answer,
        }
    )

    spec = drafted(path)

    assert spec.features.entity == ("device_id", "day")
    assert spec.feature_contract.unique == (("device_id", "day"),)
    assert spec.features.columns == ("x",)


def test_rows_that_nothing_tells_apart_are_counted(write: Write) -> None:
    path = write({"x": lambda i: i % 30, "z": lambda i: i % 2, "y": answer})

    spec, text = drafted(path), draft_spec("drafted", path)

    assert spec.feature_contract.unique == ()
    assert "Nothing tells all rows apart (120 rows have 30 different keys)" in text


def test_the_likeliest_time_is_when_a_row_became_known(write: Write) -> None:
    path = write(
        {
            "id": lambda i: f"a{i}",
            "renewal": lambda i: f"2025-01-{1 + i % 28:02d} 00:00:01",
            "created_at": lambda i: f"2024-03-{1 + i % 28:02d} 10:00:00",
            "signup": lambda i: f"2023-03-{1 + i % 28:02d}",
            "y": answer,
        }
    )

    spec, text = drafted(path), draft_spec("drafted", path)

    assert spec.sources["rows"].time_column == "created_at"
    assert spec.features.dates.columns == ("renewal", "signup")
    assert "{kind: time, column: created_at}" in text


# Targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "positive"),
    [
        (["Yes", "No", "No"], TaskKind.BINARY, "Yes"),
        (["Yes", "Yes", "No"], TaskKind.BINARY, "Yes"),
        (["true", "false", "true"], TaskKind.BINARY, True),
        (["0", "1", "1"], TaskKind.BINARY, 1),
        (["1.0", "0.0", "0.0"], TaskKind.BINARY, 1.0),
        (["good", "bad", "good"], TaskKind.BINARY, "bad"),
        (["1", "2", "2"], TaskKind.BINARY, 1),
        (["a", "b", "c"], TaskKind.MULTICLASS, None),
        (["0", "1", "2"], TaskKind.MULTICLASS, None),
        (["0.5", "1.5", "0.5"], TaskKind.REGRESSION, None),
    ],
)
def test_the_task_and_the_class_that_says_yes_come_from_the_values(
    write: Write, values: list[str], kind: TaskKind, positive: object
) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": lambda i: values[i % 3]})

    spec = drafted(path)

    assert spec.target.column == "y"
    assert spec.target.kind is kind
    assert spec.target.positive == positive
    assert type(spec.target.positive) is type(positive)


def test_many_whole_numbers_are_a_regression(write: Write) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "visits": lambda i: i % 50})

    assert drafted(path, "visits").target.kind is TaskKind.REGRESSION


@pytest.mark.parametrize(
    ("names", "guess"),
    [
        (["Churn", "flag"], "Churn"),
        (["is_fraud", "flag"], "is_fraud"),
        (["label", "target"], "target"),
        (["first", "second"], "second"),
    ],
)
def test_the_target_is_guessed_by_name_and_else_is_the_last_with_two_values(
    write: Write, names: list[str], guess: str
) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9} | dict.fromkeys(names, answer))

    assert drafted(path).target.column == guess
    assert drafted(path, "x").target.column == "x"


def test_a_guess_is_said_to_be_one_and_a_given_target_is_not(write: Write) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": answer})

    assert "# A guess by its name; check." in draft_spec("drafted", path)
    assert "# A guess" not in draft_spec("drafted", path, target="y")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("why", "there is no column 'why' (columns: id, x, text, day, one)"),
        ("txt", "there is no column 'txt'; did you mean 'text'?"),
        ("text", "'text' cannot be predicted: it has too many different texts to be classes"),
        ("day", "'day' cannot be predicted: it holds moments"),
        ("one", "'one' cannot be predicted: it has fewer than two different values"),
        (None, "which column is to be predicted? Name it (--target COLUMN); the columns are id, x, text"),
    ],
)
def test_a_target_that_is_none_is_refused(write: Write, target: str | None, problem: str) -> None:
    path = write(
        {
            "id": lambda i: f"a{i}",
            "x": lambda i: i % 9,
            "text": lambda i: f"t{i // 2}",
            "day": lambda i: f"2024-01-{1 + i % 9:02d}",
            "one": lambda i: "same",
        }
    )

    assert problem in refusal(path, target)


def test_a_target_of_a_type_no_contract_speaks_is_refused(tmp_path: Path) -> None:
    pq.write_table(odd_rows(), tmp_path / "rows.parquet")

    assert "'list' cannot be predicted: its type is list<" in refusal(tmp_path / "rows.parquet", "list")


def test_too_few_rows_are_refused(write: Write) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i, "y": answer}, rows=30)

    assert "30 rows have a value of 'y'; at least 80 are needed" in refusal(path)


def test_nothing_to_learn_from_is_refused_with_reasons(write: Write) -> None:
    path = write(
        {"id": lambda i: f"a{i}", "constant": lambda i: 1, "email": lambda i: f"u{i}@x.org", "y": answer}
    )

    assert "no column is left to learn from (constant: one value only)" in refusal(path)


# Files that cannot be read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.csv", b"", "rows.csv: the file is empty"),
        ("rows.csv", b"a,b\n", "the file has a header and no rows"),
        ("rows.csv", b"a,b,a\n1,2,3\n", "the header names 'a' more than once"),
        ("rows.csv", b"a,,c\n1,2,3\n", "column 2 of the header has no name"),
        ("rows.csv", b"a,b\n1,2\n1\n", "is the file half-written, or the delimiter another?"),
        ("rows.csv", b'a,b\n1,2\n1,"half', "is the file half-written?"),
        ("rows.csv", b"a,b\n1,2\n3,caf\xe9\n", "rows.csv:3: not UTF-8 text"),
        ("rows.csv", "a,b\n1,2\n".encode("utf-16"), "rows.csv:1: not UTF-8 text"),
        ("rows.csv", b"a," + b"x" * 600 + b"\n1,2\n", "the name of column 2 has 600 characters"),
        ("rows.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("rows.xlsx", b"PK", "its name does not tell what it is"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    assert problem in refusal(path)


def test_a_path_without_a_table_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv") == f"{tmp_path}/none.csv: there is no such file"
    assert "neither a Delta table nor Parquet files" in refusal(tmp_path)


def test_a_damaged_delta_table_is_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "rows", odd_rows().drop_columns(["list"]))
    next((tmp_path / "rows").glob("*.parquet")).unlink()

    assert "damaged" in refusal(tmp_path / "rows")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(odd_rows().slice(0, 0), tmp_path / "rows.parquet")

    assert "there are no rows" in refusal(tmp_path / "rows.parquet")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_divides_the_header(tmp_path: Path, delimiter: str) -> None:
    rows = [["id", "net, of tax", "y"]] + [[f"a{i}", f"{i % 9}", answer(i)] for i in range(ROWS)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(delimiter.join(map(quoted, row)) for row in rows))

    source = drafted(path).sources["rows"]

    assert isinstance(source, CsvSource)
    assert source.delimiter == delimiter


# The text and the file --------------------------------------------------------------------------------------

AWKWARD = [
    *(
        "Yes",
        "No",
        "on",
        "Null",
        "~",
        "true",
        "007",
        "1:30",
        "12e3",
        "0x1F",
        "2024-01-01",
        "a: b",
        "x #y",
        "#z",
    ),
    *("- d", "[e]", "{f}", "it's", 'say "hi"', "back\\slash", "trailing ", " leading", "é ü 李", "🙂", "a,b"),
    *(
        "line\nbreak",
        "tab\there",
        "a\u2028b",
        "\x7f",
        "=",
        "<<",
        "&a",
        "*b",
        "!c",
        "%d",
        "@e",
        "`f",
        "|",
        ">",
        "?x",
    ),
]


@pytest.mark.parametrize("text", AWKWARD)
def test_names_and_values_are_read_back_as_they_were(write: Write, text: str) -> None:
    path = write(
        {"id": lambda i: f"a{i}", text: lambda i: [text, "other"][i % 2], "y": lambda i: [text, "b"][i % 2]}
    )

    spec = drafted(path, "y")
    raw = yaml.safe_load(draft_spec("drafted", path, target="y"))

    columns = spec.feature_contract.columns
    assert list(columns) == ["id", text, "y"]
    assert text in spec.features.columns
    assert set(columns["y"].values or ()) == {text, "b"}
    assert set(columns[text].values or ()) in ({text, "other"}, set())
    # Older readers of YAML see the same texts.
    assert set(raw["contract"]["rows"]["columns"]) == {"id", text, "y"}
    assert set(raw["contract"]["rows"]["columns"]["y"]["values"]) == {text, "b"}


cells = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=6),
    st.sampled_from(["1", "2.5", "NA", "", "true", "2024-01-01", "Yes", "inf", "-0", "1e999", "a@b.c", "?"]),
    st.integers().map(str),
    st.floats().map(str),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=8),
        st.lists(cells, min_size=1, max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_a_table_holds_its_draft_loads_or_is_refused(
    write: Write, columns: dict[str, list[str]]
) -> None:
    made = {name: lambda i, values=values: values[i * i % len(values)] for name, values in columns.items()}
    path = write({"x": lambda i: i % 9, **made, "answer": answer})

    try:
        text = draft_spec("drafted", path, target="answer")
    except BadInputError as error:
        assume(not str(error).startswith(str(path)))
        raise

    spec = parse_document(text, ModelSpec, "model.yaml")
    assert set(spec.feature_contract.columns) == {"x", "answer", *columns}
    assert all(line.isprintable() for line in text.split("\n"))
    assert yaml.safe_load(text)["name"] == "drafted"


def test_lines_are_of_a_readable_length(write: Write) -> None:
    columns = {f"a rather long name of column number {i}": lambda i: i % 9 for i in range(60)}
    path = write({"id": lambda i: f"a{i}", **columns, "y": lambda i: f"class of rows {i % 5} of this table"})

    text = draft_spec("drafted", path, target="y")

    assert max(map(len, text.split("\n"))) <= 110
    assert len(parse_document(text, ModelSpec, "x").features.columns) == 60


@pytest.mark.parametrize("name", ["", "Churn", "1st", "a-b", "a b", "a" * 64, "../up", "null\n"])
def test_a_name_that_no_model_may_have_is_refused(name: str, write: Write, tmp_path: Path) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": answer})

    with pytest.raises(BadInputError, match="is no model name"):
        draft_spec(name, path)
    with pytest.raises(BadInputError, match="is no model name"):
        write_draft(name, path, None, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["null", "true", "y", "no"])
def test_a_name_that_yaml_would_mistake_is_quoted(name: str, write: Write) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": answer})

    assert parse_document(draft_spec(name, path), ModelSpec, "x").name == name


def test_data_beside_the_spec_is_named_from_there_and_other_data_absolutely(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": answer})
    inside = tmp_path / "models" / "near" / "data" / "rows.csv"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)

    near = load_spec(write_draft("near", Path("models/near/data/rows.csv"), None, tmp_path / "models"))
    far = load_spec(write_draft("far", Path("rows.csv"), None, tmp_path / "models"))

    assert near.spec.sources["rows"].path == "data/rows.csv"  # type: ignore[union-attr]
    assert far.spec.sources["rows"].path == str(path)  # type: ignore[union-attr]


def test_a_spec_that_is_there_is_never_overwritten(write: Write, tmp_path: Path) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": answer})
    written = write_draft("one", path, None, tmp_path)
    written.write_text("mine")

    with pytest.raises(BadInputError, match="there is a spec already"):
        write_draft("one", path, None, tmp_path)

    assert written.read_text() == "mine"
    assert [one.name for one in written.parent.iterdir()] == ["model.yaml"]


def test_of_two_who_draft_at_once_one_is_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": answer})
    together = threading.Barrier(2)
    ends: list[Path | str] = []

    def slowly(name: str, data: Path, **_: object) -> str:
        text = draft_spec(name, data)
        together.wait(timeout=20)
        return text

    def drafting() -> None:
        try:
            ends.append(write_draft("one", path, None, tmp_path))
        except BadInputError as error:
            ends.append(str(error))

    monkeypatch.setattr("tasks.draft.draft_spec", slowly)
    threads = [threading.Thread(target=drafting) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(isinstance(end, Path) for end in ends) == 1
    assert any("there is a spec already" in str(end) for end in ends)
    assert [one.name for one in (tmp_path / "one").iterdir()] == ["model.yaml"]


def test_a_folder_that_cannot_be_written_is_refused(write: Write, tmp_path: Path) -> None:
    path = write({"id": lambda i: f"a{i}", "x": lambda i: i % 9, "y": answer})
    (tmp_path / "file").write_text("")

    with pytest.raises(BadInputError, match="cannot be written"):
        write_draft("one", path, None, tmp_path / "file")


def test_no_folder_is_made_for_data_that_cannot_be_drafted_from(tmp_path: Path) -> None:
    with pytest.raises(BadInputError):
        write_draft("one", tmp_path / "none.csv", None, tmp_path / "models")

    assert not (tmp_path / "models").exists()


@pytest.fixture(autouse=True)
def _nothing_is_made_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    yield
    assert list(working.iterdir()) == []
