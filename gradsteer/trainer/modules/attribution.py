"""Attribution: the pile-average gradient of every pile, on the Trainer's test loop, without an optimizer."""

import json
import os
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.attribution.credit import Credit
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.pile_partition import Wanted
from gradsteer.data.chat import EncodedExample, template_digest, tokenizer_digest
from gradsteer.forecast.slopes import MIN_RESPONSES
from gradsteer.models.adapter_loading import Quantization, Reading, space_metadata
from gradsteer.models.base_weights import base_weights, check_base
from gradsteer.models.batches import BatchLayout
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import Loading, load_causal_lm, load_tokenizer
from gradsteer.models.losses import Reference
from gradsteer.models.packing_check import is_random
from gradsteer.models.parallel import is_split_model, load_split
from gradsteer.models.parameter_selection import select_parameters
from gradsteer.models.train_mode import checkpoint_activations, train_without_dropout
from gradsteer.provenance import provenance
from gradsteer.records import text_digest
from gradsteer.trainer.credit import TokenCredit
from gradsteer.trainer.dry_run import DryRunDoneError
from gradsteer.trainer.modules.gradient_options import PointOptions, choose_base, credit_options, refuse_unused
from gradsteer.trainer.modules.memory_plan import attribution_plan
from gradsteer.trainer.modules.summing import SummingModule
from gradsteer.trainer.session import data_of, is_trial
from gradsteer.vectors.weight_diff import named_weights, refuse_other_shapes, shapes_of

# to be raised with every change of what is summed: partial and finished sums of other versions are not mixed with it
SUMMING_VERSION = 1


