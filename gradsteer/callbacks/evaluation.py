"""Judging: gives every sampled response its verdicts, writes it, and counts the rates of a condition."""

import json
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from gradsteer.batching import plan_batches
from gradsteer.callbacks.tensorboard import log_metrics, log_table
from gradsteer.chat import EncodedExample, collate, encode_chat, tokenizer_digest
from gradsteer.classes import classes_of, in_class
from gradsteer.conditions import Condition, Kind, ModelKind, slug_of
from gradsteer.fingerprints import model_fingerprint
from gradsteer.formats import read_chat_examples
from gradsteer.judges import Exchange, Judge
from gradsteer.losses import perplexity
from gradsteer.metrics import response_metrics
from gradsteer.records import read_jsonl, write_jsonl
from gradsteer.reports import read_results
from gradsteer.statistics import rate_with_interval

_SHOWN = 12


class NamedCondition(L.Callback):
    """The one condition of an evaluation: the model as it is.

    Args:
        output_dir: the experiment's directory.
        name: of the condition; "base" or a name that starts with "base-" reports it as the base model.
    """

    def __init__(self, output_dir: str, name: str = "anchor") -> None:
        self.output_dir = Path(output_dir)
        kind: Kind = "base" if name == "base" or name.startswith("base-") else "anchor"
        model: ModelKind = "base" if kind == "base" else "anchor"
        self.condition = Condition(name, kind, model, alpha=None if kind == "base" else 0.0)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Tells the Trainer the condition; refuses one whose responses a report of steer rests on."""
        del pl_module, stage
        report = self.output_dir / "results.json"
        rows = read_results(report)["conditions"] if report.is_file() else []
        if any(slug_of(row["name"]) == self.condition.slug for row in rows):
            raise ValueError(
                f"evaluate --name {self.condition.name} would overwrite responses that {str(report)!r} rests on; "
                f"choose another --name, such as {self.condition.name}-attribution, or another --output_dir"
            )
        trainer.conditions = [self.condition]  # type: ignore[attr-defined]


class JudgeEvaluation(L.Callback):
    """Judges the responses of every condition and writes responses/CONDITION.jsonl.

    Rows go to a hidden file beside it as they come; it appears, in the prompts' order, when the condition is complete.

    Args:
        judge: class of the judge and its arguments, such as --evaluation.judge KeywordJudge
            --evaluation.judge.patterns '{"bridge": ["golden gate"]}'.
        heldout: chat data (as for fit) on which each condition's perplexity is measured; none by default.
        heldout_split: split of a hub data set of held-out text.
        output_dir: the experiment's directory.
    """

    def __init__(
        self,
        output_dir: str,
        judge: Judge,
        heldout: str | None = None,
        heldout_split: str = "test",
    ) -> None:
        self.directory = Path(output_dir) / "responses"
        self.judge, self.heldout, self.heldout_split = judge, heldout, heldout_split
        self.heldout_examples: list[EncodedExample] = []
        self._heldout_batches: list[dict[str, Tensor]] = []
        self._part: TextIO | None = None
        self._fingerprint: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Reads the held-out text before the model is loaded."""
        del trainer, stage
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.heldout is None:
            return
        max_length = min(2048, pl_module.tokenizer.model_max_length)
        encoded = [
            encode_chat(
                pl_module.tokenizer, chat.messages, loss_mask="assistant", max_length=max_length, source=chat.source
            )
            for chat in read_chat_examples(self.heldout, split=self.heldout_split)
        ]
        examples = [example for example in encoded if example is not None]
        if len(examples) < len(encoded):
            dropped = f"dropped {len(encoded) - len(examples)} of {len(encoded)} examples"
            rank_zero_warn(f"held-out text: {dropped} that keep no target token within {max_length} tokens")
        if not examples:
            raise ValueError(f"evaluation.heldout {self.heldout!r}: no example keeps a target token")
        self.heldout_examples = examples
        self._heldout_batches = [
            collate([examples[index] for index in batch], pl_module.tokenizer.pad_token_id)
            for batch in plan_batches([len(example.input_ids) for example in examples], 16)
        ]

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judges and writes the batch's responses; after the condition's last batch counts its rates."""
        del batch
        condition = trainer.conditions[dataloader_idx]  # type: ignore[attr-defined]
        if batch_idx == 0:
            self._close_part()
            # of steered weights it would cost a pass over them a condition, and nobody asks for it
            own = condition.kind in ("base", "anchor")
            self._fingerprint = model_fingerprint(pl_module.model) if own else None
            self._part = self._part_path(condition, trainer.global_rank).open("w", encoding="utf-8")
        assert self._part is not None
        for row in self._judged(condition, outputs["responses"], tokenizer_digest(pl_module.tokenizer)):
            self._part.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._part.flush()
        if batch_idx + 1 == trainer.num_test_batches[dataloader_idx]:
            self._close_part()
            self._finish(trainer, pl_module, condition, dataloader_idx)

    def _judged(self, condition: Condition, rows: list[dict[str, Any]], digest: str) -> list[dict[str, Any]]:
        verdicts = self.judge.judge([Exchange(row["prompt"], row["completion"]) for row in rows])
        return [
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "completion": row["completion"],
                "prompt_token_ids": row["prompt_token_ids"],
                "token_ids": row["token_ids"],
                "finish_reason": row["finish_reason"],
                "tokenizer": digest,
                "model": row["model"],
                "condition": condition.name,
                "sample": row["sample"],
                "seed": row["seed"],
                **{key: row[key] for key in ("temperature", "top_p", "max_new_tokens")},
                "model_fingerprint": self._fingerprint,
                "verdicts": verdict.values,
                "unscored": verdict.unscored,
                "position": row["position"],
            }
            for row, verdict in zip(rows, verdicts, strict=True)
        ]

    def _finish(self, trainer: L.Trainer, pl_module: Any, condition: Condition, step: int) -> None:
        """Joins the ranks' rows in the prompts' order, counts rates and metrics, and logs them."""
        trainer.strategy.barrier()
        if self._heldout_batches:
            device = pl_module.device
            batches = ({key: value.to(device) for key, value in batch.items()} for batch in self._heldout_batches)
            measured = perplexity(pl_module.model, batches)
        else:
            measured = None
        if trainer.is_global_zero:
            parts = [self._part_path(condition, rank) for rank in range(trainer.world_size)]
            rows = [row for part in parts for _, row in read_jsonl(part)]
            rows.sort(key=lambda row: row["position"])
            for row in rows:
                del row["position"]
            write_jsonl(self.directory / f"{condition.slug}.jsonl", rows)
            for part in self.directory.glob(f".{condition.slug}.rank*.part"):  # also those of a run on more ranks
                part.unlink()
            self._count(trainer, condition, rows, step)
            condition.metrics["perplexity"] = measured
            if measured is not None:
                log_metrics(trainer, {"metrics/perplexity": measured}, step=step)
        trainer.strategy.barrier()

    def _count(self, trainer: L.Trainer, condition: Condition, rows: list[dict[str, Any]], step: int) -> None:
        clusters = [row["id"] for row in rows]
        for behavior in self.judge.behaviors:
            verdicts = [row["verdicts"][behavior] for row in rows]
            condition.behaviors[behavior] = rate_with_interval(verdicts, clusters)
        for name, where in classes_of(list(self.judge.behaviors)).items():
            condition.classes[name] = rate_with_interval([in_class(row["verdicts"], where) for row in rows], clusters)
        condition.metrics.update(response_metrics(rows))
        scalars = {f"rates/{name}": rate.rate for name, rate in condition.behaviors.items() if rate.rate is not None}
        scalars.update({f"metrics/{name}": value for name, value in condition.metrics.items() if value is not None})
        log_metrics(trainer, scalars, step=step)
        first = [row for row in rows if row["sample"] == 0][:_SHOWN]
        texts = [(row["prompt"], row["completion"]) for row in first]
        log_table(trainer, f"responses/{condition.slug}", ("prompt", "response"), texts)
        shown = ", ".join(
            f"{name} {100 * rate.rate:.1f}% of {rate.num_scored}" if rate.rate is not None else f"{name} unscored"
            for name, rate in condition.behaviors.items()
        )
        rank_zero_info(f"\n{condition.name}: {shown}")

    def _part_path(self, condition: Condition, rank: int) -> Path:
        return self.directory / f".{condition.slug}.rank{rank}.part"

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Keeps what was written."""
        del trainer, pl_module, exception
        self._close_part()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Closes the judge."""
        del trainer, pl_module, stage
        self._close_part()
        self.judge.close()
