"""Studies of gradsteer alone: several piles in one run, the Trainer's overhead, memory against a plain backward."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.contenders import Ours
from bench.memory import peak_above
from bench.setting import HEAD_ENTRIES, SHAPES, Sequence, Setting
from bench.timing import measured
from gradsteer import PileGradient
from gradsteer.data.chat import EncodedExample, tokenizer_digest
from gradsteer.models.packing import Pack, plan_packs
from gradsteer.trainer.callbacks.progress import StageProgressBar
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule
from gradsteer.trainer.tensorboard import log_metrics
from gradsteer.trainer.trainer import GradsteerTrainer


class Logging(L.Callback):
    """Logs what the attribute command logs for each batch, and keeps the time of the loop over the batches.

    The command's own callback also writes a file a pile; that is left out on both sides of a ratio.
    """

    def __init__(self, clock: str) -> None:
        self.clock = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
        self.seconds = 0.0

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.started = self.clock()

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *where: int) -> None:
        log_metrics(trainer, {"pile/loss": outputs["loss"], "pile/norm": outputs["norm"]}, step=where[0])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.seconds = self.clock() - self.started


class DrawnProgressBar(StageProgressBar):
    """The command's progress bar, drawn after every batch though nobody looks at it."""

    def __init__(self) -> None:
        TQDMProgressBar.__init__(self, refresh_rate=1)


def trainer(setting: Setting, repeats: int, piles: int) -> dict[str, Any]:
    """The attribute command's Trainer on one pile and on several against the bare loop, by turns in one process.

    Returns:
        For every repeat: seconds of the bare loop, of the Trainer's loop on one pile and on several with the same
        responses, and what `attribute` takes besides its loop (reading, probing, the fingerprint); and the steps.
    """
    rows = [row for part in setting.rounds()[:2] for row in part]
    bare = Ours(setting)
    tokenizer = _save_tokenizer(setting)
    whole = _write_pile(setting, "whole", rows, tokenizer)
    parts = {f"part{k}": _write_pile(setting, f"part{k}", rows[k::piles], tokenizer) for k in range(piles)}
    staged = bare.stage(rows)
    found: dict[str, list[float]] = {"bare": [], "one": [], "several": [], "besides": []}
    _attribute(setting, bare.model, {"whole": _write_pile(setting, "short", rows[:2], tokenizer)})
    bare.run(bare.stage(rows[:2]))
    for repeat in range(repeats):
        arms = ["bare", "one", "several"]
        for arm in arms[repeat % 3 :] + arms[: repeat % 3]:
            if arm == "bare":
                found[arm].append(measured(lambda: bare.run(staged), setting.device).by(setting.clock))
                continue
            loop, all_ = _attribute(setting, bare.model, {"whole": whole} if arm == "one" else parts)
            found[arm].append(loop)
            if arm == "one":
                found["besides"].append(all_ - loop)
    return {**found, "responses": len(rows), "tokens": bare.tokens(rows), "budget": bare.budget, "piles": piles}


def _attribute(setting: Setting, model: Any, piles: dict[str, str]) -> tuple[float, float]:
    """Seconds of the loop, and of all of `GradsteerTrainer.attribute`."""
    module = AttributionModule(str(setting.model), reduction="sum", dtype=setting.dtype)
    module.model = model
    logging = Logging(setting.clock)
    runner = GradsteerTrainer(
        accelerator="cpu" if setting.device == "cpu" else "gpu",
        devices=1,
        logger=TensorBoardLogger(setting.directory, name="tensorboard", default_hp_metric=False),
        callbacks=[logging, DrawnProgressBar()],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    took = measured(lambda: runner.attribute(module, PileDataModule(dict(piles))), setting.device)
    return logging.seconds, took.by(setting.clock)


def _save_tokenizer(setting: Setting) -> Any:
    """A tokenizer with the model's number of tokens; the responses are used by their ids."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    names = ["<pad>", "<bos>", "<eos>", *(f"t{k}" for k in range(3, SHAPES[setting.shape].config["vocab_size"]))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
    )  # fmt: skip
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(setting.model)
    return AutoTokenizer.from_pretrained(setting.model)


def _write_pile(setting: Setting, name: str, rows: list[Sequence], tokenizer: Any) -> str:
    """A file of sampled responses as the evaluate command writes them."""
    digest, path = tokenizer_digest(tokenizer), Path(setting.directory) / f"{name}.jsonl"
    with path.open("w") as file:
        for number, row in enumerate(rows):
            prompt = sum(label == -100 for label in row.labels)
            sampled = {
                "prompt": f"prompt {number}",
                "prompt_token_ids": row.input_ids[:prompt],
                "token_ids": row.input_ids[prompt:],
                "finish_reason": "length",
                "tokenizer": digest,
                "verdicts": {},
            }
            file.write(json.dumps(sampled) + "\n")
    return str(path)


def memory(setting: Setting, what: str) -> dict[str, Any]:
    """Peak memory above the weights on one pack of the default size: `ours`, or a `plain` backward pass.

    The plain pass has logits where a label counts only, as ours has them, and no mask.

    Returns:
        the peak, the size of float32 buffers for all parameters, and the pack's tokens.
    """
    bare = Ours(setting)
    examples = bare.stage([row for part in setting.rounds()[:2] for row in part])
    plan = plan_packs([len(example.input_ids) for example in examples], bare.budget)
    pack = Pack.of([examples[index] for index in plan[0]], setting.device)

    def ours(pack: Pack) -> PileGradient:
        pile = PileGradient(bare.model, reduction="sum", head_chunk=bare.head_chunk)
        pile.add(pack)
        return pile

    def plain(pack: Pack) -> None:
        output = bare.model(input_ids=pack.input_ids, use_cache=False, logits_to_keep=pack.predictors)
        functional.cross_entropy(output.logits[0].float(), pack.targets, reduction="sum").backward()

    run = {"ours": ours, "plain": plain}[what]
    run(_little_pack(setting))
    bare.model.zero_grad(set_to_none=True)
    peak = peak_above(lambda: run(pack), setting.device)
    buffers = 4 * sum(parameter.numel() for parameter in bare.model.parameters())
    return {"peak": peak, "buffers": buffers, "tokens": pack.input_ids.numel()}


def head(setting: Setting, chunked: bool) -> dict[str, Any]:
    """Peak memory of one pack forward and backward with a large vocabulary and a body so small that the head is all.

    Args:
        setting: the run's.
        chunked: the head in chunks as the attribute command has it; else all logits at once.
    """
    config = LlamaConfig(**SHAPES[setting.shape].head)
    torch.manual_seed(setting.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, setting.dtype)).eval().to(setting.device)
    chunk = max(64, HEAD_ENTRIES // config.vocab_size) if chunked else None
    pile = PileGradient(model, reduction="sum", head_chunk=chunk)
    pile.add(_little_pack(setting))  # the buffers are in memory from here on, on both sides
    ids = torch.randint(3, config.vocab_size, (4, 257)).tolist()
    pack = Pack.of([EncodedExample(row, [-100, *row[1:]]) for row in ids], setting.device)
    peak = peak_above(lambda: pile.add(pack), setting.device)
    return {"peak": peak, "labelled": len(pack.targets), "vocabulary": config.vocab_size, "chunk": chunk}


def _little_pack(setting: Setting) -> Pack:
    """For what is set up on first use."""
    ids = list(range(3, 11))
    return Pack.of([EncodedExample(ids, [-100, *ids[1:]])] * 2, setting.device)
