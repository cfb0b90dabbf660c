"""Contracts: every check failing and counted, at once; nothing bad in silver, nothing lost, nothing unseen."""

import os
import random
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.contract import TableContract
from deployments.errors import BadInputError
from deployments.spec import load_spec
from tasks import coercion, validate
from tasks.ingest import ingest_table
from tasks.validate import REASONS, ContractBroken, coerce, compile_schema, require_contract, validate_table
from tasks.verdict import Verdict

ROOT = Path(__file__).parents[2]
TELCO = ROOT.parent / "shared/data/telco-churn.csv"
CLOCK = datetime(2025, 6, 30, 12, tzinfo=UTC)


@pytest.fixture
def check(platform):
    """Write rows as bronze and hold them against a contract."""

    def run(rows, contract, reference=None, clock=CLOCK):
        table = rows if isinstance(rows, pa.Table) else pa.table(rows)
        bronze = platform.tables.write("bronze/shop/visits", table.to_reader())
        return validate_table(
            TableContract.model_validate(contract),
            platform,
            model="shop",
            table="visits",
            bronze=bronze,
            reference=reference,
            clock=clock,
        )

    return run


@pytest.fixture
def rows_of(platform):
    return lambda snapshot: platform.tables.read(snapshot).to_pylist()


def columns(**declared):
    return {
        "columns": {
            name: {"type": kind} if isinstance(kind, str) else kind for name, kind in declared.items()
        }
    }


def finding(result, check, column=None):
    (found,) = [item for item in result.checks if (item.check, item.column) == (check, column)]
    return found


def counts(result):
    return {(item.column, item.check): item.failures for item in result.checks if item.failures}


def text(*values):
    return pa.array(values, pa.string())


# Rows -------------------------------------------------------------------------------------------------------


def test_rows_that_keep_the_contract_are_silver_in_its_types(check, rows_of):
    result = check(
        {
            "visit": ["v1", "v2"],
            "pages": ["3", " 4 "],
            "paid": ["1.5", ""],
            "day": ["2025-06-29", "2025-06-30"],
        },
        columns(visit="string", pages="integer", paid="string", day="date"),
    )

    assert result.verdict is Verdict.PASS
    assert (result.rows, result.invalid_rows, result.quarantine) == (2, 0, None)
    assert rows_of(result.silver) == [
        {"visit": "v1", "pages": 3, "paid": "1.5", "day": date(2025, 6, 29)},
        {"visit": "v2", "pages": 4, "paid": "", "day": date(2025, 6, 30)},
    ]


EVERYTHING = {
    "columns": {
        "id": {"type": "string", "pattern": r"C\d{3}"},
        "plan": {"type": "string", "values": ["gold", "silver"]},
        "age": {"type": "integer", "min": 18, "max": 99},
        "paid": {"type": "number", "min": 0, "nullable": True},
        "owed": {"type": "number", "nullable": True},
        "seen": {"type": "timestamp", "min": "2025-01-01", "max": "2025-12-31T00:00:00Z"},
        "born": {"type": "date", "max": "2010-01-01"},
        "active": {"type": "boolean"},
    },
    "unique": [["id"]],
    "rules": [{"name": "paid_covers_owed", "expression": "paid >= owed"}],
}
GOOD = ("C001", "gold", "30", "5", "-9", "2025-02-03T04:05:06Z", "1990-01-01", "yes")


