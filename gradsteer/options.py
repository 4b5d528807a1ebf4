"""Parsers of options whose errors are one line: the option, what was given and what it takes.

jsonargparse says which types it has tried, in many lines; what is said here is made from its words and from the
option's own type.
"""

import dataclasses
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from gradsteer.config_files import where_given
from gradsteer.nearest import did_you_mean

_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", type(None): "null"}
_MANY = {bool: "true or false", int: "whole numbers", float: "finite numbers", str: "texts"}
_LISTED = 8
_GIVEN = "Given value|Got value|dot import path string"
_LONGEST = 300  # characters of what an option takes
# lines of a parser's error that only say what was tried
_TRIED = re.compile(r"^[\s-]*(Does not validate|Subtypes:|Errors:|Expected an? |Given value|Parser key|Problem with)")


class LineErrors:
    """Says a parser's errors in one line; to be mixed into a parser of jsonargparse."""

    exit_on_error: bool
    prog: str

    def takes(self, key: str) -> str | None:
        """What an option, by its dotted name, takes, where its parser knows better words than its type gives."""
        return None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Writes the error and ends the process with status 2; GRADSTEER_TRACEBACK=1 raises instead."""
        if not self.exit_on_error:  # of a parser in a parser, which goes on
            super().error(message, ex)  # type: ignore[misc]
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        below = getattr(parser, "_subcommands_action", None)
        if below is not None and len(below.choices) == 1:
            [parser] = below.choices.values()
        line = one_line(message, parser, getattr(self, "args", ()))
        if os.environ.get("GRADSTEER_TRACEBACK"):
            raise ValueError(line) from ex
        program = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"{program}: error: {line}\n({program} --help explains the options)\n")
        sys.exit(2)


class OptionsParser(LineErrors, ArgumentParser):
    """A parser of a command that is no Trainer command."""


def one_line(message: str, parser: Any = None, words: Sequence[str] = ()) -> str:
    """A parser's error as one line.

    Args:
        message: in the words of argparse or jsonargparse.
        parser: the parser of the command; None where it is not known.
        words: of the command line, whose config files are looked through for a key.
    """
    if (found := re.match(r"(?:unrecognized arguments|ambiguous option): (\S+)", message)) is not None:
        return _unknown_word(found[1].partition("=")[0], parser)
    if (found := re.match(r"(?:\w+ '[\w.]+' does not accept option|Option) '([^']+)'", message)) is not None:
        return _unknown_key(found[1], parser, words)
    if (found := re.match(r"Key must be a string, got: (.+)\.$", message)) is not None:
        places = (where_given(f"{found[1]} ({kind})", words) for kind in ("int", "float", "bool", "null", "timestamp"))
        return f"{next(filter(None, places), '')}a key is {found[1]}; accepted: names of options, which are texts"
    if (found := re.match(r"argument (\S+): expected (one|at least one) argument", message)) is not None:
        flag = found[1].split("/")[-1]
        return f"{flag} has no value; accepted: {_takes(flag.lstrip('-'), parser, message)}"
    if (found := re.match(r"the following arguments are required: (.+)", message)) is not None:
        return f"missing: {', '.join(_flag(name, parser) for name in found[1].split(', '))}"
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    return _wrong_value(".".join(keys), message, parser) if keys else _plain(message)


def _unknown_word(word: str, parser: Any) -> str:
    if not word.startswith("-"):
        return f"{word!r} belongs to no option; accepted: --OPTION VALUE"
    flags = [flag for flag in _flags(parser) if not flag.endswith(("+", ".help"))]
    return f"unknown option {word}{did_you_mean(word, flags)}"


def _unknown_key(key: str, parser: Any, words: Sequence[str]) -> str:
    place = where_given(key, words)
    known = [flag.removeprefix("--") for flag in _flags(parser) if not flag.endswith(("+", ".help"))]
    whole = "" if parser is None or not key.startswith(f"{parser.prog.split()[-1]}.") else "; accepted: its keys alone"
    return f"{place}unknown option {key!r}{whole or did_you_mean(key, known)}"


def _wrong_value(key: str, message: str, parser: Any) -> str:
    tail = message[message.rfind('Parser key "') :]
    class_path = ([None, *re.findall(r"class_path[ =]'([\w.]+)'", message)])[-1]
    made = "" if class_path is None else f" {class_path.rpartition('.')[2]}"
    if (found := re.search(r"Option '([^']+)' is not accepted", tail)) is not None:
        hint = did_you_mean(found[1], _arguments(class_path))
        known = None if hint or _classes(key, parser) or not hasattr(parser, "takes") else parser.takes(key)
        return f"--{key}.{found[1]}:{made} has no such option{hint}{'' if known is None else f'; accepted: {known}'}"
    if (found := re.search(r'Unable to load config "(.*)"', tail)) is not None:
        return f"--{key} is {found[1]:.80}; accepted: a mapping of its options, or a YAML file of one"
    if (found := re.search(r"the following arguments are required: ([\w, ]+)", tail)) is not None:
        needed = " and ".join(f"--{key}.{name}" for name in found[1].split(", "))
        return f"--{key}{made} needs {needed}"
    if "Expected an instantiatable class" in tail:
        return f"--{key} is missing, or given behind its own options; accepted: {_takes(key, parser, message)}"
    value = re.search(rf"(?:{_GIVEN}): ?((?:(?!\. Got value).)*)", tail)
    takes = _takes(key, parser, message)
    takes = takes if len(takes) <= _LONGEST else f"{takes[:_LONGEST]}..."
    known = _classes(key, parser)
    hint = did_you_mean(value[1], known) if value is not None and known else ""
    if value is None or not takes:
        return f"--{key}: {_plain(tail.partition(chr(10))[2] or tail)}"
    return f"--{key} is {value[1].strip():.80}{hint}; accepted: {takes}"


def _plain(message: str) -> str:
    """A library's own words in one line, without what it only tried."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    said = [line for line in lines if line and not _TRIED.match(line)] if "Does not validate" in message else lines
    return " ".join(" ".join(said or lines).split()) if len(lines) > 1 else message


