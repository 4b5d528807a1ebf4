"""Rows of responses/NAME.jsonl: sampled responses with their token ids and verdicts.

Knows of the file's keys; knows nothing of piles or models.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradsteer.records import read_jsonl, text_digest

Row = tuple[str, dict[str, Any]]  # file:line, and what stands there

_SAMPLED_KEYS = ("prompt", "prompt_token_ids", "token_ids", "finish_reason", "tokenizer")


def response_rows(path: str) -> list[Row] | None:
    """The rows of a file of sampled responses with their ``file:line``; None for a file of another kind.

    Raises:
        ValueError: a line is bad, or a row lacks a key.
    """
    if not Path(path).is_file() or Path(path).suffix != ".jsonl":
        return None
    rows: list[Row] = []
    for line, row in read_jsonl(path):
        if not rows and "token_ids" not in row:
            return None
        missing = [key for key in _SAMPLED_KEYS if key not in row]
        if missing:
            raise ValueError(f"{path}:{line}: a response row without {', '.join(map(repr, missing))}")
        if row.get("failed"):  # nothing was sampled
            continue
        rows.append((f"{path}:{line}", row))
    return rows or None


def check_row(where: str, row: Mapping[str, Any], vocabulary: int) -> None:
    """Refuses a row whose tokens cannot be the model's.

    Args:
        where: ``file:line``.
        row: what stands there.
        vocabulary: number of token ids.

    Raises:
        ValueError: names the place, the key and the accepted form.
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


def sampling_of(where: str, row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Temperature and top_p of a row; None where it does not have both.

    Raises:
        ValueError: a value is no number.
    """
    values = row.get("temperature"), row.get("top_p")
    if None in values:
        return None
    for key, value in zip(("temperature", "top_p"), values, strict=True):
        if type(value) not in (int, float):
            raise ValueError(f"{where}: {key} is {value!r}; accepted: a number, or null where it is not known")
    return float(row["temperature"]), float(row["top_p"])


@lru_cache(maxsize=4096)  # every reply's is asked for, and replies share their prompts
def prompt_digest(prompt: str) -> str:
    """Digest of a prompt's text, by which overlaps between sets of prompts are seen: 16 hex digits.

    White space counts as one space, and a system message before the turns is left out: behind another one a prompt is
    still the same question.
    """
    head, _, turns = prompt.partition("\nuser: ")
    if head.startswith("system: ") and turns:
        prompt = f"user: {turns}" if "\nassistant: " in turns else turns
    return text_digest(" ".join(prompt.split()))[:16]


def cluster_of(row: Mapping[str, Any]) -> str:
    """By which rows count as replies to one prompt: the prompt's digest, or its ``id`` where the row has no text.

    Replies to one question are alike whatever its ids: a file in which each question stands ten times is no ten times
    as many prompts, and an interval that took it for that would be too narrow.
    """
    return prompt_digest(row["prompt"]) if "prompt" in row else str(row["id"])


def verdict_of(row: Mapping[str, Any], behavior: str) -> bool | None:
    """A row's verdict as rates count it: None where it is unscored, and where the response is degenerate.

    A loop is no evidence that a behavior is gone, and no evidence of it either: degenerate responses are counted on
    their own.
    """
    if row.get("degenerate"):
        return None
    value: bool | None = (row.get("verdicts") or {}).get(behavior)
    return value


def matches(row: Mapping[str, Any], where: Mapping[str, bool]) -> bool:
    """Whether a row has all the verdicts asked for, as `verdict_of` counts them; None matches nothing."""
    return all(verdict_of(row, behavior) is wanted for behavior, wanted in where.items())
