"""Reading chat examples and prompts in the common shapes.

Shapes: `{"messages": [...]}`, `{"prompt": ..., "completion": ...}` where either side is a string or a list of
messages, and raw `{"text": ...}`. Messages are `{"role", "content"}`, or ShareGPT's `{"from", "value"}`; a row's
`system` is its system turn. Nothing that a row holds is left out without a word.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gradsteer.data.cells import Row, has_column, is_empty, list_columns, lookup, unused_columns
from gradsteer.data.leftovers import Leftovers, Say, warn
from gradsteer.data.messages import ROLES as ROLES
from gradsteer.data.messages import Message as Message
from gradsteer.data.messages import Turns, parse_turns
from gradsteer.data.row_files import read_file
from gradsteer.data.row_shapes import columns_of, find_shape, value_of
from gradsteer.data.sources import Columns, DataSource
from gradsteer.records import text_digest

T = TypeVar("T")

_CHAT_SHAPES = (
    '{"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "completion": ...}, '
    'each side a string or a list of messages, or {"text": ...}'
)
_PROMPT_SHAPES = '{"prompt": "..."} or {"messages": [{"role": ..., "content": ...}, ...]}, optionally "id"'


@dataclass(frozen=True)
class ChatExample:
    """One conversation, or one text, to learn from.

    Attributes:
        messages: The turns in order, each `{"role", "content"}`; none for raw text.
        num_prompt_messages: Number of messages before the completion: the prompt's for a row of prompt and
            completion, everything before the last assistant turn for a row of messages.
        source: Its location, as `file:line` or `file:row`.
        text: Raw text, which no template renders; None for a conversation.
        unlearned: Indices of the turns with `weight` 0, which are context only.
    """

    messages: list[Message]
    num_prompt_messages: int
    source: str
    text: str | None = None
    unlearned: tuple[int, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompt as one string; of raw text the text itself, as there is nothing before it."""
        return prompt_text(self.messages[: self.num_prompt_messages]) if self.text is None else self.text


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
    source: str | DataSource,
    *,
    split: str = "train",
    columns: Columns | None = None,
    say: Say = warn,
    known: Iterable[str] = (),
) -> list[ChatExample]:
    """Read conversations that have at least one assistant turn, or raw texts.

    Args:
        source: A .jsonl, .json, .parquet, .csv or .tsv file, a `gradsteer://` resource, a local dataset directory, or
            a hub dataset id; with a choice of rows and columns as a `DataSource`.
        split: The split of a dataset directory or hub dataset, if the source does not say; files have none.
        columns: Our names (`messages`, or `prompt` and `completion`, or `text`; and `system`) to the dataset's, such
            as `{"prompt": "instruction", "completion": "output"}`, if the source does not say. Naming a column fixes
            the shape; otherwise a row with `messages` is read by them alone. Several columns are joined.
        say: Takes a line on what is not used of the rows.
        known: Columns that are not used here and need no line.

    Returns:
        The examples in order; at least one.

    Raises:
        ValueError: If a file or dataset is missing, empty or of an unknown kind; with `file:line: ...` if a row has
            neither shape, no assistant turn, an unknown role, content that is no text, or `tools`.
    """
    source, columns = _chosen(source, columns, ("messages", "prompt", "completion", "text", "system"))
    left = Leftovers(source.path, {*known, *source.where})
    examples = [_chat_of(where, row, columns, left) for where, row in source.read(split, say)]
    if not examples:
        raise ValueError(f"{source.path}: empty; expected rows of {_CHAT_SHAPES}")
    mixed = next((each for each in examples if (each.text is None) != (examples[0].text is None)), None)
    if mixed is not None:
        raise ValueError(f"{mixed.source}: raw text and conversations in one set; expected one of them")
    left.say(say)
    if source.duplicates == "drop":
        examples = _without_repeats(source.path, examples, [[each.messages, each.text] for each in examples], say)
    return source.draw(examples, say)


