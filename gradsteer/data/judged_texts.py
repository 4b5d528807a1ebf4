"""Rows of judged texts without token ids: ``{"prompt", "completion", "verdicts": {BEHAVIOR: true}}``."""

from typing import Any

from gradsteer.data.cells import is_empty, read_truth
from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.data.leftovers import Say, warn
from gradsteer.data.response_rows import Row
from gradsteer.data.sources import DataSource

# what a row of responses holds beside its text
_KNOWN = (
    "id", "verdicts", "unscored", "degenerate", "incoherent", "failed", "judge", "model", "condition", "sample", "seed",
    "temperature", "top_p", "max_new_tokens", "model_fingerprint", "tokenizer", "finish_reason", "prompt_token_ids",
)  # fmt: skip


def judged_texts(path: str, say: Say = warn) -> list[Row] | None:
    """The rows of a file of judged texts, with their ``file:line``; None if no row has verdicts.

    Each has its text as a `ChatExample` under ``example``, and as ``prompt`` the prompt's text.

    Raises:
        ValueError: a row is no chat example, or a verdict is no truth value.
    """
    rows = [(where, row) for where, row in DataSource(path).read("train") if not row.get("failed")]
    if all(is_empty(row.get("verdicts")) for _, row in rows):
        return None
    if cut := sum(row.get("finish_reason") == "length" for _, row in rows):
        say(f"{path}: {cut} of {len(rows)} replies were cut off; without token ids they get an end-of-turn token")
    examples = {each.source: each for each in read_chat_examples(path, say=say, known=_KNOWN)}
    return [
        (
            where,
            {
                **row,
                "prompt": examples[where].prompt,
                "example": examples[where],
                "verdicts": _verdicts(where, row.get("verdicts") or {}),
            },
        )
        for where, row in rows
    ]


def _verdicts(where: str, verdicts: Any) -> dict[str, bool | None]:
    if not isinstance(verdicts, dict):
        raise ValueError(f"{where}: verdicts is {verdicts!r:.80}; accepted: a behavior and its verdict, each")
    found = {behavior: read_truth(verdict) for behavior, verdict in verdicts.items()}
    for behavior, verdict in verdicts.items():
        if found[behavior] is None and not is_empty(verdict):
            raise ValueError(f"{where}: the verdict on {behavior!r} is {verdict!r:.80}; accepted: true, false or null")
    return found
