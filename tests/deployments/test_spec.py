"""Model specs: what the sections must agree on, and where a user is told that they do not."""

import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import BaseModel, JsonValue, RootModel, TypeAdapter

from deployments import (
    contract,
    environment,
    gates,
    monitoring,
    orchestration,
    release,
    source,
    spec,
    training,
)
from deployments.declared import Declared
from deployments.documents import load_document, parse_document
from deployments.errors import BadInputError, SpecError
from deployments.measures import MEASURES, TaskKind, measures_for
from deployments.spec import MODELS, ModelSpec, load_spec, shipped_models

REFERENCE = Path(__file__).parents[2] / "docs" / "spec.md"

ALONE = """\
name: churn
governance: {owner: retention, purpose: offers}
target: {kind: binary, column: churned, positive: "yes"}
sources:
  customers:
    kind: csv
    path: customers.csv
    time_column: seen_at
    clustering: [customer]
contract:
  customers:
    unique: [[customer]]
    columns:
      customer: {type: string}
      email: {type: string, pii: drop}
      tenure: {type: integer, min: 0}
      plan: {type: string, values: [basic, full]}
      trial: {type: boolean}
      seen_at: {type: timestamp}
      churned: {type: string, values: ["yes", "no"]}
features:
  entity: [customer]
  numeric: [tenure]
  categorical: {columns: [plan]}
  boolean: [trial]
  dates: {columns: [seen_at]}
split: {kind: time, column: seen_at}
training:
  metric: roc_auc
  candidates: [{name: logistic, estimator: sklearn.linear_model.LogisticRegression}]
evaluation:
  metrics: [roc_auc, brier]
  slices: [plan]
gates:
  - {kind: metric, metric: roc_auc, min: 0.7}
  - {kind: metric, metric: brier, max: 0.2}
  - {kind: champion, metric: roc_auc}
  - {kind: overfit, metric: roc_auc, max_gap: 0.1}
  - {kind: calibration, max_error: 0.1}
  - {kind: fairness, attribute: plan, measure: demographic_parity_difference, max: 0.1}
  - {kind: fairness, attribute: plan, measure: group_floor, metric: roc_auc, min: 0.6}
"""

LABELLED = """\
name: churn
governance: {owner: retention, purpose: offers}
target: {kind: binary, column: churned, positive: true}
sources:
  events: {kind: parquet, path: events.parquet, time_column: at}
  outcomes: {kind: parquet, path: outcomes.parquet}
contract:
  events:
    columns: {customer: {type: string}, at: {type: timestamp}}
  outcomes:
    columns:
      customer: {type: string}
      as_of: {type: timestamp}
      known_at: {type: timestamp}
      churned: {type: boolean}
  features:
    columns: {customer: {type: string}, visits: {type: integer}}
features:
  sql: features.sql
  entity: [customer]
  numeric: [visits]
labels: {table: outcomes, known_at: known_at}
split: {kind: time, column: as_of}
training:
  metric: roc_auc
  candidates: [{name: logistic, estimator: sklearn.linear_model.LogisticRegression}]
evaluation: {metrics: [roc_auc]}
gates: [{kind: metric, metric: roc_auc, min: 0.7}]
"""

BASES = {"alone": ALONE, "labelled": LABELLED}


class Anything(RootModel[dict[str, JsonValue]]):
    pass


def refused(text: str) -> str:
    """The one problem of a document, less the file's name: `line: path: sentence`."""
    with pytest.raises(SpecError) as caught:
        parse_document(text, ModelSpec, "model.yaml")
    problem = str(caught.value)
    assert problem.startswith("model.yaml:")
    assert "\n" not in problem
    return problem.removeprefix("model.yaml:")


def changed(base: str, old: str, new: str) -> tuple[str, int]:
    """The document with one text replaced, and the line it stood on."""
    text = BASES[base]
    assert text.count(old) == 1
    return text.replace(old, new), text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize("base", BASES)
def test_the_specs_that_the_refusals_below_start_from_are_good(base: str) -> None:
    assert parse_document(BASES[base], ModelSpec, "model.yaml").name == "churn"


