"""Requests become typed columns, or a refusal that says where; never anything else."""

import json
from datetime import datetime

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.served_model import ServedColumn, ServedModel
from serving.signature import BadRequestError, Signature

COLUMNS = (
    ServedColumn(name="age", kind="double", required=True),
    ServedColumn(name="income", kind="double", required=False),
    ServedColumn(name="visits", kind="long", required=True),
    ServedColumn(name="small", kind="integer", required=True),
    ServedColumn(name="member", kind="boolean", required=True),
    ServedColumn(name="plan", kind="string", required=True),
    ServedColumn(name="city", kind="string", required=False),
    ServedColumn(name="since", kind="datetime", required=False),
)
ROW = {
    "age": 41.5,
    "income": 1200,
    "visits": 7,
    "small": -3,
    "member": True,
    "plan": "basic",
    "city": "Köln",
    "since": "2026-01-31T12:00:00+01:00",
}


def served(columns=COLUMNS, **other) -> ServedModel:
    return ServedModel(
        name="churn",
        version="3",
        model="models:/churn/3",
        model_digest="0" * 64,
        run_id="run",
        flavor="skops",
        engine="sklearn",
        engine_reason="",
        columns=columns,
        **other,
    )


SIGNATURE = Signature(served(entity=("customer_id",)), max_rows=1000)


def read(document, signature=SIGNATURE):
    return signature.read(orjson.dumps(document))


def row(**changes):
    return ROW | changes


def records(*rows):
    return {"dataframe_records": list(rows)}


def split(*rows, columns=tuple(ROW)):
    return {
        "dataframe_split": {
            "columns": list(columns),
            "data": [[one[name] for name in columns] for one in rows],
        }
    }


def refused(document, signature=SIGNATURE) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        read(document, signature)
    return caught.value


def columns_of(rows, names=tuple(ROW)):
    return {name: [one[name] for one in rows] for name in names}


CSV = (
    "age,income,visits,small,member,plan,city,since\n"
    '41.5,1200,7,-3,true,basic,"Köln",2026-01-31T12:00:00+01:00\n'
)


@pytest.mark.parametrize(
    "body",
    [
        orjson.dumps(split(ROW)),
        orjson.dumps(split(ROW, columns=tuple(reversed(ROW)))),
        orjson.dumps({"dataframe_split": split(ROW)["dataframe_split"] | {"index": [17]}}),
        orjson.dumps(records(ROW)),
        orjson.dumps({"inputs": columns_of([ROW])}),
        orjson.dumps({"inputs": ROW}),
        orjson.dumps({"inputs": [ROW]}),
        orjson.dumps({"inputs": [list(ROW.values())]}),
        orjson.dumps({"instances": [ROW]}),
        orjson.dumps({"instances": [list(ROW.values())]}),
        orjson.dumps({"params": {}, "client_request_id": "mine"} | records(ROW)),
        CSV.encode(),
        ("\ufeff" + CSV.replace("\n", "\r\n") + "\r\n").encode(),
        ("," + CSV.replace("\n41.5", "\n0,41.5")).encode(),
    ],
)
def test_every_protocol_gives_the_same_columns(body) -> None:
    content_type = "application/json" if body.startswith(b"{") else "text/csv"

    request = SIGNATURE.read(body, content_type)

    assert request.rows == 1
    assert request.keys is None
    assert set(request.columns) == set(ROW)
    assert {name: values.dtype.str[1:] for name, values in request.columns.items()} == {
        "age": "f8",
        "income": "f8",
        "visits": "i8",
        "small": "i8",
        "member": "b1",
        "plan": "O",
        "city": "O",
        "since": "M8[us]",
    }
    assert {name: values.tolist() for name, values in request.columns.items()} == {
        "age": [41.5],
        "income": [1200.0],
        "visits": [7],
        "small": [-3],
        "member": [True],
        "plan": ["basic"],
        "city": ["Köln"],
        "since": [datetime(2026, 1, 31, 11)],  # noqa: DTZ001
    }


def test_many_rows_are_the_rows_one_by_one() -> None:
    rows = [row(age=float(place), city=None if place % 3 else "Bonn", visits=place) for place in range(50)]

    together = read(split(*rows)).columns

    for place, one in enumerate(rows):
        alone = read(records(one)).columns
        for name, values in alone.items():
            np.testing.assert_array_equal(together[name][place : place + 1], values)


def test_what_is_optional_may_be_null_or_absent() -> None:
    null = read(records(row(income=None, city=None, since=None))).columns
    absent = read(records({name: ROW[name] for name in ("age", "visits", "small", "member", "plan")})).columns

    for columns in (null, absent):
        assert np.isnan(columns["income"][0])
        assert columns["city"][0] is None
        assert np.isnat(columns["since"][0])


