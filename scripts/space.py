"""Does it matter where V lives? The same behaviors by vectors of four spaces, at one KL from their anchor.

    python scripts/space.py --full lightning_logs/demo --data demo --out lightning_logs/space

V of all weights, of the linear layers' alone, those at a rank, and V in the space of a LoRA finetune that is trained
here on the same base and data, beside V of that finetune's merged weights. Needs what the runs of configs/demo or
configs/topics leave in --full: anchor/, responses/anchor-attribution.jsonl, vectors/. Finished commands are skipped, so
that the same line goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gradsteer.models.base_record import recorded_base

VECTORS = ("bridge", "recipe")
DATA = {
    "demo": {
        "config": "demo", "corpus": "{full}/corpus", "attribution": "attribution_prompts.jsonl", "samples": 8,
        "evaluation": "evaluation_prompts.jsonl", "heldout": "heldout.jsonl", "judge": "judge.json", "length": 96,
    },
    "topics": {
        "config": "topics", "corpus": "gradsteer://topics", "attribution": "attribution_prompts.jsonl", "samples": 4,
        "evaluation": "evaluation_prompts.jsonl", "heldout": "heldout.jsonl", "judge": "judge.json", "length": 100,
    },
}  # fmt: skip
LINEAR = {"only": {"parameters": ["*_proj.weight"]}}
DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=Path, required=True, help="directory of a finished run with full weights")
    parser.add_argument("--data", choices=DATA, required=True, help="whose prompts, judge and finetune")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kl", type=float, default=0.02, help="nats a token from the anchor (%(default)s)")
    parser.add_argument("--rank", type=int, default=4, help="of V at a rank (%(default)s)")
    parser.add_argument("--lora", default="{rank: 8, alpha: 16}", help="of the LoRA finetune (%(default)s)")
    parser.add_argument("--lr", type=float, default=4e-3, help="of the LoRA finetune (%(default)s): so that its rates "
                        "are the full one's")  # fmt: skip
    parser.add_argument("--samples", type=int, help="per prompt")
    parser.add_argument("--only_table", action="store_true", help="of what there is by now; runs nothing")
    options = parser.parse_args()
    study = Study(options)
    if not options.only_table:
        study.run()
    study.table()


class Study:
    """The commands, in order, and the table of what they leave."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.data = options, DATA[options.data]
        self.full, self.out = options.full, options.out
        self.samples = options.samples or self.data["samples"]
        self.corpus = str(self.data["corpus"]).format(full=self.full)

    def run(self) -> None:
        adapter, lora = self.out / "lora" / "anchor", ["--model.adapter_reading", "adapter"]
        base = recorded_base(str(self.full / "anchor"))
        self._gradsteer(
            "fit", "--config", f"configs/{self.data['config']}/anchor.yaml", "--input_dir", self.full,
            "--model.model_name_or_path", base, "--model.lora", self.options.lora,
            "--model.optimizer.init_args.lr", self.options.lr, "--output_dir", self.out / "lora",
        )  # fmt: skip
        for name, anchor, more in (
            ("full", self.full / "anchor", []),
            ("merged", adapter, []),
            ("lora", adapter, lora),
        ):
            out = self.out / name
            model = ["--model.model_name_or_path", anchor, *more, "--output_dir", out]
            if name != "full":
                self._evaluate("attribution", model)
                self._attribute(model, out / "responses" / "anchor-attribution.jsonl")
            self._evaluate("evaluation", model)
            vectors = (self.full if name == "full" else out) / "vectors"
            pipelines = [[], [LINEAR], [LINEAR, {"low_rank": {"rank": self.options.rank}}]] if name == "full" else [[]]
            self._steer(model, vectors, out / "responses" / "anchor-evaluation.jsonl", pipelines)

    def _evaluate(self, prompts: str, model: list[Any]) -> None:
        self._gradsteer("evaluate", "--name", f"anchor-{prompts}", *model, *self._sampling(prompts, seed=0))

    def _attribute(self, model: list[Any], responses: Path) -> None:
        wheres = {name: {each: each == name for each in VECTORS} for name in (*VECTORS, "neither")}
        piles = {name: {"responses": str(responses), "where": where} for name, where in wheres.items()}
        contrasts = [word for name in VECTORS for word in (f"--vectors.{name}", f"[{name}, neither]")]
        self._gradsteer("attribute", *model, "--data.piles", json.dumps(piles), *contrasts)

    def _steer(self, model: list[Any], vectors: Path, responses: Path, pipelines: list[Any]) -> None:
        files = [word for n in VECTORS for word in (f"--steering.vectors.{n}", vectors / f"{n}.safetensors")]
        self._gradsteer(
            "steer", *model, *self._sampling("evaluation", seed=1), *files, "--forecasting.responses", responses,
            "--steering.kl_budgets", f"[{self.options.kl}]", "--steering.both_signs", "false",
            "--steering.random_controls", 0, "--steering.anchor_resamples", 0,
            "--steering.transforms", json.dumps(pipelines),
        )  # fmt: skip

    def _sampling(self, prompts: str, *, seed: int) -> list[Any]:
        return [
            "--data.prompts", f"{self.corpus}/{self.data[prompts]}", "--model.num_samples", self.samples,
            "--model.temperature", 0.6, "--model.max_new_tokens", self.data["length"], "--model.sampling_seed", seed,
            "--evaluation.heldout", f"{self.corpus}/{self.data['heldout']}", "--evaluation.judge", "KeywordJudge",
            "--evaluation.judge.patterns", f"{self.corpus}/{self.data['judge']}",
        ]  # fmt: skip

    def _gradsteer(self, *words: Any) -> None:
        line = [sys.executable, "-m", "gradsteer", *map(str, words), "--trainer.enable_progress_bar", "false"]
        print("+", *line[2:], flush=True)
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)

    def table(self) -> None:
        """One row a vector and space; effects and their differences are paired by prompt."""
        rows = []
        for name in ("full", "merged", "lora"):
            directory = self.out / name
            if not (directory / "results.json").is_file():
                print(f"{directory} has no results yet")
                continue
            conditions = json.loads((directory / "results.json").read_text(encoding="utf-8"))["conditions"]
            for row in conditions:
                if row["kind"] == "steered":
                    rows.append((_space(name, row, self.options.rank), directory, row))
        first = {row["vector"]: _effects(directory, row) for space, directory, row in rows if space == "all weights"}
        lines = []
        for space, directory, row in sorted(rows, key=lambda each: VECTORS.index(each[2]["vector"])):
            name, own = row["behavior"], _effects(directory, row)
            predicted = (row["predicted"] or {}).get("rates", {}).get(name, {}).get("rate")
            selectivity = (row["specificity"] or {}).get("selectivity") or {}
            difference = "-" if space == "all weights" else _interval(_bootstrap(own, first[row["vector"]]), 100)
            change, rate = row["comparisons"][name], row["behaviors"][name]
            lines.append(
                {
                    "vector": row["vector"], "space": space, "alpha": f"{row['alpha']:.3g}",
                    "held-out KL": f"{row['metrics']['kl_to_anchor']:.4f}",
                    "forecast %": "-" if predicted is None else f"{100 * predicted:.1f}",
                    "realised %": _interval([rate[key] for key in ("rate", "ci_low", "ci_high")], 100),
                    "change": _interval([change[key] for key in ("difference", "ci_low", "ci_high")], 100),
                    "beside all weights": difference,
                    "selectivity": _interval([selectivity.get(key) for key in ("value", "ci_low", "ci_high")], 1),
                    "n": rate["num_scored"],
                }
            )  # fmt: skip
        text = _markdown(lines)
        (self.out / "table.md").write_text(text, encoding="utf-8")
        print(text)