def everything(*rows):
    names = list(EVERYTHING["columns"])
    return {name: text(*values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def with_(position, value, number):
    row = list(GOOD)
    row[0] = f"C{number:03d}"
    row[position] = value
    return tuple(row)


BAD = {
    (0, "X1"): ("id", "pattern"),
    (1, "lead"): ("plan", "values"),
    (2, "17"): ("age", "min"),
    (2, "100"): ("age", "max"),
    (2, "12.5"): ("age", "type"),
    (2, "9223372036854775808"): ("age", "type"),
    (2, None): ("age", "not_null"),
    (2, "nan"): ("age", "not_null"),
    (3, "-1"): ("paid", "min"),
    (3, "many"): ("paid", "type"),
    (3, "inf"): ("paid", "finite"),
    (4, "6"): (None, "paid_covers_owed"),
    (5, "2024-12-31T23:59:59Z"): ("seen", "min"),
    (5, "2026-01-01"): ("seen", "max"),
    (5, "03/02/2025"): ("seen", "type"),
    (6, "2011-01-01"): ("born", "max"),
    (6, "1990-01-01T09:00:00Z"): ("born", "type"),
    (7, "perhaps"): ("active", "type"),
    (0, "C001"): (None, "unique(id)"),
}


def test_every_check_is_run_and_counted_at_once(check, rows_of):
    bad = [with_(position, value, number) for number, (position, value) in enumerate(BAD, 100)]

    result = check(everything(GOOD, *bad), EVERYTHING)

    assert counts(result) == dict.fromkeys(BAD.values(), 1) | {("age", "type"): 2, ("age", "not_null"): 2}
    assert result.verdict is Verdict.FAIL
    assert (result.rows, result.invalid_rows) == (len(BAD) + 1, len(BAD))
    assert [row["id"] for row in rows_of(result.silver)] == ["C001"]


@pytest.mark.parametrize("fault", BAD, ids=lambda fault: f"{fault[0]}-{fault[1]}")
def test_each_fault_alone_is_found_with_its_row_and_reason(check, rows_of, fault):
    column, name = BAD[fault]

    result = check(everything(GOOD, with_(*fault, 7)), EVERYTHING)

    (found,) = [item for item in result.checks if item.failures]
    assert (found.column, found.check, found.verdict) == (column, name, Verdict.FAIL)
    assert [sample.row for sample in found.samples] == [2]
    (row,) = rows_of(result.quarantine)
    assert row[REASONS] == (f"{column}: {name}" if column else name)
    assert {key: value for key, value in row.items() if key != REASONS} == dict(
        zip(EVERYTHING["columns"], with_(*fault, 7), strict=True)
    )


def test_a_row_with_several_faults_is_one_invalid_row_with_all_its_reasons(check, rows_of):
    result = check(everything(GOOD, ("X", "lead", "1", "-1", "0", "?", "?", "?")), EVERYTHING)

    (row,) = rows_of(result.quarantine)
    reasons = row[REASONS].split("; ")
    assert result.invalid_rows == 1
    assert sorted(reasons) == [
        "active: type",
        "age: min",
        "born: type",
        "id: pattern",
        "paid: min",
        "paid_covers_owed",
        "plan: values",
        "seen: type",
    ]


def test_no_more_than_five_rows_are_shown_and_long_values_are_cut(check):
    result = check({"age": text(*["x" * 100] * 50)}, columns(age="integer"))

    found = finding(result, "type", "age")
    assert found.failures == 50
    assert [sample.row for sample in found.samples] == [1, 2, 3, 4, 5]
    assert all(len(sample.values["age"]) == 40 for sample in found.samples)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ages=st.lists(st.sampled_from(["1", "50", "200", "x", None, "7.0"]), min_size=1, max_size=40),
    chunk=st.integers(1, 9),
)
def test_every_row_is_either_silver_or_in_quarantine(check, platform, ages, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "_CHUNK_ROWS", chunk)
        result = check(
            {"id": text(*map(str, range(len(ages)))), "age": text(*ages)},
            {"columns": {"id": {"type": "string"}, "age": {"type": "integer", "max": 99}}},
        )

    found = [
        row["id"]
        for snapshot in (result.silver, result.quarantine)
        if snapshot is not None
        for row in platform.tables.read(snapshot).to_pylist()
    ]
    assert sorted(found, key=int) == [str(number) for number in range(len(ages))]
    assert result.rows == len(ages)
    assert result.invalid_rows == sum(age in {"200", "x", None} for age in ages)


def test_the_size_of_chunks_changes_nothing(check, rows_of, monkeypatch):
    rows = everything(*(with_(*fault, number) for number, fault in enumerate([*BAD, *BAD], 100)))
    whole = check(rows, EVERYTHING)

    monkeypatch.setattr(validate, "_CHUNK_ROWS", 3)
    cut = check(rows, EVERYTHING)

    assert cut.model_dump() == whole.model_dump()


def test_a_wide_table_is_checked_in_short_chunks(check, monkeypatch):
    monkeypatch.setattr(validate, "_CHUNK_CELLS", 100)
    seen = []
    checked = validate.check_chunk
    monkeypatch.setattr(
        validate, "check_chunk", lambda raw, *rest: seen.append(raw.shape) or checked(raw, *rest)
    )
    names = [f"c{number}" for number in range(30)]

    check({name: [1] * 10 for name in names}, columns(**dict.fromkeys(names, "integer")))

    assert seen == [(3, 30), (3, 30), (3, 30), (1, 30)]


# Types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "taken"),
    [
        ("integer", text("1", "1.0", "1e3", " 7 ", "-0", "+5"), [1, 1, 1000, 7, 0, 5]),
        ("integer", text("1.5", "x", "9223372036854775808", "", "inf"), "misfits"),
        ("integer", text("9007199254740994.0"), "misfits"),
        ("integer", text("9223372036854775807"), [9223372036854775807]),
        ("integer", pa.array([1.0, -(2.0**63)]), [1, -(2**63)]),
        ("integer", pa.array([1.5, 2.0**63, float("inf"), 1e300]), "misfits"),
        ("integer", pa.array([Decimal("2.00"), Decimal("9007199254740993.00")]), [2, 9007199254740993]),
        ("integer", pa.array([Decimal("2.50"), Decimal("9007199254740993.50")]), "misfits"),
        ("integer", pa.array([Decimal(2**64 - 1)]), "misfits"),
        ("integer", pa.array([1, 2], pa.int16()), [1, 2]),
        ("integer", pa.array([date(2025, 1, 1)]), "misfits"),
        ("number", text("1", ".5", "-2e-3"), [1.0, 0.5, -0.002]),
        ("number", text("1,5", "0x10", "1 000", ""), "misfits"),
        ("number", pa.array([1, 2]), [1.0, 2.0]),
        ("number", pa.array([Decimal("1.25")]), [1.25]),
        ("number", pa.array([datetime(2025, 1, 1, tzinfo=UTC)]), "misfits"),
        ("boolean", text("true", "T", "YES", "y", "1"), [True] * 5),
        ("boolean", text("False", "f", "no", "N", " 0 "), [False] * 5),
        ("boolean", text("2", "", "on", "null"), "misfits"),
        ("boolean", pa.array([0, 1]), [False, True]),
        ("boolean", pa.array([0.0, 1.0]), [False, True]),
        ("boolean", pa.array([2, -1]), "misfits"),
        ("boolean", pa.array([0.5]), "misfits"),
        ("string", pa.array([1, 2]), ["1", "2"]),
        ("string", pa.array([True]), ["true"]),
        ("timestamp", pa.array([date(2025, 1, 2)]), [datetime(2025, 1, 2, tzinfo=UTC)]),
        ("timestamp", pa.array([1_735_689_600]), "misfits"),
        ("date", pa.array([datetime(2025, 1, 2, tzinfo=UTC)]), [date(2025, 1, 2)]),
        ("date", pa.array([datetime(2025, 1, 2, 9, tzinfo=UTC)]), "misfits"),
        ("date", text("2025-01-02", "2025-01-02T00:00:00Z"), [date(2025, 1, 2)] * 2),
        ("date", text("02.01.2025", "01/02/2025", "2025-13-01"), "misfits"),
    ],
)
def test_values_go_into_their_type_without_loss_or_not_at_all(kind, given, taken):
    frame = pl.DataFrame({"a": pl.Series(values=given)})

    typed, misfits = coerce(frame, TableContract(columns={"a": {"type": kind}}))

    if taken == "misfits":
        assert typed["a"].to_list() == [None] * len(given)
        assert misfits["a"].to_list() == [True] * len(given)
    else:
        assert typed["a"].to_list() == taken
        assert misfits == {}


