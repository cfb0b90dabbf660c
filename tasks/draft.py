"""Draft: a first model.yaml from a data file, with what was seen in comments and every guess marked as one.

In goes a csv, Parquet or Delta source; out comes the text of a spec that loads and trains as it stands, and
that a person is meant to read and change.
"""

import math
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from functools import cache
from pathlib import Path

import yaml

from deployments.contract import ColumnType, Scalar
from deployments.errors import BadInputError
from deployments.measures import TaskKind
from deployments.source import CsvSource
from deployments.spec import FEATURES
from tasks.proposal import LISTED_SHARE, LISTED_VALUES, Proposal, enumerated, is_sensitive, propose
from tasks.survey import Column, survey

_WIDTH = 108
_MANY_ROWS = 2000
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def draft_spec(name: str, data: Path, *, target: str | None = None, beside: Path | None = None) -> str:
    """The text of a model.yaml for the rows in `data`.

    Args:
        name: the model's name.
        data: a csv or Parquet file, a folder of Parquet files, or a Delta table.
        target: the column to predict; guessed by names and values where it is not given.
        beside: the folder that the spec will be in; data below it is named from there, else absolutely.

    Raises:
        BadInputError: the name is no model name, the data cannot be read or learned from, or there is no such
            target, or none that could be guessed.
    """
    _check_name(name)
    proposal = propose(survey(data), target)
    address = _address(data, beside)
    table = _table_name(Path(address))
    sections = (
        _head(name, data, proposal),
        _governance(),
        _target(proposal),
        _source(proposal, table, address),
        _contract(proposal, table),
        _features(proposal),
        _split(proposal),
        _training(proposal),
        _evaluation(proposal),
        _gates(proposal),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def write_draft(name: str, data: Path, target: str | None, folder: Path) -> Path:
    """Write a draft to `folder`/`name`/model.yaml, whole or not at all, and return its path.

    Raises:
        BadInputError: there is a spec already, the folder cannot be written, or what `draft_spec` raises.
    """
    _check_name(name)
    path = folder / name / "model.yaml"
    taken = BadInputError(f"{path}: there is a spec already; choose another name, or take it away first")
    if path.exists():
        raise taken
    text = draft_spec(name, data, target=target, beside=path.parent)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        try:
            os.link(part, path)  # unlike a rename, this never replaces a spec that was made meanwhile
        finally:
            part.unlink()
    except FileExistsError:
        raise taken from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"{name!r} is no model name: write a small letter, then at most 62 small letters, digits or underscores"
        )


def _address(data: Path, beside: Path | None) -> str:
    absolute = data.absolute()
    if beside is not None and absolute.is_relative_to(beside.absolute()):
        return absolute.relative_to(beside.absolute()).as_posix()
    return str(absolute)


