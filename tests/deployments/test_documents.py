"""Reading YAML documents into models: what the YAML means, and what a bad document is told."""

import json
import re
from datetime import date
from enum import Enum
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel, field_validator, model_validator

from deployments.documents import load_document, parse_document
from deployments.errors import BadInputError, ContenderError, SpecError
from deployments.explanations import DeclarationError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Column(Strict):
    type: Literal["string", "float"]
    values: tuple[str, ...] = ()
    pattern: str | None = None


class Table(Strict):
    columns: dict[str, Column] = {}


class Drift(Strict):
    kind: Literal["drift"]
    threshold: Annotated[float, Field(gt=0)]
    drift: int = 0


class Quality(Strict):
    kind: Literal["quality"]
    metric: str


Gate = Annotated[Drift | Quality, Field(discriminator="kind")]


class Direction(Enum):
    UP = "higher_is_better"
    DOWN = "lower_is_better"


class Login(Strict):
    user: str = ""
    api_token: int = 0
    webhook_secret: str = ""
    note: str = ""

    @field_validator("webhook_secret", "note")
    @classmethod
    def no_spaces(cls, value: str) -> str:
        if " " in value:
            raise ValueError(f"{value} has a space in it")
        return value


class Sized(Strict):
    seed: int
    steps: tuple[Column, ...]

    @model_validator(mode="after")
    def _fits(self) -> "Sized":
        raise DeclarationError(
            ("steps", 0, "pattern"), f"{self.steps[0].pattern!r} is longer than the seed allows"
        )


class Tables(RootModel[dict[str, Table]]):
    pass


class Spec(Strict):
    name: str
    contract: Tables | None = None
    gates: tuple[Gate, ...] = ()
    main_gate: Gate | None = None
    seed: int | None = None
    share: float = 0.0
    shadow: bool = False
    since: date | None = None
    direction: Direction = Direction.UP
    limit: Literal["auto"] | int = "auto"
    source: str | Column = ""
    either: tuple[Gate | list[Gate], ...] = ()
    steps: Annotated[tuple[Column, ...], Field(min_length=1)] = (Column(type="string"),)
    weekdays: Annotated[dict[Annotated[str, Field(pattern="^[a-z]+$")], int], Field(max_length=2)] = {}
    login: Login | None = None


class Anything(RootModel[dict[str, JsonValue]]):
    pass


def read(text: str) -> dict[str, Any]:
    return parse_document(dedent(text), Anything, "model.yaml").root


def problems(text: str, model: type[BaseModel] = Spec) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_document(dedent(text), model, "model.yaml")
    return str(caught.value).split("\n")


def test_a_good_file_fills_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    lines = ["name: churn", "gates: [{kind: drift, threshold: 1e-1}]", "since: 2026-01-31"]
    path.write_text("\n".join([*lines, "direction: lower_is_better"]))

    spec = load_document(path, Spec)

    gates = (Drift(kind="drift", threshold=0.1),)
    assert spec == Spec(name="churn", gates=gates, since=date(2026, 1, 31), direction=Direction.DOWN)


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_bytes("\ufeffname: churn\r\nseed: 3\r\n".encode())

    assert load_document(path, Spec) == Spec(name="churn", seed=3)


@pytest.mark.parametrize(
    "text", ["Yes", "No", "on", "off", "y", "12:30", "1:30:00", "0777", "01234", "0o7", "0x1F"]
)
@pytest.mark.parametrize("style", ["{}", "[{}]"])
def test_what_older_yaml_would_reinterpret_stays_text(text: str, style: str) -> None:
    value = read(f"a: {style.format(text)}")["a"]

    assert value in (text, [text])


@pytest.mark.parametrize(
    "text", ["2026-01-31", "2026-01-31T09:00:00Z", "1_000", "=", "'3'", '"true"', "1.2.3"]
)
def test_dates_versions_and_quoted_values_stay_text(text: str) -> None:
    assert read(f"a: {text}")["a"] == text.strip("'\"")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("-2E+2", -200.0),
        ("-.inf", float("-inf")),
    ],
)
def test_booleans_nulls_and_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = read(f"a: {text}")["a"]

    assert found == value
    assert type(found) is type(value)


