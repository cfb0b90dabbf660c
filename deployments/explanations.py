"""Says of each pydantic validation error of a YAML document where it is and what is wrong, in plain words.

In go the errors, the model, and the document's nodes; out come lines of text, each with the file, the line of
the key, the dotted path to it, what was expected and what was found. Values of secrets are never shown.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, RootModel, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from deployments.scalars import SCALARS, TAG

__all__ = ["DeclarationError", "explain", "line_of"]


class DeclarationError(ValueError):
    """What a validator of a whole model raises about one part of it; `path` leads there from that model."""

    def __init__(self, path: tuple[str | int, ...], problem: str) -> None:
        super().__init__(problem)
        self.path = path

    def __str__(self) -> str:
        return f"{_dotted(self.path)}: {self.args[0]}"


def explain(error: ValidationError, model: type[BaseModel], root: yaml.Node, source: str) -> list[str]:
    """Each problem in the document `root`, read from `source`, as a line of text, in the document's order."""
    details = error.errors(include_url=False)
    secrets = dict(_secrets(root, hidden=False))
    placed = [(detail, _place(detail, model, root)) for detail in details]
    faults = [_fault(detail, place, secrets) for detail, place in placed if not _is_echo(detail, place)]
    lines: dict[str, int] = {}
    for group in _by_union(faults):
        for place, sentence in _sentences(group, secrets):
            path = f" {_dotted(place.path)}:" if place.path else ""
            lines.setdefault(f"{source}:{place.line}:{path} {sentence}", place.line)
    return sorted(lines, key=lines.__getitem__)


def line_of(node: yaml.Node) -> int:
    """The line a node begins on, counted from 1."""
    return node.start_mark.line + 1


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
                    line, node = line_of(key), value
        elif isinstance(self.node, yaml.SequenceNode) and part in range(len(self.node.value)):
            node = self.node.value[part]
            line = line_of(node)
        return _Place((*self.path, part), line, node, _inner(self.shape, part), self, self.union)


def _place(error: ErrorDetails, model: type[BaseModel], root: yaml.Node) -> _Place:
    """Where an error belongs: where pydantic met it, or below, if the validator that raised it says so."""
    place = _followed(error["loc"], error["type"], model, root)
    own = error.get("ctx", {}).get("error")
    for part in own.path if isinstance(own, DeclarationError) else ():
        place = place.child(part)
    return place


def _followed(loc: _Path, kind: str, model: type[BaseModel], root: yaml.Node) -> _Place:
    """Follow pydantic's `loc` through annotations and nodes together, leaving out the union tags in it."""
    place = _Place((), line_of(root), root, model)
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if part == "[key]" and last and place.path:
            key = yaml.ScalarNode(TAG + "str", str(place.path[-1]))
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


def _is_echo(error: ErrorDetails, place: _Place) -> bool:
    """Whether a list is called too short only because pydantic leaves out the items it found fault with."""
    if error["type"] != "too_short" or not isinstance(place.node, yaml.CollectionNode):
        return False
    return len(place.node.value) >= int(error["ctx"]["min_length"])


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
        said = own.args[0] if isinstance(own, DeclarationError) else own
        message = " ".join(str(said).split()) or message
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
    text, kind = str(node.value), node.tag.removeprefix(TAG)
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
    if node.tag == TAG + "str":
        unquoted = any(SCALARS[kind][0].match(node.value) for kind in ("bool", "int", "float"))
        return "; take the quotes off" if unquoted and node.style in {"'", '"'} else ""
    return "; put it in quotes" if node.tag != TAG + "null" and "text" in expected.split(", or ") else ""


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
