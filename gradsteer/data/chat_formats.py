"""Reading chat examples and prompts in the common shapes and file formats.

Shapes: `{"messages": [...]}`, and `{"prompt": ..., "completion": ...}` where either side is a string or a list of
messages. Messages are `{"role", "content"}`, or ShareGPT's `{"from", "value"}`. Files: JSON lines, a JSON array,
Parquet, CSV, and hub datasets.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsteer.records import read_jsonl, resolve_resource, text_digest

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
# ShareGPT's role names; its datasets mix both kinds.
_ROLE_ALIASES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant"}
_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
_HUB_ID = r"[\w-][\w.-]*(/[\w.-]+)?"
_CHAT_SHAPES = (
    '{"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "completion": ...}, '
    "each side a string or a list of messages"
)
_PROMPT_SHAPES = '{"prompt": "..."} or {"messages": [{"role": ..., "content": ...}, ...]}, optionally "id"'


@dataclass(frozen=True)
class ChatExample:
    """One conversation to learn from.

    Attributes:
        messages: The turns in order, each `{"role", "content"}`.
        num_prompt_messages: Number of messages before the completion: the prompt's for a row of prompt and
            completion, everything before the last assistant turn for a row of messages.
        source: Its location, as `file:line` or `file:row`.
    """

    messages: list[Message]
    num_prompt_messages: int
    source: str


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer.

    Attributes:
        id: The row's own id, or a digest of the messages.
        messages: The turns in order; the last is not the assistant's.
        source: Its location, as `file:line` or `file:row`.
    """

    id: str
    messages: list[Message]
    source: str


def read_chat_examples(
    source: str, *, split: str = "train", columns: dict[str, str] | None = None
) -> list[ChatExample]:
    """Read conversations that have at least one assistant turn.

    Args:
        source: A .jsonl, .json, .parquet or .csv file, a `gradsteer://` resource, a local dataset directory, or a hub
            dataset id.
        split: The split of a dataset directory or hub dataset; files have none.
        columns: Our names (`messages`, or `prompt` and `completion`) to the dataset's, such as
            `{"prompt": "instruction", "completion": "output"}`. Naming a column fixes the shape; otherwise a row with
            `messages` is read by them alone.

    Returns:
        The examples in order; at least one.

    Raises:
        ValueError: If a file or dataset is missing, empty or of an unknown kind; with `file:line: ...` if a row has
            neither shape, no assistant turn, an unknown role, or content that is not a string.
    """
    _check_columns(columns, ("messages", "prompt", "completion"))
    examples = []
    for where, row in _read_rows(source, split):
        names = _find_shape(row, columns, (("messages",), ("prompt", "completion")), where, _CHAT_SHAPES)
        parts = [_parse_messages(row[name], ours, where) for ours, name in names.items()]
        messages = [message for part in parts for message in part]
        if all(message["role"] != "assistant" for message in parts[-1]):
            part = "completion" if len(parts) == 2 else "example"
            raise ValueError(f"{where}: the {part} has no assistant turn, so there is nothing to learn from")
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        num_prompt_messages = len(parts[0]) if len(parts) == 2 else last
        examples.append(ChatExample(messages, num_prompt_messages, where))
    if not examples:
        raise ValueError(f"{source}: empty; expected rows of {_CHAT_SHAPES}")
    return examples


def read_prompts(source: str, *, split: str = "train", columns: dict[str, str] | None = None) -> list[Prompt]:
    """Read prompts to answer.

    Args:
        source: As for `read_chat_examples`.
        split: As for `read_chat_examples`.
        columns: Our names (`prompt` or `messages`, and `id`) to the dataset's.

    Returns:
        The prompts in order; at least one. Ids are unique; a row without one gets the first 8 hex digits of its
        messages' digest.

    Raises:
        ValueError: As for `read_chat_examples`; also if messages end with the assistant's turn, or an id occurs
            twice (naming both places).
    """
    _check_columns(columns, ("messages", "prompt", "id"))
    id_column = (columns or {}).get("id", "id")
    prompts: dict[str, Prompt] = {}
    for where, row in _read_rows(source, split):
        names = _find_shape(row, columns, (("prompt",), ("messages",)), where, _PROMPT_SHAPES)
        [(ours, name)] = names.items()
        messages = _parse_messages(row[name], ours, where)
        if not messages:
            raise ValueError(f"{where}: the prompt has no messages; expected {_PROMPT_SHAPES}")
        if messages[-1]["role"] == "assistant":
            raise ValueError(
                f"{where}: the prompt ends with an assistant turn ({messages[-1]['content'][:60]!r}); "
                "expected the turns up to the one to be answered"
            )
        if columns and "id" in columns and id_column not in row:
            raise ValueError(f"{where}: no column {id_column!r}; found: {_list_names(row)}")
        given = row.get(id_column)
        if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int))):
            raise ValueError(f"{where}: id {given!r}; expected a string or an integer")
        key = str(given) if given not in (None, "") else text_digest(json.dumps(messages, sort_keys=True))[:8]
        if key in prompts:
            raise ValueError(
                f"{where}: id {key!r} already occurs at {prompts[key].source}; expected each prompt once "
                "(give the rows ids of their own to keep a repeated prompt)"
            )
        prompts[key] = Prompt(key, messages, where)
    if not prompts:
        raise ValueError(f"{source}: empty; expected rows of {_PROMPT_SHAPES}")
    return list(prompts.values())