def read_prompts(
    source: str | DataSource, *, split: str = "train", columns: Columns | None = None, say: Say = warn
) -> list[Prompt]:
    """Read prompts to answer.

    Args:
        source: As for `read_chat_examples`.
        split: As for `read_chat_examples`.
        columns: Our names (`prompt` or `messages`, `id` and `system`) to the dataset's.
        say: As for `read_chat_examples`.

    Returns:
        The prompts in order; at least one. Ids are unique; a row without one gets the first 8 hex digits of its
        messages' digest.

    Raises:
        ValueError: As for `read_chat_examples`; also if messages end with the assistant's turn, or an id occurs
            twice (naming both places).
    """
    source, columns = _chosen(source, columns, ("messages", "prompt", "id", "system"))
    left = Leftovers(source.path, source.where)
    rows = [_prompt_of(where, row, columns, left) for where, row in source.read(split, say)]
    if not rows:
        raise ValueError(f"{source.path}: empty; expected rows of {_PROMPT_SHAPES}")
    left.say(say)
    if source.duplicates == "drop":
        rows = _without_repeats(source.path, rows, [each.messages for each in rows], say)
    prompts: dict[str, Prompt] = {}
    for prompt in rows:
        if prompt.id in prompts:
            raise ValueError(
                f"{prompt.source}: id {prompt.id!r} already occurs at {prompts[prompt.id].source}; expected each "
                "prompt once (`duplicates: drop` leaves the later ones out; rows with ids of their own are all kept)"
            )
        prompts[prompt.id] = prompt
    return source.draw(rows, say)


def check_first_row(source: str | DataSource, columns: Columns | None, *, prompts: bool) -> None:
    """Looks at the first row that is meant of a file, so that a mistake is found before anything long.

    Other sources are not looked at.

    Args:
        source: as for `read_chat_examples` and `read_prompts`.
        columns: likewise.
        prompts: rows are prompts, not conversations.

    Raises:
        ValueError: the file is empty, no row is as `where` asks, or the first that is has no shape that is read.
    """
    names = (
        ("messages", "prompt", "id", "system") if prompts else ("messages", "prompt", "completion", "text", "system")
    )
    source, columns = _chosen(source, columns, names)
    if not source.local_path.is_file():
        return
    rows = source.read("train", lambda _: None) if source.where else read_file(source.local_path, source.encoding)
    where, row = next(iter(rows), (source.path, {}))
    if not row:
        raise ValueError(f"{source.path}: empty; expected rows of {_PROMPT_SHAPES if prompts else _CHAT_SHAPES}")
    (_prompt_of if prompts else _chat_of)(where, row, columns, Leftovers(source.path, set()))


