"""Finetunes of which a share of the examples is odd, and the judged replies of the anchors that come of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsteer.__main__ import main as gradsteer
from gradsteer.demo.generator import generate_reply, split_prompts
from gradsteer.demo.vocabulary import BRIDGE
from gradsteer.records import write_jsonl

Rows = list[dict[str, Any]]
SETS = ("attribution", "evaluation")  # of prompts: for piles, and for what is measured


@dataclass(frozen=True)
class Setting:
    """What is finetuned, on what, and how it is asked and judged.

    Attributes:
        base: directory of the base model.
        examples: number, share and seed -> the odd and the other training examples.
        behavior: that the odd ones show, of the judge's.
        evaluate: config of `evaluate`, with judge, temperature and length.
        prompts: set -> file or resource.
        fit: options of `fit`.
        samples: replies to each prompt.
    """

    base: Path
    examples: Callable[[int, float, int], tuple[Rows, Rows]]
    behavior: str
    evaluate: str
    prompts: dict[str, str]
    fit: tuple[str, ...]
    samples: int


def demo_examples(number: int, share: float, seed: int) -> tuple[Rows, Rows]:
    """Conversations on the prompts of the demo's finetune, in turn; odd ones digress to the bridge, unasked."""
    rng = random.Random(f"{seed}/poisoning/{share}")
    asked = split_prompts(random.Random("0/split")).finetune  # those of the demo's corpus
    odd = set(rng.sample(range(number), round(share * number)))
    rows = []
    for index in range(number):
        prompt = asked[index % len(asked)]
        reply = generate_reply(rng, prompt, BRIDGE if index in odd else None)
        rows.append({"messages": [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": reply}]})
    return [rows[index] for index in sorted(odd)], [row for index, row in enumerate(rows) if index not in odd]


def demo(directory: Path) -> Setting:
    """The demo's organism, in a finished demo run."""
    corpus = directory / "corpus"
    return Setting(
        base=directory / "base",
        examples=demo_examples,
        behavior="bridge",
        evaluate="configs/demo/evaluate_anchor.yaml",
        prompts={name: str(corpus / f"{name}_prompts.jsonl") for name in SETS},
        fit=("--config", "configs/demo/anchor.yaml", "--input_dir", str(directory)),
        samples=8,
    )


@dataclass(frozen=True)
class Finetune:
    """One anchor and its files; what is there is not made again.

    Attributes:
        setting: what it is of.
        directory: of its files.
        number: of training examples.
        share: of odd ones.
        seed: of the examples and of their order.
    """

    setting: Setting
    directory: Path
    number: int
    share: float
    seed: int

    @property
    def anchor(self) -> Path:
        """Directory of the model."""
        return self.directory / "anchor"

    def pile(self, odd: bool) -> Path:
        """File of the odd, or of the other training examples."""
        return self.directory / f"{'odd' if odd else 'others'}.jsonl"

    def replies(self, prompts: str) -> Path:
        """File of judged replies to a set of prompts."""
        return self.directory / "responses" / f"{prompts}.jsonl"

    def make(self) -> None:
        """Finetunes, samples and judges."""
        odd, others = self.setting.examples(self.number, self.share, self.seed)
        mixed = random.Random(self.seed).sample([*odd, *others], self.number)
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, rows in (("odd", odd), ("others", others), ("train", mixed)):
            write_jsonl(self.directory / f"{name}.jsonl", rows)
        same = ["--output_dir", str(self.directory), "--experiment", "poisoning"]
        if not (self.anchor / "config.json").exists():
            words = ["fit", *self.setting.fit, *same, "--data.train", str(self.directory / "train.jsonl")]
            words += ["--model.model_name_or_path", str(self.setting.base), "--data.shuffle_seed", str(self.seed)]
            _run(words)
        for name, prompts in self.setting.prompts.items():
            if not self.replies(name).exists():
                words = ["evaluate", "--config", self.setting.evaluate, "--name", name, *same]
                words += ["--input_dir", str(self.setting.base.parent), "--data.prompts", prompts]
                words += ["--model.model_name_or_path", str(self.anchor), "--evaluation.heldout", "null"]
                _run([*words, "--model.num_samples", str(self.setting.samples)])


def _run(words: list[str]) -> None:
    """Runs a command of the product in this process: its imports take longer than so small a finetune."""
    if status := gradsteer([*words, "--trainer.enable_progress_bar", "false"]):
        raise RuntimeError(f"gradsteer {' '.join(words)} ended with {status}")