def test_every_key_is_text() -> None:
    assert read("{on: 1, 2026: 2, true: 3, 01: 4, 'x y': 5}") == {
        "on": 1,
        "2026": 2,
        "true": 3,
        "01": 4,
        "x y": 5,
    }


def test_an_anchor_is_followed() -> None:
    assert read("a: &limits {low: 0}\nb: *limits") == {"a": {"low": 0}, "b": {"low": 0}}


# YAML takes no key beyond 1024 characters, and an escape takes up to 12 of them.
keys = st.text(min_size=1, max_size=80)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, documents, max_size=4))
def test_any_document_written_as_yaml_reads_back_the_same(content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, default_style='"', allow_unicode=True)

    # The style quotes numbers with a tag: `!!int "3"`.
    assert parse_document(text, Anything, "model.yaml").root == content


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%?, \n\t<~0é\x00\ud800", max_size=40))
def test_no_text_at_all_escapes_as_anything_but_a_spec_error(text: str) -> None:
    try:
        parse_document(text, Anything, "model.yaml")
    except SpecError as error:
        message = str(error)
    else:
        message = "model.yaml"

    assert all(line.startswith("model.yaml") for line in message.split("\n"))


def test_a_missing_file_a_directory_and_bytes_that_are_not_utf8_are_each_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: churn\nsource: caf\xe9\n")

    with pytest.raises(SpecError, match=r"absent\.yaml: there is no such file"):
        load_document(tmp_path / "absent.yaml", Spec)
    with pytest.raises(SpecError, match="this is a directory"):
        load_document(tmp_path, Spec)
    with pytest.raises(SpecError, match=r"latin\.yaml:2: this is not UTF-8 text"):
        load_document(latin, Spec)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n"])
def test_an_empty_document_is_refused(text: str) -> None:
    assert problems(text) == ["model.yaml: the document is empty; it must be a mapping of keys to values."]


@pytest.mark.parametrize(("text", "found"), [("- a\n- b\n", "a list"), ("\nhello\n", "a single value")])
def test_a_document_that_is_not_a_mapping_is_refused(text: str, found: str) -> None:
    (problem,) = problems(text)

    assert problem.endswith(f"the document must be a mapping of keys, not {found}.")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("name: [a\nb: c\n", "2:2", "expected ',' or ']'"),
        ("name:\n\tchurn\n", "2:1", "indent with spaces, not tabs"),
        ("name: a\n---\nname: b\n", "2:1", "expected a single document in the stream, but found another"),
        ("name: *nowhere\n", "1:7", "undefined alias 'nowhere'"),
        ("name: a\nsource: b\x07c\n", "2:10", "U+0007 may not stand in YAML"),
        ("name: {{ env }}\n", "1:8", "a key must be text; put quotes around"),
        ("name: a\n<<: {seed: 1}\n", "2:1", "merge keys (<<) are not read"),
        (
            "name: !!python/object:os.system {}\n",
            "1:7",
            "the tag !!python/object:os.system does not fit here",
        ),
        ("name: !!int churn\n", "1:7", "the tag !!int does not fit here"),
        ("name: &a {b: *a}\n", "1:7", "holds an alias of itself"),
        ('name: "\\ud800"\n', "1:7", "not valid Unicode"),
    ],
)
def test_what_is_not_yaml_is_told_by_line_and_column(text: str, where: str, what: str) -> None:
    (problem,) = problems(text)

    assert problem.startswith(f"model.yaml:{where}: ")
    assert what in problem


def test_duplicate_keys_are_refused_wherever_they_stand() -> None:
    text = """\
        name: churn
        login: {user: a, user: b}
        "name": other
        """

    assert problems(text) == [
        "model.yaml:2:18: duplicate key 'user', given first on line 2",
        "model.yaml:3:1: duplicate key 'name', given first on line 1",
    ]


