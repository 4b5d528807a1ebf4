"""Judged responses of several files as one pool: sampled from one anchor at different steps along one vector."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradsteer.data.response_rows import prompt_digest
from gradsteer.forecast.judged_responses import JudgedResponses, read_judged_responses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAME = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "max_new_tokens",
    "judge": "judge", "fingerprint": "anchor",
}  # fmt: skip


def read_pool(
    paths: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num_ids: int | None = None,
    option: str = "forecasting.responses",
) -> JudgedResponses:
    """Reads files of judged responses as one; of a single file, that file.

    Args:
        paths: responses/NAME.jsonl files that evaluate or steer wrote.
        tokenizer: of the model that is to score the responses.
        num_ids: token ids of that model.
        option: that names the files, for messages.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no file, one is given twice, one is not readable (`read_judged_responses`), or two do not
            belong together; names the file.
    """
    if not paths:
        raise ValueError(f"{option} names no file; accepted: one or several responses/NAME.jsonl")
    real = [str(Path(path).resolve()) for path in paths]
    for index, path in enumerate(real):
        if path in real[:index]:
            raise ValueError(f"{option} names {paths[index]!r} twice: its responses would count twice")
    parts = [read_judged_responses(path, tokenizer, num_ids=num_ids) for path in paths]
    for part in parts:
        if part.sources[0].step is not None and part.top_p is not None and part.top_p < 1:
            raise ValueError(
                f"{part.path!r} was sampled at a step with top_p {part.top_p:g}: what its nucleus leaves out others "
                "may hold, and densities are then 0; accepted: steps that were sampled with top_p 1"
            )
    return parts[0] if len(parts) == 1 else pooled(parts)


def pooled(parts: Sequence[JudgedResponses]) -> JudgedResponses:
    """Responses of several files one after another; prompts are numbered over all of them.

    Raises:
        ValueError: they differ in sampling settings, judge, behaviors, anchor or vector, or one does not say what
            it was sampled from; names the file.
    """
    first = parts[0]
    for part in parts:
        if part.fingerprint is None:
            raise ValueError(
                f"{part.path!r} does not say which weights its responses were sampled from: several files are pooled "
                "by their densities; accepted: the anchor's responses, and those that steer wrote of steps along one "
                "vector (controls, baselines, combinations and transforms that read a file or the weight diff are not)"
            )
        for key, name in _SAME.items():
            ours, theirs = getattr(first, key), getattr(part, key)
            if ours != theirs:
                raise ValueError(
                    f"{part.path!r} is of {name} {theirs!r}, {first.path!r} of {ours!r}: they cannot be pooled"
                )
        if set(part.verdicts) != set(first.verdicts):
            raise ValueError(
                f"{part.path!r} has verdicts on {', '.join(part.verdicts)}, {first.path!r} on "
                f"{', '.join(first.verdicts)}: they cannot be pooled"
            )
    if first.top_p is not None and first.top_p < 1:
        raise ValueError(
            f"{first.path!r} was sampled with top_p {first.top_p:g}: what one source's nucleus leaves out another's "
            "may hold, and densities are then 0; several files are pooled at top_p 1 only"
        )
    for index, part in enumerate(parts):
        for other in parts[:index]:
            if [e.input_ids for e in part.examples] == [e.input_ids for e in other.examples]:
                raise ValueError(f"{part.path!r} holds the replies of {other.path!r}: they would count twice")
    steps = [(part, part.sources[0].step) for part in parts if part.sources[0].step is not None]
    for part, step in steps:
        known = steps[0][1]
        if step is not None and known is not None and not step.is_along(known):
            raise ValueError(
                f"{part.path!r} was sampled along another vector, or with other transforms or rounding, than "
                f"{steps[0][0].path!r}: several files are pooled along one vector"
            )
    numbers: dict[str, int] = {}
    texts = [text for part in parts for text in part.prompt_texts]
    names = list(dict.fromkeys(name for part in parts for name in part.traits))
    return JudgedResponses(
        ", ".join(part.path for part in parts),
        [example for part in parts for example in part.examples],
        {name: np.concatenate([part.verdicts[name] for part in parts]) for name in first.verdicts},
        np.array([numbers.setdefault(prompt_digest(text), len(numbers)) for text in texts]),
        {n: np.concatenate([part.traits.get(n, np.zeros(len(part))) for part in parts]) for n in names},
        first.temperature,
        first.top_p,
        first.top_k,
        first.max_new_tokens,
        first.fingerprint,
        frozenset(numbers),
        texts,
        frozenset().union(*(part.seeds for part in parts)),
        first.judge,
        tuple(source for part in parts for source in part.sources),
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        {dtype: where for part in reversed(parts) for dtype, where in part.dtypes.items()},
        tuple(place for part in parts for place in part.places),
    )
