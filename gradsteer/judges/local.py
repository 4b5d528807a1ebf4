"""A judge on this machine: a Hugging Face model, no server and no key."""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradsteer.judges.base import Exchange, Verdicts
from gradsteer.judges.costs import Cost
from gradsteer.judges.questions import RULE_VERSION as FENCE_VERSION
from gradsteer.judges.rubrics import read_rubrics
from gradsteer.judges.stored import Answer, StoredJudge
from gradsteer.records import text_digest

if TYPE_CHECKING:
    from gradsteer.judges.local_scoring import Probabilities, Scorer

# Raised when texts are encoded or probabilities computed otherwise, so that verdicts had before are not reused.
RULE_VERSION = 2

_MIN_MASS = 0.01
_CHARS_PER_TOKEN = 4  # English text, roughly; estimates only
_QUESTION_CHARS = 900  # of a yes or no question, less its texts and its rubric


class LocalJudge(StoredJudge):
    """A model on this machine judges: a classifier with named labels, or a causal LM that answers yes or no.

    The model is loaded for the first verdict and stays in memory beside the model under study. Weights are read only
    from safetensors files. Text is never interpreted as the model's control tokens. A response without a verdict stays
    unscored for this model and these options, because asking again would give the same; non-finite scores are
    recomputed in the next run, perhaps on another device.

    Args:
        model: Directory written by save_pretrained, or hub id.
        labels: For a text classifier: for each behavior, the label that shows it, by name or index, or a list of
            labels any of which does: `{"harmful": ["toxic", "threat"]}`. Texts longer than the model's context are
            truncated at the end, with a warning.
        rubrics: For a causal LM: for each behavior, a description of what counts as showing it, or null for the
            built-in rubric of that name, `{"refusal": null, "polite": "The reply thanks the user."}`; or a JSON file
            that holds them. The model is asked about each behavior separately and only its first token is read; one
            that thinks is made to answer at once. Texts longer than its context are unscored. Give either labels or
            rubrics.
        threshold: A behavior is shown if its probability exceeds this; at least 0, less than 1.
        with_prompt: Whether a classifier also reads the prompt, as the first of two texts; for models trained on
            pairs. A causal LM always does.
        min_mass: Minimum total probability of yes and no under a causal LM; below it, the response is unscored.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1 or mps.
        dtype: auto (as in the files), float32, bfloat16, float16 or float64.
        batch_size: Maximum texts per batch. Affects speed and memory, and the verdicts only by rounding.
        max_length: Maximum tokens per text; by default the model's context length, which is also the upper limit.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that ships with the model.
        store: SQLite file for verdicts, created if missing and shared by any number of processes; null keeps
            verdicts in memory only.

    Raises:
        ValueError: If there is no such directory or label, not exactly one of labels and rubrics is given, or a number
            is out of its range.
    """

    def __init__(
        self,
        model: str,
        labels: dict[str, str | int | list[str | int]] | None = None,
        rubrics: dict[str, str | None] | str | None = None,
        threshold: float = 0.5,
        with_prompt: bool = False,
        min_mass: float = _MIN_MASS,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 16,
        max_length: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        store: str | None = "lightning_logs/verdicts.sqlite",
    ) -> None:
        from gradsteer.judges.local_loading import check_source, directory_labels
        from gradsteer.judges.local_scoring import label_columns

        super().__init__(store)
        if (labels is None) == (rubrics is None):
            raise ValueError(
                f"labels is {labels!r} and rubrics is {rubrics!r}; give exactly one: labels for a classifier, rubrics "
                "for a causal LM"
            )
        if rubrics is not None and with_prompt:
            raise ValueError("with_prompt is for classifiers; a causal LM that is asked with rubrics reads the prompt")
        if labels is not None and min_mass != _MIN_MASS:
            raise ValueError(f"min_mass is {min_mass}, and labels are given: it is for a causal LM asked with rubrics")
        model = os.path.expanduser(model)
        if revision is not None and Path(model).is_dir():
            raise ValueError(f"revision is {revision!r}, and {model!r} is a directory: it is for models of the hub")
        _check_numbers(threshold, min_mass, batch_size, max_length)
        check_source(model, device, dtype)
        self.labels = None if labels is None else _listed(labels)
        self.rubrics = None if rubrics is None else read_rubrics(rubrics)
        if self.labels is not None and (known := directory_labels(model)):
            label_columns(self.labels, known)
        self.model, self.revision, self.trust_remote_code = model, revision, trust_remote_code
        self.threshold, self.with_prompt, self.min_mass, self.max_length = threshold, with_prompt, min_mass, max_length
        self.device, self.dtype, self.batch_size = device, dtype, batch_size
        self.num_passes = self.num_tokens = 0
        self._scorer: Scorer | None = None
        self._source: str | None = None
        self._warned = False

    @property
    def behaviors(self) -> tuple[str, ...]:
        """The behaviors in the order of `labels` or of `rubrics`."""
        return tuple(self.labels if self.labels is not None else self.rubrics or ())

    def check(self) -> None:
        """Looks whether the model is there, without loading it.

        Raises:
            ValueError: If the directory has no safetensors file, or the hub no such model.
        """
        from gradsteer.judges.local_loading import check_weights

        check_weights(self.model)
        self._digest()

    def ask(self, exchanges: Sequence[Exchange]) -> Iterator[Answer]:
        """Passes of the model over texts of like length; each answer as soon as all its behaviors are there."""
        from gradsteer.data.batching import plan_batches
        from gradsteer.judges.local_passages import Passage

        scorer = self._loaded()
        found: list[Probabilities] = [{} for _ in exchanges]
        passages, owners = [], []
        for owner, exchange in enumerate(exchanges):
            for part in scorer.encode(exchange):
                if isinstance(part, Passage):
                    passages.append(part)
                    owners.append(owner)
                else:
                    found[owner] |= dict.fromkeys(part.behaviors, part.reason)
            if len(found[owner]) == len(self.behaviors):
                yield self._answer(exchange, found[owner])
        self._warn(scorer)
        for indices in plan_batches([len(passage) for passage in passages], self.batch_size):
            scores = scorer.score([passages[index] for index in indices])
            self.num_passes += 1
            self.num_tokens += sum(len(passages[index]) for index in indices)
            for index, probabilities in zip(indices, scores, strict=True):
                owner = owners[index]
                found[owner] |= probabilities
                if len(found[owner]) == len(self.behaviors):
                    yield self._answer(exchanges[owner], found[owner])

    def fingerprint(self) -> str:
        """A digest of the model's files (or its commit on the hub), what it is asked, and how it is read.

        The device and the batch size decide nothing but rounding.
        """
        decides = {
            "judge": "local",
            "rule": RULE_VERSION,
            "model": self._digest(),
            "dtype": self.dtype,
            "max_length": self.max_length,
            "threshold": self.threshold,
        }
        if self.labels is not None:
            labels = {behavior: sorted(set(wanted), key=str) for behavior, wanted in self.labels.items()}
            decides |= {"labels": labels, "with_prompt": self.with_prompt}
        else:
            decides |= {"rubrics": self.rubrics, "min_mass": self.min_mass, "fence": FENCE_VERSION, "thoughts": "none"}
        return text_digest(json.dumps(decides, sort_keys=True))

    def usage(self) -> Cost:
        """Passes and tokens so far; a model of one's own takes no dollars."""
        return Cost(self.num_passes, self.num_stored, self.num_tokens, dollars=0.0)

    def estimate(self, num_exchanges: int, prompt_chars: float, response_chars: float) -> Cost:
        """Passes and tokens, at four characters a token."""
        chars = response_chars
        if self.with_prompt or self.rubrics is not None:
            chars += prompt_chars
        questions = [chars + _QUESTION_CHARS + len(words) for words in (self.rubrics or {}).values()] or [chars]
        num_passes = math.ceil(num_exchanges * len(questions) / self.batch_size)
        return Cost(num_passes, 0, round(num_exchanges * sum(questions) / _CHARS_PER_TOKEN), dollars=0.0)

    def close(self) -> None:
        """Lets go of the model and closes the store; both come back when they are needed."""
        self._scorer = None
        super().close()

    def _digest(self) -> str:
        if self._source is None:
            from gradsteer.judges.local_loading import source_digest

            self._source = source_digest(self.model, self.revision)
        return self._source

    def _loaded(self) -> "Scorer":
        if self._scorer is None:
            from gradsteer.judges.local_loading import load
            from gradsteer.judges.local_scoring import Classifier, YesOrNo

            model, tokenizer = load(
                "causal" if self.labels is None else "classifier",
                self.model,
                # what the fingerprint stands for, though a branch may have moved on since
                revision=None if Path(self.model).is_dir() else self._digest(),
                trust_remote_code=self.trust_remote_code,
                device=self.device,
                dtype=self.dtype,
            )
            if self.labels is not None:
                self._scorer = Classifier(
                    model, tokenizer, self.labels, with_prompt=self.with_prompt, max_length=self.max_length
                )
            else:
                self._scorer = YesOrNo(
                    model, tokenizer, self.rubrics or {}, min_mass=self.min_mass, max_length=self.max_length
                )
        return self._scorer

    def _answer(self, exchange: Exchange, found: "Probabilities") -> Answer:
        from gradsteer.judges.local_scoring import NO_NUMBERS

        unscored = {behavior: value for behavior, value in found.items() if isinstance(value, str)}
        values = {
            behavior: None if isinstance(value := found[behavior], str) else value > self.threshold
            for behavior in self.behaviors
        }
        return Answer(exchange, Verdicts(values, unscored), lasting=NO_NUMBERS not in unscored.values())

    def _warn(self, scorer: "Scorer") -> None:
        if scorer.num_cut and not self._warned:
            self._warned = True
            warnings.warn(
                f"the judge {self.model!r} reads the beginning of long responses only: {scorer.num_cut} so far have "
                "more tokens than it takes at once",
                stacklevel=3,
            )


def _check_numbers(threshold: float, min_mass: float, batch_size: int, max_length: int | None) -> None:
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}; accepted: at least 0, less than 1")
    if not 0 <= min_mass <= 1:
        raise ValueError(f"min_mass is {min_mass}; accepted: 0 to 1")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; accepted: at least 1")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; accepted: at least 1, or null for all that the model can read")


def _listed(labels: Mapping[str, str | int | list[str | int]]) -> dict[str, list[str | int]]:
    if not labels:
        raise ValueError("labels is empty; it must name at least one behavior")
    listed = {behavior: wanted if isinstance(wanted, list) else [wanted] for behavior, wanted in labels.items()}
    for behavior, wanted in listed.items():
        if not wanted or any(isinstance(label, bool) for label in wanted):
            raise ValueError(f"the labels of {behavior!r} are {wanted!r}; accepted: names or indices, one or more")
    return listed
