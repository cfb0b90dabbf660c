"""Reads one YAML document into a pydantic model, and says of a bad one everything that is wrong with it.

In goes a file and the model it must fill; out comes the model, or a `SpecError` that lists all problems, one
a line, each with the file, the line of the key, the dotted path to it, what was expected and what was found.

The YAML read here is YAML 1.2 as far as JSON goes, with anchors. Only `true` and `false` (also capitalised)
are booleans, so a column of `[Yes, No]` stays text, as do `12:30`, `0123`, `0x1F`, `1_000` and dates; every
key is text. The model then validates by pydantic's JSON rules, under which even a strict model accepts a list
for a tuple and text for a date or an enum.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, RootModel, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from deployments.errors import SpecError

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
        problems = _problems(error.errors(include_url=False), model, root, source)
        raise SpecError("\n".join(problems)) from None


# From text to nodes -----------------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_MAX_VALUES = 100_000
_MAX_DEPTH = 60

# Numbers are written as in JSON: leading zeros, colons, underscores and bases mark an identifier or a time of
# day. The bound on digits keeps clear of Python's: int() refuses more than 4300.
_SCALARS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]{0,999})\Z"), list("-+0123456789")),
    "float": (
        re.compile(
            r"(?:[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by `_SCALARS` alone; PyYAML's own rules are those of YAML 1.1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own class attribute, filled just below)


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)


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
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == _TAG + "null"):
        raise SpecError(f"{source}: the document is empty; it must be a mapping of keys to values.")
    if not isinstance(root, yaml.MappingNode):
        found = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise SpecError(f"{source}:{_line(root)}: the document must be a mapping of keys, not {found}.")
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


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


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
                lines[key.value] = _line(key)
        return content

    def _sequence(self, node: yaml.Node) -> list[Any]:
        self._check_tag(node, "seq")
        return [self.value(child) for child in node.value]

    def _scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        if not _mend_surrogates(node):
            self._refuse(node, "this text is not valid Unicode")
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind not in _SCALARS or not _SCALARS[kind][0].match(text):
            self._refuse(node, f"the tag {node.tag.replace(_TAG, '!!')} does not fit here; take it off")
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
        if node.tag != _TAG + kind:
            self._refuse(node, f"the tag {node.tag.replace(_TAG, '!!')} does not fit here; take it off")

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


# From a location in a validation error to a place in the document -------------------------------------------

# A shape is what a value's annotation says it must be: a model class, list[int], Annotated[A | B, ...]; None
# where nothing is known of it, and then the document's own nodes lead on.
_Shape = Any
_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class _Place:
    """Where in the document a validation error belongs."""

    path: _Path
    line: int
    node: yaml.Node | None  # the value there; None if the document has none
    shape: _Shape
    owner: "_Place | None" = None  # the mapping or list that the value is in
    union: tuple[_Path, str] | None = None  # the outermost plain union on the way: its path, the member taken

    def child(self, part: str | int) -> "_Place":
        line, node = self.line, None
        if isinstance(self.node, yaml.MappingNode):
            for key, value in self.node.value:
                if key.value == str(part):
                    line, node = _line(key), value
        elif isinstance(self.node, yaml.SequenceNode) and part in range(len(self.node.value)):
            node = self.node.value[part]
            line = _line(node)
        return _Place((*self.path, part), line, node, _inner(self.shape, part), self, self.union)


def _place(loc: _Path, kind: str, model: type[BaseModel], root: yaml.Node) -> _Place:
    """Follow pydantic's `loc` through annotations and nodes together, leaving out the union tags in it."""
    place = _Place((), _line(root), root, model)
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if part == "[key]" and last and place.path:
            key = yaml.ScalarNode(_TAG + "str", str(place.path[-1]))
            return _Place(place.path, place.line, key, None, place.owner, place.union)
        members, discriminator = _members(place.shape)
        if len(members) > 1:
            union = place.union if discriminator else place.union or (place.path, str(part))
            chosen = _chosen(members, discriminator, str(part))
            place = _Place(place.path, place.line, place.node, chosen, place.owner, union)
            continue
        child = place.child(part)
        absent = last and kind in {"missing", "extra_forbidden"}
        if absent or child.node is not None or child.shape is not None:
            place = child
    return place


