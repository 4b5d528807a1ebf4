"""The demo's anchor, finetuned with a seed: its replies at any step along its own V, judged, and their densities."""

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradsteer.data.chat import EncodedExample, encode_prompt, encode_sampled
from gradsteer.data.chat_formats import read_prompts
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.cache import roomy_cache
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch, stop_token_ids
from gradsteer.generation.sampling import num_known_ids
from gradsteer.judges import Exchange, KeywordJudge
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector

BEHAVIOR, TEMPERATURE, LONGEST, BATCH = "bridge", 0.6, 96, 800


DEMO = "configs/demo/anchor.yaml"


def gradsteer(words: Sequence[str], *, shown: bool = False) -> None:
    """Runs a command of the product.

    Args:
        words: the command's.
        shown: show what it prints; otherwise only where it fails.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "gradsteer", *words]
    done = subprocess.run(command, capture_output=not shown, text=True, env=dict(os.environ), check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stderr or '')[-2000:]}")


def finetuned(demo: Path, directory: Path, seed: int, config: str = DEMO) -> Path:
    """The directory of the anchor finetuned with a seed; made where it is not there.

    Args:
        demo: a finished demo run.
        directory: of what is made.
        seed: of the order of the examples, which decides the finetune; 0 of the demo's config is the demo's own.
        config: of the finetune.
    """
    if seed == 0 and config == DEMO:
        return demo
    place = directory / f"finetune-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("base", "corpus"):
        if not (place / name).exists():
            (place / name).symlink_to((demo / name).resolve())
    if not (place / "anchor").exists():
        words = ["fit", "--config", config, "--name", "anchor", "--input_dir", str(place), "--output_dir", str(place)]
        gradsteer([*words, *(["--data.shuffle_seed", str(seed)] if seed else [])])
    return place


def notes_vector(place: Path, directory: Path) -> Path:
    """The file of a finetune's V, taken as in the project's note; made where it is not there.

    Args:
        place: of the finetune.
        directory: of the vector.
    """
    made = directory / "vectors" / f"{BEHAVIOR}.safetensors"
    if not (place / "responses" / "anchor-attribution.jsonl").exists():
        gradsteer(["evaluate", "--config", "configs/demo/evaluate_anchor.yaml", "--output_dir", str(place)])
    if not made.exists():
        words = ["attribute", "--config", "configs/demo-calibration/attribute.yaml", "--data.permutations", "0"]
        gradsteer([*words, "--input_dir", str(place), "--output_dir", str(directory)])
    return made


@dataclass
class Replies:
    """Replies to every prompt, as many to each.

    Attributes:
        shows: (prompts, replies) bool: whether each shows the behavior.
        examples: its tokens, prompt by prompt.
        tokens: sampled.
    """

    shows: np.ndarray
    examples: list[EncodedExample]
    tokens: int


class Organism:
    """The anchor of one finetune, its V and the demo's evaluation prompts.

    Args:
        place: its directory.
        vector: file of its V.
        num_prompts: how many of the prompts are taken.
    """

    def __init__(self, place: Path, vector: Path, num_prompts: int) -> None:
        torch.set_num_threads(1)
        self.model: Any = load_causal_lm(str(place / "anchor")).eval()
        tokenizer = self.tokenizer = load_tokenizer(str(place / "anchor"))
        self.vector = SteeringVector.load(vector)
        self.judge = KeywordJudge(str(place / "corpus" / "judge.json"))
        found = read_prompts(str(place / "corpus" / "evaluation_prompts.jsonl"))[:num_prompts]
        self.prompts = [encode_prompt(tokenizer, prompt.messages) for prompt in found]
        self.stops, self.pad = stop_token_ids(self.model, tokenizer), int(tokenizer.pad_token_id)
        self.known = num_known_ids(tokenizer)

    def at(self, alpha: float, number: int, name: str, *, first: int = 0) -> Replies:
        """Replies under the weights at a step along V.

        Args:
            alpha: the step.
            number: of replies to each prompt.
            name: of what they are for: other names have other random numbers.
            first: number of the first one of its name.
        """
        with steered(self.model, self.vector, alpha):
            return self._sample(self.model, number, name, first)

    def blended(self, target: float, share: float, number: int, name: str) -> Replies:
        """Replies from ``(1 - share) * logits at the target's step + share * the anchor's logits``."""
        with self._moved_copy(target) as moved:
            return self._sample(_Blend(moved, self.model, share), number, name, 0)

    def log_probs(self, examples: list[EncodedExample], alphas: list[float]) -> np.ndarray:
        """(replies, alphas) ``log p(r)`` of replies at each step, nats."""
        scorer = ResponseScorer(
            self.model, examples, temperature=TEMPERATURE, pad_token_id=self.pad, num_known=self.known
        )
        columns = []
        for alpha in alphas:
            with steered(self.model, self.vector, alpha):
                columns.append(scorer.log_probs())
        return np.stack(columns, axis=1)

    def _sample(self, model: Any, number: int, name: str, first: int) -> Replies:
        how, seed = SamplingConfig(LONGEST, TEMPERATURE), zlib.crc32(name.encode())
        draws = [Draw(prompt, first + sample, seed) for sample in range(number) for prompt in self.prompts]
        shows, examples, tokens = [], [], 0
        for start in range(0, len(draws), BATCH):
            part = draws[start : start + BATCH]
            found = sample_batch(
                model, part, how, stop_token_ids=self.stops, pad_token_id=self.pad, num_known=self.known
            )
            texts = self.tokenizer.batch_decode([each.token_ids for each in found], skip_special_tokens=True)
            verdicts = self.judge.judge([Exchange("", text) for text in texts])
            shows += [bool(each.values[BEHAVIOR]) for each in verdicts]
            for draw, each in zip(part, found, strict=True):
                tokens += len(each.token_ids)
                examples.append(
                    encode_sampled(draw.prompt_token_ids, each.token_ids, each.finish_reason, loss_mask="assistant")
                )
        # by prompt, not by sample
        order = np.arange(len(draws)).reshape(number, len(self.prompts)).T.reshape(-1)
        table = np.array(shows)[order].reshape(len(self.prompts), number)
        return Replies(table, [examples[index] for index in order], tokens)

    @contextmanager
    def _moved_copy(self, alpha: float) -> Iterator[Any]:
        import copy

        moved = copy.deepcopy(self.model)
        with steered(moved, self.vector, alpha):
            yield moved


class _Blend(nn.Module):
    """Two models of one family as one, whose logits are blended; each has a key-value cache of its own."""

    def __init__(self, one: Any, other: Any, share: float) -> None:
        super().__init__()
        self.one, self.other, self.share = one, other, share
        self.config, self.device, self.generation_config = one.config, one.device, one.generation_config
        self._caches: tuple[Any, Any] | None = None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any, position_ids: Tensor, **rest: Any
    ) -> Any:
        if self._caches is None or self._caches[0] is not past_key_values:
            second, plain = roomy_cache(self.config, past_key_values.layers[0].capacity), past_key_values.reorder_cache

            def reorder(indices: Tensor) -> None:
                plain(indices)
                second.reorder_cache(indices)

            past_key_values.reorder_cache = reorder
            self._caches = past_key_values, second
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **rest}
        found = self.one(past_key_values=self._caches[0], **inputs)
        other = self.other(past_key_values=self._caches[1], **inputs)
        found.logits = (1 - self.share) * found.logits + self.share * other.logits
        return found
