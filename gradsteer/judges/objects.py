"""Finds the JSON objects in a text that a model wrote, also where the JSON is not quite right.

Read, never evaluated: quotes of either kind, Python's True, False and None, bare words and commas too many are taken as
what they stand for.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>[{}\[\]:,])|(?P<double>"(?:[^"\\]|\\.)*")|(?P<single>'(?:[^'\\]|\\.)*')"""
    r"""|(?P<bare>[^\s{}\[\]:,"']+))""",
    re.DOTALL,
)
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{0,15})?")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_MAX_DEPTH = 8
_MAX_TRIES = 64  # opening braces that open nothing: each costs a look at what follows


@dataclass(frozen=True)
class FoundObject:
    """One object.

    Args:
        pairs: Keys and values in order; a key may come twice. A value is a string, a number, a boolean, None, a list
            of values or a FoundObject.
        start: Where its text begins.
        end: Where its text ends, exclusive.
    """

    pairs: tuple[tuple[str, Any], ...]
    start: int
    end: int


class _Unreadable(Exception):
    pass


def find_objects(text: str) -> tuple[list[FoundObject], list[str]]:
    """The outermost objects of a text, in order.

    Returns:
        The objects; and, for each opening brace outside of them that opens nothing readable, the text from there to
        the next opening brace.
    """
    found: list[FoundObject] = []
    broken: list[str] = []
    position = text.find("{")
    while position >= 0 and len(broken) < _MAX_TRIES:
        try:
            value, end = _value(text, position, 0)
        except _Unreadable:
            end = position + 1
            following = text.find("{", end)
            broken.append(text[position : following if following >= 0 else len(text)])
        else:
            found.append(value)
        position = text.find("{", end)
    if position >= 0:
        broken.append(text[position:])
    return found, broken


def nested_objects(value: object) -> Iterator[FoundObject]:
    """An object, or those of a list, and all objects in them."""
    if isinstance(value, FoundObject):
        yield value
        for _, inner in value.pairs:
            yield from nested_objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nested_objects(inner)


def _token(text: str, position: int) -> tuple[str, str, int]:
    match = _TOKEN.match(text, position)
    if match is None or match.lastgroup is None:
        raise _Unreadable
    return match.lastgroup, match.group(match.lastgroup), match.end()


def _value(text: str, position: int, depth: int) -> tuple[Any, int]:
    kind, token, end = _token(text, position)
    if kind != "sign":
        return _scalar(kind, token), end
    if token not in "{[" or depth == _MAX_DEPTH:
        raise _Unreadable
    if token == "[":
        return _list(text, end, depth + 1)
    pairs, stop = _pairs(text, end, depth + 1)
    return FoundObject(pairs, position, stop), stop


def _list(text: str, position: int, depth: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    while True:
        _, token, end = _token(text, position)
        if token == "]":
            return values, end
        value, position = _value(text, position, depth)
        values.append(value)
        position = _separated(text, position, "]")


def _pairs(text: str, position: int, depth: int) -> tuple[tuple[tuple[str, Any], ...], int]:
    pairs: list[tuple[str, Any]] = []
    while True:
        kind, token, end = _token(text, position)
        if kind == "sign":
            if token == "}":
                return tuple(pairs), end
            raise _Unreadable
        key = token if kind == "bare" else str(_scalar(kind, token))
        _, token, end = _token(text, end)
        if token != ":":
            raise _Unreadable
        value, position = _value(text, end, depth)
        pairs.append((key, value))
        position = _separated(text, position, "}")


def _separated(text: str, position: int, closing: str) -> int:
    # past the comma, or before the closing bracket, which the caller reads
    _, token, end = _token(text, position)
    if token == ",":
        return end
    if token == closing:
        return position
    raise _Unreadable


def _scalar(kind: str, token: str) -> Any:
    if kind == "double":
        try:
            return json.loads(token, strict=False)
        except ValueError:
            raise _Unreadable from None
    if kind == "single":
        return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
    if token.lower() in _WORDS:
        return _WORDS[token.lower()]
    return float(token) if _NUMBER.fullmatch(token) else token
