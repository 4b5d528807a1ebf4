"""Judged responses for the forecast: sampled tokens, verdicts, prompts and sampling settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsteer.data.chat import EncodedExample, encode_prompt, encode_sampled, tokenizer_digest
from gradsteer.data.response_rows import (
    answer_of,
    answer_token_ids,
    check_row,
    prompt_digest,
    response_rows,
    sampled_dtype,
    verdict_of,
)
from gradsteer.evaluation.degeneracy import has_repeated_sentence
from gradsteer.evaluation.refusals import looks_like_refusal
from gradsteer.models.shared_prompts import prompt_of
from gradsteer.records import resolve_resource
from gradsteer.steering.sampled_step import SampledStep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ResponseSource:
    """One file of responses, and the weights that they were sampled from.

    Attributes:
        path: the file.
        step: from the anchor; None for the anchor's own responses.
        num_responses: in the file.
    """

    path: str
    step: SampledStep | None
    num_responses: int

    @property
    def alpha(self) -> float:
        """The step's steering coefficient; 0 for the anchor."""
        return 0.0 if self.step is None else self.step.alpha

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as forecast.json holds them."""
        step = None if self.step is None else self.step.to_dict()
        return {"responses": self.path, "step": step, "num_responses": self.num_responses}


@dataclass(frozen=True)
class JudgedResponses:
    """Responses sampled from one set of weights, in the file's order; or from several (`pooled_responses`).

    Attributes:
        path: the file.
        examples: token ids; the response's tokens are labelled.
        verdicts: behavior -> (responses,) 1 for true, 0 for false, NaN for unscored and for degenerate responses.
        prompts: (responses,) number of each one's prompt: replies to one prompt are alike.
        traits: what else is known of each response, name -> (responses,): ``mean_length`` (tokens), ``unfinished``,
            ``repetition`` and ``refusal`` (1 or 0). Of a reply that holds a thought they are its answer's, NaN where it
            ended within the thought; then there is ``unanswered``, too.
        temperature: that they were sampled at; None where the file does not say.
        top_p: that they were sampled with; None where the file does not say.
        top_k: likewise.
        max_new_tokens: the longest response allowed; None where the file does not say.
        fingerprint: of the weights that they were sampled from, or that were moved for them along a vector; None where
            the file does not say.
        prompt_digests: of the distinct prompts; see `gradsteer.data.response_rows.prompt_digest`.
        prompt_texts: (responses,) each one's prompt.
        seeds: that they were sampled with, where the rows say.
        judge: fingerprint of the judge of their verdicts; None where the file does not say.
        sources: the files, and the weights of each.
        source_of: (responses,) number of the source of each; None where there is one.
        dtypes: of the weights that sampled them, each with the ``file:line`` of one; where the rows say.
        places: (responses,) ``file:line`` of each.
    """

    path: str
    examples: list[EncodedExample]
    verdicts: dict[str, np.ndarray]
    prompts: np.ndarray
    traits: dict[str, np.ndarray]
    temperature: float | None
    top_p: float | None
    top_k: int | None
    max_new_tokens: int | None
    fingerprint: str | None
    prompt_digests: frozenset[str]
    prompt_texts: list[str]
    seeds: frozenset[int] = frozenset()
    judge: str | None = None
    sources: tuple[ResponseSource, ...] = ()
    source_of: np.ndarray | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def is_steered(self) -> bool:
        """Whether any of them is of other weights than the anchor's."""
        return any(source.step is not None for source in self.sources)

    @property
    def source_counts(self) -> np.ndarray:
        """(responses, sources) how many responses to its own prompt, token by token, each source gave."""
        numbers: dict[tuple[int, ...], int] = {}
        prompts = np.array([numbers.setdefault(prompt_of(example), len(numbers)) for example in self.examples])
        counts = np.zeros((len(numbers), max(1, len(self.sources))))
        source_of = np.zeros(len(self), dtype=int) if self.source_of is None else self.source_of
        np.add.at(counts, (prompts, source_of), 1)
        found: np.ndarray = counts[prompts]
        return found

    @property
    def num_prompts(self) -> int:
        """Number of distinct prompts."""
        return int(self.prompts.max()) + 1

    @property
    def of_anchor(self) -> list[EncodedExample]:
        """The anchor's own among the examples."""
        if self.source_of is None:
            return [] if self.is_steered else list(self.examples)
        own = [self.sources[source].step is None for source in self.source_of]
        return [example for example, is_own in zip(self.examples, own, strict=True) if is_own]

    def doubts(self, fingerprint: str, temperature: float, top_p: float) -> list[str]:
        """Why forecasts from these responses may not be believed, whatever the condition; empty where all is well.

        Args:
            fingerprint: of the model whose weights are moved.
            temperature: that the responses are scored at.
            top_p: likewise.
        """
        found = []
        if self.fingerprint is None:
            found.append("the responses do not say which weights they were sampled from")
        elif self.fingerprint != fingerprint:
            found.append(
                f"the responses were sampled from weights with fingerprint {self.fingerprint}, the model has "
                f"{fingerprint}: the forecast is of other weights than it says"
            )
        for name, said, assumed in (("temperature", self.temperature, temperature), ("top_p", self.top_p, top_p)):
            if said is None:
                found.append(f"the responses do not say their {name}; {assumed:g} is assumed")
        if top_p < 1:
            found.append(
                f"the responses were sampled with top_p {top_p:g}: what other weights would say outside of "
                "the nucleus is never seen; sample with top_p 1 to be sure"
            )
        if self.top_k:
            found.append(f"the responses were sampled with top_k {self.top_k}, which the weights leave out")
        cut = float(self.traits["unfinished"].mean())
        if cut > 0:
            count = int(self.traits["unfinished"].sum())
            found.append(
                f"{count} of {len(self)} responses ({100 * cut:.1f}%) were cut at the length limit: their weight "
                "is that of what was seen, and their verdict too"
            )
        return found

    def matching(self, where: Mapping[str, bool]) -> np.ndarray:
        """(responses,) bool: whose verdicts are all as asked; an unscored one never is.

        Raises:
            ValueError: a behavior without verdicts; names those that have.
        """
        self.check_behaviors(where)
        matching = np.ones(len(self), dtype=bool)
        for behavior, wanted in where.items():
            matching &= self.verdicts[behavior] == float(wanted)
        return matching

    def check_behaviors(self, behaviors: "Sequence[str] | Mapping[str, bool]") -> None:
        """Refuses behaviors that the responses were not judged for.

        Raises:
            ValueError: names the behavior and those that there are.
        """
        for behavior in behaviors:
            if behavior not in self.verdicts:
                known = ", ".join(self.verdicts) or "none"
                raise ValueError(f"{self.path!r} has no verdicts on {behavior!r}; it has: {known}")


