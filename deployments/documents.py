"""Reads one YAML document into a pydantic model, and says of a bad one everything that is wrong with it.

In goes a file and the model it must fill; out comes the model, or a `SpecError` that lists all problems, one
a line, each with the file, the line of the key, the dotted path to it, what was expected and what was found.

The YAML read here is YAML 1.2 as far as JSON goes, with anchors. Only `true` and `false` (also capitalised)
are booleans, so a column of `[Yes, No]` stays text, as do `12:30`, `0123`, `0x1F`, `1_000` and dates; every
key is text. The model then validates by pydantic's JSON rules, under which even a strict model accepts a list
for a tuple and text for a date or an enum.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from deployments.errors import SpecError
from deployments.explanations import explain, line_of
from deployments.scalars import SCALARS, TAG

__all__ = ["load_document", "parse_document"]

M = TypeVar("M", bound=BaseModel)


def load_document(path: Path, model: type[M]) -> M:
    """Read the UTF-8 YAML file at `path` into `model`.

    Raises `SpecError` if the file is missing, unreadable, empty, not UTF-8 or not YAML,
    or not what `model` asks for.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file; check the path.") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: this is a directory; name a YAML file in it.") from None
    except OSError as error:
        raise SpecError(f"{path}: the file cannot be read: {error.strerror}.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: this is not UTF-8 text; save the file as UTF-8.") from None
    return parse_document(text, model, str(path))


def parse_document(text: str, model: type[M], source: str) -> M:
    """Read YAML `text` into `model`; `source` names the text in messages, as a file name would.

    Raises `SpecError` if the text is empty, not YAML, or not what `model` asks for.
    """
    root = _compose(text, source)
    reading = _Reading(source)
    content = reading.value(root)
    if reading.problems:
        raise SpecError("\n".join(reading.problems))
    try:
        # Validated as JSON: python mode would have a strict model refuse every list that fills a tuple.
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problems = explain(error, model, root, source)
        raise SpecError("\n".join(problems)) from None


# From text to nodes -----------------------------------------------------------------------------------------

_MAX_VALUES = 100_000
_MAX_DEPTH = 60


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by `SCALARS` alone; PyYAML's own rules are those of YAML 1.1."""

    yaml_implicit_resolvers = {}  # filled just below


for _name, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(TAG + _name, _pattern, _first)


def _compose(text: str, source: str) -> yaml.MappingNode:
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise SpecError(_syntax(error, source)) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        where = f"{source}:{len(before)}:{len(before[-1]) + 1}"
        character = f"U+{ord(text[error.position]):04X}"
        raise SpecError(f"{where}: the character {character} may not stand in YAML.") from None
    except RecursionError:
        raise SpecError(f"{source}: the document is nested too deeply to be read.") from None
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == TAG + "null"):
        raise SpecError(f"{source}: the document is empty; it must be a mapping of keys to values.")
    if not isinstance(root, yaml.MappingNode):
        found = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise SpecError(f"{source}:{line_of(root)}: the document must be a mapping of keys, not {found}.")
    return root


def _syntax(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "this is not YAML"
    if "'\\t'" in problem:
        problem += "; indent with spaces, not tabs"
    if error.context and problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    elif error.context and error.context_mark and error.problem:
        problem += f" ({error.context} that begins on line {error.context_mark.line + 1})"
    return f"{source}:{mark.line + 1}:{mark.column + 1}: {problem}" if mark else f"{source}: {problem}"


class _Reading:
    """One pass over a document's nodes: values come out, and what may not stand is noted in `problems`."""

    def __init__(self, source: str) -> None:
        self.problems: list[str] = []
        self._source = source
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node) -> Any:
        """The node as dictionaries with text keys, lists and scalars, aliases replaced by their values."""
        self._count += 1
        if id(node) in self._open:
            self._refuse(node, "this value holds an alias of itself")
        elif len(self._open) > _MAX_DEPTH:
            self._refuse(node, f"this value is nested more than {_MAX_DEPTH} levels deep")
        elif self._count > _MAX_VALUES:
            # A few aliases of aliases can stand for billions of values.
            if self._count == _MAX_VALUES + 1:
                self._refuse(node, f"the document holds more than {_MAX_VALUES:,} values, aliases followed")
        elif isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        else:
            self._open.add(id(node))
            content = self._mapping(node) if isinstance(node, yaml.MappingNode) else self._sequence(node)
            self._open.remove(id(node))
            return content
        return None

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        self._check_tag(node, "map")
        content: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, child in node.value:
            value = self.value(child)
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "a key must be text; put quotes around a value that begins with { or [")
            elif not _mend_surrogates(key):
                self._refuse(key, "this key is not valid Unicode")
            elif not key.value:
                self._refuse(key, "a key is empty")
            elif key.value == "<<" and key.style is None:
                self._refuse(key, "merge keys (<<) are not read; write the keys out")
            elif key.value in content:
                self._refuse(key, f"duplicate key {key.value!r}, given first on line {lines[key.value]}")
            else:
                content[key.value] = value
                lines[key.value] = line_of(key)
        return content

    def _sequence(self, node: yaml.Node) -> list[Any]:
        self._check_tag(node, "seq")
        return [self.value(child) for child in node.value]

    def _scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        if not _mend_surrogates(node):
            self._refuse(node, "this text is not valid Unicode")
        text: str = node.value
        kind = node.tag.removeprefix(TAG)
        if kind == "str":
            return text
        if kind not in SCALARS or not SCALARS[kind][0].match(text):
            self._refuse(node, f"the tag {node.tag.replace(TAG, '!!')} does not fit here; take it off")
        elif kind == "null":
            return None
        elif kind == "bool":
            return text.lower() == "true"
        elif kind == "int":
            return int(text)
        else:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def _check_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != TAG + kind:
            self._refuse(node, f"the tag {node.tag.replace(TAG, '!!')} does not fit here; take it off")

    def _refuse(self, node: yaml.Node, problem: str) -> None:
        mark = node.start_mark
        text = f"{self._source}:{mark.line + 1}:{mark.column + 1}: {problem}"
        if text not in self.problems:  # an alias meets the same problem again
            self.problems.append(text)


def _mend_surrogates(node: yaml.ScalarNode) -> bool:
    """Join the pairs that JSON writes for a character such as an emoji; False if half of one stands alone."""
    try:
        node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return False
    return True
