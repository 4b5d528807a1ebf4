"""The finetune: from a base model (or fresh weights) to the anchor."""

import json
import math
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.aggregation import MeanMetric

from gradsteer.models.adapter_loading import Quantization
from gradsteer.models.adapter_weights import is_adapters
from gradsteer.models.loading import Loading, fresh_causal_lm, load_causal_lm, load_tokenizer, parse_dtype
from gradsteer.models.lora import LoraOptions, with_fresh_adapter
from gradsteer.models.losses import example_losses
from gradsteer.models.train_mode import checkpoint_activations

Schedule = Literal["constant", "linear", "cosine"]
_BEGUN = "lora_begun_on"  # in a checkpoint


def schedule_factor(step: int, *, warmup_steps: int, total_steps: int, schedule: Schedule, final: float) -> float:
    """The learning rate at an optimizer step as a fraction of its peak.

    Linear warm-up from 0, then constant, or linear or cosine decay to ``final``.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    down = 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final + (1 - final) * down


class FinetuneModule(L.LightningModule):
    """Finetunes a causal LM with a masked token loss.

    The loss of a batch is the mean over its labelled tokens. With gradient accumulation or several devices, batches
    are weighted equally.

    Args:
        model_name_or_path: the base model, a hub id or a local directory.
        config: start from randomly initialised weights of this model config (JSON) instead; needs tokenizer.
        tokenizer: hub id or directory of the tokenizer; the base model's by default.
        optimizer: optimizer class and its arguments, such as AdamW with lr 5e-5. Choosing another class keeps the
            arguments that both accept, such as weight_decay.
        schedule: learning rate schedule after the warm-up: constant, linear or cosine.
        warmup_steps: optimizer steps of linear warm-up.
        final_lr_fraction: final learning rate as a fraction of the peak (linear and cosine).
        lr_reference_width: hidden size that the learning rate was tuned for. For other sizes it is multiplied by
            lr_reference_width / hidden size (the width rule for Adam of Yang et al., 2022, arXiv:2203.03466), so that
            one config works for several model sizes. Default: no scaling.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third slower.
        dtype: dtype of the weights: float32, bfloat16 or float16. For mixed precision keep float32 and set
            --trainer.precision bf16-mixed.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that ships with the model; enable only if you trust its author.
        attn_implementation: attention implementation by its transformers name, such as sdpa or flash_attention_2.
        gguf_file: a GGUF file in the model's directory or hub repository; its weights are dequantised.
        adapter_base: where the base model is an adapter, which is merged: the model that it was trained on, a hub id
            (with @REVISION, if not the one that the adapter records) or a directory. Default: the one that it names.
        lora: train a LoRA adapter on the frozen model instead of all its weights, such as {rank: 16}; it is saved as
            peft saves it. Keys: rank, alpha, dropout, targets, modules_to_save, rank_pattern, alpha_pattern, rslora.
        quantization: of the frozen model under lora: "4bit" or "8bit", by bitsandbytes.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        config: str | None = None,
        tokenizer: str | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=5e-5),
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
        final_lr_fraction: float = 0.0,
        lr_reference_width: int | None = None,
        gradient_checkpointing: bool = False,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        gguf_file: str | None = None,
        adapter_base: str | None = None,
        lora: LoraOptions | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        if (model_name_or_path is None) == (config is None):
            raise ValueError(
                "give either a base model (--model.model_name_or_path) or a config for fresh weights (--model.config), "
                f"not {'both' if config else 'neither'}"
            )
        if config is not None and tokenizer is None:
            raise ValueError("fresh weights (--model.config) need a tokenizer: --model.tokenizer DIR_OR_HUB_ID")
        if warmup_steps < 0:
            raise ValueError(f"model.warmup_steps is {warmup_steps}; accepted: 0 or more")
        if not 0 <= final_lr_fraction <= 1:
            raise ValueError(f"model.final_lr_fraction is {final_lr_fraction}; accepted: from 0 to 1")
        if config is not None and gguf_file is not None:
            raise ValueError(f"model.gguf_file is {gguf_file!r}, which has no effect with fresh weights (model.config)")
        self.loading = Loading(
            str(model_name_or_path or tokenizer),
            *(dtype, revision, trust_remote_code, attn_implementation),
            gguf_file=gguf_file,
            adapter_base=adapter_base,
            quantization=quantization,
            frozen=quantization is not None,
        )
        if quantization is not None and lora is None:
            raise ValueError(f"model.quantization is {quantization!r}, which has no effect without model.lora")
        self.lora = lora
        self.num_trained: int | None = None
        self.base_fingerprint: str | None = None
        self._frozen = ""  # the fingerprint of the weights that lora leaves as they are, quantised or not
        if model_name_or_path is not None:
            self.loading.check()
        parse_dtype(dtype)
        self.model_name_or_path, self.fresh_config = model_name_or_path, config
        if lora is not None:
            self._check_lora(lora)
        self.optimizer_callable = optimizer
        _try_out(optimizer)
        self.schedule, self.warmup_steps, self.final_lr_fraction = schedule, warmup_steps, final_lr_fraction
        if lr_reference_width is not None and lr_reference_width < 1:
            raise ValueError(f"model.lr_reference_width is {lr_reference_width}; accepted: at least 1")
        self.lr_reference_width = lr_reference_width
        self.gradient_checkpointing = gradient_checkpointing
        self.dtype_name = dtype
        self.tokenizer = load_tokenizer(
            self.loading
            if tokenizer is None
            else replace(self.loading, name_or_path=tokenizer, gguf_file=None, adapter_base=None)
        )
        self.model: Any = None
        self.val_loss = MeanMetric()
        self._last_batch: dict[str, Tensor] = {}

    def _check_lora(self, lora: LoraOptions) -> None:
        """Refuses an adapter that cannot be trained, or not be read again, before anything is loaded."""
        for given, what in (
            (self.loading.name_or_path if self.fresh_config is not None else None, "fresh weights (model.config)"),
            (self.loading.gguf_file, "a GGUF file: save the model as transformers does first"),
            (self.loading.adapter and self.loading.name_or_path, "another adapter: merge that one into its base first"),
        ):
            if given is not None:
                raise ValueError(f"model.lora trains an adapter on a saved model, and {given!r} is {what}")
        self.strict_loading = False  # checkpoints hold the adapter alone
        wrapped = lora.attach(self.loading.without_values())
        self.num_trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out a frozen model's weights, which the command loads again, and notes which they are."""
        if self.lora is not None:
            kept = {name: value for name, value in checkpoint["state_dict"].items() if is_adapters(name)}
            checkpoint["state_dict"] = kept
            checkpoint[_BEGUN] = self._begun_on()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses an adapter that was begun on other weights, or with other settings, than it would go on with.

        Raises:
            ValueError: names what differs, as the checkpoint has it and as it is now.
        """
        now = self._begun_on() if self.lora is not None else {}
        then = checkpoint.get(_BEGUN, {})
        for key in (key for key in {**then, **now} if then.get(key) != now.get(key)):
            raise ValueError(
                f"the fit to be resumed began with {key} {then.get(key)}, and {self.loading.name_or_path!r} goes on "
                f"with {now.get(key)}; accepted: as it began, or --overwrite true, which begins anew"
            )

    def _begun_on(self) -> dict[str, str]:
        """What an adapter in a checkpoint means nothing without."""
        assert self.lora is not None
        return {"the base's fingerprint": self._frozen, "model.lora": json.dumps(self.lora.to_dict(), sort_keys=True)}

    @property
    def num_ids(self) -> int | None:
        """Token ids of the model; None for fresh weights."""
        return None if self.fresh_config is not None else self.loading.num_ids

    def configure_model(self) -> None:
        """Loads or creates the model, once."""
        if self.model is not None:
            return
        if self.fresh_config is not None:
            self.model = fresh_causal_lm(self.fresh_config, dtype=self.dtype_name)
        else:
            self.model = load_causal_lm(self.loading)
        if self.lora is not None:
            self.model, self._frozen = with_fresh_adapter(self.model, self.lora)
            self.base_fingerprint = None if self.loading.is_quantized else self._frozen
        if self.gradient_checkpointing:
            checkpoint_activations(self.model)

    def on_fit_start(self) -> None:
        """Puts the model in train mode.

        from_pretrained returns it in eval mode and Lightning keeps that, which disables dropout and checkpointing.
        """
        self.model.train()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss over the batch's labelled tokens, in nats."""
        sums, counts = example_losses(self.model, batch)
        num_tokens = counts.sum()
        loss = sums.sum() / num_tokens
        self._last_batch = batch
        self._check_finite(sums, batch, "training")
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(counts))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(counts))
        self.log("train/tokens", num_tokens.float(), batch_size=len(counts), reduce_fx="sum")
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accumulates the validation loss, weighted by labelled tokens."""
        sums, counts = example_losses(self.model, batch)
        self._check_finite(sums, batch, "validation")
        self.val_loss.update(sums.sum() / counts.sum().clamp(min=1), weight=counts.sum().float())

    def _check_finite(self, sums: Tensor, batch: dict[str, Tensor], what: str) -> None:
        """Raises an error that names the example whose loss is not finite."""
        finite = torch.isfinite(sums.detach())
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            value = float(sums.detach()[row])
            raise ValueError(
                f"the {what} loss of {self._source(batch, row, what)} is {value} at step {self.global_step}; "
                "lower the learning rate, or use float32"
            )

    def _source(self, batch: dict[str, Tensor], row: int, what: str) -> str:
        datamodule = getattr(self.trainer, "datamodule", None)
        if "index" not in batch or datamodule is None:
            return f"example {row} of the batch"
        name = "train" if what == "training" else what
        return f"example {datamodule.sources[name][int(batch['index'][row])]}"

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuses a step along a non-finite gradient and names the last batch's examples."""
        if str(self.trainer.precision) == "16-mixed":
            return  # the loss scaler provokes overflows to find its scale, and skips such steps itself
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            rows = range(len(self._last_batch["labels"]))
            sources = ", ".join(self._source(self._last_batch, row, "training") for row in rows)
            raise ValueError(f"the gradient holds NaN or Inf at step {self.global_step}; the last batch was: {sources}")

    def on_validation_epoch_end(self) -> None:
        """Logs the mean token loss and the perplexity."""
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log("val/loss", loss, prog_bar=True)
        self.log("val/perplexity", loss.exp())

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped after every optimizer step."""
        optimizer = self.optimizer_callable(self.model.parameters())
        if self.lr_reference_width is not None:
            for group in optimizer.param_groups:
                group["lr"] *= self.lr_reference_width / self.model.config.get_text_config().hidden_size
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return schedule_factor(
                step,
                warmup_steps=self.warmup_steps,
                total_steps=total,
                schedule=self.schedule,
                final=self.final_lr_fraction,
            )

        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _try_out(optimizer: OptimizerCallable) -> None:
    """Refuses values that an optimizer does not take, before the model is loaded."""
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1, 1))])
    except ValueError as error:
        raise ValueError(f"--model.optimizer cannot be made: {error}; accepted: arguments in its own range") from error