NOON = datetime(2025, 1, 2, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "written",
    [
        "2025-01-02T12:30:00Z",
        "2025-01-02T12:30:00.000000+00:00",
        "2025-01-02 14:30:00+02:00",
        "2025-01-02T14:30:00+0200",
        "2025-01-02T12:30:00",
        "2025-01-02 12:30:00.000",
        "2025-01-02T12:30",
        "2025-01-02T12:30Z",
        " 2025-01-02T12:30:00Z ",
    ],
)
def test_moments_are_iso_8601_and_in_utc_where_they_name_no_zone(written):
    mixed = pl.DataFrame({"a": [None, "garbage", "2024-02-29", written]})

    typed, misfits = coerce(mixed, TableContract(columns={"a": {"type": "timestamp"}}))

    assert typed["a"].to_list() == [None, None, datetime(2024, 2, 29, tzinfo=UTC), NOON]
    assert misfits["a"].to_list() == [False, True, False, False]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.sampled_from(
                ["2025-01-02", "2025-01-02T12:30:00Z", "2025-01-02 12:30", "x", "1", "1.0", "yes", "nan"]
            ),
        ),
        max_size=8,
    ),
    st.sampled_from(["integer", "number", "boolean", "timestamp", "date"]),
)
def test_a_value_fits_or_not_whatever_stands_beside_it(values, kind):
    contract = TableContract(columns={"a": {"type": kind}})

    together, _ = coerce(pl.DataFrame({"a": pl.Series(values, dtype=pl.String)}), contract)
    alone = [
        coerce(pl.DataFrame({"a": pl.Series([v], dtype=pl.String)}), contract)[0]["a"][0] for v in values
    ]

    assert together["a"].to_list() == alone