def prompt_text(messages: list[Message]) -> str:
    """A prompt as one string: a single message's content, otherwise a transcript with the roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _check_columns(columns: dict[str, str] | None, accepted: tuple[str, ...]) -> None:
    for name in columns or {}:
        if name not in accepted:
            raise ValueError(f"columns: unknown name {name!r}; accepted: {', '.join(accepted)}")


def _list_names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _find_shape(
    row: Mapping[str, Any],
    columns: dict[str, str] | None,
    shapes: tuple[tuple[str, ...], ...],
    where: str,
    accepted: str,
) -> dict[str, str]:
    """Return our names to the row's for the first of `shapes` that the row, or else `columns`, has."""
    columns = columns or {}
    # A mapped column takes precedence over whatever else the row contains.
    mapped = [shape for shape in shapes if any(name in columns for name in shape)]
    if len(mapped) > 1:
        raise ValueError(f"columns: {columns} name two shapes; expected {accepted}")
    for shape in mapped or shapes:
        names = {name: columns.get(name, name) for name in shape}
        if all(row.get(name) is not None for name in names.values()):
            return names
    missing = [columns.get(name, name) for shape in mapped for name in shape]
    lacking = [name for name in missing if row.get(name) is None]
    problem = f"no value in {', '.join(lacking)}" if lacking else "unknown shape"
    raise ValueError(
        f"{where}: {problem}; found: {_list_names(row)}; expected {accepted} (other names go in `columns`)"
    )


def _parse_messages(value: Any, name: str, where: str) -> list[Message]:
    if name == "messages" and isinstance(value, str):
        value = _parse_cell(value, where)
    if isinstance(value, str):
        return [{"role": "assistant" if name == "completion" else "user", "content": value}]
    if not isinstance(value, list):
        accepted = "a list of messages" if name == "messages" else "a string or a list of messages"
        raise ValueError(f"{where}: {name} is {value!r:.80}; expected {accepted}")
    return [_parse_message(message, f"{where}: {name}[{i}]") for i, message in enumerate(value)]


def _parse_message(message: Any, where: str) -> Message:
    keys = ("role", "content")
    if isinstance(message, dict) and message.get("role") is None and "from" in message:
        keys = ("from", "value")
    if not isinstance(message, dict) or not all(key in message for key in keys):
        raise ValueError(f'{where} is {message!r:.80}; expected {{"role", "content"}} or {{"from", "value"}}')
    role, content = (message[key] for key in keys)
    if not isinstance(role, str) or role not in _ROLE_ALIASES:
        raise ValueError(f"{where} has the role {role!r}; accepted: {', '.join(_ROLE_ALIASES)}")
    if not isinstance(content, str):
        raise ValueError(f"{where} has the content {content!r:.80}; expected a string")
    return {"role": _ROLE_ALIASES[role], "content": content}


def _parse_cell(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {text[:60]!r} is not a JSON list ({error})") from error


def _read_rows(source: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (`file:line`, row) from `source`."""
    if not source:  # an empty path would mean the current directory
        raise ValueError("source is empty; expected a file, a dataset directory or a hub dataset id")
    path = Path(resolve_resource(source)).expanduser()
    if path.is_file():
        readers = dict(zip(_SUFFIXES, (_read_lines, _read_json, _read_parquet, _read_csv), strict=True))
        if path.suffix not in readers:
            raise ValueError(f"{path}: unknown kind {path.suffix!r}; accepted: {', '.join(_SUFFIXES)}")
        yield from readers[path.suffix](path)
    elif path.is_dir() or (re.fullmatch(_HUB_ID, source) and path.suffix not in _SUFFIXES):
        yield from _read_dataset(str(path) if path.is_dir() else source, split)
    else:
        raise ValueError(
            f"no such file: {source}; expected a {', '.join(_SUFFIXES)} file, a dataset directory, "
            "or a hub dataset id (NAME or OWNER/NAME)"
        )


def _read_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in read_jsonl(path):
        yield f"{path}:{number}", row


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):  # many .json datasets are JSON lines
        yield from _read_lines(path)
        return
    for number, row in enumerate(_parse_cell(text, str(path)), start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: entry {number} is {row!r:.80}; expected an object")
        yield f"{path}:{number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Not with `datasets`: a file needs no cache, and a stale cache silently gives old data.
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}:{number}", row


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # The standard library's reader, because one that guesses types would turn "007" into a number and "NA" into a
    # missing value. A row whose cells contain line breaks is named by its last line.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = []
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row:  # the csv module's key for cells beyond the columns
                    raise ValueError(f"{where}: more cells than the {len(reader.fieldnames or ())} columns")
                rows.append((where, {name: _decode_cell(cell, where) for name, cell in row.items()}))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num + 1}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    yield from rows


def _decode_cell(cell: str | None, where: str) -> Any:
    """Parse a cell that contains a list of messages as JSON; other cells stay strings."""
    if cell is not None and re.match(r'\s*\[\s*\{\s*"(role|content|from|value)"\s*:', cell):
        return _parse_cell(cell, where)
    return cell


def _read_dataset(name: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except (datasets.exceptions.DatasetsError, ConnectionError) as error:
        raise ValueError(f"{name}: no local file, and no dataset of that name ({error})") from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}[{split}]:{number}", row
