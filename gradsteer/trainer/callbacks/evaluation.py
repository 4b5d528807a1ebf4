"""Judging: saves each batch as it is sampled, judges it, and computes each condition's behavior rates."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.data.chat import EncodedExample, LossMask, tokenizer_digest
from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.data.encoding import encode_examples
from gradsteer.data.response_rows import cluster_of, is_unanswered, withholds
from gradsteer.data.sources import DataSource
from gradsteer.data.template_options import template_options
from gradsteer.discovery.judge import GroupJudge  # noqa: F401 (the command line knows it by its short name)
from gradsteer.evaluation.coherence import Coherence
from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.evaluation.judge_error import JudgeError
from gradsteer.evaluation.text_divergence import TextDivergence
from gradsteer.evaluation.withheld import nothing_else
from gradsteer.generation.response_store import ResponseStore
from gradsteer.generation.unfinished import UnfinishedCondition
from gradsteer.judges import Judge
from gradsteer.judges.labels import LabelledSet, read_labelled
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.records import read_jsonl, text_digest, write_jsonl
from gradsteer.steering.conditions import Condition
from gradsteer.trainer.condition_counts import count_condition
from gradsteer.trainer.resume_sampling import KeptSampling
from gradsteer.trainer.session import is_trial, needed, sampled_rows, session_of
from gradsteer.trainer.tensorboard import log_metrics, log_table
from gradsteer.trainer.verdict_queue import VerdictQueue, stopping_together
from gradsteer.version import __version__

_SHOWN = 12
MAX_UNANSWERED = 0.1  # share of replies that may end within their thought without a warning
_KEYS = (
    "id", "prompt", "completion", "prompt_token_ids", "token_ids", "finish_reason", "tokenizer", "model", "condition",
    "sample", "seed", "temperature", "top_p", "max_new_tokens", "dtype", "model_fingerprint", "judge", "verdicts",
    "unscored", "degenerate", "incoherent", "failed",
)  # fmt: skip
# of replies that hold a thought; of judges that say where a verdict was decided
_OPTIONAL_KEYS = ("thought", "answer", "num_thought_tokens", "decided")


class JudgeEvaluation(L.Callback):
    """Judges the responses of every condition and writes responses/CONDITION.jsonl.

    Each batch is saved as soon as it is sampled, so an interrupted run resumes after the last saved batch.

    Args:
        judge: the judge class and its arguments, for example --evaluation.judge KeywordJudge
            --evaluation.judge.patterns '{"bridge": ["golden gate"]}'. Available: KeywordJudge, OpenAIJudge (any
            OpenAI-compatible server, see base_url), HybridJudge (patterns first), LocalJudge (a model on this
            machine) and GroupJudge (the groups that discover found).
        heldout: chat data or raw text (same formats as for fit) on which to measure each condition's perplexity and
            its KL divergence from the anchor: on the assistant's tokens, or on all tokens of raw text. Not measured by
            default.
        heldout_split: split to use if the held-out text is a hub dataset.
        labelled: file of human labels, {"prompt", "completion", "labels": {behavior: true or false}}, or with a column
            for each behavior; or a choice of its rows and columns as for --data.prompts. The judge is run on it too,
            and rates are also reported corrected for the judge's error.
        max_unscored: largest fraction of a behavior's verdicts that may be missing in one condition. The run stops if
            more are missing.
        count_degenerate: count degenerate responses (empty, looping, incoherent) in the rates like any others. By
            default they are reported separately and count neither for nor against a behavior.
        overwrite: replace what an interrupted run with another configuration left behind (set by --overwrite).
        output_dir: the experiment's directory.
    """

    def __init__(
        self,
        output_dir: str,
        judge: Judge,
        heldout: str | DataSource | None = None,
        heldout_split: str = "test",
        labelled: str | DataSource | None = None,
        max_unscored: float = 0.1,
        count_degenerate: bool = False,
        overwrite: bool = False,
    ) -> None:
        if not 0 <= max_unscored <= 1:
            raise ValueError(f"evaluation.max_unscored is {max_unscored}; accepted: a share, from 0 to 1")
        self.output_dir, self.directory = Path(output_dir), Path(output_dir) / "responses"
        self.judge, self.heldout, self.heldout_split = judge, heldout, heldout_split
        self.max_unscored, self.overwrite, self.count_degenerate = max_unscored, overwrite, count_degenerate
        self.coherence: dict[str, Coherence | None] = {}  # by which responses to a set were marked as incoherent
        self.labelled: LabelledSet | None = None
        if labelled:
            self.labelled = read_labelled(labelled, judge.behaviors, rank_zero_info)
        self.heldout_examples: list[EncodedExample] = []
        self.errors: dict[str, JudgeError] = {}
        self._text: TextDivergence | None = None
        self._queue = VerdictQueue(judge, count_degenerate=count_degenerate)
        self._anchor: str | None = None
        self._fingerprint: str | None = None
        self.num_missing = 0
        self._kept: KeptSampling
        self._work: UnfinishedCondition

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Reads the held-out text, before the model is loaded."""
        self.directory.mkdir(parents=True, exist_ok=True)
        session = session_of(trainer)
        session.judging, session.responses = self, ResponseStore(self.directory)
        self.judge.share(trainer.world_size)
        self._queue.patient = trainer.world_size > 1
        if self.heldout is None:
            return
        max_length = min(2048, pl_module.tokenizer.model_max_length)
        chats = read_chat_examples(self.heldout, split=self.heldout_split, say=rank_zero_info)
        mask: LossMask = "full" if chats[0].text is not None else "assistant"
        encoded, truncation = encode_examples(pl_module.tokenizer, chats, loss_mask=mask, max_length=max_length)
        examples = [example for example in encoded if example is not None]
        if (lost := truncation.warning("held-out text", "give shorter texts")) is not None:
            rank_zero_warn(lost)
        if not examples:
            raise ValueError(
                f"evaluation.heldout {DataSource.of(self.heldout).path!r}: no example keeps a target token"
            )
        self.heldout_examples = examples
        self._text = TextDivergence(examples, int(pl_module.tokenizer.pad_token_id))

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Records the anchor's fingerprint and held-out predictions, and judges the labelled set."""
        self._anchor = model_fingerprint(pl_module.model)
        if not is_trial(trainer):  # the doses' alphas are known by now
            self._kept = KeptSampling(trainer, pl_module, self.directory, self._anchor, overwrite=self.overwrite)
        if trainer.is_global_zero and self._text is not None and session_of(trainer).steering is not None:
            self._text.remember(pl_module.model)
        if self.labelled is not None:
            with stopping_together(trainer):
                if trainer.is_global_zero:
                    self.errors = self.labelled.errors(self.judge)
            for behavior, error in self.errors.items():
                rank_zero_info(f"judge on {self.labelled.path}: {behavior}: {error}")

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Hands the module a batch that was sampled before the interruption, if there is one."""
        if is_trial(trainer):
            slug = session_of(trainer).conditions[dataloader_idx].slug
            self._work = UnfinishedCondition(self.directory / ".fast_dev_run", slug)
            return
        if batch_idx == 0:
            self._work = self._kept.begin(dataloader_idx)
        pl_module.given = self._work.read(self._number(trainer, batch_idx), batch)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Saves and judges the batch's responses; after the condition's last batch, computes its rates."""
        condition = session_of(trainer).conditions[dataloader_idx]
        if batch_idx == 0:
            # fingerprinting steered weights would cost a pass over them per condition, and nothing uses it
            own = condition.kind == "base"
            at_anchor = condition.kind == "anchor" or condition.resample > 0
            self._fingerprint = model_fingerprint(pl_module.model) if own else self._anchor if at_anchor else None
        number = self._number(trainer, batch_idx)
        if batch and not self._work.has(number):
            self._work.write(number, outputs["responses"])
        self._queue.submit(outputs["responses"])
        if batch_idx + 1 == trainer.num_test_batches[dataloader_idx]:
            self._finish(trainer, pl_module, condition, dataloader_idx)

    def _number(self, trainer: L.Trainer, batch_idx: int) -> int:
        """The batch's index in the plan, independent of which rank samples it."""
        return batch_idx * trainer.world_size + trainer.global_rank

    def _finish(self, trainer: L.Trainer, pl_module: Any, condition: Condition, step: int) -> None:
        """Gathers the ranks' rows in prompt order, computes rates and metrics, and logs them."""
        judged: list[dict[str, Any]] = []
        with stopping_together(trainer):
            judged = self._queue.collect()
        part = self._work.directory / "judged.rank{}.jsonl"
        write_jsonl(str(part).format(trainer.global_rank), judged)
        trainer.strategy.barrier()
        failure = None
        if trainer.is_global_zero:
            rows = [row for rank in range(trainer.world_size) for _, row in read_jsonl(str(part).format(rank))]
            failure = self._report(trainer, pl_module, condition, sorted(rows, key=lambda row: row["position"]), step)
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise ValueError(failure)
        if is_trial(trainer) and trainer.is_global_zero:
            self._work.clear()

    def _report(
        self, trainer: L.Trainer, pl_module: Any, condition: Condition, rows: list[dict[str, Any]], step: int
    ) -> str | None:
        """Writes the condition's files and counts; returns the reason to stop the run, or None."""
        about = {
            "tokenizer": tokenizer_digest(pl_module.tokenizer),
            "dtype": pl_module.dtype_name,
            "condition": condition.name,
            "model_fingerprint": self._fingerprint,
            "judge": self.judge.fingerprint(),
        }
        steering = session_of(trainer).steering
        at = None if steering is None else steering.sampled_step(*session_of(trainer).plan[step], str(self._anchor))
        kept = [
            {key: ({**row, **about}).get(key) for key in _KEYS}
            | {key: row[key] for key in _OPTIONAL_KEYS if key in row}
            | ({} if at is None else {"step": at.to_dict()})
            for row in rows
        ]
        sets = {row["set"] for row in rows}
        parts = {name: [k for k, row in zip(kept, rows, strict=True) if row["set"] == name] for name in sets}
        session = session_of(trainer)
        needed(session.responses).write(condition.slug, parts)
        failure = count_condition(trainer, step)
        result = session.result(step)
        if steering is None:  # of steer, other conditions have their verdicts
            failure = failure or nothing_else(result.counts.withheld, condition.name)
        if result.counts.num_unanswered > MAX_UNANSWERED * result.counts.num_responses:
            rank_zero_warn(
                f"condition {condition.name!r}: {result.counts.unanswered_text}: they have no verdict. Raise "
                "--model.max_new_tokens, or where the chat template can, let it answer at once: --data.template_kwargs "
                "'{enable_thinking: false}'"
            )
        if condition.system_prompt is None:  # held-out text is scored without it: the value would be the anchor's
            result.measured.update(self._measured(pl_module))
        self._log(trainer, pl_module, result, parts["evaluation"], step)
        self.num_missing += sum(
            not all(withholds(row, name) for name in row["unscored"]) and not row["failed"] and not is_unanswered(row)
            for part in parts.values()
            for row in part
        )
        return failure

    def about(self, trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
        """What was sampled and judged, and how: the report's `evaluation` entry."""
        rows = [row for row in sampled_rows(trainer) if row["set"] == "evaluation"]
        labelled = None
        if self.labelled is not None:
            errors = {behavior: error.to_dict() for behavior, error in self.errors.items()}
            labelled = {"num_responses": len(self.labelled), "errors": errors}
        return {
            "judge": type(self.judge).__name__,
            "judge_settings": session_of(trainer).judge_settings,
            "judge_fingerprint": self.judge.fingerprint(),
            "labelled": labelled,
            "count_degenerate": self.count_degenerate,
            "coherence": {name: asdict(each) for name, each in self.coherence.items() if each is not None} or None,
            "model": pl_module.model_name_or_path,
            "model_fingerprint": self._anchor,
            "dtype": pl_module.dtype_name,
            "precision": str(trainer.precision),
            "num_prompts": len({cluster_of(row) for row in rows}),
            "prompts_digest": text_digest("\n".join(sorted({cluster_of(row) for row in rows}))),
            "num_samples": pl_module.num_samples,
            "seeds": pl_module.sampling_seeds,
            "temperature": pl_module.sampling.temperature,
            "top_p": pl_module.sampling.top_p,
            "max_new_tokens": pl_module.sampling.max_new_tokens,
            "heldout_digest": None if self._text is None else self._text.digest,
            **template_options(pl_module.tokenizer).given,
            "version": __version__,
        }

    def _measured(self, pl_module: Any) -> dict[str, float | None]:
        """The condition's held-out metrics, measured once even if the run is interrupted."""
        if self._text is None:
            return {}
        found = self._work.measured(self._text.digest)
        if found is None:
            found = self._text.measure(pl_module.model)
            self._work.keep_measured(self._text.digest, found)
        return found

    def _log(
        self, trainer: L.Trainer, pl_module: Any, result: ConditionResult, rows: list[dict[str, Any]], step: int
    ) -> None:
        stats, name = pl_module.sampling_stats(), result.condition.name
        scalars = {**result.scalars(), **{f"sampling/{key}": value for key, value in stats.items()}}
        usage = self.judge.usage()
        if usage is not None:
            scalars.update({f"judge/{key}": value for key, value in asdict(usage).items() if value is not None})
        log_metrics(trainer, scalars, step=step)
        texts = [(row["prompt"], row["completion"]) for row in rows if row["sample"] == 0][:_SHOWN]
        log_table(trainer, f"responses/{result.condition.slug}", ("prompt", "response"), texts)
        lines = [f"{name}: {result.counts}"]
        if stats["sampled_tokens"]:
            lines[0] += f"   {stats['tokens_per_second']:,.0f} tokens/s"
        if usage is not None:
            lines.append(f"  judge so far: {usage}")
        rank_zero_info("\n".join(lines))

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Stops the judge; verdicts already received are kept."""
        if isinstance(exception, KeyboardInterrupt):
            rank_zero_info("Sampled and judged responses are saved; the same command resumes from there.")
        self._queue.cancel()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Closes the judge."""
        self._queue.close()
        self.judge.close()
