"""What a command line or its config files say twice: parsers keep the last and lose the others without a word.

Looks at words and files alone, before any command is imported. What a later config file says over an earlier one, a
flag over a config, and a flag over a part of a mapping before it are overrides, not duplicates.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SUFFIXES = (".yaml", ".yml")


def refuse_duplicates(words: Sequence[str]) -> None:
    """Refuses a flag that is given twice, and a key given twice in a mapping or a config file.

    ``--config`` may be given again, and ``--FLAG+``, which appends. A whole mapping comes before its parts: behind them
    it would replace them. Behind a word ``--`` another command line begins.

    Args:
        words: of a command line, without the program's name.

    Raises:
        ValueError: names the flag, or the key with its file and line.
    """
    rest: Sequence[str] = words
    while rest:
        end = list(rest).index("--") if "--" in rest else len(rest)
        _refuse_flags(list(_flags(rest[:end])))
        rest = rest[end + 1 :]


def refuse_duplicate_keys(text: str, source: str, *, numbered: bool = True) -> None:
    """Refuses YAML, or JSON, in which a mapping has a key twice; dotted keys stand for nested ones.

    Args:
        text: what cannot be read is left to whoever reads it.
        source: names it in the error.
        numbered: name the line, too.

    Raises:
        ValueError: names the key, the source and both lines.
    """
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError:
        return
    seen: dict[tuple[str, ...], int] = {}
    for path, line in _keys(node, (), set()):
        if path in seen:
            where, first = (f":{line + 1}", f", first in line {seen[path] + 1}") if numbered else ("", "")
            raise ValueError(f"{source}{where}: the key {'.'.join(path)!r} is given twice{first}; accepted: once")
        seen[path] = line


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each flag with its value, or its first one where it has several."""
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            behind = words[index + 1] if index + 1 < len(words) and not words[index + 1].startswith("--") else None
            yield name, value if equals else behind


def _refuse_flags(flags: list[tuple[str, str | None]]) -> None:
    given: dict[str, str | None] = {}
    for name, value in flags:
        if value is not None and value.lstrip().startswith(("{", "[")):
            refuse_duplicate_keys(value, f"{name} {value:.80}", numbered=False)
        if value is not None and (name == "--config" or value.endswith(_SUFFIXES)):
            _refuse_in_file(Path(value).expanduser())
        if name == "--config" or name.endswith("+"):
            continue
        if name in given:
            raise ValueError(f"{name} is given twice: {given[name]} and {value}; accepted: once")
        part = next((other for other in given if other.startswith(f"{name}.")), None)
        if part is not None and value is not None and value.lstrip().startswith("{"):
            raise ValueError(
                f"{name} {value:.80} would replace {part} before it; accepted: {name} first, then its parts"
            )
        given[name] = value


def _refuse_in_file(path: Path) -> None:
    if path.is_file():
        refuse_duplicate_keys(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _keys(node: Any, prefix: tuple[str, ...], visited: set[int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every key of a YAML node by its path, and the line it stands in; what an alias repeats is visited once."""
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, *_key_path(key))
            yield path, key.start_mark.line
            yield from _keys(value, path, visited)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _keys(value, (*prefix, str(index)), visited)


def _key_path(key: Any) -> tuple[str, ...]:
    if not isinstance(key, yaml.ScalarNode):
        return (str(key.start_mark),)
    kind = key.tag.rpartition(":")[2]
    text: str = key.value if kind == "str" else f"{key.value} ({kind})"  # 1 and "1" are two keys
    return tuple(text.split("."))
