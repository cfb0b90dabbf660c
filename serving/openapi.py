"""An endpoint's OpenAPI document, made from the columns of a served version, and a page for people to read it on."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import orjson

from serving.served_model import ServedColumn, ServedModel

Document = dict[str, Any]

_SCHEMAS: Mapping[str, Document] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "string": {"type": "string"},
    "datetime": {"type": "string", "description": "ISO 8601; without an offset it is UTC."},
}
_SOUGHT = {"boolean": True, "integer": 0, "long": 0, "float": 0.0, "double": 0.0, "string": ""}
_A_MOMENT = "2026-01-31T12:00:00"

_ERRORS = {
    "400": "The request does not fit the model: `message` names column and row.",
    "401": "No API key, or none that is known.",
    "404": "Nothing is known of an entity key.",
    "405": "The path takes another method.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, or has too many rows.",
    "415": "The body is neither JSON nor CSV, or not UTF-8.",
    "429": "Too many requests wait; `retry-after` says when to come again.",
    "500": "The model failed.",
    "503": "No worker is ready, or the request cannot be logged.",
    "504": "The model took too long.",
}


def document(served: ServedModel, endpoint: str) -> Document:
    """An OpenAPI 3.1 document of one endpoint, with paths below `/serving-endpoints/<endpoint>`."""
    example = _example(served)
    operation: Document = {
        "operationId": "invoke",
        "summary": f"Ask {served.name} about some rows",
        "parameters": [
            {
                "name": "x-request-id",
                "in": "header",
                "description": "Comes back with the answer, and stands in the prediction log.",
                "schema": {"type": "string", "maxLength": 128},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/Request"},
                    "examples": _examples(served, example),
                },
                "text/csv": {
                    "schema": {"type": "string", "description": "A line of column names, then a line a row."}
                },
            },
        },
        "responses": {"200": _answered()}
        | {status: _refused(status, said) for status, said in _ERRORS.items()},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": endpoint,
            "version": served.version,
            "description": f"{served.name} version {served.version}.",
        },
        "servers": [{"url": f"/serving-endpoints/{endpoint}"}],
        "paths": {
            "/invocations": {"post": operation},
            "/ping": {"get": _page("Whether a worker is ready", "application/json")},
            "/health": {"get": _page("A worker's state and its last minute", "application/json")},
            "/version": {"get": _page("Which version answers", "application/json")},
            "/metrics": {"get": _page("Prometheus metrics of a worker", "text/plain")},
        },
        "components": {"schemas": _components(served), "headers": _HEADERS, "responses": {}},
    }


def _components(served: ServedModel) -> Document:
    """Schemas of rows, requests and answers; with entity columns, also of a row that is only its key."""
    columns = {column.name: _column(column) for column in served.columns}
    keys: Document = {name: _KEY for name in served.entity if name not in columns}
    row: Document = {
        "type": "object",
        "properties": columns | keys,
        "required": [column.name for column in served.columns if column.required],
        "additionalProperties": False,
    }
    schemas: Document = {"Row": row}
    rows = [{"$ref": "#/components/schemas/Row"}]
    if served.entity:
        schemas["Key"] = {
            "type": "object",
            "description": "Features are looked up among those published for the endpoint.",
            "properties": dict.fromkeys(served.entity, _KEY),
            "required": list(served.entity),
            "additionalProperties": False,
        }
        rows.append({"$ref": "#/components/schemas/Key"})
    records = {"type": "array", "minItems": 1, "items": rows[0] if len(rows) == 1 else {"anyOf": rows}}
    names = list(dict.fromkeys([*columns, *served.entity]))
    split: Document = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"enum": names}, "uniqueItems": True},
            "data": {"type": "array", "minItems": 1, "items": {"type": "array"}},
            "index": {"type": ["array", "null"]},
        },
        "required": ["columns", "data"],
        "additionalProperties": False,
    }
    by_column: Document = {
        "type": "object",
        "properties": {
            name: {"anyOf": [schema, {"type": "array", "items": schema}]}
            for name, schema in (columns | keys).items()
        },
        "additionalProperties": False,
    }
    by_place = {"type": "array", "minItems": 1, "items": {"type": "array"}}
    forms = {
        "dataframe_split": split,
        "dataframe_records": records,
        "inputs": {"anyOf": [by_column, records, by_place]},
        "instances": {"anyOf": [by_column, records, by_place]},
    }
    schemas["Request"] = {
        "oneOf": [
            {
                "type": "object",
                "properties": {
                    name: schema,
                    "params": {"type": ["object", "null"], "maxProperties": 0},
                    "client_request_id": {"type": "string"},
                },
                "required": [name],
                "additionalProperties": False,
            }
            for name, schema in forms.items()
        ]
    }
    schemas["Answer"] = _answer(served)
    schemas["Error"] = {
        "type": "object",
        "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}},
        "required": ["error_code", "message"],
    }
    return schemas


def _answer(served: ServedModel) -> Document:
    prediction: Document = {"type": ["string", "integer", "number", "boolean", "null"]}
    if served.target == "regression":
        prediction = {"type": ["number", "null"]}
    properties: Document = {"predictions": {"type": "array", "items": prediction}}
    if served.target in {"binary", "multiclass"}:
        whose = f"the class {served.positive!r}" if served.target == "binary" else "the predicted class"
        properties["scores"] = {
            "type": "array",
            "items": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "description": f"The probability of {whose}, a row each.",
        }
    return {"type": "object", "properties": properties, "required": ["predictions"]}


def _column(column: ServedColumn) -> Document:
    schema = dict(_SCHEMAS[column.kind])
    if not column.required:
        schema["type"] = [schema["type"], "null"]
    return schema


_KEY: Document = {"type": ["string", "integer", "number", "boolean"], "description": "An entity column."}
_HEADERS: Document = {
    "x-request-id": {"schema": {"type": "string"}, "description": "Of the request, or made for it."},
    "x-served-entity": {"schema": {"type": "string"}, "description": "Which served entity answered."},
    "x-served-version": {"schema": {"type": "string"}, "description": "Which version answered."},
}


def _referred() -> Document:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}


def _answered() -> Document:
    schema = {"$ref": "#/components/schemas/Answer"}
    return {
        "description": "One prediction a row, in the order of the rows.",
        "headers": _referred(),
        "content": {"application/json": {"schema": schema}},
    }


def _refused(status: str, said: str) -> Document:
    headers = _referred()
    if status == "429":
        headers["retry-after"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": said, "headers": headers, "content": {"application/json": {"schema": schema}}}


def _page(summary: str, media: str) -> Document:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {media: {}}}}}


def _example(served: ServedModel) -> dict[str, Any]:
    """The first row of the version's own example, or one of the right types."""
    if served.example:
        return dict(served.example[0])
    return {column.name: _SOUGHT.get(column.kind, _A_MOMENT) for column in served.columns}