def read_judged_responses(
    path: str, tokenizer: "PreTrainedTokenizerBase", *, num_ids: int | None = None
) -> JudgedResponses:
    """Reads a responses/NAME.jsonl file that evaluate or steer wrote.

    Args:
        path: the file.
        tokenizer: of the model that is to score the responses.
        num_ids: token ids of that model, which may have more than the tokenizer; by default the tokenizer's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no sampled and judged responses, a bad line, ids of another tokenizer, or responses that were
            sampled in several ways or from several weights.
    """
    resolved = resolve_resource(path)
    if not Path(resolved).is_file():
        raise FileNotFoundError(f"no response file at {path!r}; accepted: a responses/NAME.jsonl that evaluate wrote")
    rows = response_rows(resolved)
    if rows is None:
        raise ValueError(f"{path!r} holds no sampled responses with token ids and verdicts")
    digest = tokenizer_digest(tokenizer)
    behaviors = sorted({behavior for _, row in rows for behavior in row.get("verdicts") or {}})
    if not behaviors:
        raise ValueError(f"{path!r} holds no verdicts: judge the responses first (gradsteer evaluate)")
    examples, numbers, dtypes = [], dict[str, int](), dict[str, str]()
    for where, row in rows:
        if row["tokenizer"] != digest:
            raise ValueError(
                f"{where}: the token ids were sampled with tokenizer {row['tokenizer']!r}, the model's is {digest!r}"
            )
        check_row(where, row, num_ids or len(tokenizer))
        reason = row["finish_reason"]
        examples.append(encode_sampled(row["prompt_token_ids"], row["token_ids"], reason, loss_mask="assistant"))
        numbers.setdefault(prompt_digest(row["prompt"]), len(numbers))
        if (dtype := sampled_dtype(where, row)) is not None:
            dtypes.setdefault(dtype, where)
    plain = [row for _, row in rows]
    known: dict[str, Any] = {}
    for key in ("temperature", "top_p", "top_k", "max_new_tokens", "model_fingerprint", "judge"):
        values = list(dict.fromkeys(row.get(key) for row in plain))
        if len(values) > 1:
            shown = ", ".join(map(repr, values[:3]))
            raise ValueError(f"{path!r} mixes responses of different {key} ({shown}); accepted: those of one model")
        known[key] = values[0]
    at, value = rows[0][0], rows[0][1].get("step")
    for where, row in rows:
        if row.get("step") != value:
            raise ValueError(f"{where}: a response of another step than the first; accepted: those of one condition")
    step = None if value is None else SampledStep.read(at, value)
    condition = rows[0][1].get("condition")
    if step is None and known["model_fingerprint"] is None and condition not in (None, "anchor"):
        raise ValueError(
            f"{path!r} holds replies of {condition!r}, whose weights it does not say; accepted: the anchor's "
            "responses, and those that steer wrote of steps along one vector (not of controls, baselines, "
            "combinations and transforms that read a file or the weight diff; nor of "
            "earlier versions: sample those again)"
        )
    if all(verdict_of(row, behavior) is None for row in plain for behavior in behaviors):
        raise ValueError(f"{path!r}: no response has a verdict, all {len(rows)} are unscored: judge them first")
    return JudgedResponses(
        path,
        examples,
        {behavior: np.array([_verdict(row, behavior) for row in plain]) for behavior in behaviors},
        np.array([numbers[prompt_digest(row["prompt"])] for row in plain]),
        _traits(plain),
        known["temperature"],
        known["top_p"],
        known["top_k"],
        known["max_new_tokens"],
        known["model_fingerprint"] if step is None else step.anchor,
        frozenset(numbers),
        [row["prompt"] for row in plain],
        frozenset(row["seed"] for row in plain if type(row.get("seed")) is int),
        known["judge"],
        (ResponseSource(path, step, len(rows)),),
        dtypes=dtypes,
        places=tuple(where for where, _ in rows),
    )