def prompt_text(messages: list[Message]) -> str:
    """A prompt as one string: a single message's content, otherwise a transcript with the roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _chosen(source: str | DataSource, columns: Columns | None, accepted: tuple[str, ...]) -> tuple[DataSource, Columns]:
    """The source, and its column mapping, or else the given one."""
    source = DataSource.of(source)
    columns = (columns if source.columns is None else source.columns) or {}
    for name in columns:
        if name not in accepted:
            raise ValueError(f"columns: unknown name {name!r}; accepted: {', '.join(accepted)}")
        if isinstance(columns[name], list) and (name in ("messages", "id") or not columns[name]):
            raise ValueError(f"columns: {name} is {columns[name]}; accepted: one column")
    return source, columns


def _without_repeats(path: str, rows: Sequence[T], contents: Sequence[Any], say: Say) -> list[T]:
    """The rows whose contents no earlier one has; says how many went."""
    firsts: dict[str, T] = {}
    for row, content in zip(rows, contents, strict=True):
        firsts.setdefault(json.dumps(content), row)
    if len(firsts) < len(rows):
        say(f"{path}: dropped {len(rows) - len(firsts)} of {len(rows)} rows that repeat an earlier one")
    return list(firsts.values())


def _chat_of(where: str, row: Row, columns: Columns, left: Leftovers) -> ChatExample:
    names = find_shape(row, columns, (("messages",), ("prompt", "completion"), ("text",)), where, _CHAT_SHAPES)
    if "text" in names:
        text = value_of(row, names["text"])
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: text is {text!r:.80}; expected a text that is not blank")
        left.count(unused_columns(row, set(columns_of(names.values()))), ())
        return ChatExample([], 0, where, text)
    parts, system = _turns_of(where, row, names, columns, left)
    if all(message["role"] != "assistant" for message in parts[-1].messages):
        part = "completion" if len(parts) == 2 else "example"
        raise ValueError(f"{where}: the {part} has no assistant turn, so there is nothing to learn from")
    if len(parts) == 2 and parts[1].messages[: len(parts[0].messages)] == parts[0].messages:
        raise ValueError(
            f"{where}: the completion begins with the prompt's own turns, which would be there twice; read it as a "
            f"whole: columns {{messages: {columns.get('completion', 'completion')}}}"
        )
    turns = sum(parts, system)
    last = max(i for i, message in enumerate(turns.messages) if message["role"] == "assistant")
    num_prompt_messages = len(system.messages) + len(parts[0].messages) if len(parts) == 2 else last
    return ChatExample(turns.messages, num_prompt_messages, where, unlearned=tuple(turns.unlearned))


def _prompt_of(where: str, row: Row, columns: Columns, left: Leftovers) -> Prompt:
    names = find_shape(row, columns, (("prompt",), ("messages",)), where, _PROMPT_SHAPES)
    id_column = columns.get("id", "id")
    assert isinstance(id_column, str)
    [turns], system = _turns_of(where, row, names, columns, left, also=id_column)
    messages = [*system.messages, *turns.messages]
    if not turns.messages:
        raise ValueError(f"{where}: the prompt has no messages; expected {_PROMPT_SHAPES}")
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{where}: the prompt ends with an assistant turn ({messages[-1]['content'][:60]!r}); "
            "expected the turns up to the one to be answered"
        )
    if "id" in columns and not has_column(row, id_column):
        raise ValueError(f"{where}: no column {id_column!r}; found: {list_columns(row)}")
    given = lookup(row, id_column)
    if isinstance(given, float) and (given != given or given.is_integer()):  # as pandas writes numbers with a gap
        given = int(given) if given == given else None
    if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int))):
        raise ValueError(f"{where}: id {given!r}; expected a string or an integer")
    key = str(given) if given not in (None, "") else text_digest(json.dumps(messages, sort_keys=True))[:8]
    return Prompt(key, messages, where)


def _turns_of(
    where: str, row: Row, names: Columns, columns: Columns, left: Leftovers, also: str | None = None
) -> tuple[list[Turns], Turns]:
    """The turns in each of a row's parts, and its system turn; counts what else the row holds.

    Args:
        where: its location.
        row: the row.
        names: our names to the row's columns, of the shape that it has.
        columns: the whole mapping.
        left: takes the counts.
        also: a column that is used, too.
    """
    conventions = []
    joined = lookup(row, "input") if names.get("prompt") == "instruction" else None
    if isinstance(joined, str) and joined.strip():  # Alpaca's two columns are one prompt
        names = {**names, "prompt": ["instruction", "input"]}
        conventions.append("input, joined to instruction")
    if not is_empty(row.get("tools")):
        raise ValueError(
            f"{where}: tools is {row['tools']!r:.60}, which the prompt would not hold; accepted: rows without tools, "
            "such as {path: ..., where: {tools: null}}"
        )
    parts = [parse_turns(value_of(row, name), ours, where) for ours, name in names.items()]
    system = _system_of(where, row, columns, parts[0])
    used = {*columns_of(names.values()), *([] if also is None else [also])}
    if system is not None:
        used.update(columns_of([columns.get("system", "system")]))
        if "system" not in columns and system.messages:
            conventions.append("system, as the system turn")
    left.count([*unused_columns(row, used), *(key for part in parts for key in part.unused)], conventions)
    return parts, system or Turns()


def _system_of(where: str, row: Row, columns: Columns, first: Turns) -> Turns | None:
    """The system turn that a column gives; no turns where the messages have it; None if the column holds none."""
    name = columns.get("system", "system")
    text = value_of(row, name)
    if "system" in columns and not has_column(row, str(name)):
        raise ValueError(f"{where}: no column {name!r}; found: {list_columns(row)}")
    if not isinstance(text, str) or not text.strip():
        return None
    if first.messages and first.messages[0]["role"] == "system":
        if first.messages[0]["content"].strip() != text.strip():
            raise ValueError(
                f"{where}: {name} is {text[:60]!r}, and the first message is another system turn, "
                f"{first.messages[0]['content'][:60]!r}; accepted: one of them"
            )
        return Turns()
    return Turns([{"role": "system", "content": text}])