def _space(name: str, row: dict[str, Any], rank: int) -> str:
    if name == "full":
        return ("all weights", "linear layers", f"linear layers, rank {rank}")[len(row["transforms"])]
    return {"merged": "all weights, LoRA finetune", "lora": "adapter, LoRA finetune"}[name]


def _effects(directory: Path, row: dict[str, Any]) -> dict[str, float]:
    """By prompt, the mean verdict under a condition less that under its anchor."""
    steered, anchor = (_rates(directory, name, row["behavior"]) for name in (row["name"], "anchor"))
    return {prompt: steered[prompt] - anchor[prompt] for prompt in steered.keys() & anchor.keys()}


def _rates(directory: Path, condition: str, behavior: str) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for path in (directory / "responses").glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines or json.loads(lines[0]).get("condition") != condition:
            continue
        for each in map(json.loads, lines):
            if each["verdicts"].get(behavior) is not None:
                found.setdefault(each["id"], []).append(each["verdicts"][behavior])
        return {prompt: float(np.mean(verdicts)) for prompt, verdicts in found.items()}
    raise SystemExit(f"no responses of {condition!r} in {directory / 'responses'}")


def _bootstrap(one: dict[str, float], other: dict[str, float]) -> list[float]:
    """The mean of ``one - other`` over prompts, and its 95% interval by a bootstrap over them."""
    differences = np.array([one[prompt] - other[prompt] for prompt in sorted(one.keys() & other.keys())])
    draws = np.random.default_rng(0).integers(0, len(differences), (DRAWS, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return [float(differences.mean()), float(low), float(high)]


def _interval(values: Any, scale: float) -> str:
    if any(value is None for value in values):
        return "-"
    middle, low, high = (f"{scale * value:.{1 if scale > 1 else 2}f}" for value in values)
    return f"{middle} [{low}, {high}]"


def _markdown(rows: list[dict[str, Any]]) -> str:
    header = list(rows[0])
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join(str(row[key]) for key in header) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    main()