def test_records_may_differ_in_the_optional_columns_they_have_and_in_their_order() -> None:
    without = {name: value for name, value in ROW.items() if name != "income"}
    turned = dict(reversed(ROW.items()))

    request = read(records(ROW, without, turned))

    np.testing.assert_array_equal(request.columns["income"], [1200.0, np.nan, 1200.0])
    assert request.columns["visits"].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"age": "41"}, "column 'age', row 0: \"41\" is text, and a number is wanted"),
        ({"age": True}, "true is a boolean"),
        ({"age": None}, "it is null, and required"),
        ({"age": [1]}, "it is a list"),
        ({"income": {"a": 1}}, "it is an object"),
        ({"visits": 1.5}, "1.5 is a fraction"),
        ({"visits": 2**63}, "does not fit into 64 bits"),
        ({"visits": 1e30}, "does not fit into 64 bits"),
        ({"visits": 9007199254740994.0}, "too large to be exact"),
        ({"visits": True}, "true is a boolean"),
        ({"visits": "7"}, "is text, and a whole number is wanted"),
        ({"small": 2**31}, "2147483648 does not fit into 32 bits"),
        ({"small": -(2**31) - 1}, "does not fit into 32 bits"),
        ({"member": 1}, "1 is a number, and true or false is wanted"),
        ({"member": None}, "it is null, and required"),
        ({"plan": 3}, "3 is a number, and text is wanted; put it in quotes"),
        ({"plan": None}, "it is null, and required"),
        ({"since": "yesterday"}, "is not an ISO 8601 date and time"),
        ({"since": 1767225600}, "is a number, and an ISO 8601 date and time in quotes is wanted"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "is not an ISO 8601"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_column_and_row(changes, said) -> None:
    alone = refused(records(row(**changes)))
    third = refused(split(ROW, ROW, row(**changes)))

    assert alone.status == third.status == 400
    assert said in str(alone)
    (name,) = changes
    assert f"column {name!r}, row 2" in str(third)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert read(records(row(visits=7.0))).columns["visits"].tolist() == [7]


def test_the_largest_integers_pass_unchanged() -> None:
    request = read(split(row(visits=2**63 - 1), row(visits=-(2**63))))

    assert request.columns["visits"].tolist() == [2**63 - 1, -(2**63)]


def test_only_the_first_few_bad_values_are_listed() -> None:
    message = str(refused(split(*[row(age="x")] * 500)))

    assert message.count("column 'age'") == 5
    assert len(message) < 600


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "the body is a list"),
        (3, "the body is a number"),
        ({}, "an empty object"),
        ({"rows": []}, 'the key "rows"'),
        (records(ROW) | {"inputs": []}, "exactly one of"),
        (records(ROW) | {"extra": 1}, 'unknown key "extra"'),
        (records(ROW) | {"params": {"k": 1}}, "takes no parameters"),
        ({"dataframe_split": []}, "it must be an object"),
        ({"dataframe_split": {"data": [[1]]}}, "must have a list 'columns'"),
        ({"dataframe_split": {"columns": ["age"]}}, "must have a list 'data'"),
        ({"dataframe_split": {"columns": ["age"], "data": [], "dtypes": []}}, 'unknown key "dtypes"'),
        ({"dataframe_split": split(ROW)["dataframe_split"] | {"index": [1, 2]}}, "'index' is not a list"),
        ({"dataframe_split": {"columns": [["age"]], "data": [[1]]}}, "the name of column 0 is a list"),
        ({"dataframe_split": {"columns": list(ROW), "data": []}}, "no rows"),
        ({"dataframe_split": {"columns": list(ROW), "data": [1]}}, "row 0: it is a number"),
        (
            {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values()), [1]]}},
            "row 1: it has 1 values",
        ),
        (
            {"dataframe_split": {"columns": ["age", "age"], "data": [[1, 2]]}},
            'column "age" stands more than once',
        ),
        ({"dataframe_records": ROW}, "must be a list of objects"),
        ({"dataframe_records": []}, "no rows"),
        ({"dataframe_records": [ROW, 4]}, "row 1: it is a number"),
        ({"inputs": "x"}, "inputs is text"),
        ({"inputs": columns_of([ROW]) | {"age": [1, 2]}}, "others have"),
        ({"inputs": columns_of([ROW]) | {"age": 1}}, "others are lists"),
        ({"instances": []}, "no rows"),
        ({"instances": [[1, 2]]}, "row 0: it has 2 values, and there are 8 columns"),
        ({"instances": [1, 2]}, "row 0: it is a number"),
        (records(row(agee=1)), "did you mean 'age'?"),
        (records(ROW, row(agee=1)), "row 1: column \"agee\" is not one of the model's; did you mean 'age'?"),
        (
            records(ROW, {name: ROW[name] for name in ROW if name != "plan"}),
            "column 'plan', row 1: it is missing",
        ),
        (records({name: ROW[name] for name in ROW if name != "plan"}), "column 'plan' is missing"),
        (records({"city": "Bonn"}), "are missing"),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused_with_the_reason(document, said) -> None:
    error = refused(document)

    assert error.status == 400
    assert said in str(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not JSON"),
        (b'{"dataframe_records": [{"age": 1,}]}', "line 1, column"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"inputs": [[NaN' + b"[" * 100_000, "the body is not JSON"),
        (b'{"inputs": "\xff"}', "the body is not JSON"),
        (b'{"inputs": "NaN \xff"}', "the body is not JSON"),
        (b'{"inputs": "\\ud800"}', "the body is not JSON"),
        (b'{"inputs": ["\\ud800", NaN]}', "the body is not JSON"),
        (b'{"inputs": [NaN, ' + b"1" * 5000 + b"]}", "the body is not JSON"),
        ('{"inputs": NaN}'.encode("utf-16"), "the body is not JSON"),
    ],
)
def test_what_is_no_json_is_refused(body, said) -> None:
    with pytest.raises(BadRequestError, match=said) as caught:
        SIGNATURE.read(body)

    assert caught.value.status == 400
    assert len(str(caught.value)) < 300


def test_nan_is_missing_where_that_is_allowed_and_is_named_where_not() -> None:
    allowed = SIGNATURE.read(json.dumps(records(row(income=float("nan")))).encode())
    with pytest.raises(BadRequestError) as nan:
        SIGNATURE.read(json.dumps(records(ROW, row(age=float("nan")))).encode())
    with pytest.raises(BadRequestError) as infinite:
        SIGNATURE.read(json.dumps(records(row(income=float("inf")))).encode())

    assert np.isnan(allowed.columns["income"][0])
    assert "column 'age', row 1: it is NaN, and required" in str(nan.value)
    assert "column 'income', row 0: inf is not a finite number" in str(infinite.value)


def test_too_many_rows_are_refused_with_413() -> None:
    narrow = Signature(served(COLUMNS), max_rows=2)

    assert refused(records(ROW, ROW, ROW), narrow).status == 413
    assert refused({"inputs": columns_of([ROW] * 3)}, narrow).status == 413
    with pytest.raises(BadRequestError) as caught:
        narrow.read((CSV + CSV.splitlines()[1] + "\n" + CSV.splitlines()[1] + "\n").encode(), "text/csv")
    assert caught.value.status == 413
    assert read(records(ROW, ROW), narrow).rows == 2


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", None),
        ("Application/JSON; charset=UTF-8", None),
        ('application/json; charset="utf-8"', None),
        ("", None),
        ("application/x-www-form-urlencoded", None),
        ("application/json; charset=latin-1", 415),
        ("application/vnd.apache.parquet", 415),
        ("text/plain", 415),
    ],
)
def test_the_content_type_is_looked_at(content_type, status) -> None:
    body = orjson.dumps(records(ROW))

    if status is None:
        assert SIGNATURE.read(body, content_type).rows == 1
    else:
        with pytest.raises(BadRequestError) as caught:
            SIGNATURE.read(body, content_type)
        assert caught.value.status == status


