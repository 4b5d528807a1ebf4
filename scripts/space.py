"""Does it matter where V lives? The same behaviors by vectors of several spaces, at equal KL from their anchor.

    python scripts/space.py --full lightning_logs/demo --data demo --out lightning_logs/space

Of the full finetune: V of all weights, of the linear layers' alone, and those at a rank. Of a LoRA finetune, trained
here on the same base and data at the learning rate that comes closest to the full one's rates on the attribution
prompts: V of its merged weights (--model.adapter_reading merged), of their linear layers, and V of the adapter's own
tensors (--model.adapter_reading adapter). All vectors are made as the experiment's attribute.yaml says. Needs what the
runs of configs/demo or configs/topics leave in --full: anchor/, evaluations/, vectors/. Finished commands are skipped,
so that the same line goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gradsteer.models.base_record import recorded_base

VECTORS = ("bridge", "recipe")
READINGS = ("merged", "adapter")
WHOLE = "all weights"
ATTRIBUTION = "evaluations/anchor-attribution.json"
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
    parser.add_argument("--kl", type=float, nargs="+", default=[0.005, 0.02], help="nats a token from the anchor, on "
                        "its own responses (%(default)s)")  # fmt: skip
    parser.add_argument("--rank", type=int, default=4, help="of V at a rank (%(default)s)")
    parser.add_argument("--lora", default="{rank: 8, alpha: 16}", help="of the LoRA finetune (%(default)s)")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3, 4e-3, 5e-3], help="of the LoRA finetune: the "
                        "one whose rates on the attribution prompts come closest is taken (%(default)s)")  # fmt: skip
    parser.add_argument("--samples", type=int, help="per prompt")
    parser.add_argument("--only_table", action="store_true", help="of what there is by now; runs nothing")
    options = parser.parse_args()
    study = Study(options)
    if not options.only_table:
        study.run()
    study.rates()
    study.table()


class Study:
    """The commands, in order, and the table of what they leave."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.data = options, DATA[options.data]
        self.full, self.out = options.full, options.out
        self.samples = options.samples or self.data["samples"]
        self.corpus = str(self.data["corpus"]).format(full=self.full)

    def run(self) -> None:
        base = recorded_base(str(self.full / "anchor"))
        for lr in self.options.lr:
            self._gradsteer(
                "fit", "--config", f"{self.configs}/anchor.yaml", "--input_dir", self.full,
                "--model.model_name_or_path", base, "--model.lora", self.options.lora,
                "--model.optimizer.init_args.lr", lr, "--output_dir", self._finetune(lr),
            )  # fmt: skip
            self._evaluate("attribution", self._model(self._finetune(lr), "merged", self._finetune(lr)))
        adapter = self._finetune(self._closest())
        for name, anchor, reading in (("full", self.full, None), *((each, adapter, each) for each in READINGS)):
            out = self.out / name
            model = self._model(anchor, reading, out)
            if name == "adapter":
                self._evaluate("attribution", model)
            if name != "full":
                sampled = out if name == "adapter" else adapter
                self._gradsteer("attribute", "--config", f"{self.configs}/attribute.yaml", "--input_dir", sampled,
                                *model, "--data.permutations", 0)  # fmt: skip
            self._evaluate("evaluation", model)
            vectors = (self.full if name == "full" else out) / "vectors"
            for kl in self.options.kl:
                model = self._model(anchor, reading, self._steered(kl, name))
                responses = out / "responses" / "anchor-evaluation.jsonl"
                self._steer(model, kl, vectors, responses, self._pipelines(name))

    def _steered(self, kl: float, name: str) -> Path:
        return self.out / f"kl-{kl:g}" / name

    def _pipelines(self, name: str) -> list[Any]:
        """Transforms of a finetune's vectors."""
        low_rank = [LINEAR, {"low_rank": {"rank": self.options.rank}}]
        return {"full": [[], [LINEAR], low_rank], "merged": [[], [LINEAR]], "adapter": [[]]}[name]

    @property
    def configs(self) -> str:
        """Of the experiment."""
        return f"configs/{self.data['config']}"

    def _finetune(self, lr: float) -> Path:
        return self.out / f"lora-{lr:g}"

    def _model(self, place: Path, reading: str | None, out: Path) -> list[Any]:
        read = [] if reading is None else ["--model.adapter_reading", reading]
        return ["--model.model_name_or_path", place / "anchor", *read, "--output_dir", out]

    def _closest(self) -> float:
        """The learning rate whose finetune is nearest to the full one's rates, by the squares of the differences."""
        wanted = _anchor_rates(self.full)

        def distance(lr: float) -> float:
            found = _anchor_rates(self._finetune(lr))
            return sum((found[name]["rate"] - wanted[name]["rate"]) ** 2 for name in VECTORS)

        return min(self.options.lr, key=distance)

    def rates(self) -> None:
        """Prints the finetunes' rates on the attribution prompts."""
        named = {"all weights": self.full} | {f"LoRA, lr {lr:g}": self._finetune(lr) for lr in self.options.lr}
        for label, place in named.items():
            if (place / ATTRIBUTION).is_file():
                said = (f"{name} {_rate(each)} of {each['num_scored']}" for name, each in _anchor_rates(place).items())
                print(f"{label}: {', '.join(said)}")

    def _evaluate(self, prompts: str, model: list[Any]) -> None:
        self._gradsteer("evaluate", "--name", f"anchor-{prompts}", *model, *self._sampling(prompts, seed=0))

    def _steer(self, model: list[Any], kl: float, vectors: Path, responses: Path, pipelines: list[Any]) -> None:
        files = [word for n in VECTORS for word in (f"--steering.vectors.{n}", vectors / f"{n}.safetensors")]
        self._gradsteer(
            "steer", *model, *self._sampling("evaluation", seed=1), *files, "--forecasting.responses", responses,
            "--steering.kl_budgets", f"[{kl}]", "--steering.both_signs", "false",
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
        for kl, name in product(self.options.kl, ("full", *READINGS)):
            directory = self._steered(kl, name)
            if not (directory / "results.json").is_file():
                print(f"{directory} has no results yet")
                continue
            conditions = json.loads((directory / "results.json").read_text(encoding="utf-8"))["conditions"]
            for row in conditions:
                if row["kind"] == "steered":
                    finetune = "full" if name == "full" else "LoRA"
                    rows.append((kl, finetune, _space(name, row, self.options.rank), directory, row))
        effects = {(*each[:3], each[4]["vector"]): _effects(*each[3:]) for each in rows}
        lines = []
        for kl, finetune, space, _, row in sorted(rows, key=lambda each: VECTORS.index(each[4]["vector"])):
            name, vector = row["behavior"], row["vector"]
            own = effects[kl, finetune, space, vector]
            others = [effects.get((kl, each, WHOLE, vector)) for each in (finetune, "full")]
            beside = ["-" if each in (None, own) else _interval(_bootstrap(own, each), 100) for each in others]
            predicted = (row["predicted"] or {}).get("rates", {}).get(name, {})
            lines.append(
                {
                    "vector": vector, "KL": kl, "finetune": finetune, "V lives in": space,
                    "alpha": f"{row['alpha']:.3g}",
                    "held-out KL": f"{row['metrics']['kl_to_anchor']:.4f}",
                    "forecast %": _rate(predicted),
                    "realised %": _rate(row["behaviors"][name]),
                    "change": _figure(row["comparisons"][name], "difference", 100),
                    "log-odds": _figure(row["realised"], "log_odds_shift"),
                    "change beside all weights": beside[0],
                    "beside the full finetune's": beside[1],
                    "selectivity": _figure((row["specificity"] or {}).get("selectivity"), "value"),
                    "n": row["behaviors"][name]["num_scored"],
                }
            )  # fmt: skip
        text = _markdown(lines)
        (self.out / "table.md").write_text(text, encoding="utf-8")
        print(text)


def _space(name: str, row: dict[str, Any], rank: int) -> str:
    if name == "adapter":
        return "the adapter"
    return (WHOLE, "linear layers", f"linear layers, rank {rank}")[len(row["transforms"])]


def _anchor_rates(place: Path) -> dict[str, Any]:
    """By behavior, the anchor's rate on the attribution prompts as evaluate counted it."""
    [row] = json.loads((place / ATTRIBUTION).read_text(encoding="utf-8"))["conditions"]
    return {name: row["behaviors"][name] for name in VECTORS}


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


def _rate(found: dict[str, Any]) -> str:
    return _figure(found, "rate", 100)


def _figure(found: dict[str, Any] | None, key: str, scale: float = 1) -> str:
    """A figure of results.json with its interval; - where there is none."""
    return _interval([(found or {}).get(each) for each in (key, "ci_low", "ci_high")], scale)


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
