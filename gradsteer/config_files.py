"""Config files: read as YAML, refused by file and line, and where in them a key stands."""

import locale
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_VALUES = 1_000_000  # with what aliases repeat: a parser copies all of them, many times


def read_config(path: Path, what: str) -> dict[str, Any]:
    """What a config file holds.

    Args:
        path: YAML or JSON, in UTF-8.
        what: it is, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping, or has a key twice; names file and line.
    """
    if not path.is_file():
        no_file = "a directory, not a file" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{no_file}: {str(path)!r} ({what})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        said = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{path}: not UTF-8 ({said}); accepted: YAML in UTF-8") from error
    read_as = locale.getpreferredencoding(False)
    if not text.isascii() and read_as.lower().replace("-", "") != "utf8":  # jsonargparse reads it again, as this
        raise ValueError(
            f"{path}: holds characters beyond ASCII, and Python reads files as {read_as} here; accepted: the same "
            "command with PYTHONUTF8=1 in the environment"
        )
    try:
        refuse_duplicate_keys(text, str(path))
        _refuse_endless(yaml.compose(text, Loader=_LOADER), str(path), {})
        values = yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        said = f"{error.problem or error.context}"
        hint = "; a path with backslashes stands in single quotes, or with / instead" if "escape" in said else ""
        raise ValueError(f"{path}{line}: not readable as YAML: {said}{hint}") from error
    except (yaml.YAMLError, RecursionError) as error:
        said = "values within values within values, too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path}: not readable as YAML: {said}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ValueError(f"{path}: {what} is a mapping of keys to values; found {found}")
    return values


def refuse_duplicate_keys(text: str, source: str, *, numbered: bool = True) -> None:
    """Refuses YAML, or JSON, in which a mapping has a key twice; dotted keys stand for nested ones.

    Args:
        text: what cannot be read is left to whoever reads it.
        source: names it in the error.
        numbered: name the line, too.

    Raises:
        ValueError: names the key, the source and both lines.
    """
    seen: dict[tuple[str, ...], int] = {}
    for path, line in _keys_of(text):
        if path in seen:
            where, first = (f":{line + 1}", f", first in line {seen[path] + 1}") if numbered else ("", "")
            raise ValueError(f"{source}{where}: the key {'.'.join(path)!r} is given twice{first}; accepted: once")
        seen[path] = line


def _refuse_endless(node: Any, source: str, sizes: dict[int, int | None]) -> int:
    """How many values a YAML node stands for, each alias counted as what it repeats.

    Args:
        node: what a document was composed to.
        source: names the file in the error.
        sizes: of the nodes that were visited, by identity; None while within one.

    Raises:
        ValueError: an alias stands within what it repeats, or they are too many; names file and line.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    line = node.start_mark.line + 1
    if id(node) not in sizes:
        sizes[id(node)] = None
        parts = [part for value in node.value for part in (value if isinstance(value, tuple) else (value,))]
        sizes[id(node)] = 1 + sum(_refuse_endless(part, source, sizes) for part in parts)
    size = sizes[id(node)]
    if size is None:
        raise ValueError(f"{source}:{line}: an alias (*) stands within what it repeats; accepted: values that end")
    if size > _MOST_VALUES:
        raise ValueError(f"{source}:{line}: its aliases (*) stand for {size:.2g} values; accepted: {_MOST_VALUES:,}")
    return size


def where_given(key: str, words: Sequence[str]) -> str:
    """``FILE:LINE:`` of a key, for a message, in the config files of a command line; nothing where it is in none.

    Args:
        key: its dotted name.
        words: the command line.
    """
    files = [word for flag, word in zip(words, words[1:], strict=False) if flag == "--config"]
    files += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    for path in (Path(file).expanduser() for file in reversed(files)):
        if path.is_file():
            for found, line in _keys_of(path.read_text(encoding="utf-8", errors="replace")):
                if ".".join(found) == key:
                    return f"{path}:{line + 1}: "
    return ""


def _keys_of(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError:
        return
    yield from _keys(node, (), set())


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
