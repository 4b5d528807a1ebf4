"""Prompts to sample responses for."""

import hashlib
import json
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from gradsteer.data.batching import plan_batches
from gradsteer.data.chat import encode_prompt
from gradsteer.data.chat_formats import Message, Prompt, prompt_text, read_prompts
from gradsteer.data.prompt_check import check_header, special_tokens_in
from gradsteer.data.sources import Columns, DataSource
from gradsteer.data.template_options import with_system
from gradsteer.generation.memory import free_bytes, plan_text, rows_at_once
from gradsteer.generation.sampling import check_seeds, fresh_seeds
from gradsteer.steering.conditions import Condition
from gradsteer.trainer.datamodules.batches import RunDataModule, batch_loader
from gradsteer.trainer.session import session_of

PromptBatch = list[dict[str, Any]]
# The row fields that determine a batch: changing one changes the responses or how they are grouped.
_PLANNED = ("set", "id", "sample", "draw", "seed", "prompt_token_ids")
_ROW_BYTES = 600  # of a planned row in memory, about: a mapping of nine keys, and what is counted of it
_MOST_ROWS = 10**8  # where free memory is not known


class PromptDataModule(RunDataModule):
    """Prompts to sample, with one pass over all of them for each condition.

    Args:
        prompts: JSONL, Parquet or CSV file, a dataset directory or a hub dataset id, or a choice of its rows and
            columns: {path: FILE_OR_ID, name: CONFIGURATION, split: test, columns: {prompt: question}, where: {COLUMN:
            VALUE}, sample: 100, seed: 0, duplicates: drop}. Rows are {"prompt": ...} or {"messages": [...]}, with an
            optional "id".
        columns: column mapping for datasets with other column names, ours to theirs, such as {prompt: question}; for
            --data.prompts that do not say their own.
        split: split of a hub dataset.
        duplicates: "drop" leaves out prompts that repeat an earlier one of their set; "refuse" (default) stops at them.
        max_prompts: use only the first N prompts; all by default.
        system_prompt: system message to put before every prompt.
        benign_prompts: harmless prompts for measuring refusals, in the same formats, with a column mapping of their
            own. Each is sampled once under every condition.
        harmful_prompts: prompts that a model should refuse, in the same formats, sampled likewise.
        max_refusal_prompts: use only the first N of benign_prompts and of harmful_prompts; all by default.
        batch_size: responses sampled at once, on each device. "auto" (default) chooses it from free memory and the
            model's size. Affects speed, not the responses. A batch that does not fit is sampled in smaller pieces.
        num_samples: responses per prompt (set by --model.num_samples).
        sampling_seed: one or several seeds (set by --model.sampling_seed).
        template: see `RunDataModule`.
    """

    def __init__(
        self,
        prompts: str | DataSource,
        columns: Columns | None = None,
        split: str = "train",
        duplicates: Literal["refuse", "drop"] = "refuse",
        max_prompts: int | None = None,
        system_prompt: str | None = None,
        benign_prompts: str | DataSource | None = None,
        harmful_prompts: str | DataSource | None = None,
        max_refusal_prompts: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        num_samples: int = 1,
        sampling_seed: int | list[int] | None = None,
        **template: Any,
    ) -> None:
        super().__init__(**template)
        if batch_size != "auto" and batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}; accepted: at least 1, or auto")
        for name, number in (("max_prompts", max_prompts), ("max_refusal_prompts", max_refusal_prompts)):
            if number is not None and number < 1:
                raise ValueError(f"data.{name} is {number}; accepted: at least 1")
        if max_refusal_prompts is not None and benign_prompts is None and harmful_prompts is None:
            raise ValueError("data.max_refusal_prompts has no effect without data.benign_prompts or harmful_prompts")
        self.prompts, self.columns, self.split, self.max_prompts = prompts, columns, split, max_prompts
        self.duplicates: Literal["drop"] | None = None if duplicates == "refuse" else duplicates
        self.refusal_prompts = {"benign": benign_prompts, "harmful": harmful_prompts}
        self.max_refusal_prompts = max_refusal_prompts
        self.system_prompt, self.batch_size, self.num_samples = system_prompt, batch_size, num_samples
        self.seeds = None if sampling_seed is None else check_seeds(sampling_seed)
        self.num_passes = 1
        self.batches: list[PromptBatch] = []
        # responses at once, as resolved or as recorded by an interrupted run
        self.resolved_batch_size: int | None = None if batch_size == "auto" else batch_size
        self._sets: dict[str, list[Prompt]] = {}
        self._made: dict[tuple[str | None, int], list[PromptBatch]] = {}

    def setup(self, stage: str) -> None:
        """Reads the prompts and plans the batches, the same on every rank."""
        tokenizer, self._sets = self.use_template(), self._read()
        first = self._sets["evaluation"][0]
        for prompt in self._kinds():
            check_header(tokenizer, with_system(prompt.messages, self.system_prompt), f"{prompt.source}: ")
        if said := special_tokens_in(tokenizer, [(each.source, each.messages) for each in self._every()], "prompts"):
            rank_zero_warn(said)
        self.show_first(with_system(first.messages, self.system_prompt), first.source)
        if self.resolved_batch_size is None:
            self.resolved_batch_size = self._batch_size_by_memory()
        self._plan_anew()

    def use_batch_size(self, num_rows: int) -> None:
        """Uses an interrupted run's batch size; call before the loaders are made."""
        if num_rows < 1:
            raise ValueError(f"the recorded batch size is {num_rows}; accepted: at least 1")
        self.resolved_batch_size = num_rows
        if self._sets:
            self._plan_anew()

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of a condition without its own system prompt or seeds; see `plan_of`."""
        return self.plan_of(None)

    def plan_of(self, condition: Condition | None) -> dict[str, Any]:
        """A condition's batches over all ranks.

        Returns:
            ``batch_size`` (responses at once), ``num_rows``, ``num_batches`` and ``digest`` (sha256 over the rows of
            all batches in order: set, id, sample, draw, seed and prompt ids).
        """
        batches = self._batches_of(condition)
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(json.dumps([[row[key] for key in _PLANNED] for row in batch]).encode() + b"\n")
        return {
            "batch_size": self.resolved_batch_size,
            "num_rows": sum(map(len, batches)),
            "num_batches": len(batches),
            "digest": digest.hexdigest(),
        }

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader of whole batches for each condition; a rank without a batch gets an empty one."""
        conditions: list[Condition | None] = [*session_of(self.running).conditions] or [None] * self.num_passes
        batches = [self._batches_of(condition) for condition in conditions]
        return [batch_loader(self.share(each) or [[]]) for each in batches]

    def kinds_of_prompts(self) -> list[list[Message]]:
        """A prompt of each sequence of roles that is sampled."""
        return [list(prompt.messages) for prompt in self._kinds()]

    def _every(self) -> list[Prompt]:
        """The prompts of all sets."""
        return [prompt for prompts in self._sets.values() for prompt in prompts]

    def _kinds(self) -> list[Prompt]:
        """The first prompt of each sequence of roles."""
        kinds: dict[tuple[str, ...], Prompt] = {}
        for prompt in self._every():
            kinds.setdefault(tuple(message["role"] for message in prompt.messages), prompt)
        return list(kinds.values())

    def _read(self) -> dict[str, list[Prompt]]:
        """The prompts of each set; refusal prompts get ids prefixed with their set's name."""
        evaluation = self._prompts_of(self.prompts, self.columns)[: self.max_prompts]
        _refuse_blank(evaluation)
        sets, taken = {"evaluation": evaluation}, {prompt.id: prompt.source for prompt in evaluation}
        for name, source in self.refusal_prompts.items():
            if source is None:
                continue
            prompts = self._prompts_of(source, None)[: self.max_refusal_prompts]
            _refuse_blank(prompts)
            sets[name] = [Prompt(f"{name}:{prompt.id}", prompt.messages, prompt.source) for prompt in prompts]
            for prompt in sets[name]:
                if prompt.id in taken:
                    raise ValueError(
                        f"{taken[prompt.id]}: id {prompt.id!r} is also the id of a prompt in data.{name}_prompts; use "
                        "another id"
                    )
        return sets

    def _prompts_of(self, source: str | DataSource, columns: Columns | None) -> list[Prompt]:
        source = DataSource.of(source)
        source = replace(source, duplicates=source.duplicates or self.duplicates)
        return read_prompts(source, split=self.split, columns=columns, say=rank_zero_info)

    def _plan_anew(self) -> None:
        self._made = {}
        self.batches = self._batches_of(None)

    def _batches_of(self, condition: Condition | None) -> list[PromptBatch]:
        """A condition's batches, shared between conditions unless it has its own system prompt or seeds."""
        own = None if condition is None else condition.system_prompt
        if own is not None and self.system_prompt is not None:
            raise ValueError("steering.system_prompts and data.system_prompt cannot both be given")
        key = (own, int(getattr(condition, "resample", 0)))
        if key not in self._made:
            assert self.resolved_batch_size is not None
            rows = self._rows(*key)
            plan = plan_batches([len(row["prompt_token_ids"]) for row in rows], self.resolved_batch_size)
            self._made[key] = [[rows[index] for index in batch] for batch in plan]
        return self._made[key]

    def _rows(self, own_system_prompt: str | None, resample: int) -> PromptBatch:
        """All rows in order: evaluation prompts with all seeds, then the refusal prompts once with the first seed."""
        module = self.module
        seeds = module.sampling_seeds if self.seeds is None else self.seeds
        seeds = fresh_seeds(seeds, resample) if resample else seeds
        system_prompt = self.system_prompt if own_system_prompt is None else own_system_prompt
        self._refuse_too_many(len(seeds))
        rows: PromptBatch = []
        seen: dict[tuple[int, tuple[int, ...]], int] = {}
        for name, prompts in self._sets.items():
            draws = [seed for seed in seeds for _ in range(self.num_samples)] if name == "evaluation" else seeds[:1]
            for prompt in prompts:
                messages = with_system(prompt.messages, system_prompt)
                token_ids = encode_prompt(module.tokenizer, messages, prompt.source)
                # the judge is not shown a condition's own system prompt, which would reveal the condition
                text = prompt_text(messages if own_system_prompt is None else prompt.messages)
                for sample, seed in enumerate(draws):
                    # a repeated prompt draws new samples, not the same ones again
                    key = (seed, tuple(token_ids))
                    seen[key] = seen.get(key, -1) + 1
                    rows.append(
                        {
                            "id": prompt.id, "set": name, "prompt": text, "prompt_token_ids": token_ids,
                            "sample": sample, "seed": seed, "draw": seen[key], "position": len(rows),
                        }
                    )  # fmt: skip
        self._refuse_hopeless(rows)
        return rows

    def _refuse_too_many(self, seeds: int) -> None:
        """Stops before a list of rows is made that memory does not hold."""
        prompts = len(self._sets["evaluation"])
        rows, free = prompts * seeds * self.num_samples, free_bytes(torch.device("cpu"))
        most = _MOST_ROWS if free is None else free // _ROW_BYTES
        if rows > most:
            raise ValueError(
                f"model.num_samples is {self.num_samples}: with {prompts} prompts and {seeds} seeds these are {rows:,} "
                f"responses; accepted: {most:,} in all, which is what the free memory holds"
            )

    def _refuse_hopeless(self, rows: PromptBatch) -> None:
        """Stops, before anything is sampled, if no evaluation prompt fits the model's context."""
        module = self.module
        limit = module.longest_prompt
        shortest = min(len(row["prompt_token_ids"]) for row in rows if row["set"] == "evaluation")
        if limit is not None and shortest > limit:
            raise ValueError(
                f"data.prompts {DataSource.of(self.prompts).path!r}: every prompt is too long: the shortest has "
                f"{shortest} tokens, and the model takes {max(limit, 0)} before a response of "
                f"max_new_tokens={module.sampling.max_new_tokens}; accepted: shorter prompts, a smaller "
                "--model.max_new_tokens"
            )

    def _batch_size_by_memory(self) -> int:
        """The batch size that fits rank 0's device, used by all ranks."""
        module, trainer = self.module, self.running
        device = trainer.strategy.root_device
        footprint, limit = module.footprint(), module.longest_prompt
        lengths = [len(row["prompt_token_ids"]) for row in self._rows(None, 0)]
        longest = max(length for length in lengths if limit is None or length <= limit)
        free, max_new_tokens = free_bytes(device), module.sampling.max_new_tokens
        rows = rows_at_once(
            footprint,
            prompt_tokens=longest,
            max_new_tokens=max_new_tokens,
            device_type=device.type,
            # processes on one CPU share its memory
            free_bytes=free if free is None or device.type != "cpu" else free // trainer.world_size,
        )
        rows = int(trainer.strategy.broadcast(rows))
        rank_zero_info(plan_text(rows, footprint, longest, max_new_tokens))
        return rows


def _refuse_blank(prompts: list[Prompt]) -> None:
    """Refuses blank prompts, which have no meaningful response."""
    for prompt in prompts:
        if not prompt.messages[-1]["content"].strip():
            said = prompt.messages[-1]["content"]
            raise ValueError(f"{prompt.source}: the prompt is {said[:60]!r}; accepted: a text that is not blank")