def _members(shape: _Shape) -> tuple[list[_Shape], str | None]:
    """What a value may be (one shape, or more for a union; null left out), and the key that decides."""
    discriminator = None
    while True:
        if _origin(shape) is Annotated:
            shape, *metadata = get_args(shape)
            named = (getattr(item, "discriminator", None) for item in metadata)
            discriminator = next((_text(name) for name in named if name is not None), discriminator)
        elif _origin(shape) in {Union, UnionType}:
            members = [member for member in get_args(shape) if member is not type(None)]
            if len(members) != 1:
                return members, discriminator
            shape = members[0]
        elif isinstance(shape, type) and issubclass(shape, RootModel):
            shape = _annotation(shape.model_fields["root"])
        elif hasattr(shape, "__value__"):  # type X = ...
            shape = shape.__value__
        elif hasattr(shape, "__supertype__"):  # NewType
            shape = shape.__supertype__
        else:
            return [shape], discriminator


def _text(discriminator: object) -> str:
    """A discriminator's key; one that is a function has none, and stands as a name that no key bears."""
    return discriminator if isinstance(discriminator, str) else "()"


def _chosen(members: Iterable[_Shape], discriminator: str | None, tag: str) -> _Shape:
    """The member of a union that pydantic means by `tag`: a value of the deciding key, or a label."""
    for member in members:
        (shape, *others), inner = _members(member)
        if others and inner in {discriminator, None}:  # pydantic makes one union of the two
            found = _chosen([shape, *others], discriminator, tag)
            if found is not None:
                return found
        elif discriminator is not None:
            if tag in _tags(member, discriminator):
                return member
        elif others:
            if tag.startswith("tagged-union["):
                return member
        else:
            name = getattr(_origin(shape) or shape, "__name__", "")
            # Labels: "Drift", "function-after[check(), Drift]", "list[str]", "constrained-str".
            if name and re.search(rf"(?:\A|, |-|\[){re.escape(name)}(?:\Z|\])|\A{re.escape(name)}\[", tag):
                return member
    return None


def _tags(member: _Shape, discriminator: str) -> list[str]:
    """The values of the discriminating key that choose `member`."""
    if _origin(member) is Annotated:
        tags = [item.tag for item in get_args(member)[1:] if isinstance(item, Tag)]
        if tags:
            return tags
    (shape, *others), _ = _members(member)
    if others:
        return [tag for one in (shape, *others) for tag in _tags(one, discriminator)]
    (key, *_), _ = _members(_fields(shape).get(discriminator))
    if _origin(key) is Literal:
        return [str(value.value if isinstance(value, Enum) else value) for value in get_args(key)]
    if isinstance(key, type) and issubclass(key, Enum):
        return [str(value.value) for value in key]
    return []


def _fields(shape: _Shape) -> dict[str, _Shape]:
    """A model's keys as a document writes them, each with its annotation; nothing for other shapes."""
    (shape, *_), _ = _members(shape)
    if not (isinstance(shape, type) and issubclass(shape, BaseModel)):
        return {}
    fields: dict[str, _Shape] = {}
    for name, field in shape.model_fields.items():
        alias = field.validation_alias or field.alias
        fields[alias if isinstance(alias, str) else name] = _annotation(field)
    return fields


def _annotation(field: FieldInfo) -> _Shape:
    """A field's annotation, with the field as metadata: `_members` finds there the discriminator it names."""
    return Annotated[field.annotation, field]


def _origin(shape: _Shape) -> object:
    return get_origin(shape)


def _inner(shape: _Shape, part: str | int) -> _Shape:
    """The shape of what a mapping, list or model of `shape` holds under `part`."""
    (shape, *_), _ = _members(shape)
    origin, arguments = _origin(shape), get_args(shape)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return arguments[1] if isinstance(part, str) and len(arguments) > 1 else None
    if isinstance(origin, type) and issubclass(origin, Iterable) and isinstance(part, int):
        fixed = origin is tuple and arguments[-1:] != (...,)
        return arguments[part if fixed else 0] if len(arguments) > (part if fixed else 0) else None
    return _fields(shape).get(str(part))