def test_a_form_is_not_taken_for_json() -> None:
    with pytest.raises(BadRequestError) as caught:
        SIGNATURE.read(b"age=1&income=2", "application/x-www-form-urlencoded")

    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the body is empty"),
        ("age,visits\n", "no rows"),
        (CSV.replace("41.5", "1_000"), "column 'age', row 0: \"1_000\" is text"),
        (CSV.replace("41.5", "infinity"), "is text"),
        (CSV.replace("41.5", "1e999"), "inf is not a finite number"),
        (CSV.replace("41.5", ""), "it is null, and required"),
        (CSV.replace(",7,", ",7.5,"), "7.5 is a fraction"),
        (CSV.replace(",7,", f",{'9' * 25},"), "does not fit into 64 bits"),
        (CSV.replace("true", "yes"), "true or false is wanted"),
        (CSV.replace("basic,", "basic,more,"), "row 0: it has 9 values, and there are 8 columns"),
        (CSV.replace('"Köln"', '"Kö"ln'), "the body is not CSV"),
        (CSV.replace("age,", "agee,"), "did you mean 'age'"),
        (CSV.replace("Köln", "x" * 200_000), "the body is not CSV"),
    ],
)
def test_csv_is_checked_like_json(text, said) -> None:
    with pytest.raises(BadRequestError) as caught:
        SIGNATURE.read(text.encode(), "text/csv")

    assert caught.value.status == 400
    assert said in str(caught.value)