def _examples(served: ServedModel, row: Mapping[str, Any]) -> Document:
    values: dict[str, Any] = {
        "dataframe_records": [dict(row)],
        "dataframe_split": {"columns": list(row), "data": [list(row.values())]},
        "inputs": {name: [value] for name, value in row.items()},
        "instances": [dict(row)],
    }
    examples: Document = {name: {"value": {name: value}} for name, value in values.items()}
    if served.entity:
        key = dict.fromkeys(served.entity, "…")
        examples["entity_key"] = {"summary": "Features are looked up", "value": {"dataframe_records": [key]}}
    return examples


def page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document of `document()` as a page of its own: it asks for nothing from anywhere."""
    info, schemas = document["info"], document["components"]["schemas"]
    server = document["servers"][0]["url"]
    invoke = document["paths"]["/invocations"]["post"]
    row = schemas["Row"]
    columns = [
        (name, _type_words(schema), "yes" if name in row["required"] else "no")
        for name, schema in row["properties"].items()
    ]
    examples = invoke["requestBody"]["content"]["application/json"]["examples"]
    shown = orjson.dumps(examples["dataframe_records"]["value"], option=orjson.OPT_INDENT_2).decode()
    responses = [(status, said["description"]) for status, said in invoke["responses"].items()]
    others = [
        (f"{server}{path}", item["get"]["summary"])
        for path, item in document["paths"].items()
        if "get" in item
    ]
    title = f"{info['title']} · {info['description']}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; vertical-align: top; }}
pre {{ padding: 1rem; overflow: auto; border: 1px solid #8884; }}
:root {{ color-scheme: light dark; }}
</style></head><body>
<h1>{escape(info["title"])}</h1>
<p>{escape(info["description"])} The same as data: <a href="openapi.json">openapi.json</a>.</p>
<h2>POST {escape(server)}/invocations</h2>
<p>{escape(invoke["summary"])}, as JSON by one of {escape(", ".join(examples))}, or as CSV.</p>
<h3>Columns</h3>
{_table(("column", "type", "required"), columns)}
<h3>Example</h3>
<pre>{escape(shown)}</pre>
<h3>Answers</h3>
{_table(("status", "meaning"), responses)}
<h2>Also</h2>
{_table(("GET", "what"), others)}
</body></html>
"""


def _type_words(schema: Mapping[str, Any]) -> str:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    said = " or ".join(kinds)
    return f"{said}: {schema['description']}" if "description" in schema else said


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "\n".join(
        "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{cells}</tr>\n{lines}</table>"
