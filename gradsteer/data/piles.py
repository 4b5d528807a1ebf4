"""Piles: the sets of responses whose mean gradient is taken.

A pile is a file of chat examples or responses, or a filter over response files. Sampled responses are used by their
token ids: rendering the text again moves spaces and gives truncated replies an end-of-turn token they never had.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsteer.data.chat import EncodedExample, LossMask, encode_sampled, tokenizer_digest
from gradsteer.data.chat_formats import ChatExample, read_chat_examples
from gradsteer.data.decided import decided_tokens, why_nothing_is_decided
from gradsteer.data.encoding import Truncation, encode_examples
from gradsteer.data.leftovers import Say, warn
from gradsteer.data.pile_filters import PileFilter, filtered_rows
from gradsteer.data.response_rows import (
    check_row,
    prompt_digest,
    response_rows,
    sampled_dtype,
    sampling_of,
)
from gradsteer.data.sources import Columns, DataSource
from gradsteer.data.thoughts import split_reply
from gradsteer.records import resolve_resource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Pile:
    """A pile ready for the model.

    Attributes:
        name: the pile's name.
        examples: token ids and labels.
        sources: ``file:line`` of each example.
        prompts: digest of each example's prompt.
        prompt_digests: digests of the distinct prompts, sorted, including those of dropped examples.
        truncation: what the length limit costs.
        num_considered: number of examples before filtering.
        sampled: for each example, whether its token ids were sampled (otherwise rendered from text).
        responses: for each sampled example, the untruncated sequence with the response's tokens labelled; else None.
        sampled_from: fingerprints of the weights that examples were sampled from, if recorded; of steps the condition.
        judges: fingerprints of the judges whose verdicts define the pile, if recorded; empty without a filter.
        sampling: for each example, its sampling temperature and top_p; None if not recorded.
        with_top_k: ``file:line`` of a response that was sampled with top_k; None without one.
        dtypes: of the weights that sampled its responses, each with the ``file:line`` of one; where recorded.
        num_matched: responses that match a filter; None without one.
        num_scored: those of its file that have a verdict on each of the filter's behaviors.
        files: the filter's response files, resolved.
        undecided: why its replies go on to their end; None where they end with the token that decides their class.
        num_cut: target tokens that were left out so.
        uncut: index -> the example as it was before.
        is_steered: whether responses were sampled at a step from the model's own weights, and say it.
        weights: what each example counts for, see `gradsteer.trainer.pile_weights`; None where all count alike.
    """

    name: str
    examples: list[EncodedExample]
    sources: list[str]
    prompts: list[str] = field(default_factory=list)
    prompt_digests: list[str] = field(default_factory=list)
    truncation: Truncation = field(default_factory=lambda: Truncation(None))
    num_considered: int = 0
    sampled: list[bool] = field(default_factory=list)
    responses: list[EncodedExample | None] = field(default_factory=list)
    sampled_from: set[str] = field(default_factory=set)
    judges: set[str] = field(default_factory=set)
    sampling: list[tuple[float, float] | None] = field(default_factory=list)
    with_top_k: str | None = None
    dtypes: dict[str, str] = field(default_factory=dict)
    num_matched: int | None = None
    num_scored: int = 0
    files: frozenset[str] = frozenset()
    undecided: str | None = "they were not asked to end where they are decided"
    num_cut: int = 0
    uncut: dict[int, EncodedExample] = field(default_factory=dict)
    is_steered: bool = False
    weights: list[float] | None = None

    def weight(self, index: int) -> float:
        """What an example counts for."""
        return 1.0 if self.weights is None else self.weights[index]

    def leave_out(self, places: Collection[int]) -> None:
        """Drops examples, by their indices; not of a pile that is weighed or ends where it is decided."""
        kept = [place for place in range(len(self.examples)) if place not in places]
        lists: tuple[list[Any], ...] = (
            self.examples, self.sources, self.prompts, self.sampled, self.responses, self.sampling,
        )  # fmt: skip
        for values in lists:
            values[:] = [values[place] for place in kept]

    @property
    def num_dropped(self) -> int:
        """Number of examples without a target token within the length limit."""
        return self.truncation.num_dropped

    @property
    def num_tokens(self) -> int:
        """Total number of labelled tokens."""
        return sum(example.num_target_tokens for example in self.examples)


def read_pile(
    name: str,
    source: str | DataSource | PileFilter,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    loss_mask: LossMask = "assistant",
    max_length: int | None = None,
    columns: Columns | None = None,
    num_ids: int | None = None,
    until_decided: bool = False,
    most: int | None = None,
    say: Say = warn,
) -> Pile:
    """Reads a pile and encodes it.

    Args:
        name: the pile's name, for messages.
        source: a file (or hub id) of chat examples or responses, with a choice of rows and columns as a `DataSource`,
            or a filter over response files. Filtered texts without token ids are rendered by the template.
        tokenizer: the tokenizer of the model whose gradient is taken.
        loss_mask: which tokens count, ``assistant``, ``answer`` (without the thought) or ``full``.
        max_length: maximum tokens per example; longer ones are truncated, and dropped if no target token remains.
        columns: our column names to the dataset's, for files of chat examples that do not say their own.
        num_ids: token ids of the model, which may have more than the tokenizer; by default the tokenizer's.
        until_decided: of a filter's replies keep what comes up to where their class was decided.
        most: of a filter's replies keep so many, drawn with its seed; all where there are no more.
        say: takes a line on what is not used of the rows.

    Raises:
        ValueError: the pile is empty (the message lists what was searched), a line is invalid, or token ids come from
            another tokenizer.
        FileNotFoundError: there is no such file.
    """
    considered = None
    pile = Pile(name, [], [], truncation=Truncation(max_length))
    if isinstance(source, PileFilter):
        rows, considered, pile.num_scored = filtered_rows(name, source, say)
        if most is not None and most < len(rows):
            rows = DataSource(name, sample=most, seed=source.seed).draw(rows, say)
        pile.num_matched = len(rows)
        pile.files = frozenset(str(Path(resolve_resource(file)).resolve()) for file in source.files)
        pile.judges = {row["judge"] for _, row in rows if row.get("judge")}
        if isinstance(rows[0][1].get("example"), ChatExample):
            chats: list[ChatExample] = [row["example"] for _, row in rows]
            return _text_pile(pile, chats, tokenizer, loss_mask, num_ids, considered, str(source))
    else:
        source = DataSource.of(source)
        found = None if source.encoding is not None else response_rows(str(source.local_path))
        if found is None:
            chats = read_chat_examples(source, columns=columns, say=say)
            return _text_pile(pile, chats, tokenizer, loss_mask, num_ids, len(chats), source.path)
        if not source.is_whole_file:
            raise ValueError(
                f"pile {name!r}: {source.path!r} holds sampled responses; accepted: the file alone, or "
                f"{{responses: {source.path}, where: {{BEHAVIOR: true or false}}}}"
            )
        rows = found
    asked = source.verdicts_asked if isinstance(source, PileFilter) else None
    if until_decided:
        pile.undecided = why_nothing_is_decided(rows, asked)
    digest = tokenizer_digest(tokenizer)
    for where, row in rows:
        if row["tokenizer"] != digest:
            raise ValueError(
                f"{where}: the token ids were sampled with tokenizer {row['tokenizer']!r}, the model's is {digest!r}; "
                "sample with this model's tokenizer, or give the text alone (prompt and completion) as a pile file"
            )
        check_row(where, row, num_ids or len(tokenizer))
        sampled = row["prompt_token_ids"], row["token_ids"], row["finish_reason"]
        reply = split_reply(tokenizer, *sampled[:2]) if loss_mask == "answer" else None
        num_thought_tokens = 0 if reply is None else reply.num_thought_tokens
        example = encode_sampled(*sampled, loss_mask=loss_mask, num_thought_tokens=num_thought_tokens)
        # the slope is that of the whole response, thought included
        whole = encode_sampled(*sampled, loss_mask="assistant")
        uncut = example
        if pile.undecided is None and (count := decided_tokens(tokenizer, row, asked or ())) is not None:
            pile.num_cut += whole.num_target_tokens
            example, whole = (each.up_to(len(row["prompt_token_ids"]) + count) for each in (example, whole))
            pile.num_cut -= whole.num_target_tokens
        cut = pile.truncation.cut(example, ends=row["finish_reason"] == "stop" and example is uncut)
        if cut is not None and len(example.input_ids) < len(uncut.input_ids):
            pile.uncut[len(pile.examples)] = uncut if max_length is None else uncut.up_to(max_length)
        _keep(pile, cut, where, prompt_digest(row["prompt"]), whole, sampling_of(where, row))
        if type(row.get("top_k")) is int and row["top_k"] > 0:  # others write 0 or -1 for none
            pile.with_top_k = pile.with_top_k or where
        if (dtype := sampled_dtype(where, row)) is not None:
            pile.dtypes.setdefault(dtype, where)
    pile.prompt_digests = sorted({prompt_digest(row["prompt"]) for _, row in rows})
    pile.is_steered = any(row.get("step") is not None for _, row in rows)
    pile.sampled_from = {str(found) for _, row in rows if (found := _sampled_from(row))}
    pile.num_considered = len(rows) if considered is None else considered
    return _not_empty(pile, str(source))


def _sampled_from(row: Mapping[str, Any]) -> Any:
    """The fingerprint of the weights that sampled a row; of moved weights, which have none, the condition's name."""
    condition = row.get("condition")
    return row.get("model_fingerprint") or (condition if condition != "anchor" else None)


