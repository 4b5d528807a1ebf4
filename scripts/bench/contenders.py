"""Contenders that need nothing but torch, transformers and gradsteer."""

from typing import Any, ClassVar

import torch
from torch.nn import functional

from bench.batches import batches_of, padded
from bench.contender import Contender, Gradient, load_model, taken_gradients
from bench.setting import HEAD_ENTRIES, SHAPES, Sequence, Setting
from bench.timing import measured


class Ours(Contender):
    """gradsteer.PileGradient on packs, planning and packing included in the time."""

    title: ClassVar[str] = "gradsteer (default packs)"

    def prepare(self) -> None:
        super().prepare()
        self.budget = self.choice or SHAPES[self.setting.shape].budgets[-1]
        self.head_chunk = max(64, HEAD_ENTRIES // SHAPES[self.setting.shape].config["vocab_size"])

    def stage(self, rows: list[Sequence]) -> Any:
        from gradsteer.data.chat import EncodedExample

        return [EncodedExample(row.input_ids, row.labels) for row in rows]

    def run(self, staged: Any) -> Gradient:
        from gradsteer import PileGradient
        from gradsteer.models.packing import Pack, plan_packs

        pile = PileGradient(self.model, reduction="sum", head_chunk=self.head_chunk, parameters=self.covered())
        for indices in plan_packs([len(example.input_ids) for example in staged], self.budget):
            pile.add(Pack.of([staged[index] for index in indices], self.setting.device))
        return pile.average()

    def covered(self) -> list[str] | None:
        """The names of the parameters to cover; all."""
        return None

    @property
    def note(self) -> str:
        return f"packs of {self.budget}"


class OursBest(Ours):
    """The same with the fastest pack size."""

    title: ClassVar[str] = "gradsteer (best packs)"


class OursLinear(Ours):
    """The same for the parameters that bergson covers: the weights of the body's linear layers."""

    title: ClassVar[str] = "gradsteer (bergson's parameters)"

    def covered(self) -> list[str]:
        modules = self.model.base_model.named_modules()
        linear = [name for name, module in modules if isinstance(module, torch.nn.Linear)]
        return [f"{self.model.base_model_prefix}.{name}.weight" for name in linear]


class Floor(Contender):
    """The bound: dense rows without padding or masks, all tokens labelled, plain forward and backward.

    As much work as the round's responses have tokens, in the best of several shapes.
    """

    title: ClassVar[str] = "dense floor"

    def prepare(self) -> None:
        super().prepare()
        self.batch, self.length, self.kept = self.choice
        generator = torch.Generator().manual_seed(self.setting.seed)
        vocabulary = SHAPES[self.setting.shape].config["vocab_size"]
        ids = torch.randint(3, vocabulary, (self.batch, self.length), generator=generator)
        self.ids = ids.to(self.setting.device)

    def steps(self, rows: list[Sequence]) -> int:
        """Rounded: the throughput is by its own tokens."""
        return max(1, round(sum(len(row.input_ids) for row in rows) / self.ids.numel()))

    def stage(self, rows: list[Sequence]) -> Any:
        return self.steps(rows)

    def tokens(self, rows: list[Sequence]) -> int:
        return self.steps(rows) * self.ids.numel()

    def run(self, staged: Any) -> None:
        for _ in range(staged):
            self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss.backward()
            if not self.kept:
                self.model.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)

    @property
    def note(self) -> str:
        return f"{self.batch} x {self.length}, .grad {'kept' if self.kept else 'freed'} after each step"


class Padded(Contender):
    """The loop that a researcher writes: padded batches in random order, loss.backward() summing in .grad."""

    size: ClassVar[int]

    def run(self, staged: Any) -> Gradient:
        for batch in batches_of(staged, self.size):
            # transformers divides the summed loss by this number
            self.model(
                **padded(batch, self.setting.device), use_cache=False, num_items_in_batch=len(staged)
            ).loss.backward()
        return taken_gradients(self.model)