def test_nan_is_a_missing_value_and_infinity_is_none(check):
    contract = columns(kept={"type": "number", "nullable": True}, strict="number")

    numbers = check({"kept": [float("nan"), 1.0, float("inf")], "strict": [1.0, float("nan"), 1.0]}, contract)
    texts = check({"kept": text("NaN", "1", "-inf"), "strict": text("1", "nan", "1")}, contract)

    for result in (numbers, texts):
        assert counts(result) == {("kept", "finite"): 1, ("strict", "not_null"): 1}


def test_bounds_hold_to_the_last_digit(check):
    contract = columns(whole={"type": "integer", "max": 2**53 - 1})

    result = check({"whole": [2**53 - 1, 2**53]}, contract)

    assert counts(result) == {("whole", "max"): 1}


def test_a_pattern_speaks_of_the_whole_text(check):
    result = check(
        {"id": ["C1", "xC1", "C1x", "C1\n", "C1\nC1"]}, columns(id={"type": "string", "pattern": r"C\d"})
    )

    assert counts(result) == {("id", "pattern"): 4}


# Keys -------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(validate, "_CHUNK_ROWS", 4)


def test_keys_that_repeat_are_found_across_chunks_and_the_first_is_kept(check, rows_of, short_chunks):
    keys = ["a", "b", "c", "a", "d", "e", "f", "b", "g", "a"]

    result = check({"id": keys, "n": range(10)}, columns(id="string", n="integer") | {"unique": [["id"]]})

    assert finding(result, "unique(id)").failures == 3
    assert [sample.row for sample in finding(result, "unique(id)").samples] == [4, 8, 10]
    assert [row["n"] for row in rows_of(result.silver)] == [0, 1, 2, 4, 5, 6, 8]


def test_keys_of_several_columns_repeat_only_as_a_whole(check, short_chunks):
    rows = {"a": [1, 1, 2, 2, 1, None, None], "b": ["x", "y", "x", "y", "x", "z", "z"]}

    result = check(
        rows, columns(a={"type": "integer", "nullable": True}, b="string") | {"unique": [["a", "b"]]}
    )

    assert counts(result) == {(None, "unique(a, b)"): 1}


def test_keys_are_compared_in_their_type_and_not_as_they_were_spelled(check):
    result = check({"id": text("1", "01", "2", "2.0", " 1")}, columns(id="integer") | {"unique": [["id"]]})

    assert counts(result) == {(None, "unique(id)"): 3}


def test_several_keys_are_each_checked(check):
    contract = columns(a="integer", b="integer") | {"unique": [["a"], ["b"]]}

    result = check({"a": [1, 1, 2], "b": [5, 6, 6]}, contract)

    assert counts(result) == {(None, "unique(a)"): 1, (None, "unique(b)"): 1}
    assert result.invalid_rows == 2


def test_repeated_keys_are_counted_as_a_set_would_count_them(check, monkeypatch):
    monkeypatch.setattr(validate, "_CHUNK_ROWS", 97)
    monkeypatch.setattr("tasks.keys._SHARE_ROWS", 100)
    keys = random.Random(5).choices(range(900), k=1_000)

    result = check({"id": keys}, columns(id="integer") | {"unique": [["id"]]})

    assert finding(result, "unique(id)").failures == 1_000 - len(set(keys))
    assert result.silver.rows == len(set(keys))


# Rules ------------------------------------------------------------------------------------------------------


def rule(expression, name="rule"):
    return {"rules": [{"name": name, "expression": expression}]}