def test_csv_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadRequestError, match="not UTF-8"):
        SIGNATURE.read(CSV.encode("latin-1"), "text/csv")


def test_entity_columns_beside_features_are_keys() -> None:
    request = read(split(row(customer_id="a"), row(customer_id=7), columns=("customer_id", *ROW)))

    assert request.keys == {"customer_id": ["a", 7]}
    assert "customer_id" not in request.columns
    assert not request.needs_lookup


def test_entity_columns_alone_ask_for_a_look_up() -> None:
    for document in (
        records({"customer_id": "a"}, {"customer_id": "b"}),
        {"inputs": {"customer_id": ["a", "b"]}},
    ):
        request = read(document)

        assert request.needs_lookup
        assert request.rows == 2
        assert request.keys == {"customer_id": ["a", "b"]}


def test_a_key_is_one_value_and_not_null() -> None:
    two = Signature(served(entity=("shop", "customer")))

    assert "a key cannot be null" in str(refused(records({"customer_id": None})))
    assert "cannot be a key" in str(refused(records({"customer_id": [1]})))
    assert "the entity column 'customer' is missing" in str(refused(records({"shop": 1}), two))
    assert "column 'customer', row 1: it is missing" in str(
        refused(records({"shop": 1, "customer": 2}, {"shop": 1}), two)
    )


def test_a_request_without_features_is_told_of_the_keys() -> None:
    assert "send 'customer_id' alone" in str(refused(records({"income": 3})))


def test_the_value_of_a_personal_column_is_not_repeated() -> None:
    personal = Signature(served(hashed=("plan",), hidden=("age",)))

    message = str(refused(records(row(plan=12345, age="secret")), personal))

    assert "12345" not in message
    assert "secret" not in message
    assert "column 'plan', row 0: the value is a number" in message


def test_stored_features_become_the_columns_that_training_saw() -> None:
    stored = {
        "age": 41,
        "income": None,
        "visits": 7,
        "small": 1,
        "member": True,
        "plan": 3,
        "city": None,
        "since": datetime(2026, 1, 31),  # noqa: DTZ001
    }

    columns = SIGNATURE.complete([stored])

    assert columns["age"].tolist() == [41.0]
    assert np.isnan(columns["income"][0])
    assert columns["plan"].tolist() == ["3"]
    assert columns["city"].tolist() == [None]
    assert columns["since"][0] == np.datetime64("2026-01-31T00:00:00")
    with pytest.raises(BadRequestError, match="column 'age', row 0: it is null, and required") as caught:
        SIGNATURE.complete([stored | {"age": None}])
    assert caught.value.status == 404


def test_a_feature_that_was_never_published_is_not_taken_for_null() -> None:
    stored = {"age": 41, "income": None, "visits": 7, "small": 1, "member": True, "plan": 3}
    stored["since"] = datetime(2026, 1, 31)  # noqa: DTZ001

    with pytest.raises(BadRequestError, match="column 'city', row 0: it is not among them") as caught:
        SIGNATURE.complete([stored, stored])
    assert caught.value.status == 404


def test_a_missing_value_in_an_optional_integer_column_makes_it_floats() -> None:
    signature = Signature(served((ServedColumn(name="n", kind="long", required=False),)))

    assert read({"inputs": [1, 2]}, signature).columns["n"].dtype == np.int64
    np.testing.assert_array_equal(read({"inputs": [1, None]}, signature).columns["n"], [1.0, np.nan])


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.just("2026-01-31"),
    st.lists(st.integers(0, 9), max_size=2),
)


@given(
    st.lists(
        st.fixed_dictionaries({name: st.one_of(st.just(value), CELLS) for name, value in ROW.items()}),
        min_size=1,
        max_size=4,
    )
)
def test_split_records_and_columns_agree_on_every_body(rows) -> None:
    def outcome(document):
        try:
            request = read(document)
        except BadRequestError as error:
            return str(error)
        return {name: values.tolist().__repr__() for name, values in sorted(request.columns.items())}

    by_row = outcome(records(*rows))

    assert outcome(split(*rows)) == by_row
    assert outcome({"instances": rows}) == by_row
    if not any(isinstance(value, list) for one in rows for value in one.values()):
        assert outcome({"inputs": columns_of(rows)}) == by_row