def _takes(key: str, parser: Any, message: str) -> str:
    parts = key.split(".")
    for end in range(len(parts), 0, -1) if hasattr(parser, "takes") else ():  # of a part of an option, the option's
        if (known := parser.takes(".".join(parts[:end]))) is not None:
            return str(known)
    action = _action(key, parser)
    hint = getattr(action, "_typehint", None) or getattr(action, "type", None)
    if hint is not None:
        return type_text(hint)
    expected = re.findall(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal(\[.*?\]))", message)
    names = {each.__name__: text for each, text in _WORDS.items()}
    texts = [names.get(name, name.rpartition(".")[2]) if name else literal.strip("[]") for name, literal in expected]
    return ", or ".join(dict.fromkeys(texts))


def type_text(hint: Any) -> str:
    """A type in a user's words, such as ``a whole number, or null``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is typing.Literal:
        return ", ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(dict.fromkeys(map(type_text, inner)))
    if origin is list or getattr(origin, "__name__", "") in ("Sequence", "Iterable"):
        return f"a list of {_MANY.get(inner[0], type_text(inner[0]))}"
    if origin is dict:
        return f"a mapping of names to {_MANY.get(inner[1], type_text(inner[1]))}"
    if dataclasses.is_dataclass(hint):
        return f"a mapping of {', '.join(field.name for field in dataclasses.fields(hint))}"
    if base := _made_by(hint):
        names = sorted({each.__name__ for each in _subclasses(base)})
        return f"a class by its name ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
    return str(getattr(hint, "__name__", hint)).removeprefix("typing.")


def _made_by(hint: Any) -> type | None:
    """The class that an option makes an object of, by its own name or through a callable; None for other options."""
    made = typing.get_args(hint)[-1] if typing.get_origin(hint) is Callable else hint
    return made if inspect.isclass(made) and made.__module__.partition(".")[0] not in ("builtins", "typing") else None


def _subclasses(base: type) -> Iterator[type]:
    each: type
    for each in base.__subclasses__():
        if not inspect.isabstract(each) and not each.__name__.startswith("_"):
            yield each
        yield from _subclasses(each)


def _classes(key: str, parser: Any) -> list[str]:
    """The names of classes that an option accepts, of those that are imported."""
    hint = getattr(_action(key, parser), "_typehint", None)
    bases = [_made_by(each) for each in (hint, *typing.get_args(hint))]
    return [each.__name__ for base in bases if base is not None for each in _subclasses(base)]


def _arguments(class_path: str | None) -> list[str]:
    """The arguments of a class, by its import path; of those that are imported."""
    module, _, name = (class_path or "").rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(made).parameters) if made is not None else []


def _flags(parser: Any) -> list[str]:
    return [] if parser is None else [*parser._option_string_actions]


def _flag(name: str, parser: Any) -> str:
    return f"--{name}" if f"--{name}" in _flags(parser) else name


def _action(key: str, parser: Any) -> Any:
    return None if parser is None else parser._option_string_actions.get(f"--{key}")