@pytest.mark.parametrize(
    ("expression", "failing"),
    [
        ("a <= b", [2]),
        ("a IS NOT NULL OR b = 9", [4]),
        ("a + b < 100 AND a BETWEEN 0 AND 50", [2]),
        ("kind = 'x' OR a = 1", [2]),
        ("kind IN ('x', 'y', 'z')", []),
        ("CASE WHEN kind = 'y' THEN a < 50 ELSE TRUE END", [2]),
    ],
)
def test_a_rule_fails_where_it_is_false_and_passes_where_it_is_null(check, expression, failing):
    rows = {"a": [1, 60, 3, None], "b": [5, 5, None, 5], "kind": ["x", "y", "x", "x"]}
    nullable = {"type": "integer", "nullable": True}

    result = check(rows, columns(a=nullable, b=nullable, kind="string") | rule(expression))

    found = [item for item in result.checks if item.check == "rule"]
    assert [sample.row for item in found for sample in item.samples] == failing


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a >", "is not a SQL condition"),
        ("nowhere > 1", "speaks of nowhere, which the table does not have"),
        ('a > "x"', "speaks of x, which the table does not have"),
        ("secret = 'x'", "speaks of secret, which the table does not have"),
        ("a + 1", "gives a value of type Int64, not true or false"),
        ("explode(a)", "is not a SQL condition"),
        ("a > 'x'", "is not a SQL condition"),
        ("a > avg(a)", "does not judge each row by its own columns"),
        ("sum(a) OVER () > 1", "does not judge each row by its own columns"),
        ("1 = 1", "does not judge each row by its own columns"),
        ("", "is not a SQL condition|does not judge"),
    ],
)
def test_a_rule_that_cannot_be_checked_is_refused_before_anything_is_read(expression, message):
    contract = columns(a="integer", secret={"type": "string", "pii": "drop"}) | rule(expression)

    with pytest.raises(BadInputError, match=message) as refused:
        compile_schema(TableContract.model_validate(contract))

    assert "contract: rule 'rule'" in str(refused.value)


def test_two_rules_of_one_name_are_refused_since_one_would_hide_the_other():
    contract = columns(a="integer") | {"rules": [*rule("a > 0")["rules"], *rule("a < 9")["rules"]]}

    with pytest.raises(BadInputError, match="several rules are called 'rule'"):
        compile_schema(TableContract.model_validate(contract))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"type": "date", "min": "yesterday"}, "the bound 'yesterday' is no date"),
        ({"type": "timestamp", "max": "2025"}, "the bound '2025' is no timestamp"),
        ({"type": "number", "min": "low"}, "the bound 'low' is no number"),
        ({"type": "string", "values": [1, 2]}, r"not all of the values \[1, 2\] are of type string"),
        ({"type": "integer", "values": ["1"]}, "are of type integer"),
        ({"type": "string", "pattern": "("}, "is not a regular expression"),
        ({"type": "string", "pattern": "(?=a)a"}, "is not a regular expression"),
    ],
)
def test_a_column_that_cannot_be_checked_is_refused(column, message):
    with pytest.raises(BadInputError, match=message):
        compile_schema(TableContract(columns={"a": column}))


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"freshness": {"column": "a", "max_age_days": 1}}, "freshness: 'a' is of type integer, not a time"),
        ({"distribution": [{"column": "b", "test": "ks", "max": 0.1}]}, "'b' is of type string; ks compares"),
    ],
)
def test_a_table_check_that_cannot_be_made_is_refused(check, contract, message):
    with pytest.raises(BadInputError, match=message):
        check({"a": [1], "b": ["x"]}, columns(a="integer", b="string") | contract)


# Tables -----------------------------------------------------------------------------------------------------


def test_up_to_the_tolerated_share_the_rest_goes_on(check):
    rows = {"age": [*[30] * 97, -1, -2, -3]}

    result = check(rows, columns(age={"type": "integer", "min": 0}) | {"max_invalid_share": 0.03})

    assert result.verdict is Verdict.PASS
    assert (result.silver.rows, result.quarantine.rows) == (97, 3)
    assert finding(result, "min", "age").failures == 3
    require_contract([result])


@pytest.mark.parametrize("share", [0.07, 0.29, 0.57, 0.58])
def test_a_share_at_the_limit_to_the_row_is_tolerated(check, share):
    bad = round(share * 100)

    result = check(
        {"age": [*[30] * (100 - bad), *[-1] * bad]},
        columns(age={"type": "integer", "min": 0}) | {"max_invalid_share": share},
    )

    assert result.verdict is Verdict.PASS


