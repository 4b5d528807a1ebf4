"""Attribution: the pile-average gradient of every pile, on the Trainer's test loop, with no optimizer.

The fit loop would be the wrong host (it wants an optimizer, cycles several loaders to equal length and averages
over ranks); the test loop runs every pile once and in order.
"""

import json
import math
import os
import sys
import time
from collections.abc import Set
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from gradsteer.chat import EncodedExample, collate, template_digest, tokenizer_digest
from gradsteer.fingerprints import model_fingerprint
from gradsteer.gradients import Batch, PileGradient, PileTotals
from gradsteer.models import check_model_path, checkpoint_activations, load_causal_lm, load_tokenizer, parse_dtype
from gradsteer.packing import Pack
from gradsteer.partial import PartialSum
from gradsteer.probing import why_not_packs
from gradsteer.provenance import provenance
from gradsteer.records import text_digest
from gradsteer.selection import select_parameters
from gradsteer.vectors import PileAverage

# logits at a time in the chunked head: 128 MB of float32
_HEAD_ENTRIES = 1 << 25


def _dropout(module: torch.nn.Module) -> float:
    """The probability with which a module of a transformer drops something in train mode."""
    if isinstance(module, torch.nn.Dropout):
        return module.p
    found = getattr(module, "attention_dropout", 0.0)  # attention reads it from an attribute of its own
    return float(found) if isinstance(found, int | float) else 0.0