class AttributionModule(SummingModule):
    """Accumulates the pile-average gradients of a model over all its parameters.

    Args:
        model_name_or_path: the anchor, a hub id or a local directory.
        reduction: how token gradients are averaged. "example": mean over examples of each example's mean token
            gradient. "token": mean over all tokens. "sum": mean over examples of each example's summed gradient (the
            score function). The three give different vectors.
        temperature: divides the logits of the loss: a number, or "sampled" for the one that the replies were sampled
            at. The sum reduction is the score function of replies as sampled only at their own temperature.
        credit: which tokens of a reply its verdict is put down to. "reply": all alike. "decided": none behind the
            place where a judge by patterns had seen enough, whatever follows; free, and unbiased. "baseline": each
            token weighs R - Q, the verdict less its probability before that token, predicted from the model's last
            hidden state by a regression on other prompts' replies; one forward pass more, unbiased. "advantage": by
            what a token and the next ones did to Q; a little biased, much less noise. The last two need reduction
            sum, temperature sampled, and two piles that share out all judged replies, such as {bridge: true} and
            {bridge: false}.
        advantage_lambda: for advantage: how much of what comes later counts, 0 to 1; 1 is baseline. Default: 0.95.
        loss: "cross_entropy" of the responses' tokens, or "kl": at the same positions, the divergence between the
            next-token distributions of a reference model and this one. With kl, positive alpha raises the PLUS
            pile's divergence; whether that reduces the behavior is an empirical question.
        kl_direction: "forward" is KL(reference || model), "reverse" is KL(model || reference).
        reference: reference model for kl, a hub id or a directory; the base by default.
        base: the model that the anchor was finetuned from. Default: the one that fit recorded in the anchor's
            directory. Used by path_points, mask_draws, and kl without a reference.
        path_points: integrated attribution: average the gradient along the straight path from base to anchor, by
            Gauss-Lobatto quadrature with this many points (2 or more). Costs one pass per point.
        mask_draws: stochastic masking: average the gradient over this many random masks of weight components. Costs
            one pass per mask.
        mask_keep_rate: probability that a mask keeps a component.
        mask_components: what is masked as a unit: "entries", "rows" (of dimension 0) or "tensors".
        mask_origin: value of a masked weight: its value in the "base", or "zero".
        mask_seed: seed for the masks.
        parameters: which parameters get gradients, all by default. Globs over their names, "layer:1", "layer:0-3",
            "layer:embedding", "kind:attention|mlp|embedding|norm|head"; a leading "!" excludes, as in ["!layer:1"].
            Other parameters cost no time or memory, and steering leaves them unchanged.
        packing: "auto" concatenates sequences, each attending to itself and its prompt, if a check confirms that no
            token of one changes another (not so of recurrent layers); "off" pads batches of similar lengths, or runs
            one sequence at a time where padding would change it. Affects speed, not the gradients.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third slower, same
            gradients.
        dtype: dtype of the weights: float32, bfloat16, float16 (loses small gradients) or float64. Sums are kept in
            float32 (float64 for float64 weights).
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that ships with the model; enable only if you trust its author.
        attn_implementation: attention implementation by its transformers name, such as sdpa or flash_attention_2.
        gguf_file: a GGUF file in the model's directory or hub repository; its weights are dequantised.
        adapter_base: of an adapter: the model that it was trained on, a hub id (with @REVISION, if not the one that the
            adapter records) or a directory. Default: the one that the adapter names.
        adapter_reading: of an adapter: "merged" into its base, in float32, after which everything is of the merged
            weights; or "adapter": its own tensors are the parameters, and the base is frozen.
        quantization: of the base in the adapter reading: "4bit" or "8bit", by bitsandbytes.
        calibrate: also estimate each vector's slope (the change in its piles' log-odds per unit of alpha), by forward
            passes over half piles. With it, steer can turn a log-odds shift into an alpha. Default: on when both piles
            hold at least 20 sampled responses that record temperature and top_p.
        slope_responses: take each slope from at most this many responses of each pile, half of them in each half of
            the prompts and spread over the prompts; 20 or more, a large number takes all. Asks for slopes, as calibrate
            does. Default: as many as keep all slopes together within the time of the gradients, at least 50; for a
            vector or two that is as a rule all of them. A quarter of the responses doubles the slope's standard error,
            which is printed and goes to the vector's file.
        dry_run: stop when the memory plan is printed (set by --dry_run).
    """

    def __init__(
        self,
        model_name_or_path: str,
        reduction: Literal["example", "token", "sum"] = "example",
        temperature: float | Literal["sampled"] = 1.0,
        credit: Credit = "reply",
        advantage_lambda: float | None = None,
        loss: Literal["cross_entropy", "kl"] = "cross_entropy",
        kl_direction: Literal["forward", "reverse"] = "forward",
        reference: str | None = None,
        base: str | None = None,
        path_points: int | None = None,
        mask_draws: int | None = None,
        mask_keep_rate: float = 0.5,
        mask_components: Literal["entries", "rows", "tensors"] = "entries",
        mask_origin: Literal["base", "zero"] = "base",
        mask_seed: int = 0,
        parameters: list[str] | None = None,
        packing: Literal["auto", "off"] = "auto",
        gradient_checkpointing: bool = False,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        gguf_file: str | None = None,
        adapter_base: str | None = None,
        adapter_reading: Reading = "merged",
        quantization: Quantization | None = None,
        calibrate: bool | None = None,
        slope_responses: int | None = None,
        dry_run: bool = False,
    ) -> None:
        super().__init__()
        self.loading = Loading(
            *(model_name_or_path, dtype, revision, trust_remote_code, attn_implementation, gguf_file),
            *(adapter_base, adapter_reading, quantization),
        )
        self.loading.check()
        self.calibrate = True if calibrate is None and slope_responses is not None else calibrate
        self.slope_responses, self.dry_run = slope_responses, dry_run
        if calibrate is False:
            refuse_unused({"model.slope_responses": (slope_responses, None)}, "model.calibrate")
        if slope_responses is not None and slope_responses < MIN_RESPONSES:
            raise ValueError(f"model.slope_responses is {slope_responses}; accepted: {MIN_RESPONSES} or more")
        if loss != "kl":
            unused = {"model.reference": (reference, None), "model.kl_direction": (kl_direction, "forward")}
            refuse_unused(unused, "model.loss kl")
        self.options = PointOptions(path_points, mask_draws, mask_keep_rate, mask_components, mask_origin, mask_seed)
        self.num_points = self.options.num_points
        self.model_name_or_path, self.reduction, self.dtype_name = model_name_or_path, reduction, dtype
        self.loss, self.kl_direction = loss, kl_direction
        self.temperature = temperature
        self.credit = credit_options(credit, advantage_lambda, reduction, temperature, loss)
        self.token_credit: TokenCredit | None = None
        compared = loss == "kl" and reference is None
        self.base = choose_base(base, self.loading, needed=self.options.need_base or compared)
        if self.base is not None and self.options.need_base:
            check_base(self.loading, self.base)
        self.reference = self.base if compared else reference
        self._named = (base, reference)
        if self.reference is not None:
            self.loading.of(self.reference, trusted=True, frozen=True).check()
        self.gradient_checkpointing = gradient_checkpointing
        self.packing, self.parameter_rules = packing, parameters or []
        self.tokenizer = load_tokenizer(self.loading)
        self.model: Any = None
        self.reference_model: Any = None
        self.fingerprint = ""
        self._loss_text: str = loss
        self._chosen: list[str] = []
        self._base_weights: dict[str, torch.Tensor] = {}

    @property
    def num_ids(self) -> int:
        """Token ids of the model, of which the tokenizer may know fewer; available before it is loaded."""
        return self.loading.num_ids

    def configure_model(self) -> None:
        """Loads the model and the reference, if any, once; under FSDP2 split over the processes."""
        if self.model is not None:
            return
        self.model = self._load(self.model_name_or_path)
        if self.base is not None:
            rank_zero_info(f"base model: {self.base}")
        if self.loss == "kl":
            self.reference_model = self._load(str(self.reference), frozen=True).requires_grad_(False)
            ours, theirs = (m.config.get_text_config().vocab_size for m in (self.model, self.reference_model))
            if ours != theirs:
                raise ValueError(f"the reference has a vocabulary of {theirs} tokens, the model one of {ours}")

    def _load(self, name: str, *, frozen: bool = False) -> Any:
        own = name == self.model_name_or_path
        loading = self.loading if own else self.loading.of(name, trusted=name in self._named, frozen=frozen)

        def load() -> Any:
            return load_causal_lm(loading)

        if self.device_mesh is None:
            return load()
        if loading.adapter_reading == "adapter":
            raise ValueError(
                "FSDP2 splits weights of one dtype over processes, not an adapter beside a frozen base; accepted with "
                "--model.adapter_reading adapter: one process, or DDP (--config configs/strategy/ddp.yaml)"
            )
        trainer = self.trainer
        return load_split(load, self.device_mesh, local_rank=trainer.local_rank, local_size=trainer.num_devices)

    def on_test_start(self) -> None:
        """Refuses settings that would make the gradient wrong; sets up fingerprint, points, packs and memory plan."""
        if torch.is_inference_mode_enabled():
            raise ValueError("attribute needs gradients: the Trainer must have inference_mode=False")
        if str(self.trainer.precision) not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"--trainer.precision {self.trainer.precision}; accepted: 32-true and bf16-mixed (16-mixed scales the "
                "loss, and nothing would unscale the gradients; for other weights: --model.dtype)"
            )
        if self._datamodule().fisher is not None and is_split_model(self.model):
            raise ValueError("data.fisher squares each example's own gradient, which FSDP2 has summed over processes")
        limited = [len(loader) for loader in self.trainer.test_dataloaders or []] != self.trainer.num_test_batches
        if limited and not is_trial(self.trainer):
            raise ValueError("trainer.limit_test_batches would leave out a part of every pile; accepted: 1.0")
        self._chosen = select_parameters(dict(self.model.named_parameters()), self.parameter_rules)
        self.fingerprint = model_fingerprint(self.model)
        examples = self._probed_examples()
        if self.gradient_checkpointing and not is_split_model(self.model) and is_random(self.model, examples):
            raise ValueError(
                f"--model.gradient_checkpointing needs train mode, in which {type(self.model).__name__} gives "
                "different losses each time: the gradient would be random; set the dropouts of its config to 0"
            )
        if self.reference_model is not None:  # here, because fingerprinting is collective
            self._loss_text = f"kl {self.kl_direction} to {model_fingerprint(self.reference_model)}"
        if self.options.need_base:
            base = str(self.base)
            weights = base_weights(self.model, self.loading, base, lambda: named_weights(self._load(base)))
            self._base_weights = dict(weights)
            refuse_other_shapes(shapes_of(named_weights(self.model)), shapes_of(self._base_weights))
        self.points = self.options.make(self._base_weights, self._chosen)
        self.batch_layout = self._choose_layout()
        if (weights := self._datamodule().weights) is not None:
            weights.give(self.trainer, self)
        if self.credit.predicts:
            self.token_credit = TokenCredit(self.trainer, self, self.credit)
            self.token_credit.give(self.batch_layout)
        self._plan_memory()
        if self.dry_run:
            raise DryRunDoneError
        self.digests = [self._work_digest(index) for index in range(len(self.parts))]
        self.layouts = [self._layout(index) for index in range(len(self.parts))]

    def _probed_examples(self) -> list[EncodedExample]:
        """Examples for the checks before the run; the same with and without permutations."""
        return [example for part in self.parts if not part.is_permuted for example in part.examples[:2]]

    def _choose_layout(self) -> BatchLayout:
        """Packs where a check on examples of all piles says that they change nothing; says so where not."""
        layout = BatchLayout.of(
            self.model,
            self._probed_examples(),
            reference=self.reference_model,
            pad_token_id=int(self.tokenizer.pad_token_id),
            packing=self.packing == "auto",
            shared_prompts=self._datamodule().shares_prompts,
        )
        if layout.warning is not None:
            rank_zero_warn(f"{type(self.model).__name__}: {layout.warning}")
        return layout

    def _plan_memory(self) -> None:
        """Prints the run's estimated memory against the device's, before anything is computed."""
        plan = attribution_plan(
            self.model,
            [example for part in self.parts for example in part.examples],
            parameters=self._chosen,
            token_budget=self._datamodule().budget(),
            head_chunk=self.batch_layout.head_chunk,
            packs=self.batch_layout.packs,
            shards=self.trainer.world_size if is_split_model(self.model) else 1,
            forward=self.trainer.precision_plugin.forward_context(),
            mixed="mixed" in str(self.trainer.precision),
            has_reference=self.reference_model is not None,
            options=self.options,
        )
        rank_zero_info(plan.text())
        if (advice := plan.advice()) is not None:
            rank_zero_warn(advice)

    def _reference(self) -> Reference | None:
        return None if self.reference_model is None else Reference(self.reference_model, self.kl_direction)

    def on_test_model_eval(self) -> None:
        """Eval mode; with gradient checkpointing, train mode (transformers requires it) if no dropout is active."""
        super().on_test_model_eval()
        if self.gradient_checkpointing:
            checkpoint_activations(self.model)
            train_without_dropout(self.model)

    @property
    def covered(self) -> list[str]:
        """Names of the parameters that get gradients."""
        return self._chosen

    def make_pile(self, *, squares: bool) -> PileGradient:
        """What sums gradients, or the squared ones of whole responses."""
        pile = PileGradient(
            self.model,
            reduction="sum" if squares else self.reduction,
            parameters=self._chosen,
            head_chunk=self.batch_layout.head_chunk,
            reference=None if squares else self._reference(),
            temperature=1.0 if squares else self._datamodule().temperature,
            squares=squares,
            backward=self.manual_backward,
        )
        if self.batch_layout.one_by_one:
            pile.most_tokens = 0
        return pile

    def _work_digest(self, index: int) -> str:
        """Digest of everything that determines a part's sums."""
        part = self.parts[index]
        decides = [
            *(SUMMING_VERSION, self.fingerprint, self._chosen, self._datamodule().loss_mask, self.dtype_name),
            *(str(self.trainer.precision), part.squares),
            *([] if part.squares else [self.reduction, self._loss_text, self.points.describe()]),
            *([] if part.squares or self._datamodule().temperature == 1 else [self._datamodule().temperature]),
            *([] if part.squares or self.token_credit is None else [self.token_credit.digest(part)]),
            *([] if part.weights is None else [self._datamodule().weights.digest(part)]),
            [[example.input_ids, example.labels] for example in part.examples],
        ]
        return text_digest(json.dumps(decides))[:32]

    def _layout(self, index: int) -> str:
        """Digest of how a part is batched and distributed; partial sums are only valid for the same layout."""
        num_batches = int(self.trainer.num_test_batches[index])
        split = is_split_model(self.model)
        layout = [self._datamodule().budget(), self.batch_layout.packs, num_batches, self.trainer.world_size, split]
        layout += [self._datamodule().shares_prompts, self.batch_layout.shared_prompts]
        return text_digest(json.dumps(layout))[:32]

    def describe(self, wanted: Wanted) -> dict[str, str]:
        """The metadata of a finished sum's file."""
        prompts = {digest for part in self.parts if wanted in part.sums for digest in part.prompts}
        whole = [pile for pile in self._datamodule().piles if pile.name == wanted.pile and wanted.half is None]
        prompts.update(*(pile.prompt_digests for pile in whole))  # including the prompts of dropped examples
        return {
            "pile": wanted.name if wanted.permutation else wanted.pile,
            **({} if wanted.half is None else {"half": str(wanted.half)}),
            **(whole[0].truncation.metadata() if whole and wanted.permutation is None else {}),
            **wanted.chosen_by(self._datamodule().sources[wanted.pile]),
            **({} if self._datamodule().weights is None else self._datamodule().weights.metadata(wanted)),
            **({"source": "fisher"} if wanted.squares else self._how(wanted)),
            "loss": "cross_entropy" if wanted.squares else self._loss_text,
            "loss_mask": self._datamodule().loss_mask,
            "parameters": json.dumps(self.parameter_rules),
            "model": self.model_name_or_path,
            "revision": str(self.loading.revision or ""),
            "model_fingerprint": self.fingerprint,
            **space_metadata(self.loading),
            "tokenizer_digest": tokenizer_digest(self.tokenizer),
            "template_digest": template_digest(self.tokenizer),
            "prompt_digests": json.dumps(sorted(prompts)),
            "dtype": self.dtype_name,
            "precision": str(self.trainer.precision),
            "seed": os.environ.get("PL_GLOBAL_SEED", ""),
            **provenance(),
        }

    def _how(self, wanted: Wanted) -> dict[str, str]:
        temperature = self._datamodule().temperature
        predicted = {} if self.token_credit is None else self.token_credit.metadata[wanted.pile]
        return {
            "reduction": self.reduction,
            **({} if temperature == 1 else {"temperature": repr(temperature)}),
            **self.credit.metadata(),
            **({} if wanted.permutation else predicted),
            **self.points.describe(),
        }

    def _datamodule(self) -> Any:
        return data_of(self.trainer)