def _text_pile(
    pile: Pile,
    chats: list[ChatExample],
    tokenizer: "PreTrainedTokenizerBase",
    loss_mask: LossMask,
    num_ids: int | None,
    considered: int,
    source: str,
) -> Pile:
    """Fills a pile with examples that have no ids as sampled."""
    encoded, pile.truncation = encode_examples(
        tokenizer, chats, loss_mask=loss_mask, max_length=pile.truncation.max_length, num_ids=num_ids
    )
    for chat, example in zip(chats, encoded, strict=True):
        _keep(pile, example, chat.source, prompt_digest(chat.prompt))
    pile.prompt_digests = sorted({prompt_digest(chat.prompt) for chat in chats})
    pile.num_considered = considered
    return _not_empty(pile, source)


def _keep(
    pile: Pile,
    example: EncodedExample | None,
    source: str,
    prompt: str,
    response: EncodedExample | None = None,
    sampling: tuple[float, float] | None = None,
) -> None:
    if example is None:
        return
    pile.examples.append(example)
    pile.sources.append(source)
    pile.prompts.append(prompt)
    pile.sampled.append(response is not None)
    pile.responses.append(response)
    pile.sampling.append(sampling)


def _not_empty(pile: Pile, source: str) -> Pile:
    if not pile.examples:
        limit = pile.truncation.max_length
        raise ValueError(
            f"pile {pile.name!r} is empty: of {pile.num_dropped} examples of {source} none kept a target token; "
            + ("their answers are empty or end within a thought" if limit is None else f"--data.max_length is {limit}")
        )
    return pile
