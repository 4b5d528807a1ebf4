"""Rows of responses/NAME.jsonl: sampled responses with their token ids and verdicts."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradsteer.data.row_files import read_file
from gradsteer.data.thoughts import split_text
from gradsteer.records import text_digest

Row = tuple[str, dict[str, Any]]  # file:line, and the row

WITHOUT_ANSWER = "the reply ended within its thought"  # why it has no verdict
WITHHELD = "withheld"  # how the reason begins where the judge, or its server's filter, would not answer for the text

ONE_DTYPE = "give evaluate and this command the same --model.dtype, or take them as another model's"

_FULL = ("float32", "float64")  # of a checkpoint they hold the same values
_SAMPLED_KEYS = ("prompt", "prompt_token_ids", "token_ids", "finish_reason", "tokenizer")


def response_rows(path: str) -> list[Row] | None:
    """The rows of a file of sampled responses, with their ``file:line``; None for other files.

    Raises:
        ValueError: a line is invalid, or a row lacks a key.
    """
    if not Path(path).is_file() or Path(path).suffix != ".jsonl":
        return None
    rows: list[Row] = []
    for where, row in read_file(Path(path)):
        if not rows and "token_ids" not in row:
            return None
        if row.get("failed"):  # nothing was sampled
            continue
        missing = [key for key in _SAMPLED_KEYS if key not in row]
        if missing:
            raise ValueError(f"{where}: a response row without {', '.join(map(repr, missing))}")
        rows.append((where, dict(row)))
    return rows or None


def check_row(where: str, row: Mapping[str, Any], vocabulary: int) -> None:
    """Refuses a row whose token ids the model cannot have.

    Args:
        where: ``file:line``.
        row: the row.
        vocabulary: number of token ids.

    Raises:
        ValueError: a value is invalid; names the location, the key and the accepted form.
    """
    if not isinstance(row["prompt"], str):
        raise ValueError(f"{where}: prompt is {row['prompt']!r}; accepted: a text")
    for key in ("prompt_token_ids", "token_ids"):
        ids = row[key]
        whole = isinstance(ids, list) and ids and all(type(token) is int and 0 <= token < vocabulary for token in ids)
        if not whole:
            raise ValueError(f"{where}: {key} is not a list of token ids from 0 to {vocabulary - 1}, at least one")
    if row["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"{where}: finish_reason is {row['finish_reason']!r}; accepted: stop, length")
    if not isinstance(row.get("answer"), str | None):
        raise ValueError(f"{where}: answer is {row['answer']!r}; accepted: a text, or null for a reply without one")
    count = row.get("num_thought_tokens", 0)
    if type(count) is not int or not 0 <= count <= len(row["token_ids"]):
        raise ValueError(f"{where}: num_thought_tokens is {count!r}; accepted: 0 to {len(row['token_ids'])}")


def answer_of(row: Mapping[str, Any]) -> str | None:
    """The text that judges and metrics look at: the completion, or of a thought the answer behind it.

    Returns:
        None for a reply that ended within its thought.
    """
    if "answer" in row:
        answer: str | None = row["answer"]
        return answer
    split = split_text(row["completion"], known=False)  # rows from elsewhere
    return str(row["completion"]) if split is None else split[1]


def is_unanswered(row: Mapping[str, Any]) -> bool:
    """Whether a reply ended within its thought: neither for nor against any behavior."""
    return not row.get("failed") and isinstance(row.get("completion"), str) and answer_of(row) is None


def is_withheld(reason: str) -> bool:
    """Whether the reason why there is no verdict is that the judge, or its server's filter, would not give one."""
    return reason.startswith(WITHHELD)


def withholds(row: Mapping[str, Any], behavior: str) -> bool:
    """Whether a row's verdict on a behavior was withheld."""
    return is_withheld(str((row.get("unscored") or {}).get(behavior, "")))


def answer_token_ids(row: Mapping[str, Any]) -> list[int]:
    """The sampled tokens of a row's answer; all of them where the reply holds no thought."""
    found: list[int] = row["token_ids"]
    count = row.get("num_thought_tokens", 0)
    return found[count:] if type(count) is int else found  # another value is refused by `check_row`


def sampling_of(where: str, row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Temperature and top_p of a row; None unless it has both.

    Raises:
        ValueError: a value is not a number.
    """
    values = row.get("temperature"), row.get("top_p")
    if None in values:
        return None
    for key, value in zip(("temperature", "top_p"), values, strict=True):
        if type(value) not in (int, float):
            raise ValueError(f"{where}: {key} is {value!r}; accepted: a number, or null where it is not known")
    return float(row["temperature"]), float(row["top_p"])


def sampled_dtype(where: str, row: Mapping[str, Any]) -> str | None:
    """Dtype of the weights that sampled a row; None if it does not say, as rows of earlier versions.

    Raises:
        ValueError: the value is not a text.
    """
    value = row.get("dtype")
    if not isinstance(value, str | None):
        raise ValueError(
            f"{where}: dtype is {value!r}; accepted: a text such as float32, or null where it is not known"
        )
    return value


def other_dtypes(sampled: Mapping[str, str], dtype: str) -> str | None:
    """Which responses were sampled by weights that the model at hand does not have; None where there are none.

    Weights rounded to half precision are another model. Those in float32 and float64 are the same one.

    Args:
        sampled: dtype -> ``file:line`` of a response that it sampled.
        dtype: of the model at hand.
    """
    others = {each: where for each, where in sampled.items() if each != dtype and not {each, dtype} <= set(_FULL)}
    if not others:
        return None
    named = " and ".join(f"{each} (as {where})" for each, where in others.items())
    return f"responses were sampled by weights in {named}, and this model's are in {dtype}: rounded, they are others"


@lru_cache(maxsize=4096)  # called for every reply, and replies share their prompts
def prompt_digest(prompt: str) -> str:
    """Digest of a prompt's text (16 hex digits), used to detect overlaps between sets of prompts.

    White space is collapsed, and a leading system message is left out: with another one it is still the same question.
    """
    head, _, turns = prompt.partition("\nuser: ")
    if head.startswith("system: ") and turns:
        prompt = f"user: {turns}" if "\nassistant: " in turns else turns
    return text_digest(" ".join(prompt.split()))[:16]


def cluster_of(row: Mapping[str, Any]) -> str:
    """The cluster of rows that reply to one prompt: the prompt's digest, or its ``id`` if the row has no text.

    Replies to one question are alike whatever its ids. A file that repeats each question ten times does not have ten
    times as many prompts, and intervals that treated it so would be too narrow.
    """
    return prompt_digest(row["prompt"]) if "prompt" in row else str(row["id"])


def verdict_of(row: Mapping[str, Any], behavior: str) -> bool | None:
    """A row's verdict as rates count it: None if it is unscored or the response is degenerate.

    A looping response is evidence neither for nor against a behavior, so degenerate responses are counted separately;
    so are replies that ended within their thought.
    """
    if row.get("degenerate") or is_unanswered(row):
        return None
    value: bool | None = (row.get("verdicts") or {}).get(behavior)
    return value


def matches(row: Mapping[str, Any], where: Mapping[str, bool]) -> bool:
    """Whether a row has all required verdicts, as `verdict_of` counts them; None matches nothing."""
    return all(verdict_of(row, behavior) is wanted for behavior, wanted in where.items())