@pytest.mark.parametrize(
    ("base", "old", "new", "path", "sentence"),
    [
        # Targets
        ("alone", 'positive: "yes"}', "positive: maybe}", "target.positive", "'maybe' is not among the values"),
        ("alone", 'positive: "yes"}', "positive: null}", "target", "`positive` is required for binary targets"),
        ("alone", "target: {kind: binary", "target: {kind: regression", "target", "and only for them"),
        ("alone", "column: churned,", "column: churn,", "target.column", "'churn' is not a column of the contract"),
        ("alone", "column: churned,", "column: churn,", "target.column", "did you mean 'churned'?"),
        ("alone", "column: churned,", "column: email,", "target.column", "dropped at ingest (pii: drop)"),
        # Tables
        ("alone", "  customers:\n    unique", "  clients:\n    unique", "contract", "nothing is said about"),
        ("labelled", "  features:\n    columns", "  feature:\n    columns", "contract", "about table 'features'"),
        ("labelled", "  sql: features.sql\n", "", "contract.features", "is not among the sources"),
        ("labelled", "  outcomes: {kind", "  features: {kind", "sources.features", "that features.sql builds"),
        ("labelled", "{table: outcomes", "{table: outcome", "labels.table", "not among the sources (events, outc"),
        # Columns
        ("alone", "time_column: seen_at", "time_column: seen", "sources.customers.time_column", "'seen' is not a"),
        ("alone", "clustering: [customer]", "clustering: [id]", "sources.customers.clustering[0]", "'id' is not"),
        ("alone", "unique: [[customer]]", "unique: [[id]]", "contract.customers", "`unique` names 'id'"),
        ("alone", "unique: [[customer]]", "unique: [[email]]", "contract.customers", "is dropped at ingest"),
        ("alone", "entity: [customer]", "entity: [id]", "features.entity[0]", "'id' is not a column"),
        ("alone", "entity: [customer]", "entity: [email]", "features.entity[0]", "dropped at ingest (pii: drop)"),
        ("alone", "numeric: [tenure]", "numeric: [tenur]", "features.numeric", "did you mean 'tenure'?"),
        ("alone", "numeric: [tenure]", "numeric: [email]", "features.numeric", "dropped at ingest (pii: drop)"),
        ("alone", "numeric: [tenure]", "numeric: [tenure, churned]", "features.numeric", "is the target"),
        ("alone", "columns: [plan]}", "columns: [churned]}", "features.categorical", "is the target"),
        ("alone", "numeric: [tenure]", "numeric: [seen_at]", "features", "in more than one group of features: seen_at"),
        ("alone", "numeric: [tenure]", "numeric: [customer]", "features.numeric", "is of type string"),
        ("alone", "boolean: [trial]", "boolean: [tenure]", "features", "in more than one group"),
        ("alone", "boolean: [trial]", "boolean: [customer]", "features.boolean", "is of type string"),
        ("alone", "columns: [seen_at]}", "columns: [customer]}", "features.dates", "is of type string"),
        ("alone", "slices: [plan]", "slices: [plan, region]", "evaluation.slices[1]", "'region' is not a column"),
        ("alone", "column: seen_at}", "column: seen}", "split.column", "did you mean 'seen_at'?"),
        ("alone", "column: seen_at}", "column: plan}", "split.column", "a split by time needs a moment"),
        ("alone", "kind: time, column: seen_at", "kind: group, column: email", "split.column", "pii: drop"),
        ("labelled", "known_at: known_at}", "known_at: known}", "labels.known_at", "'known' is not a column"),
        ("labelled", "      as_of: {type", "      at: {type", "labels.as_of", "'as_of' is not a column"),
        ("labelled", "      customer: {type: string}\n", "", "features.entity[0]", "'customer' is not a column"),
        # Metrics and thresholds
        ("alone", "  metric: roc_auc\n", "  metric: roc\n", "training.metric", "no metric for a binary target"),
        ("alone", "  metric: roc_auc\n", "  metric: rmse\n", "training.metric", "(known: roc_auc, "),
        ("alone", "[roc_auc, brier]", "[roc_auc, f1_macro]", "evaluation.metrics[1]", "no metric for a binary"),
        ("alone", "metric: roc_auc, min: 0.7", "metric: auc, min: 0.7", "gates[0].metric", "'auc' is no metric"),
        ("alone", "metric: roc_auc, min: 0.7", "metric: roc_auc, max: 0.7", "gates[0].max", "higher roc_auc is better"),
        ("alone", "brier, max: 0.2", "brier, min: 0.2", "gates[1].min", "lower brier is better"),
        ("alone", "brier, max: 0.2", "brier", "gates[1]", "give either `min` or `max`"),
        ("alone", "champion, metric: roc_auc", "champion, metric: f1", "gates[2].metric", "add it to evaluation"),
        ("alone", "overfit, metric: roc_auc", "overfit, metric: f1", "gates[3].metric", "add it to evaluation"),
        ("alone", "roc_auc, min: 0.6", "auc, min: 0.6", "gates[6].metric", "'auc' is no metric"),
        ("alone", "roc_auc, min: 0.6", "roc_auc, max: 0.6", "gates[6].max", "would wave through bad models"),
        ("alone", "metric: roc_auc, min: 0.6", "min: 0.6", "gates[6]", "`group_floor` needs `metric`"),
        ("alone", "difference, max: 0.1", "difference, min: 0.1", "gates[5]", "needs `max`, and takes neither"),
        ("alone", "plan, measure: demo", "sex, measure: demo", "gates[5].attribute", "'sex' is not a column"),
        ("alone", "plan, measure: demo", "email, measure: demo", "gates[5].attribute", "pii: drop"),
        # Candidates and splits
        ("alone", "{name: logistic,", "{name: Logistic Model,", "training.candidates[0].name", "must match pattern"),
        ("alone", "split: {kind: time", "split: {holdout: 0.6, validation: 0.4, kind: time", "split", "less than 5 %"),
    ],
)  # fmt: skip
def test_sections_that_disagree_are_refused_at_their_line_and_key(
    base: str, old: str, new: str, path: str, sentence: str
) -> None:
    text, line = changed(base, old, new)

    problem = refused(text)

    assert problem.split(": ")[1] == path
    assert sentence in problem
    named, keys = int(problem.split(":")[0]), re.findall(r"[a-z_]+", path)
    assert named == line or any(f"{key}:" in text.splitlines()[named - 1] for key in keys[-2:])