class AttributionModule(L.LightningModule):
    """Accumulates the pile-average gradients of a model over all of its parameters.

    Args:
        model_name_or_path: the anchor, a hub id or a local directory.
        reduction: "example": mean over examples of each example's mean token gradient; "token": sum over all tokens
            divided by their number; "sum": mean over examples of each example's summed gradient (the score
            function). The three give different vectors.
        parameters: which parameters to take gradients of, all by default: globs over their names, "layer:1",
            "layer:0-3", "layer:embedding", "kind:attention|mlp|embedding|norm|head"; a leading "!" leaves out, as in
            ["!layer:1"]. The others cost neither time nor memory, and steering leaves them alone.
        packing: "auto" lays sequences end to end, each attending to itself only, where a check says that the model
            takes it; "off" pads batches of like lengths. Changes the speed, not the gradients.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third slower, the same
            gradients.
        dtype: of the weights: float32, bfloat16, float16 or float64. Sums are kept in float32 (float64 for float64).
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that comes with the model; off unless you trust its author.
        attn_implementation: attention kernel by transformers' name, such as sdpa or flash_attention_2.
    """

    def __init__(
        self,
        model_name_or_path: str,
        reduction: Literal["example", "token", "sum"] = "example",
        parameters: list[str] | None = None,
        packing: Literal["auto", "off"] = "auto",
        gradient_checkpointing: bool = False,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__()
        check_model_path(model_name_or_path)
        parse_dtype(dtype)
        self.automatic_optimization = False
        self.model_name_or_path, self.reduction, self.dtype_name = model_name_or_path, reduction, dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.packing, self.parameter_rules = packing, parameters or []
        self._chosen: list[str] = []
        self.loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.attn_implementation = attn_implementation
        self.tokenizer = load_tokenizer(model_name_or_path, **self.loading)
        self.model: Any = None
        self.fingerprint = ""
        self._pile: PileGradient | None = None
        self._started = 0.0
        self._packs = False
        self._resumed: PartialSum | PileAverage | None = None
        self._finished: PileAverage | None = None
        self._resume_at = 0
        self._most_tokens = sys.maxsize
        self._digests: dict[int, str] = {}
        self._head_chunk: int | None = None

    def configure_model(self) -> None:
        """Loads the model, once."""
        if self.model is None:
            self.model = load_causal_lm(
                self.model_name_or_path,
                dtype=self.dtype_name,
                attn_implementation=self.attn_implementation,
                **self.loading,
            )

    def on_test_start(self) -> None:
        """Refuses settings under which the gradient would be wrong, and takes the model's fingerprint."""
        if torch.is_inference_mode_enabled():
            raise ValueError("attribute needs gradients: the Trainer must have inference_mode=False")
        if "16" in str(self.trainer.precision) and "bf16" not in str(self.trainer.precision):
            raise ValueError(
                f"--trainer.precision {self.trainer.precision} scales the loss; nothing would unscale the gradients; "
                "accepted: 32-true, bf16-mixed, bf16-true, 64-true"
            )
        self._chosen = select_parameters(dict(self.model.named_parameters()), self.parameter_rules)
        self.fingerprint = model_fingerprint(self.model)
        if self.packing == "auto":
            self._choose_packs()

    def _choose_packs(self) -> None:
        """Packs where a check on examples of all piles says that they change nothing; says so where not."""
        examples = [example for pile in self._piles() for example in pile.examples[:2]]
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        chunk = max(64, _HEAD_ENTRIES // vocabulary)
        for head_chunk in (chunk, None):
            # a chunk of 1 runs the same code on the few positions of the check
            reason = why_not_packs(self.model, examples, head_chunk=1 if head_chunk else None)
            if reason is None:
                self._packs, self._head_chunk = True, head_chunk
                return
        rank_zero_warn(f"{type(self.model).__name__} runs padded batches of like lengths instead of packs: {reason}")

    def _batch(self, examples: list[EncodedExample]) -> Batch:
        if self._packs:
            return Pack.of(examples, self.device)
        padded = collate(examples, int(self.tokenizer.pad_token_id))
        return {key: value.to(self.device) for key, value in padded.items()}

    def loader_title(self, dataloader_idx: int) -> str:
        """What the progress bar calls a data loader."""
        return f"pile {self.pile_name(dataloader_idx)}"

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Adds a batch's gradients; after a pile's last batch also gives the pile-average gradient.

        Returns:
            ``loss`` (nats a token, this rank's pile so far), ``norm`` (of the batch's summed gradient),
            ``progress`` (text for the progress bar), ``average`` (a `PileAverage` after the pile's last batch, else
            None) and ``skipped`` (whether the batch was summed before the run was cut off; loss and norm are None).
        """
        if batch_idx == 0:
            self._begin_pile()
        assert self._pile is not None
        is_last = batch_idx + 1 == self.trainer.num_test_batches[dataloader_idx]
        if batch_idx < self._resume_at:  # summed before the run was cut off
            average = (self._finished or self._finish_pile(dataloader_idx)) if is_last else None
            return {"loss": None, "norm": None, "progress": "resuming", "average": average, "skipped": True}
        norm = self._accumulate(batch["examples"], batch["sources"])
        totals = self._pile.totals
        elapsed = time.monotonic() - self._started
        return {
            "loss": totals.mean_token_loss,
            "norm": norm,
            "progress": f"{totals.num_examples} examples, {totals.num_tokens / elapsed:,.0f} tokens/s",
            "average": self._finish_pile(dataloader_idx) if is_last else None,
            "skipped": False,
        }

    def _accumulate(self, examples: list[EncodedExample], sources: list[str], skip: Set[str] = frozenset()) -> float:
        """Adds the gradients of some examples, in halves where the memory does not hold all of them at once.

        When memory runs out in the middle of a backward pass, some parameters have their gradient already: the halves
        leave those out, so that nothing is lost and nothing is counted twice.
        """
        assert self._pile is not None
        num_tokens = sum(len(example.input_ids) for example in examples)
        if len(examples) == 1 or num_tokens <= self._most_tokens:
            tensors, totals = self._batch(examples), replace(self._pile.totals)
            added: set[str] = set()
            try:
                collecting = self._pile.sums.collecting(skip)
                with self._pile.running(tensors), collecting as added, torch.enable_grad():
                    objective = self._pile.objective(tensors, sources=sources)
                    self.manual_backward(objective)
                return self._pile.check_norm(tensors, sources=sources)
            except torch.OutOfMemoryError as error:
                if len(examples) == 1:
                    raise ValueError(
                        f"out of memory on one example alone ({sources[0]}, {num_tokens} tokens)"
                    ) from error
            self._most_tokens, self._pile.totals, skip = num_tokens // 2, totals, skip | added
            self._pile.sums.pop_norm()
            torch.cuda.empty_cache()
            rank_zero_warn(f"out of memory with {num_tokens} tokens at once: going on with {self._most_tokens}")
        half = (len(examples) + 1) // 2
        parts = [(examples[:half], sources[:half]), (examples[half:], sources[half:])]
        return math.hypot(*(self._accumulate(*part, skip) for part in parts))

    def on_test_model_eval(self) -> None:
        """Eval mode; with gradient checkpointing train mode, which transformers asks for, if no dropout is active."""
        super().on_test_model_eval()
        if not self.gradient_checkpointing:
            return
        active = [name for name, module in self.model.named_modules() if _dropout(module) > 0]
        if active:
            raise ValueError(
                f"--model.gradient_checkpointing needs train mode, and {type(self.model).__name__} has dropout there "
                f"(such as {active[0]!r}): the gradient would be random; set the dropouts of its config to 0"
            )
        checkpoint_activations(self.model)
        self.model.train()

    def resume(self, left: "PartialSum | PileAverage") -> None:
        """Goes on from a pile's partial sums, or takes its finished gradient; said before its first batch."""
        self._resumed = left

    def partial_sum(self, next_batch: int) -> PartialSum:
        """The running pile's sums so far, on this rank."""
        assert self._pile is not None
        return PartialSum(self._pile.sums.buffers, self._pile.totals, next_batch)

    def pile_name(self, dataloader_idx: int) -> str:
        """The name of a data loader's pile."""
        return str(self._piles()[dataloader_idx].name)

    def work_digest(self, dataloader_idx: int) -> str:
        """Digest of everything that decides a pile's sums on this rank, their order included."""
        if dataloader_idx not in self._digests:
            decides = [
                *(self.fingerprint, self.reduction, self._chosen, self._datamodule().loss_mask, self.dtype_name),
                *(str(self.trainer.precision), self.trainer.world_size),
                [[example.input_ids, example.labels] for example in self._piles()[dataloader_idx].examples],
                *(self._datamodule().budget(), self._packs),
                int(self.trainer.num_test_batches[dataloader_idx]),
            ]
            self._digests[dataloader_idx] = text_digest(json.dumps(decides))[:32]
        return self._digests[dataloader_idx]

    def _begin_pile(self) -> None:
        if self._pile is None:
            self._pile = PileGradient(
                self.model, reduction=self.reduction, parameters=self._chosen, head_chunk=self._head_chunk
            )
        self._pile.sums.zero()
        self._pile.totals = PileTotals()
        self._started = time.monotonic()
        resumed, self._resumed = self._resumed, None
        self._finished = resumed if isinstance(resumed, PileAverage) else None
        self._resume_at = sys.maxsize if self._finished is not None else 0
        if isinstance(resumed, PartialSum):
            self._resume_at, self._pile.totals = resumed.next_batch, resumed.totals
            for name, buffer in resumed.buffers.items():
                self._pile.sums.buffers[name].copy_(buffer)

    def _finish_pile(self, dataloader_idx: int) -> PileAverage:
        """Sums over ranks and divides once."""
        assert self._pile is not None
        totals, pile = self._pile.totals, self._piles()[dataloader_idx]
        if self.trainer.world_size > 1:
            for buffer in self._pile.sums.buffers.values():
                self._sum_over_ranks(buffer)
            counts = torch.tensor(
                [totals.num_examples, totals.num_tokens, totals.token_loss_sum], dtype=torch.float64, device=self.device
            )
            self._sum_over_ranks(counts)
            totals.num_examples, totals.num_tokens = int(counts[0]), int(counts[1])
            totals.token_loss_sum = float(counts[2])
        metadata = {
            "pile": pile.name,
            "num_examples": str(totals.num_examples),
            "num_tokens": str(totals.num_tokens),
            "mean_token_loss": repr(totals.mean_token_loss),
            "loss_mask": self._datamodule().loss_mask,
            "reduction": self.reduction,
            "parameters": json.dumps(self.parameter_rules),
            "model": self.model_name_or_path,
            "model_fingerprint": self.fingerprint,
            "tokenizer_digest": tokenizer_digest(self.tokenizer),
            "template_digest": template_digest(self.tokenizer),
            "prompt_digests": json.dumps(pile.prompt_digests),
            "dtype": self.dtype_name,
            "precision": str(self.trainer.precision),
            "work_digest": self.work_digest(dataloader_idx),
            "seed": os.environ.get("PL_GLOBAL_SEED", ""),
            **provenance(),
        }
        return PileAverage({name: tensor.cpu() for name, tensor in self._pile.average().items()}, metadata)

    def _sum_over_ranks(self, tensor: Tensor) -> None:
        tensor.copy_(self.trainer.strategy.reduce(tensor, reduce_op="sum"))

    def _datamodule(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _piles(self) -> list[Any]:
        piles: list[Any] = self._datamodule().piles
        return piles
