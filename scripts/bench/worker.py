"""A process that serves one contender: reads one order a line as JSON, answers with one line.

The answers go to the standard output that the process was started with; whatever the contender prints goes to the
standard error, so that no library can break the protocol.
"""

import json
import os
import sys
import traceback
from typing import Any

import torch

from bench.contender import Contender
from bench.memory import peak_above
from bench.setting import SHAPES, Setting, Shape
from bench.timing import Took, measured


def contender_class(name: str) -> type[Contender]:
    """The class of a contender; peers' packages are imported when they run."""
    from bench import contenders, peers

    return {
        "ours": contenders.Ours,
        "ours-best": contenders.OursBest,
        "ours-linear": contenders.OursLinear,
        "floor": contenders.Floor,
        "loop": contenders.Loop,
        "padded8": contenders.Padded8,
        "padded32": contenders.Padded32,
        "trainer": peers.HuggingFaceTrainer,
        "bergson-default": peers.BergsonDefault,
        "bergson": peers.BergsonBest,
        "kronfluence": peers.Kronfluence,
        "opacus": peers.Opacus,
        "func": contenders.TorchFunc,
        "oracle": contenders.Oracle,
    }[name]


class Server:
    """Answers orders; what `prepare` loads stays for the rounds."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.contender: Contender | None = None
        self.reference: dict[str, torch.Tensor] = {}

    def start(self) -> dict[str, Any]:
        """Imports what takes long; asked of all processes before anything is measured."""
        from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

        return {}

    def make_model(self) -> dict[str, Any]:
        """Saves the run's weights."""
        from bench.contenders import make_model

        return make_model(self.setting)

    def choose(self, contender: str) -> dict[str, Any]:
        """Finds a contender's best setting of its own."""
        from bench.contenders import fastest

        kind, shape = contender_class(contender), SHAPES[self.setting.shape]
        rows = self.setting.rounds()[0]
        few = rows[: max(8, len(rows) // 4)]  # enough for full batches
        # what is run first would pay for what is set up on first use
        warm = kind(self.setting, self._choices(kind, shape)[0])
        warm.run(warm.stage(sorted(rows, key=lambda row: len(row.input_ids))[:2]))
        del warm
        if contender == "floor":
            shapes = [(*dense, True) for dense in shape.dense]
            batch, length, _ = fastest(kind, self.setting, shapes, few, 2)
            return {"choice": fastest(kind, self.setting, [(batch, length, kept) for kept in (True, False)], few, 2)}
        sample = rows[: max(8, len(rows) // 2)] if contender == "ours-best" else few
        return {"choice": fastest(kind, self.setting, self._choices(kind, shape), sample, 1)}

    @staticmethod
    def _choices(kind: type[Contender], shape: Shape) -> list[Any]:
        from bench import contenders

        if kind is contenders.Floor:
            return [(*shape.dense[0], True)]
        return list(shape.budgets) if kind is contenders.OursBest else kind.choices()

    def prepare(self, contender: str, choice: Any) -> dict[str, Any]:
        """Loads the contender, and runs it on the two shortest responses for what is set up on first use."""
        kind = contender_class(contender)
        if choice is None:
            choice = self._choices(kind, SHAPES[self.setting.shape])[-1]
        self.contender = kind(self.setting, choice)
        shortest = sorted(self.setting.rounds()[0], key=lambda row: len(row.input_ids))[:2]
        self.contender.run(self.contender.stage(shortest))
        return {"title": self.contender.title, "note": self.contender.note}

    def run(self, number: int, save: str | None = None) -> dict[str, Any]:
        """One round: tokens and seconds; the first one also gives the peak memory and the gradient, on request."""
        from safetensors.torch import save_file

        assert self.contender is not None
        on_cuda = self.setting.device.startswith("cuda")
        if on_cuda:  # other contenders' weights are out of the way meanwhile
            self.contender.model.to(self.setting.device)
        rows = self.setting.rounds()[number]
        staged = self.contender.stage(rows)
        kept: dict[str, Any] = {}

        def work() -> None:
            kept["took"] = measured(lambda: kept.update(gradient=self.contender.run(staged)), self.setting.device)

        peak = peak_above(work, self.setting.device)
        gradient = kept.pop("gradient")
        if save is not None and gradient is not None:
            save_file(
                {name: value.detach().float().cpu().contiguous().clone() for name, value in gradient.items()}, save
            )
        del gradient
        if on_cuda:
            self.contender.model.to("cpu")
            torch.cuda.empty_cache()
        took: Took = kept["took"]
        times = {"seconds": took.by(self.setting.clock), "wall": took.wall, "cpu": took.cpu}
        return {"tokens": self.contender.tokens(rows), "peak": peak, **times}

    def reference_gradient(self) -> dict[str, Any]:
        """Computes the float64 gradient of the first round, once."""
        contender = contender_class("oracle")(self.setting)
        found = contender.run(contender.stage(self.setting.rounds()[0]))
        assert found is not None
        self.reference = {name: value.cpu() for name, value in found.items()}
        return {}

    def compare(self, path: str) -> dict[str, Any]:
        """The relative error of a saved gradient, and the share of the parameters that it covers."""
        from safetensors.torch import load_file

        found = load_file(path)
        unknown = sorted(set(found) - set(self.reference))
        if unknown:
            raise ValueError(f"a gradient of {unknown[0]!r}, which the model has not")
        difference = sum(float((found[name].double() - self.reference[name]).square().sum()) for name in found)
        norm = sum(float(self.reference[name].square().sum()) for name in found)
        covered = sum(value.numel() for value in found.values())
        total = sum(value.numel() for value in self.reference.values())
        return {"error": (difference / norm) ** 0.5, "covered": covered / total}

    def study(self, name: str, **options: Any) -> dict[str, Any]:
        """One of the studies of gradsteer alone."""
        from bench import studies

        answer: dict[str, Any] = getattr(studies, name)(self.setting, **options)
        return answer


def main() -> None:
    """Serves until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    setting = Setting.load(sys.argv[1])
    torch.set_num_threads(setting.threads)
    # transformers and bergson read these in their own ways; a bench loads nothing from the hub
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    server = Server(setting)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(server, order.pop("do"))(**order)
        except Exception as error:  # noqa: BLE001 - told to the other side, which prints it in the table
            traceback.print_exc()
            text = str(error).strip().splitlines()
            answer = {"failure": f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")[:300]}
        answers.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
