"""Finds the JSON objects in a text that a model wrote, also where the JSON is not quite right.

Python's `json` reads them. Before that, what people take for JSON is spelled as it has to be: quotes of either kind,
Python's True, False and None, bare words, and commas too many.
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
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?")
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}
_MAX_DEPTH = 8
_MAX_TRIES = 64  # opening braces that open nothing: each costs a look at what follows


@dataclass(frozen=True)
class FoundObject:
    """One object.

    Args:
        pairs: Keys and values in order; a key may come twice. A value is a string, a number, a boolean, None, a list
            of values or a FoundObject.
        text: As it was written; empty for an object in another.
    """

    pairs: tuple[tuple[str, Any], ...]
    text: str = ""


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
            spelled, end = _spelled(text, position)
            read = json.loads(spelled, strict=False, parse_int=float, object_pairs_hook=_object)
            found.append(FoundObject(read.pairs, text[position:end]))
        except ValueError:
            end = position + 1
            following = text.find("{", end)
            broken.append(text[position : following if following >= 0 else len(text)])
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


def _object(pairs: list[tuple[str, Any]]) -> FoundObject:
    return FoundObject(tuple(pairs))


def _spelled(text: str, position: int) -> tuple[str, int]:
    """What begins at a brace, up to the one that closes it, as JSON; and where it ends.

    Raises:
        ValueError: If nothing closes it, or it holds too many in one another.
    """
    parts: list[str] = []
    depth, bare = 0, ""
    while found := _TOKEN.match(text, position):
        kind, token, position = str(found.lastgroup), found[str(found.lastgroup)], found.end()
        if token == ":" and bare:  # a key is a string, whatever word it is
            parts[-1] = json.dumps(bare)
        bare = token if kind == "bare" else ""
        if kind != "sign":
            parts.append(_scalar(kind, token))
            continue
        depth += (token in "{[") - (token in "}]")
        if depth > _MAX_DEPTH:
            break
        if token in "}]" and parts[-1] == ",":
            del parts[-1]
        parts.append(token)
        if depth == 0:
            return "".join(parts), position
    raise ValueError("no object")


def _scalar(kind: str, token: str) -> str:
    if kind == "double":
        return token
    if kind == "single":
        return json.dumps(re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL))
    return _WORDS.get(token.lower()) or (token if _NUMBER.fullmatch(token) else json.dumps(token))