@pytest.mark.parametrize(
    ("old", "new", "line", "path"),
    [
        ("time_column: seen_at", "time_column: seen", 8, "sources.customers.time_column"),
        ("slices: [plan]", "slices: [plan, region]", 33, "evaluation.slices[1]"),
        ("plan, measure: demo", "sex, measure: demo", 40, "gates[5].attribute"),
        ("brier, max: 0.2", "brier, min: 0.2", 36, "gates[1].min"),
    ],
)
def test_the_line_is_that_of_the_key_however_deep(old: str, new: str, line: int, path: str) -> None:
    text, _ = changed("alone", old, new)

    assert refused(text).startswith(f"{line}: {path}: ")


def test_a_nullable_target_is_refused_where_it_is_declared_so() -> None:
    text, line = changed("alone", 'values: ["yes", "no"]', 'values: ["yes", "no"], nullable: true')

    assert refused(text).startswith(
        f"{line}: contract.customers.columns.churned.nullable: 'churned' is the target"
    )


@pytest.mark.parametrize(
    ("hashed", "dropped", "place"),
    [
        ("plan", "", "evaluation.slices[0]"),
        ("plan", "  slices: [plan]\n", "gates[5].attribute"),
        ("churned", "", "target.column"),
    ],
)
def test_reports_are_not_divided_by_personal_data(hashed: str, dropped: str, place: str) -> None:
    text = re.sub(f"({hashed}: {{type: string), values: .*}}", r"\1, pii: hash}", ALONE).replace(dropped, "")

    problem = refused(text)

    assert problem.split(": ")[1] == place
    assert "is personal data (pii)" in problem


def test_a_regression_on_text_is_refused() -> None:
    text = ALONE.replace(
        '{kind: binary, column: churned, positive: "yes"}', "{kind: regression, column: churned}"
    )

    assert refused(text).startswith(
        "3: target.kind: 'churned' is of type string; regression predicts numbers"
    )


def test_gates_for_two_classes_are_refused_for_many() -> None:
    text = ALONE.replace(
        'kind: binary, column: churned, positive: "yes"', "kind: multiclass, column: churned"
    )
    text = text.replace("roc_auc", "accuracy").replace("brier, max: 0.2", "log_loss, max: 0.2")
    text = text.replace("brier", "log_loss")

    assert refused(text).startswith("39: gates[4].kind: calibration as declared is for binary targets")


def test_several_sources_without_a_query_are_refused() -> None:
    text = LABELLED.replace("  sql: features.sql\n", "")
    text = re.sub(r"  features:\n    columns: .*\n", "", text)

    assert refused(text).startswith("16: features.sql: several sources need a query")


def test_labels_without_a_query_are_refused() -> None:
    text = ALONE.replace("split: {kind: time, column: seen_at}", "labels: {table: customers}")

    assert refused(text).startswith("27: labels: a label table goes with a features.sql")


