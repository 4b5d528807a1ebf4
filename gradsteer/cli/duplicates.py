"""What a command line or its config files say twice: parsers keep the last and lose the others without a word.

Looks at words and files alone, before any command is imported. What a later config file says over an earlier one, a
flag over a config, and a flag over a part of a mapping before it are overrides, not duplicates.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gradsteer.config_files import read_config, refuse_duplicate_keys

_SUFFIXES = (".yaml", ".yml")


def refuse_duplicates(words: Sequence[str]) -> None:
    """Refuses a flag that is given twice, and a key given twice in a mapping or a config file.

    ``--config`` may be given again, and ``--FLAG+``, which appends. A whole mapping comes before its parts: behind them
    it would replace them. Behind a word ``--`` another command line begins.

    Args:
        words: of a command line, without the program's name.

    Raises:
        FileNotFoundError: a config file is not there.
        ValueError: names the flag, or the key with its file and line; or a config file is no mapping.
    """
    rest: Sequence[str] = words
    while rest:
        end = list(rest).index("--") if "--" in rest else len(rest)
        _refuse_flags(list(_flags(rest[:end])))
        rest = rest[end + 1 :]


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
        if value is not None and name == "--config" and not value.lstrip().startswith("{"):
            read_config(Path(value).expanduser(), "a config")
        elif value is not None and value.endswith(_SUFFIXES):
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