class Loop(Padded):
    """One response at a time."""

    title: ClassVar[str] = "loop, batch 1"
    size: ClassVar[int] = 1


class Padded8(Padded):
    """Eight at a time."""

    title: ClassVar[str] = "padded batches of 8"
    size: ClassVar[int] = 8


class Padded32(Padded):
    """Thirty-two at a time."""

    title: ClassVar[str] = "padded batches of 32"
    size: ClassVar[int] = 32


class TorchFunc(Contender):
    """Per-example gradients by vmap over grad over functional_call, summed in float32; batches of like length."""

    title: ClassVar[str] = "torch.func per example"

    @classmethod
    def choices(cls) -> list[Any]:
        return [1, 4]

    def prepare(self) -> None:
        # eager attention: vmap has no rule for the fused kernels and would fall back to a loop
        self.model = load_model(self.setting, attn_implementation="eager")

    def run(self, staged: Any) -> Gradient:
        from torch.func import functional_call, grad, vmap

        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}

        def loss(parameters: Gradient, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            # right padding is behind every token that is scored, so the causal mask alone hides it
            options = {"input_ids": ids[None], "use_cache": False, "attention_mask": self._mask(len(ids))}
            logits = functional_call(self.model, parameters, (), options).logits[0, :-1].float()
            return functional.cross_entropy(logits, labels[1:], reduction="sum")

        sums = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
        per_example = vmap(grad(loss), in_dims=(None, 0, 0))
        for batch in batches_of(staged, self.choice, by_length=True):
            tensors = padded(batch, self.setting.device)
            for name, value in per_example(parameters, tensors["input_ids"], tensors["labels"]).items():
                sums[name] += value.sum(0, dtype=torch.float32)
        return {name: value.div_(len(staged)) for name, value in sums.items()}

    def _mask(self, length: int) -> torch.Tensor:
        # a ready-made mask: making one looks at data, which vmap forbids
        smallest = torch.finfo(self.model.dtype).min
        mask = torch.full((length, length), smallest, dtype=self.model.dtype, device=self.setting.device)
        return mask.triu(1)[None, None]

    @property
    def note(self) -> str:
        return f"{self.choice} examples at a time, by length"


class Oracle(Contender):
    """The reference: float64, one response at a time, plain autograd."""

    title: ClassVar[str] = "float64 oracle"

    def prepare(self) -> None:
        self.model = load_model(self.setting, torch.float64)

    def run(self, staged: Any) -> Gradient:
        parameters = dict(self.model.named_parameters())
        for row in staged:
            tensors = padded([row], self.setting.device)
            logits = self.model(input_ids=tensors["input_ids"], use_cache=False).logits[0, :-1]
            functional.cross_entropy(logits, tensors["labels"][0, 1:], reduction="sum").backward()
        return {name: parameter.grad.div_(len(staged)) for name, parameter in parameters.items()}


def make_model(setting: Setting) -> dict[str, Any]:
    """Saves the run's random weights and says how many there are, and how much a parameter name holds."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(setting.seed)
    config = LlamaConfig(**SHAPES[setting.shape].config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(getattr(torch, setting.dtype))
    model.save_pretrained(setting.model)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def fastest(kind: type[Contender], setting: Setting, choices: list[Any], rows: list[Sequence], times: int) -> Any:
    """The choice with the most tokens a second on a few responses, the best of so many runs each."""
    best: tuple[float, Any] | None = None
    failure: Exception | None = None
    for choice in choices:
        try:
            contender = kind(setting, choice)
            staged = contender.stage(rows)
            took = min(
                measured(lambda: contender.run(staged), setting.device).by(setting.clock)  # noqa: B023
                for _ in range(times)
            )
        except torch.OutOfMemoryError as error:
            failure = error
            continue
        speed = contender.tokens(rows) / took
        if best is None or speed > best[0]:
            best = (speed, choice)
    if best is None:
        raise failure or RuntimeError("nothing to choose from")
    return best[1]