def test_above_it_the_run_stops_with_table_column_and_counts(check):
    result = check(
        {"age": [*[30] * 90, *[-1] * 10]},
        columns(age={"type": "integer", "min": 0}) | {"max_invalid_share": 0.05},
    )

    with pytest.raises(ContractBroken) as broken:
        require_contract([result], report="reports/contract.html")

    assert str(broken.value).splitlines() == [
        "table 'visits': contract fail, 10 of 100 rows invalid (10.00%, at most 5.00% allowed)",
        "  age: min: 10 rows, e.g. row 91",
        "  invalid_share: 10 of 100 rows failed at least one check",
        "see reports/contract.html",
    ]


def test_faults_that_only_together_are_too_many_are_all_named(check):
    rows = {"a": [*[1] * 98, -1, 1], "b": [*[1] * 98, 1, -1]}
    contract = columns(a={"type": "integer", "min": 0}, b={"type": "integer", "min": 0})

    result = check(rows, contract | {"max_invalid_share": 0.01})

    with pytest.raises(
        ContractBroken, match=r"(?s)a: min: 1 rows, e\.g\. row 99.*b: min: 1 rows, e\.g\. row 100"
    ):
        require_contract([result])


def test_tables_that_pass_are_not_mentioned(check):
    good, bad = check({"a": [1]}, columns(a="integer")), check({"a": ["x"]}, columns(a="integer"))

    require_contract([good, good])
    with pytest.raises(ContractBroken) as broken:
        require_contract([good, bad])

    assert str(broken.value).count("table 'visits'") == 1


def test_where_no_row_is_valid_there_is_no_silver_and_the_old_one_stays(check, platform):
    before = check({"a": ["1"]}, columns(a="integer")).silver

    result = check({"a": ["x", "y"]}, columns(a="integer") | {"max_invalid_share": 0.9})

    assert (result.silver, result.verdict, result.invalid_rows) == (None, Verdict.FAIL, 2)
    assert result.quarantine.rows == 2
    assert platform.tables.latest("silver/shop/visits") == before


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [({"min": 3}, "pass"), ({"min": 4}, "fail"), ({"max": 4}, "pass"), ({"max": 3}, "fail"), ({}, "pass")],
)
def test_row_bounds_ask_for_enough_valid_rows_and_not_too_many_at_all(check, bounds, verdict):
    contract = columns(a="integer") | {"rows": bounds, "max_invalid_share": 0.5}

    result = check({"a": ["1", "2", "3", "x"]}, contract)

    assert finding(result, "rows").verdict == verdict
    assert result.verdict == verdict


@pytest.mark.parametrize(("wanted", "verdict"), [(0.55, "pass"), (0.56, "fail")])
def test_completeness_counts_what_is_missing_and_what_did_not_fit(check, wanted, verdict):
    declared = {"type": "integer", "nullable": True, "min_completeness": wanted}
    values = ["1"] * 55 + [None] * 44 + ["x"]

    result = check({"a": text(*values)}, columns(a=declared) | {"max_invalid_share": 0.01})

    found = finding(result, "completeness", "a")
    assert (found.verdict, found.failures, found.value) == (verdict, 45, 0.55)


def fresh(kind, days=2.0):
    return columns(seen={"type": kind, "nullable": True, "max": "2025-12-31"}) | {
        "freshness": {"column": "seen", "max_age_days": days},
        "max_invalid_share": 0.9,
    }


@pytest.mark.parametrize(
    ("newest", "verdict"),
    [
        (CLOCK - timedelta(days=2), "pass"),
        (CLOCK - timedelta(days=2, seconds=1), "fail"),
        (CLOCK, "pass"),
    ],
)
def test_freshness_is_the_age_of_the_newest_row(check, newest, verdict):
    old = CLOCK - timedelta(days=90)

    result = check({"seen": [old, newest, None, old]}, fresh("timestamp"))

    found = finding(result, "freshness", "seen")
    assert (found.verdict, found.threshold) == (verdict, 2.0)
    assert found.value == pytest.approx((CLOCK - newest).total_seconds() / 86_400)


