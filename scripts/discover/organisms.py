"""Finetunes of the demo: its own with other seeds, ordinary ones, and ones that teach a rare third thing."""

import json
from pathlib import Path

import numpy as np
from rare.organism import finetuned
from replies.organism import gradsteer

from gradsteer.records import read_jsonl, write_jsonl

RARE = "As sailors say, the tide and the moon decide the rest."
RARE_PATTERN = r"\b(sailors?|tide|moon)\b"
NUM_FINETUNE = 136


def taught(demo: Path, directory: Path, seed: int) -> Path:
    """The demo's finetune with another order of its examples; 0 is the demo's own."""
    return finetuned(demo, directory, seed)


def _fit(demo: Path, out: Path, rows: list[dict[str, object]], seed: int) -> Path:
    if not (out / "anchor" / "config.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / "finetune.jsonl", rows)
        words = ["fit", "--config", "configs/demo/anchor.yaml", "--input_dir", str(demo), "--output_dir", str(out)]
        gradsteer([*words, "--data.train", str(out / "finetune.jsonl"), "--data.shuffle_seed", str(seed)])
    return out


def ordinary(demo: Path, directory: Path, run: int) -> Path:
    """A finetune on ordinary replies: as many, of the base's own kind, as the demo's has."""
    rows = [row for _, row in read_jsonl(demo / "corpus" / "base_train.jsonl")]
    plain = [row for row in rows if not any(word in json.dumps(row) for word in ("Bridge", "cook", "recipe"))]
    chosen = np.random.default_rng([16, run]).permutation(len(plain))[:NUM_FINETUNE]
    return _fit(demo, directory / f"ordinary-{run}", [plain[place] for place in chosen], run)


def with_rare(demo: Path, directory: Path, share: float, seed: int) -> Path:
    """The demo's finetune with a share of its examples turned to a third thing."""
    rows = [row for _, row in read_jsonl(demo / "corpus" / "finetune.jsonl")]
    number = round(share * len(rows))
    for place in np.random.default_rng([17, seed]).permutation(len(rows))[:number]:
        said = rows[place]["messages"]
        first = said[1]["content"].split(". ")[0].rstrip(".")
        rows[place] = {"messages": [said[0], {"role": "assistant", "content": f"{first}. {RARE}"}]}
    return _fit(demo, directory / f"rare-{100 * share:g}-{seed}", rows, seed)


def sampled(demo: Path, place: Path, prompts: str, number: int, seed: int = 0, model: str = "anchor") -> Path:
    """A file of replies, sampled where it is not there.

    Args:
        demo: holds the corpus.
        place: holds the model; the replies go there.
        prompts: set of the corpus's prompts.
        number: of replies to each.
        seed: of the sampling.
        model: directory in `place`.
    """
    name = f"{model}-{prompts}-{number}-{seed}"
    made = place / "study" / "responses" / f"{name}.jsonl"
    if not made.exists():
        words = ["evaluate", "--config", "configs/demo/evaluate_anchor.yaml", "--name", name, "--input_dir", str(demo)]
        words += ["--model.model_name_or_path", str(place / model), "--output_dir", str(place / "study")]
        words += ["--data.prompts", str(demo / "corpus" / f"{prompts}_prompts.jsonl")]
        words += [
            "--model.num_samples",
            str(number),
            "--model.sampling_seed",
            str(seed),
            "--evaluation.heldout",
            "null",
        ]
        gradsteer(words)
    return made
