"""The OpenAPI document says what the scorer takes: its schemas accept what is answered, and refuse what is not."""

from html.parser import HTMLParser

import orjson
import pytest
from jsonschema import Draft202012Validator

from serving import openapi
from serving.served_model import ServedColumn, ServedModel
from serving.signature import BadRequestError, Signature

COLUMNS = (
    ServedColumn(name="age", kind="double", required=True),
    ServedColumn(name="visits", kind="long", required=True),
    ServedColumn(name="small", kind="integer", required=False),
    ServedColumn(name="member", kind="boolean", required=True),
    ServedColumn(name="city", kind="string", required=False),
    ServedColumn(name="since", kind="datetime", required=True),
)
ROW = {
    "age": 41.5,
    "visits": 7,
    "small": None,
    "member": True,
    "city": "<b>Bonn</b>",
    "since": "2026-01-31T12:00:00",
}


def served(**changes) -> ServedModel:
    given = {
        "name": "churn",
        "version": "3",
        "model": "m",
        "model_digest": "0" * 64,
        "run_id": "run",
        "flavor": "skops",
        "engine": "onnx",
        "engine_reason": "",
        "columns": COLUMNS,
        "target": "binary",
        "positive": "yes",
        "entity": ("customer_id",),
        "example": (ROW,),
    }
    return ServedModel(**given | changes)


def validator(document, name: str) -> Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return Draft202012Validator(schema)


def references(node) -> list[str]:
    if isinstance(node, list):
        return [found for item in node for found in references(item)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"]] if "$ref" in node else []
    return own + [found for item in node.values() for found in references(item)]


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    document = openapi.document(served(), "churn")

    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    assert document["openapi"] == "3.1.0"
    assert {"title", "version"} <= set(document["info"])
    assert document["servers"] == [{"url": "/serving-endpoints/churn"}]
    assert orjson.loads(orjson.dumps(document)) == document


def test_every_example_fits_the_schema_and_is_taken_by_the_scorer() -> None:
    model = served()
    document = openapi.document(model, "churn")
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    signature = Signature(model)

    assert {"dataframe_split", "dataframe_records", "inputs", "instances", "entity_key"} == set(
        content["examples"]
    )
    for example in content["examples"].values():
        validator(document, "Request").validate(example["value"])
        assert signature.read(orjson.dumps(example["value"])).rows == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"age": "x"},
        {"age": None},
        {"visits": 1.5},
        {"visits": 2**63},
        {"small": 2**31},
        {"member": 1},
        {"city": 3},
        {"since": 5},
        {"other": 1},
    ],
)
def test_schema_and_scorer_refuse_the_same_values(changes) -> None:
    model = served()
    document = openapi.document(model, "churn")
    request = {"dataframe_records": [ROW | changes]}

    assert not validator(document, "Request").is_valid(request)
    with pytest.raises(BadRequestError):
        Signature(model).read(orjson.dumps(request))


def test_a_row_without_what_is_optional_fits_and_without_what_is_required_does_not() -> None:
    document = openapi.document(served(), "churn")
    rows = validator(document, "Row")

    assert rows.is_valid({name: value for name, value in ROW.items() if name not in {"small", "city"}})
    assert not rows.is_valid({name: value for name, value in ROW.items() if name != "age"})


def test_answers_are_described_by_the_kind_of_target() -> None:
    binary = validator(openapi.document(served(), "churn"), "Answer")
    regression = openapi.document(served(target="regression", positive=None), "price")

    assert binary.is_valid({"predictions": ["yes"], "scores": [0.7]})
    assert not binary.is_valid({"predictions": ["yes"], "scores": [1.7]})
    assert "scores" not in regression["components"]["schemas"]["Answer"]["properties"]


def test_a_model_without_example_or_entity_has_an_example_of_the_right_types() -> None:
    model = served(example=(), entity=())
    document = openapi.document(model, "churn")
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]

    assert "entity_key" not in content["examples"]
    assert "Key" not in document["components"]["schemas"]
    for example in content["examples"].values():
        assert Signature(model).read(orjson.dumps(example["value"])).rows == 1


class Resources(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in {"src", "href"}]


def test_the_page_shows_columns_and_loads_nothing_from_elsewhere() -> None:
    page = openapi.page(openapi.document(served(), "churn"))
    seen = Resources()
    seen.feed(page)

    assert seen.found == ["openapi.json"]
    assert {"script", "link", "img", "iframe", "b"}.isdisjoint(seen.tags)
    assert "&lt;b&gt;Bonn" in page
    for column in COLUMNS:
        assert f"<td>{column.name}</td>" in page