# From a validation error to a sentence ----------------------------------------------------------------------

_SECRET = re.compile("secret|password|token|key_value", re.IGNORECASE)
_LONGEST_SHOWN = 60

_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "iterable": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "dataclass": "a mapping",
    "date": "a date such as 2026-01-31",
    "datetime": "a date and time such as 2026-01-31T09:00:00Z",
    "time": "a time such as 09:00:00",
    "time_delta": "a duration such as PT30S",
    "path": "a path",
    "uuid": "a UUID",
}
_MISMATCH = re.compile(r"(\w+?)_(?:type|parsing|parsing_size|from_float|from_\w+_(?:parsing|inexact))")


@dataclass(frozen=True)
class _Fault:
    """One validation error, placed."""

    place: _Place
    expected: str | None  # a noun, if the value is of the wrong kind altogether
    sentence: str  # what is wrong, if it is not that

    @property
    def is_at_union(self) -> bool:
        return self.place.union is not None and self.place.union[0] == self.place.path


def _problems(
    errors: Iterable[ErrorDetails], model: type[BaseModel], root: yaml.Node, source: str
) -> list[str]:
    """Each validation error as a line of text, in the order of the document."""
    secrets = dict(_secrets(root, hidden=False))
    faults = [_fault(error, _place(error["loc"], error["type"], model, root), secrets) for error in errors]
    lines: dict[str, int] = {}
    for group in _by_union(faults):
        for place, sentence in _sentences(group, secrets):
            path = f" {_dotted(place.path)}:" if place.path else ""
            lines.setdefault(f"{source}:{place.line}:{path} {sentence}", place.line)
    return sorted(lines, key=lines.__getitem__)


def _fault(error: ErrorDetails, place: _Place, secrets: Mapping[int, str]) -> _Fault:
    kind, context = error["type"], error.get("ctx", {})
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return _tag_fault(place, context)
    expected = _expected(kind, context)
    if expected is not None:
        return _Fault(place, expected, "")
    if kind == "missing":
        what = "item" if isinstance(place.path[-1], int) else "key"
        return _Fault(place, None, f"required {what} is missing")
    if kind == "extra_forbidden" and place.owner is not None:
        return _Fault(place, None, f"unknown key{_known(place)}")
    return _Fault(place, None, _reworded(error, place, secrets))


def _expected(kind: str, context: Mapping[str, Any]) -> str | None:
    """What should stand in place of a value of the wrong kind; None if that is not what is wrong."""
    if kind in {"literal_error", "enum"}:
        return str(context["expected"])
    mismatch = _MISMATCH.fullmatch(kind)
    if mismatch and mismatch[1] in _KINDS:
        why = context.get("error")
        return _KINDS[mismatch[1]] + (f" ({why})" if isinstance(why, str) else "")
    return "null" if kind == "none_required" else None


def _tag_fault(place: _Place, context: Mapping[str, Any]) -> _Fault:
    """A union whose discriminating key is missing, or names none of its members."""
    members, discriminator = _members(place.shape)
    if discriminator is None or discriminator == "()":
        return _Fault(place, str(context.get("expected_tags", "a mapping of one of the known kinds")), "")
    tags = list(dict.fromkeys(repr(tag) for member in members for tag in _tags(member, discriminator)))
    expected = " or ".join([", ".join(tags[:-1]), tags[-1]] if len(tags) > 1 else tags)
    place = place.child(discriminator)
    if place.node is None:
        return _Fault(place, None, f"required key is missing; expected {expected}")
    return _Fault(place, expected, "")


def _known(place: _Place) -> str:
    """The keys that could stand where an unknown one does, the likeliest first."""
    known = sorted(_fields(place.owner.shape)) if place.owner else []
    mapping = place.owner.node if place.owner else None
    present = {key.value for key, _ in mapping.value} if isinstance(mapping, yaml.MappingNode) else set()
    near = _nearest(str(place.path[-1]), [name for name in known if name not in present])
    hint = f"; did you mean {near!r}?" if near else ""
    return hint + (f" (known: {', '.join(known)})" if known else "")


def _nearest(word: str, choices: Iterable[str]) -> str | None:
    folded = {choice.lower().replace("-", "_"): choice for choice in choices}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1)
    return folded[near[0]] if near else None