def test_an_unknown_model_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadInputError, match=r"there is no model 'chrun' \(known: churn, claims, telco\)"):
        load_spec("chrun")


def test_a_query_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(LABELLED)

    with pytest.raises(BadInputError, match=r"model\.yaml: features\.sql: there is no file .*features\.sql"):
        load_spec(path)


def test_a_query_for_no_moment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(LABELLED)
    (tmp_path / "features.sql").write_text(
        "SELECT customer, count(*) AS visits FROM events GROUP BY customer"
    )

    with pytest.raises(BadInputError, match=r"features\.sql: the query does not use \$as_of"):
        load_spec(path)


def test_a_query_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(LABELLED)
    (tmp_path / "features.sql").write_bytes("SELECT 'Zürich', $as_of".encode("latin-1"))

    with pytest.raises(BadInputError, match=r"features\.sql: is no UTF-8 text"):
        load_spec(path)


def test_a_query_is_read_with_its_spec(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(LABELLED)
    (tmp_path / "features.sql").write_text("SELECT customer FROM events WHERE at <= $as_of")

    loaded = load_spec(path)

    assert loaded.sql == "SELECT customer FROM events WHERE at <= $as_of"
    assert loaded.spec.row_key == ("customer", "as_of")


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ("{type: integer, pattern: x}", "`pattern` is for columns of type string"),
        ("{type: string, min: 1}", "`min` and `max` are not for columns of type string"),
        ("{type: boolean, max: 1}", "`min` and `max` are not for columns of type boolean"),
        ("{type: integer, min_completeness: 0.5}", "`min_completeness` is for nullable columns"),
        ("{type: integer, pii: hash}", "`pii: hash` is for columns of type string"),
        (
            "{type: float}",
            "expected 'string', 'integer', 'number', 'boolean', 'timestamp' or 'date', found 'float'",
        ),
    ],
)
def test_settings_that_do_not_fit_a_columns_type_are_refused_at_the_column(
    column: str, sentence: str
) -> None:
    text, line = changed("alone", "tenure: {type: integer, min: 0}", f"tenure: {column}")

    problem = refused(text)

    assert problem.startswith(f"{line}: contract.customers.columns.tenure")
    assert sentence in problem


@pytest.mark.parametrize("model", shipped_models())
def test_every_shipped_spec_loads_and_is_named_as_its_folder(model: str) -> None:
    loaded = load_spec(model)

    assert loaded.spec.name == loaded.path.parent.name == model
    assert (loaded.sql is None) == (loaded.spec.features.sql is None)