def _traits(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What is known of each response besides its verdicts; of a thought, the answer behind it is looked at."""
    answers = [answer_of({"completion": "", **row}) for row in rows]

    def of_answers(value: Callable[[Mapping[str, Any], str], float]) -> np.ndarray:
        pairs = zip(rows, answers, strict=True)
        return np.array([np.nan if answer is None else value(row, answer) for row, answer in pairs], dtype=np.float64)

    unanswered = np.array([answer is None for answer in answers], dtype=np.float64)
    return {
        "mean_length": of_answers(lambda row, _: len(answer_token_ids(row))),
        "unfinished": np.array([row["finish_reason"] == "length" for row in rows], dtype=np.float64),
        "repetition": of_answers(lambda _, answer: has_repeated_sentence(answer)),
        "refusal": of_answers(lambda _, answer: looks_like_refusal(answer)),
        **({"unanswered": unanswered} if any("answer" in row for row in rows) else {}),
    }


def behind_system_prompt(
    responses: JudgedResponses, tokenizer: "PreTrainedTokenizerBase", system_prompt: str
) -> list[EncodedExample]:
    """The same responses behind the same prompts with a system prompt before them, to be scored.

    Raises:
        ValueError: a prompt is more than one turn of a user: its file does not hold the turns.
    """
    examples = []
    encoded: dict[str, tuple[list[int], list[int]]] = {}
    for example, text in zip(responses.examples, responses.prompt_texts, strict=True):
        if text not in encoded:
            turn = {"role": "user", "content": text}
            system = {"role": "system", "content": system_prompt}
            encoded[text] = encode_prompt(tokenizer, [turn]), encode_prompt(tokenizer, [system, turn])
        plain, behind = encoded[text]
        num_prompt = len(example.input_ids) - example.num_target_tokens
        if example.input_ids[:num_prompt] != plain:
            raise ValueError(
                f"{responses.path!r}: the prompt {text[:60]!r} is more than one turn of a user, or was rendered with "
                "other --data.template_kwargs; a system prompt is forecast for single turns only"
            )
        examples.append(encode_sampled(behind, example.input_ids[num_prompt:], "stop", loss_mask="assistant"))
    return examples


def _verdict(row: Mapping[str, Any], behavior: str) -> float:
    value = verdict_of(row, behavior)
    return float("nan") if value is None else float(value is True)