def _table_name(path: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")[:50]
    return name if re.match(r"[a-z]", name) and name != FEATURES else f"table_{name}".rstrip("_")


# Sections ---------------------------------------------------------------------------------------------------


def _head(name: str, data: Path, proposal: Proposal) -> list[str]:
    found = proposal.found
    count = len(found.columns) + len(found.foreign)
    said = (
        f"Drafted from {found.rows:,} rows of {data.name} with {count} columns. Everything below is a proposal: "
        "read it, change it, and fill in what stands in (parentheses)."
    )
    return [*_comment(said), f"name: {_scalar(name)}"]


def _governance() -> list[str]:
    return [
        "governance:",
        '  owner: "(who answers for this model?)"',
        '  purpose: "(what is it for, and who acts on it?)"',
        "  limits:",
        '    - "(where must it not be used?)"',
        "  risk: low   # low, medium or high",
        '  risk_note: "(what does a wrong answer cost, and whom?)"',
    ]


def _target(proposal: Proposal) -> list[str]:
    target = proposal.target
    lines = _comment(f"{target.why.capitalize()}; check.") if target.why else []
    if target.kind is TaskKind.REGRESSION:
        lines += _comment(f"Seen: {_range(target.column)}.")
    else:
        common = sorted(target.classes.items(), key=lambda item: -item[1])
        shares = enumerated(f"{value} ({_share(count / target.rows)})" for value, count in common)
        lines += _comment(f"Seen: {shares}.")
    settings = [("kind", target.kind.value), ("column", _scalar(target.column.name))]
    if target.positive is not None:
        settings.append(("positive", _scalar(target.positive)))
    return lines + _mapping("target", settings, 0)


def _source(proposal: Proposal, table: str, address: str) -> list[str]:
    found = proposal.found
    lines = [
        "sources:",
        f"  {_scalar(table)}:",
        f"    kind: {found.source.kind}",
        f"    path: {_scalar(address)}",
    ]
    if isinstance(found.source, CsvSource):
        if found.source.delimiter != ",":
            lines.append(f"    delimiter: {_scalar(found.source.delimiter)}")
        lines += _listing("null_values", dict.fromkeys(map(_scalar, ("", *found.null_tokens))), 4)
    if proposal.time is not None:
        lines += _comment("A guess: when a row became known.", 4)
        lines.append(f"    time_column: {_scalar(proposal.time)}")
    return lines


def _contract(proposal: Proposal, table: str) -> list[str]:
    found, key, column = proposal.found, proposal.key, proposal.target.column
    lines = [
        "contract:",
        f"  {_scalar(table)}:",
        f"    rows: {{min: {max(1, found.rows // 2)}}}   # seen: {found.rows:,}",
    ]
    if key.is_unique and key.is_identifier:
        lines += _listing("unique", [f"[{', '.join(map(_scalar, key.columns))}]"], 4)
    if key.others:
        lines += _comment(f"All different too: {enumerated(key.others)}.", 4)
    invalid = min(found.rows, column.missing + sum(each.infinite for each in found.columns.values()))
    if invalid:
        lines += _comment(f"{invalid:,} rows lack the target or hold an infinite number: to quarantine.", 4)
    share = min(0.95, math.ceil((0.01 + 1.5 * invalid / found.rows) * 100) / 100)
    lines.append(f"    max_invalid_share: {share:g}")
    if proposal.time is not None:
        lines += _comment(f"freshness: {{column: {_scalar(proposal.time)}, max_age_days: 30}}", 4)
    if found.foreign:
        kinds = enumerated(f"{name} ({kind})" for name, kind in found.foreign.items())
        lines += _comment(f"Left out, since a contract does not know their types: {kinds}.", 4)
        lines.append("    extra_columns: drop")
    lines.append("    columns:")
    for name, each in found.columns.items():
        settings, said = _column(proposal, each)
        lines += _mapping(_scalar(name), settings, 6, said)
    return lines


_Settings = Sequence[tuple[str, str | list[str]]]


def _column(proposal: Proposal, column: Column) -> tuple[_Settings, str]:
    """A column's contract as keys and values, and what to say of it."""
    if column.name in proposal.personal:
        looks = f"looks like {proposal.personal[column.name]}; check"
        if column.name not in proposal.key.columns:
            return [("type", column.type.value), ("pii", "drop")], looks
        # Only text is hashed, and what says who somebody is serves as text just as well.
        return [("type", ColumnType.STRING.value), ("pii", "hash")], f"{looks}; hashed, as it is the key"
    settings: list[tuple[str, str | list[str]]] = [("type", column.type.value)]
    said = [_range(column, "seen: ")] if column.low is not None else []
    if column is proposal.target.column:
        if proposal.target.classes:
            return [*settings, ("values", _values(proposal.target.classes))], ""
    elif proposal.key.is_identifier and column.name in proposal.key.columns:
        said = ["the key"]
    elif column.type is ColumnType.STRING and column.counts:
        different = len(column.counts)
        if different <= LISTED_VALUES and different < LISTED_SHARE * column.present:
            settings.append(("values", _values(column.counts)))
        else:
            said = [f"{different} different texts"]
    if column.is_number and column.low is not None and column.low >= 0 and said != ["the key"]:
        settings.append(("min", "0"))
    if column.missing and column is not proposal.target.column:
        complete = math.floor((0.99 - 1.5 * column.missing / column.rows) * 100) / 100
        settings.append(("nullable", "true"))
        settings += [("min_completeness", f"{complete:g}")] if complete > 0 else []
        said.append(f"{_share(column.missing / column.rows)} empty")
    return settings, ", ".join(said)


def _features(proposal: Proposal) -> list[str]:
    found, key, features = proposal.found, proposal.key, proposal.features
    lines = ["features:"]
    if not key.is_unique:
        sharing = f"{key.rows:,} rows have {key.groups:,} different keys"
        lines += _comment(f"Nothing tells all rows apart ({sharing}): an identifier is needed.", 2)
    elif not key.is_identifier:
        lines += _comment("These happen to tell rows apart; an identifier is better.", 2)
    lines += _listing("entity", map(_scalar, key.columns), 2)
    if features["numeric"]:
        lines += ["  numeric:", *_listing("columns", map(_scalar, features["numeric"]), 4)]
        gaps = any(found.columns[name].missing for name in features["numeric"])
        lines += ["    impute: median", "    missing_indicator: true"] if gaps else []
    if features["categorical"]:
        lines += ["  categorical:", *_listing("columns", map(_scalar, features["categorical"]), 4)]
        if any(len(found.columns[name].counts or ()) > LISTED_VALUES for name in features["categorical"]):
            lines.append(
                f"    min_frequency: {max(2, min(20, found.rows // 200))}   # rarer ones share a column"
            )
    if features["boolean"]:
        lines += _listing("boolean", map(_scalar, features["boolean"]), 2)
    if features["dates"]:
        lines += _comment("Are these known before the outcome is?", 2)
        lines += ["  dates:", *_listing("columns", map(_scalar, features["dates"]), 4)]
        lines.append("    parts: [month, weekday]")
    if proposal.left_out:
        reasons = enumerated(f"{name} ({why})" for name, why in proposal.left_out.items())
        lines += _comment(f"Left out: {reasons}.", 2)
    return lines


def _shares(proposal: Proposal) -> tuple[float, float]:
    """Holdout and validation: larger shares of fewer rows."""
    return (0.2, 0.15) if proposal.target.rows >= 300 else (0.25, 0.25)


def _split(proposal: Proposal) -> list[str]:
    target, (holdout, validation) = proposal.target, _shares(proposal)
    # Each row is drawn by itself, and hardly ever do so few as four deviations below a part's share fall into it.
    expected = validation * target.rows
    least = max(10, min(100, int(expected - 4 * math.sqrt(expected * (1 - validation)))))
    lines = []
    if proposal.time is not None:
        lines += _comment(
            f"If the past is to predict what comes: {{kind: time, column: {_scalar(proposal.time)}}}"
        )
    for name in proposal.groupings[:1]:
        lines += _comment(f"If rows that share it are alike: {{kind: group, column: {_scalar(name)}}}")
    if target.classes and target.rarest * validation < 5:
        lines += _comment(
            f"The rarest class has {target.rarest:,} rows: a part that gets none of them is refused."
        )
    settings = (
        f"kind: random, holdout: {holdout}, validation: {validation}, min_rows: {least}, seed: 20250101"
    )
    return [*lines, f"split: {{{settings}}}"]


def _training(proposal: Proposal) -> list[str]:
    target = proposal.target
    folds = max(2, min(5, int(target.rarest * 0.6)))  # a fold without one of the classes cannot be scored
    lines = ["training:", f"  metric: {_METRICS[target.kind][0]}", f"  folds: {folds}"]
    if target.kind is TaskKind.BINARY:
        lines.append("  threshold: {maximise: f1}")
    lines += ["  candidates:", *(_RIDGE if target.kind is TaskKind.REGRESSION else _LOGISTIC)]
    suffix = "Regressor" if target.kind is TaskKind.REGRESSION else "Classifier"
    boosting = _BOOSTING_MANY if target.rows >= _MANY_ROWS else _BOOSTING_FEW
    return lines + [line.replace("(kind)", suffix) for line in boosting]


_RIDGE = """\
    - name: ridge
      estimator: sklearn.linear_model.Ridge
      search:
        kind: grid
        space: {alpha: [0.1, 1.0, 10.0]}
""".splitlines()
_LOGISTIC = """\
    - name: logistic
      estimator: sklearn.linear_model.LogisticRegression
      params: {max_iter: 2000}
      search:
        kind: grid
        space: {C: [0.1, 1.0]}
""".splitlines()
_BOOSTING_FEW = """\
    - name: boosting
      estimator: sklearn.ensemble.GradientBoosting(kind)
      params: {n_estimators: 60, subsample: 0.7}
      search:
        kind: random
        iterations: 4
        space:
          learning_rate: {low: 0.03, high: 0.2, log: true}
          max_depth: [2, 3]
          min_samples_leaf: [5, 15]
""".splitlines()
_BOOSTING_MANY = """\
    - name: boosting
      estimator: sklearn.ensemble.HistGradientBoosting(kind)
      params: {max_iter: 100, early_stopping: false}
      search:
        kind: random
        iterations: 4
        space:
          learning_rate: {low: 0.03, high: 0.2, log: true}
          max_leaf_nodes: [8, 16, 31]
          min_samples_leaf: [20, 60]
""".splitlines()

_METRICS = {
    TaskKind.BINARY: (
        *("roc_auc", "average_precision", "log_loss", "brier"),
        *("f1", "precision", "recall", "accuracy"),
    ),
    TaskKind.MULTICLASS: ("f1_macro", "balanced_accuracy", "accuracy", "roc_auc_ovr", "log_loss"),
    TaskKind.REGRESSION: ("rmse", "mae", "median_absolute_error", "r2"),
}


def _evaluation(proposal: Proposal) -> list[str]:
    lines = ["evaluation:", *_listing("metrics", _METRICS[proposal.target.kind], 2)]
    enough = 75 / _shares(proposal)[0]  # leaves 50 in the holdout, the least that a slice is measured on
    slices = [
        name
        for name in proposal.divisions
        if (counts := proposal.found.columns[name].counts) and min(counts.values()) >= enough
    ]
    return lines + (_listing("slices", map(_scalar, slices[:3]), 2) if slices else [])


def _gates(proposal: Proposal) -> list[str]:
    target = proposal.target
    held = int(_shares(proposal)[0] * target.rows)
    champion = f"test: non_inferiority, margin: 0.01, min_rows: {max(30, min(200, int(0.6 * held)))}"
    lines = ["gates:", *_comment("What is good enough to be used? These are places to start from.", 2)]
    if target.kind is TaskKind.BINARY:
        assert target.positive is not None
        share = target.classes[target.positive] / target.rows
        blind = math.ceil(share * (1 - share) * 1000) / 1000
        error = 0.05 if held >= 2000 else 0.08 if held >= 500 else 0.15
        lines += [
            "  - {kind: metric, metric: roc_auc, min: 0.65, on: bound}",
            f"  - {{kind: metric, metric: brier, max: {blind}}}   # always answering {_share(share)} reaches this",
            f"  - {{kind: champion, metric: roc_auc, {champion}}}",
            f"  - {{kind: calibration, max_error: {error}}}",
            "  - {kind: overfit, metric: roc_auc, max_gap: 0.1}",
        ]
    elif target.kind is TaskKind.MULTICLASS:
        chance = 1 / len(target.classes)
        least = math.floor((chance + 0.3 * (1 - chance)) * 100) / 100
        lines += [
            f"  - {{kind: metric, metric: balanced_accuracy, min: {least:g}}}   # guessing reaches {chance:.2f}",
            f"  - {{kind: champion, metric: f1_macro, {champion}}}",
            "  - {kind: overfit, metric: f1_macro, max_gap: 0.2}",
        ]
    else:
        lines += [
            "  - {kind: metric, metric: r2, min: 0.2}   # always answering the mean reaches 0",
            f"  - {{kind: champion, metric: r2, {champion}}}",
            "  - {kind: overfit, metric: r2, max_gap: 0.3}",
        ]
    lines += [
        "  - {kind: leakage, max_score: 0.95}",
        "  - {kind: robustness, max_swing: 0.15}",
        "  - {kind: latency, max_p95_milliseconds: 100}",
        "  - {kind: size, max_megabytes: 20}",
    ]
    for name in proposal.divisions:
        if is_sensitive(name) and target.kind is TaskKind.BINARY:
            parity = "measure: demographic_parity_difference, max: 0.1"
            lines += _comment(f"- {{kind: fairness, attribute: {_scalar(name)}, {parity}}}", 2)
    return lines


# How YAML is written ----------------------------------------------------------------------------------------


def _mapping(key: str, settings: _Settings, indent: int, said: str = "") -> list[str]:
    """A key with a short mapping: on one line where that fits, else a line for each setting."""
    pad = " " * indent
    written = [value if isinstance(value, str) else f"[{', '.join(value)}]" for _, value in settings]
    flat = ", ".join(f"{name}: {value}" for (name, _), value in zip(settings, written, strict=True))
    line = f"{pad}{key}: {{{flat}}}"
    aside = f"   # {said}" if said else ""
    if len(line) + len(aside) <= _WIDTH:
        return [line + aside]
    above = _comment(said, indent) if said else []
    if len(line) <= _WIDTH:
        return [*above, line]
    lines = [*above, f"{pad}{key}:"]
    for name, value in settings:
        lines += [f"{pad}  {name}: {value}"] if isinstance(value, str) else _listing(name, value, indent + 2)
    return lines


def _listing(key: str, items: Iterable[str], indent: int) -> list[str]:
    """A key with a list in brackets, wrapped below its first item; `items` are YAML already."""
    lines, line = [], f"{' ' * indent}{key}: ["
    margin = " " * len(line)
    for place, item in enumerate(items):
        if place == 0:
            line += item
        elif len(line) + len(item) + 4 <= _WIDTH:
            line += f", {item}"
        else:
            lines.append(f"{line},")
            line = margin + item
    return [*lines, f"{line}]"]


def _comment(text: str, indent: int = 0) -> list[str]:
    """Text as comment lines, wrapped between words."""
    lead = " " * indent + "#"
    lines, line = [], lead
    for word in _printable(text).split(" "):
        if line != lead and len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = lead
        line += f" {word}"
    return [*lines, line]


_PLAIN = re.compile(r"[^\W\d_][\w./()+-]*( [\w./()+-]+)*")
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _scalar(value: Scalar) -> str:
    """A value that YAML 1.1 and 1.2 both read back the same: text that either could mistake is quoted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and _printable(value) == value and _is_text(value):
        return value
    return '"' + "".join(_SHORT_ESCAPES.get(char) or _escaped(char) for char in value) + '"'


@cache
def _is_text(plain: str) -> bool:
    """Whether YAML 1.1 too takes an unquoted text for text, and not for a boolean, a null or a number."""
    return isinstance(yaml.safe_load(plain), str)


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _printable(text: str) -> str:
    return "".join(map(_escaped, text))


def _values(counts: Iterable[Scalar]) -> list[str]:
    return [_scalar(value) for value in sorted(counts, key=lambda value: (isinstance(value, str), value))]


def _range(column: Column, lead: str = "") -> str:
    return f"{lead}{_bound(column.low)} to {_bound(column.high)}"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _bound(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, date):
        return value.isoformat()
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