def _reworded(error: ErrorDetails, place: _Place, secrets: Mapping[int, str]) -> str:
    """Pydantic's or a validator's own message, on one line and in the words of YAML."""
    message = " ".join(error["msg"].split())
    own = error.get("ctx", {}).get("error")
    if isinstance(own, Exception):
        message = " ".join(str(own).split()) or message
        for secret in sorted(filter(None, secrets.values()), key=len, reverse=True):
            for written in (secret, repr(secret)[1:-1], " ".join(secret.split())):
                message = message.replace(written, "(not shown)") if written else message
        return message
    message = message.removesuffix(", not more").replace(" after validation", "")
    message = re.sub(r"\AString\b", "text", message)
    message = re.sub(r"\A(?:List|Tuple|Set|Frozenset)\b", "the list", message)
    message = re.sub(r"\ADictionary\b", "the mapping", message)
    message = message.replace("Input should be ", "must be ").replace(" should ", " must ")
    shown = isinstance(place.node, yaml.ScalarNode)
    return f"{message}, found {_found(place, secrets)}" if shown else message


def _by_union(faults: Iterable[_Fault]) -> Iterator[list[_Fault]]:
    """Errors about one value that could have been several things together; every other error alone."""
    groups: dict[object, list[_Fault]] = {}
    for fault in faults:
        groups.setdefault(fault.place.union[0] if fault.place.union else id(fault), []).append(fault)
    for group in groups.values():
        # Pydantic reports against every member. Those that the value cannot have been meant for only confuse.
        meant = [fault for fault in group if not (fault.is_at_union and fault.expected)]
        counts = Counter(fault.place.union for fault in meant)
        yield [fault for fault in meant if counts[fault.place.union] == min(counts.values())] or group


def _sentences(group: list[_Fault], secrets: Mapping[int, str]) -> Iterator[tuple[_Place, str]]:
    if len(group) > 1 and all(fault.is_at_union and fault.expected for fault in group):
        expected = ", or ".join(dict.fromkeys(fault.expected or "" for fault in group))
        group = [_Fault(group[0].place, expected, "")]
    for fault in group:
        if fault.expected is None:
            yield fault.place, fault.sentence
        else:
            hint = _hint(fault.expected, fault.place, secrets)
            yield fault.place, f"expected {fault.expected}, found {_found(fault.place, secrets)}{hint}"


def _found(place: _Place, secrets: Mapping[int, str]) -> str:
    node = place.node
    if node is None:
        return "nothing"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    if _hidden(place, secrets):
        return "a value (not shown)"
    if kind == "null":
        return "null" if text else "nothing"
    shown = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
    return repr(shown) if kind == "str" else {"bool": shown}.get(kind, f"the number {shown}")


def _hint(expected: str, place: _Place, secrets: Mapping[int, str]) -> str:
    node = place.node
    if not isinstance(node, yaml.ScalarNode) or _hidden(place, secrets):
        return ""
    near = _nearest(node.value, re.findall(r"'([^']*)'", expected))
    if near is not None:
        return f"; did you mean {near!r}?"
    if node.tag == _TAG + "str":
        unquoted = any(_SCALARS[kind][0].match(node.value) for kind in ("bool", "int", "float"))
        return "; take the quotes off" if unquoted and node.style in {"'", '"'} else ""
    return "; put it in quotes" if node.tag != _TAG + "null" and "text" in expected.split(", or ") else ""


def _hidden(place: _Place, secrets: Mapping[int, str]) -> bool:
    named = any(isinstance(part, str) and _SECRET.search(part) for part in place.path)
    return named or (place.node is not None and id(place.node) in secrets)


def _secrets(node: yaml.Node, *, hidden: bool) -> Iterator[tuple[int, str]]:
    """The scalars below keys that name a secret: the node's identity (an alias shares it) and its text."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _secrets(value, hidden=hidden or bool(_SECRET.search(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _secrets(item, hidden=hidden)
    elif hidden:
        yield id(node), str(node.value)


def _dotted(path: _Path) -> str:
    """`gates[3].metric`; a key that is not a plain word stands in brackets and quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text
