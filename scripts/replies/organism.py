"""A finetune of the demo, and its judged replies: those that vectors are made from, and those of the reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rare.organism import gradsteer

from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.chat import EncodedExample
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import Pile, read_pile
from gradsteer.models.batches import BatchLayout, running
from gradsteer.models.hidden_states import labelled_states
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import read_jsonl

TEMPERATURE, TOPICS = 0.6, ("bridge", "recipe")
BUDGET = 1024  # tokens at once
TRAINING, REFERENCE = "attribution", "evaluation"  # sets of the corpus's prompts


@dataclass
class Reply:
    """A judged reply.

    Attributes:
        shows: whether it shows the topic.
        sample: its number among the replies to its prompt.
        prompt: digest of its prompt.
        whole: its tokens.
        decided: them up to where the verdict was decided.
    """

    shows: bool
    sample: int
    prompt: str
    whole: EncodedExample
    decided: EncodedExample


class Organism:
    """One finetune of the demo's organism.

    Args:
        place: of its anchor and the corpus.
        directory: of its replies.
    """

    def __init__(self, place: Path, directory: Path) -> None:
        torch.set_num_threads(1)
        self.place, self.directory = place, directory
        anchor = str(self.place / "anchor")
        self.model: Any = load_causal_lm(anchor).eval()
        self.tokenizer = load_tokenizer(anchor)
        self._states: dict[tuple[str, int], np.ndarray] = {}

    def sample(self, prompts: str, number: int) -> Path:
        """A file of judged replies of `evaluate`, sampled where it is not there.

        Args:
            prompts: set of the corpus's prompts.
            number: of replies to each.
        """
        name = f"{prompts}-{number}"
        made = self.directory / "responses" / f"{name}.jsonl"
        if not made.exists():
            words = ["evaluate", "--config", "configs/demo/evaluate_anchor.yaml", "--name", name]
            words += ["--input_dir", str(self.place), "--output_dir", str(self.directory)]
            words += ["--data.prompts", str(self.place / "corpus" / f"{prompts}_prompts.jsonl")]
            words += ["--model.num_samples", str(number), "--model.sampling_seed", "16", "--evaluation.heldout", "null"]
            gradsteer(words)
        return made

    def replies(self, file: Path, topic: str, *, first: int = 0) -> list[Reply]:
        """All judged replies of a file.

        Args:
            file: of one number of replies to each prompt.
            topic: that they show or do not.
            first: number of the first one to a prompt; another file's replies have other numbers.
        """
        samples = [first + int(row["sample"]) for _, row in read_jsonl(file)]
        found = []
        for shows in (True, False):
            where = PileFilter(str(file), {topic: shows})
            whole = read_pile("whole", where, self.tokenizer)
            decided = read_pile("decided", where, self.tokenizer, until_decided=shows)
            for index, source in enumerate(whole.sources):
                sample = samples[int(source.rpartition(":")[2]) - 1]
                examples = whole.examples[index], decided.examples[index]
                found.append(Reply(shows, sample, whole.prompts[index], *examples))
        return found

    def layout(self, replies: Sequence[Reply]) -> BatchLayout:
        """How the model runs them."""
        return BatchLayout.of(self.model, [reply.whole for reply in replies[:2]])

    def states(self, replies: Sequence[Reply]) -> list[np.ndarray]:
        """(tokens, hidden size) float16 of each of a file's replies: what predicts its tokens until it is decided."""
        missing = [reply for reply in replies if (reply.prompt, reply.sample) not in self._states]
        layout = self.layout(replies)
        for indices in layout.plan([len(reply.whole.input_ids) for reply in missing], BUDGET):
            batch = layout.make([missing[index].whole for index in indices])
            with running(batch, self.model):
                states, owners = labelled_states(self.model, batch)
            for place, index in enumerate(indices):
                found = states[owners == place].half().numpy()
                self._states[missing[index].prompt, missing[index].sample] = found
        every = (self._states[reply.prompt, reply.sample] for reply in replies)
        return [each[: reply.decided.num_target_tokens] for each, reply in zip(every, replies, strict=True)]


def halves(replies: Sequence[Reply]) -> dict[str, int]:
    """Which half, 1 or 2, each prompt is in."""
    return halves_of_prompts([Pile("replies", [], [], [reply.prompt for reply in replies])])


def draws(replies: Sequence[Reply], each: int) -> Iterator[list[Reply]]:
    """Disjoint sets of replies, so many to each prompt.

    Args:
        replies: all of them.
        each: replies to a prompt.
    """
    number = 1 + max(reply.sample for reply in replies)
    for start in range(0, number - each + 1, each):
        yield [reply for reply in replies if start <= reply.sample < start + each]