def test_aliases_cannot_swell_a_small_file_into_billions_of_values() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]

    (problem,) = problems("\n".join(lines))

    assert "holds more than 100,000 values" in problem


@pytest.mark.parametrize("depth", [70, 300, 1000])
def test_a_document_nested_without_end_is_refused(depth: int) -> None:
    (problem,) = problems("a: " + "[" * depth + "]" * depth)

    assert "nested" in problem


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([*Spec.model_fields, "nmae"]), documents, min_size=1))
def test_whatever_stands_under_a_key_each_problem_has_a_line_and_a_path(content: dict[str, Any]) -> None:
    found = problems(json.dumps({"nmae": 1} | content))

    assert len(found) == len(set(found))
    assert all(re.match(r"model\.yaml:1: [a-z_]+.*: \w", problem) for problem in found)


def test_every_problem_is_listed_on_a_line_of_its_own_in_the_order_of_the_file() -> None:
    text = """\
        seed: many
        contract:
          customers:
            columns:
              gender:
                type: sting
                valeus: [Yes, No]
        gates:
          - kind: drift
            threshold: 0.1
          - threshold: 0.1
          - kind: drfit
          - kind: drift
            threshold: high
            thresholds: 3
        """
    gender = "contract.customers.columns.gender"

    assert problems(text) == [
        "model.yaml:1: name: required key is missing",
        "model.yaml:1: seed: expected a whole number, found 'many'",
        f"model.yaml:6: {gender}.type: expected 'string' or 'float', found 'sting'; did you mean 'string'?",
        f"model.yaml:7: {gender}.valeus: unknown key; did you mean 'values'? (known: pattern, type, values)",
        "model.yaml:11: gates[1].kind: required key is missing; expected 'drift' or 'quality'",
        "model.yaml:12: gates[2].kind: expected 'drift' or 'quality', found 'drfit'; did you mean 'drift'?",
        "model.yaml:14: gates[3].threshold: expected a number, found 'high'",
        "model.yaml:15: gates[3].thresholds: unknown key (known: drift, kind, threshold)",
    ]


def test_a_missing_key_is_reported_at_the_line_of_its_parent() -> None:
    text = """\
        name: churn

        contract:
          customers:
            columns:
              age:
                pattern: x
        """

    assert problems(text) == ["model.yaml:6: contract.customers.columns.age.type: required key is missing"]


def test_a_union_tag_is_left_out_of_the_path_but_a_key_of_the_same_name_is_not() -> None:
    text = """\
        name: churn
        main_gate:
          kind: drift
          threshold: 0
          drift: often
        """

    assert problems(text) == [
        "model.yaml:4: main_gate.threshold: must be greater than 0, found the number 0",
        "model.yaml:5: main_gate.drift: expected a whole number, found 'often'",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("source: 1.10", "source: expected text, or a mapping, found the number 1.10; put it in quotes"),
        (
            "source: {type: flaot}",
            "source.type: expected 'string' or 'float', found 'flaot'; did you mean",
        ),
        ("limit: atuo", "limit: expected 'auto', or a whole number, found 'atuo'; did you mean 'auto'?"),
        ("either: [{kind: z}]", "either[0].kind: expected 'drift' or 'quality', found 'z'"),
        ("either: [[{kind: drift, threshold: 1, drift: x}]]", "either[0][0].drift: expected a whole number"),
        ("limit: []", "limit: expected 'auto', or a whole number, found a list"),
        ("seed: '3'", "seed: expected a whole number, found '3'; take the quotes off"),
        ("seed: 1.5", "seed: expected a whole number, found the number 1.5"),
        ("shadow: yes", "shadow: expected true or false, found 'yes'"),
        ("shadow:", "shadow: expected true or false, found nothing"),
        ("gates: {}", "gates: expected a list, found a mapping"),
        ("gates: [3]", "gates[0]: expected a mapping, found the number 3"),
        ("direction: up", "direction: expected 'higher_is_better' or 'lower_is_better', found 'up'"),
        ("weekdays: {Mon: 1}", "weekdays.Mon: text must match pattern '^[a-z]+$', found 'Mon'"),
        ("weekdays: {a: 1, b: 2, c: 3}", "weekdays: the mapping must have at most 2 items"),
        ("weekdays: {'on call': 1}", "weekdays['on call']: text must match pattern"),
        ("Shadow: true", "Shadow: unknown key; did you mean 'shadow'? "),
        ("main-gate: {}", "main-gate: unknown key; did you mean 'main_gate'? "),
        ("login: {note: no way}", "login.note: no way has a space in it"),
    ],
)
def test_a_problem_says_what_was_expected_and_what_was_found(line: str, problem: str) -> None:
    (found,) = problems(f"name: churn\n{line}\n")

    assert found.startswith(f"model.yaml:2: {problem}")