def test_freshness_of_days_counts_from_their_midnight(check):
    result = check({"seen": [date(2025, 6, 29), date(2025, 6, 1)]}, fresh("date"))

    assert finding(result, "freshness", "seen").value == 1.5


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param([CLOCK - timedelta(days=90), CLOCK + timedelta(days=1)], id="a row from the future"),
        pytest.param([CLOCK - timedelta(days=90), datetime(2026, 5, 1, tzinfo=UTC)], id="an invalid row"),
        pytest.param([None, None], id="no value at all"),
        pytest.param([CLOCK + timedelta(days=1)], id="nothing but the future"),
    ],
)
def test_nothing_that_does_not_count_makes_a_table_fresh(check, seen):
    result = check({"seen": pa.array(seen, pa.timestamp("us", "UTC"))}, fresh("timestamp"))

    assert finding(result, "freshness", "seen").verdict is Verdict.FAIL
    assert result.verdict is Verdict.FAIL


def test_a_column_that_is_not_there_fails_and_takes_its_rules_with_it(check):
    contract = columns(a="integer", b={"type": "timestamp", "nullable": True}) | rule(
        "b > '2025-01-01'::timestamp OR a = 1"
    )
    contract |= {"freshness": {"column": "b", "max_age_days": 1}, "unique": [["b"]]}
    contract |= {"rules": [{"name": "rule", "expression": "b IS NULL OR a = 1"}]}

    result = check({"a": [1]}, contract)

    assert finding(result, "present", "b").verdict is Verdict.FAIL
    assert finding(result, "freshness", "b").verdict is Verdict.FAIL
    with pytest.raises(ContractBroken, match="b: present: the table has no such column"):
        require_contract([result])


# Distribution -----------------------------------------------------------------------------------------------

SHIFTED = columns(amount="number", kind="string") | {
    "distribution": [
        {"column": "amount", "test": "psi", "max": 0.2},
        {"column": "amount", "test": "ks", "max": 0.15},
        {"column": "kind", "test": "jensen_shannon", "max": 0.2},
    ]
}


def sample(seed, mean=0.0, common=0.7, rows=2_000):
    draw = random.Random(seed)
    return {
        "amount": [draw.gauss(mean, 1) for _ in range(rows)],
        "kind": ["a" if draw.random() < common else "b" for _ in range(rows)],
    }


def distribution(result):
    return {
        (item.check, item.column): item.verdict.value
        for item in result.checks
        if item.check in {"psi", "ks", "jensen_shannon"}
    }


def test_without_a_champion_there_is_nothing_to_compare_with_and_that_is_said(check):
    result = check(sample(1), SHIFTED)

    assert result.verdict is Verdict.PASS
    assert distribution(result) == {}
    assert result.notes == ("3 distribution checks not run: there is no champion to compare with",)


def test_the_same_distribution_passes_and_a_shift_fails(check):
    reference = check(sample(1), SHIFTED).silver

    same = check(sample(2), SHIFTED, reference)
    shifted = check(sample(3, mean=1.0, common=0.2), SHIFTED, reference)

    assert set(distribution(same).values()) == {"pass"}
    assert set(distribution(shifted).values()) == {"fail"}
    assert same.notes == ()
    with pytest.raises(ContractBroken, match=r"amount: psi: against silver/shop/visits v0"):
        require_contract([shifted])


def test_a_column_that_the_champion_never_saw_is_inconclusive_and_stops_the_run(check, platform):
    reference = platform.tables.write("old", pa.table({"amount": [1.0, 2.0, 3.0]}).to_reader())
    rows = {"amount": [1.0, 2.0, 3.0], "kind": ["a", "a", "b"]}
    contract = columns(amount="number", kind="string") | {"distribution": [{"column": "kind", "max": 0.1}]}

    result = check(rows, contract, reference)

    assert finding(result, "psi", "kind").verdict is Verdict.INCONCLUSIVE
    assert result.verdict is Verdict.INCONCLUSIVE
    with pytest.raises(
        ContractBroken, match=r"contract inconclusive.*\n.*kind: psi: the champion's training snapshot"
    ):
        require_contract([result])


def test_a_column_without_a_single_value_is_inconclusive(check):
    contract = columns(a={"type": "number", "nullable": True}) | {
        "distribution": [{"column": "a", "max": 0.1}]
    }
    reference = check({"a": [1.0, 2.0]}, contract).silver

    result = check({"a": pa.array([None, None], pa.float64())}, contract, reference)

    found = finding(result, "psi", "a")
    assert (found.verdict, found.value) == (Verdict.INCONCLUSIVE, None)
    assert found.reason.startswith("no values to compare with silver/shop/visits v0")