@pytest.mark.parametrize("model", shipped_models())
def test_the_json_schema_accepts_every_shipped_spec(model: str) -> None:
    validator = jsonschema.Draft202012Validator(ModelSpec.model_json_schema())

    validator.check_schema(validator.schema)
    written = load_document(MODELS / model / "model.yaml", Anything).root

    assert [error.message for error in validator.iter_errors(written)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"naem": "churn"},
        {"name": "Churn"},
        {"gates": []},
        {"sources": {"customers": {"kind": "excel", "path": "a"}}},
    ],
)
def test_the_json_schema_refuses_what_the_spec_refuses(change: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(ModelSpec.model_json_schema())
    written = parse_document(ALONE, Anything, "model.yaml").root

    assert validator.is_valid(written)
    assert not validator.is_valid(written | change)


def test_a_spec_is_the_same_after_a_round_through_json() -> None:
    one = parse_document(LABELLED, ModelSpec, "model.yaml")

    assert ModelSpec.model_validate_json(one.model_dump_json()) == one


# Unknown keys -----------------------------------------------------------------------------------------------

DEFAULTS = "serving: {unknown_key: default, defaults: {%s}}\n"
ALL_DEFAULTS = {"tenure": "3", "plan": "basic", "trial": "false", "seen_at": "2025-01-01"}


def with_defaults(**changes: str | None) -> str:
    given = {name: value for name, value in (ALL_DEFAULTS | changes).items() if value is not None}
    return ALONE + DEFAULTS % ", ".join(f"{name}: {value}" for name, value in given.items())


def test_defaults_for_unknown_keys_are_read_as_they_are_written() -> None:
    serving = parse_document(with_defaults(), ModelSpec, "model.yaml").serving

    assert serving.unknown_key == "default"
    assert serving.defaults == {"tenure": 3, "plan": "basic", "trial": False, "seen_at": "2025-01-01"}


def test_a_default_may_be_left_out_where_a_feature_may_be_null() -> None:
    text = with_defaults(trial=None).replace(
        "trial: {type: boolean}", "trial: {type: boolean, nullable: true}"
    )

    assert "trial" not in parse_document(text, ModelSpec, "model.yaml").serving.defaults


@pytest.mark.parametrize(
    ("change", "path", "sentence"),
    [
        ({"tenure": None}, "serving.defaults", "nothing is said for tenure, which may not be null"),
        ({"tenur": "3"}, "serving.defaults.tenur", "did you mean 'tenure'?"),
        ({"customer": "C1"}, "serving.defaults.customer", "is no feature, and the model would not see it"),
        ({"email": "x"}, "serving.defaults.email", "dropped at ingest (pii: drop)"),
        ({"tenure": "3.5"}, "serving.defaults.tenure", "3.5 is no integer"),
        ({"tenure": "true"}, "serving.defaults.tenure", "True is no integer"),
        ({"tenure": "-1"}, "serving.defaults.tenure", "-1 is beyond 0, where the contract ends"),
        ({"plan": "other"}, "serving.defaults.plan", "'other' is not among the values ['basic', 'full']"),
        ({"plan": "1"}, "serving.defaults.plan", "1 is no string"),
        ({"trial": "1"}, "serving.defaults.trial", "1 is no boolean"),
        ({"seen_at": "soon"}, "serving.defaults.seen_at", "'soon' is no timestamp"),
        ({"seen_at": "5"}, "serving.defaults.seen_at", "5 is no timestamp"),
    ],
)
def test_a_default_that_the_model_could_not_be_given_is_refused(
    change: dict[str, str | None], path: str, sentence: str
) -> None:
    problem = refused(with_defaults(**change))

    assert problem.split(": ")[1] == path
    assert sentence in problem


def test_personal_data_has_no_default() -> None:
    text = with_defaults(plan="basic").replace(
        "plan: {type: string, values: [basic, full]}", "plan: {type: string, pii: hash}"
    )
    text = re.sub("(?m)^.*(slices|fairness).*\n", "", text)

    assert "'plan' is personal data (pii)" in refused(text)


def test_defaults_that_nothing_would_use_are_refused() -> None:
    problem = refused(ALONE + "serving: {defaults: {tenure: 3}}\n")

    assert "serving.defaults: unknown keys are refused, so nothing would use these" in problem


# The reference ----------------------------------------------------------------------------------------------

DECLARING = (contract, environment, gates, monitoring, orchestration, release, source, spec, training)


def declared_models() -> list[type[Declared]]:
    """Every model that a YAML file is read into."""
    found = {
        one
        for module in DECLARING
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Declared) and one.__module__ == module.__name__
    }
    return sorted(found - {spec.LoadedSpec}, key=lambda one: one.__name__)


def documented_keys() -> set[str]:
    """The keys that stand at the head of a row of the reference's tables: `| `key` | ...`."""
    rows = [
        line.split("|")[1]
        for line in REFERENCE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    return {key for row in rows for key in re.findall(r"`([a-z][a-z0-9_]*)`", row)}


@pytest.mark.parametrize("model", declared_models(), ids=lambda model: model.__name__)
def test_the_reference_has_every_key(model: type[BaseModel]) -> None:
    missing = sorted(set(model.model_fields) - documented_keys())

    assert not missing, f"docs/spec.md lacks {', '.join(missing)} of {model.__name__}"


def test_the_reference_has_no_key_that_is_gone() -> None:
    known = {name for model in declared_models() for name in model.model_fields}

    assert documented_keys() - known - set(MEASURES) - {"low", "high"} == set()


def test_the_reference_has_every_metric_with_its_tasks() -> None:
    text = REFERENCE.read_text(encoding="utf-8")

    for name, measure in MEASURES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        better = "higher" if measure.higher_is_better else "lower"
        tasks = [cell.strip() for cell in row.split("|")[3:-1]]
        assert row.split("|")[2].strip() == better
        assert tasks[0].split(", ") == [kind.value for kind in TaskKind if name in measures_for(kind)]


def test_the_reference_states_the_defaults_of_gates_and_splits() -> None:
    adapters = TypeAdapter(gates.Gate), TypeAdapter(training.Split)
    rows = [line for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]

    for definition in (one for adapter in adapters for one in adapter.json_schema()["$defs"].values()):
        for name, field in definition["properties"].items():
            default = field.get("default")
            if name != "kind" and isinstance(default, (int, float, str)):
                shown = [row for row in rows if row.startswith(f"| `{name}` |")]
                assert any(str(default) in row for row in shown), f"{definition['title']}.{name} = {default}"