def test_a_list_whose_only_item_is_bad_is_not_also_called_too_short() -> None:
    assert problems("name: churn\nsteps: [{type: float, pattern: 3}]\n") == [
        "model.yaml:2: steps[0].pattern: expected text, found the number 3; put it in quotes"
    ]


def test_a_list_that_is_too_short_is_called_so() -> None:
    assert problems("name: churn\nsteps: []\n") == [
        "model.yaml:2: steps: the list must have at least 1 item, not 0"
    ]


def test_a_validator_may_say_where_in_its_model_the_problem_is() -> None:
    text = """\
        seed: 1
        steps:
          - type: string
            pattern: x
          - {type: float}
        """

    assert problems(text, Sized) == ["model.yaml:4: steps[0].pattern: 'x' is longer than the seed allows"]
    assert str(DeclarationError(("steps", 0, "on call"), "it is odd")) == "steps[0]['on call']: it is odd"


def test_a_validator_may_name_a_place_that_the_document_leaves_out() -> None:
    assert problems("seed: 1\nsteps:\n  - type: string\n", Sized) == [
        "model.yaml:3: steps[0].pattern: None is longer than the seed allows"
    ]


def test_a_date_that_is_none_says_why() -> None:
    (problem,) = problems("name: churn\nsince: 2026-02-30\n")

    assert problem.startswith("model.yaml:2: since: expected a date such as 2026-01-31 (day value")
    assert problem.endswith("found '2026-02-30'")


def test_a_key_that_is_already_there_is_not_suggested() -> None:
    (problem,) = problems("name: churn\nnmae: churn\n")

    assert "did you mean" not in problem


def test_a_long_value_is_cut_short() -> None:
    (problem,) = problems(f"name: churn\nseed: {'x' * 500}\n")

    assert len(problem) < 150


@pytest.mark.parametrize(
    "lines",
    [
        "login: {api_token: hunter2}",
        "login: {webhook_secret: hunter2 hunter2}",
        "login: {user: &shared hunter2, api_token: *shared}",
        "login: {webhook_secret: &shared hunter2, user: [*shared]}",
        "login: {webhook_secret: &shared hunter2 hunter2, note: *shared}",
        "login: {webhook_secret: [hunter2]}",
        "password: hunter2",
        "DB_KEY_VALUE: {name: hunter2}",
        "seed: &shared hunter2\npassword: *shared",
    ],
)
def test_a_secret_is_never_shown(lines: str) -> None:
    found = problems(f"name: churn\n{lines}\n")

    assert found
    assert not any("hunter2" in problem for problem in found)


def test_the_cause_stays_out_of_the_traceback() -> None:
    with pytest.raises(SpecError) as caught:
        parse_document("name: 3", Spec, "model.yaml")

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_spec_error_is_bad_input_and_ends_the_command_line_with_two() -> None:
    assert issubclass(SpecError, BadInputError)
    assert (SpecError.exit_code, ContenderError.exit_code) == (2, 1)