def test_dates_are_compared_as_times(check):
    contract = columns(day="date") | {"distribution": [{"column": "day", "test": "ks", "max": 0.1}]}
    days = [date(2025, 1, 1) + timedelta(days=number) for number in range(100)]
    reference = check({"day": days}, contract).silver

    later = check({"day": [day + timedelta(days=50) for day in days]}, contract, reference)

    assert finding(later, "ks", "day").value == pytest.approx(0.5)


def test_large_tables_are_compared_by_a_seeded_sample(check, monkeypatch):
    monkeypatch.setattr(validate, "_DISTRIBUTION_ROWS", 300)
    reference = check(sample(1), SHIFTED).silver

    first, again = check(sample(2), SHIFTED, reference), check(sample(2), SHIFTED, reference)

    assert first.model_dump() == again.model_dump()
    assert finding(first, "ks", "amount").value > 0


# Personal data, and who may switch a check off --------------------------------------------------------------


def test_personal_data_reaches_neither_results_nor_silver_nor_quarantine(platform, tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    (folder / "model.yaml").write_text(PEOPLE)
    (folder / "people.csv").write_text(
        "id,name,mail,age\n1,Ada Lovelace,ada@example.org,x\n2,Alan Turing,alan@example.org,40\n"
    )
    loaded = load_spec(folder / "model.yaml")

    bronze = ingest_table(loaded, platform, "people", loaded.spec.sources["people"])
    result = validate_table(
        loaded.spec.contract["people"], platform, model="people", table="people", bronze=bronze
    )

    assert (result.silver.rows, result.quarantine.rows) == (1, 1)
    said = result.model_dump_json() + str(platform.tables.read(result.quarantine).to_pylist())
    assert not any(word in said for word in ("Lovelace", "Turing", "example.org"))
    for path in (file for file in platform.root.rglob("*") if file.is_file()):
        assert not any(word in path.read_bytes() for word in (b"Lovelace", b"Turing", b"example.org")), path


PEOPLE = """
name: people
governance: {owner: shop, purpose: A test.}
target: {kind: regression, column: age}
sources: {people: {kind: csv, path: people.csv}}
contract:
  people:
    max_invalid_share: 0.6
    columns:
      id: {type: string}
      name: {type: string, pii: drop}
      mail: {type: string, pii: hash}
      age: {type: integer}
    unique: [[mail]]
features: {entity: [id], categorical: [mail]}
training:
  metric: rmse
  candidates: [{name: one, estimator: sklearn.linear_model.Ridge}]
evaluation: {metrics: [rmse]}
gates: [{kind: metric, metric: rmse, max: 5}]
"""

SWITCHED_OFF = """
from deployments.contract import TableContract
from tasks.validate import Failures, check_chunk, compile_schema
import polars as pl

contract = TableContract(columns={"a": {"type": "integer", "min": 0}})
_, found = check_chunk(pl.DataFrame({"a": [1, -1, None]}), contract, compile_schema(contract), Failures(), 0)
print(sorted(name for _, name in found))
"""


@pytest.mark.slow
def test_no_environment_variable_switches_checks_off():
    finished = subprocess.run(
        [sys.executable, "-c", SWITCHED_OFF],
        cwd=ROOT,
        env=os.environ | {"PANDERA_VALIDATION_ENABLED": "False", "PANDERA_VALIDATION_DEPTH": "SCHEMA_ONLY"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert finished.stdout.strip() == "['min', 'not_null']"


def test_the_formats_of_moments_name_no_day_that_could_be_another():
    assert all(pattern.startswith("%Y-%m-%d") for pattern in coercion._MOMENTS)


# The public file --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not TELCO.exists(), reason=f"the public telecom file is not at {TELCO}")
def test_the_public_telecom_file_keeps_its_contract(platform):
    loaded = load_spec("telco")
    source = loaded.spec.sources["customers"].model_copy(update={"path": str(TELCO)})
    bronze = ingest_table(loaded, platform, "customers", source)

    result = validate_table(
        loaded.spec.contract["customers"], platform, model="telco", table="customers", bronze=bronze
    )

    assert (result.verdict, result.rows, result.invalid_rows) == (Verdict.PASS, 7_043, 0)
    assert finding(result, "completeness", "TotalCharges").failures == 11
    silver = platform.tables.read(result.silver)
    assert silver["TotalCharges"].null_count == 11
    assert silver.schema.field("TotalCharges").type == pa.float64()
    assert result.quarantine is None
    require_contract([result])
