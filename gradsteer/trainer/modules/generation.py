"""Generation: samples responses to prompts, one pass over the prompts for each condition."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gradsteer.data.thoughts import split_reply
from gradsteer.generation.decoding import (
    Draw,
    NonFiniteLogitsError,
    Sampled,
    SamplingConfig,
    SamplingStats,
    longest_prompt,
    sample_batch,
    stop_token_ids,
)
from gradsteer.generation.memory import FittingParts, SamplingFootprint, footprint_of
from gradsteer.generation.sampling import check_seeds, num_known_ids
from gradsteer.generation.served import served_otherwise
from gradsteer.models.adapter_loading import Quantization, Reading
from gradsteer.models.adapter_space import all_weights
from gradsteer.models.loading import DTYPES
from gradsteer.progress import progress
from gradsteer.trainer.modules.model import ModelModule

Row = dict[str, Any]


class GenerationModule(ModelModule):
    """Samples responses from a causal LM.

    Random numbers depend only on the prompt, the sample and the seed, so the same seed gives the same responses
    whatever the batch size.

    Args:
        model_name_or_path: hub id or local directory.
        num_samples: responses per prompt and seed.
        temperature: sampling temperature. 1 samples from the model's distribution, lower is sharper, 0 is greedy.
        top_p: nucleus sampling: sample from the smallest set of tokens with this probability mass; 1 keeps all.
        max_new_tokens: maximum tokens per response; longer responses are truncated.
        sampling_seed: seed for sampling. With several, such as [0, 1, 2], each gives num_samples responses per
            prompt.
        dtype: dtype of the weights: float32 (default; preserves small steps), bfloat16 or float16.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that ships with the model; enable only if you trust its author.
        attn_implementation: attention implementation by its transformers name, such as sdpa or flash_attention_2.
        gguf_file: a GGUF file in the model's directory or hub repository; its weights are dequantised.
        adapter_base: of an adapter: the model that it was trained on, a hub id (with @REVISION, if not the one that the
            adapter records) or a directory. Default: the one that the adapter names.
        adapter_reading: of an adapter: "merged" into its base, in float32, after which everything is of the merged
            weights; or "adapter": its own tensors are the parameters, and the base is frozen.
        quantization: of the base in the adapter reading: "4bit" or "8bit", by bitsandbytes.
    """

    work = "sampling"  # for the progress lines

    def __init__(
        self,
        model_name_or_path: str,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 128,
        sampling_seed: int | list[int] = 0,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        gguf_file: str | None = None,
        adapter_base: str | None = None,
        adapter_reading: Reading = "merged",
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__(
            *(model_name_or_path, dtype, revision, trust_remote_code, attn_implementation, gguf_file),
            *(adapter_base, adapter_reading, quantization),
        )
        if num_samples < 1:
            raise ValueError(f"model.num_samples is {num_samples}; accepted: at least 1")
        self.sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        self.num_samples, self.sampling_seed = num_samples, sampling_seed
        self.sampling_seeds = check_seeds(sampling_seed)
        # rows from an interrupted run, set by a callback: the next step returns them instead of sampling
        self.given: list[Row] | None = None
        self._stats = SamplingStats()
        self._parts = FittingParts(lambda text: warnings.warn(text, stacklevel=2))
        self._config: Any = None

    @property
    def model_config(self) -> Any:
        """The model's config, available before the model is loaded."""
        if self.model is not None:
            return self.model.config
        if self._config is None:
            self._config = self.loading.config()
        return self._config

    @property
    def longest_prompt(self) -> int | None:
        """Maximum prompt length that leaves room for a response; None if the config has no limit."""
        return longest_prompt(self.model_config, self.sampling.max_new_tokens)

    def footprint(self) -> SamplingFootprint | None:
        """Memory needed for sampling; see `gradsteer.generation.memory`."""
        model = self.loading.without_values() if self.model is None else self.model
        return footprint_of(
            self.model_config,
            num_parameters=sum(weight.numel() for weight in all_weights(model).values()),
            dtype=DTYPES[self.dtype_name],
            loaded=self.model is not None,
        )

    def test_step(self, batch: list[Row], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Samples one response for each row of the batch, or returns the rows of `given`.

        A row whose prompt is too long for the model gets an empty response, with the reason in ``failed``.

        Returns:
            ``responses``: rows as in responses/NAME.jsonl, without verdicts and condition but with ``position`` and
            ``set``; ``progress``: text for the progress bar.
        """
        if batch_idx == 0:
            self._stats = SamplingStats()
        given, self.given = self.given, None
        if given is not None:
            return {"responses": given, "progress": "from the interrupted run"}
        limit = self.longest_prompt
        fitting = [row for row in batch if limit is None or len(row["prompt_token_ids"]) <= limit]
        started = time.monotonic()
        drawn = iter(self._sample(fitting, dataloader_idx))
        self._stats.seconds += time.monotonic() - started
        fits = {id(row) for row in fitting}
        rows = [self._row(row, next(drawn)) if id(row) in fits else self._failed_row(row, limit) for row in batch]
        return {"responses": rows, "progress": f"{self.sampling_stats()['tokens_per_second']:,.0f} tokens/s"}

    def served_otherwise(self) -> str | None:
        """One line where the model's generation_config would have it served otherwise than it is sampled here."""
        stops = stop_token_ids(self.model, self.tokenizer)
        found = served_otherwise(self.model.generation_config, self.sampling, stops)
        return f"The model's generation_config would serve it otherwise: {', '.join(found)}." if found else None

    def sampling_stats(self) -> dict[str, float]:
        """This process's `SamplingStats` since the condition's first batch, as a dictionary."""
        return self._stats.to_dict()

    def _sample(self, rows: list[Row], dataloader_idx: int) -> list[Sampled]:
        if not rows:
            return []
        draws = [Draw(row["prompt_token_ids"], row["draw"], row["seed"]) for row in rows]
        stops, pad = stop_token_ids(self.model, self.tokenizer), int(self.tokenizer.pad_token_id)
        known = num_known_ids(self.tokenizer)
        shown = self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero

        def work(part: Sequence[Draw]) -> list[Sampled]:
            longest = self.sampling.max_new_tokens
            with progress(f"{len(part)} responses", longest, unit="token", shown=shown) as tick:
                return sample_batch(
                    self.model, part, self.sampling, stop_token_ids=stops, pad_token_id=pad, num_known=known,
                    stats=self._stats, on_step=tick,
                )  # fmt: skip

        where = f"condition {self.loader_title(dataloader_idx)!r}"
        try:
            return self._parts.run(draws, work)
        except NonFiniteLogitsError as error:
            row = next(row for row, draw in zip(rows, draws, strict=True) if draw is error.draw)
            what = f"{where}, prompt {row['id']!r}, sample {row['sample']}"
            raise ValueError(f"{what}: the model's logits are not finite at token {error.step}") from error
        except ValueError as error:
            ids = ", ".join(dict.fromkeys(str(row["id"]) for row in rows))
            raise ValueError(f"{where}, prompts {ids} (draws are counted within these): {error}") from error

    def _row(self, row: Row, response: Sampled) -> Row:
        text = str(self.tokenizer.decode(response.token_ids, skip_special_tokens=True))
        sampled = self._complete(row, text, response.token_ids, response.finish_reason)
        reply = split_reply(self.tokenizer, row["prompt_token_ids"], response.token_ids)
        return sampled if reply is None else {**sampled, **asdict(reply)}

    def _failed_row(self, row: Row, limit: int | None) -> Row:
        return self._complete(row, "", [], "length") | {"failed": too_long(row, limit, self.sampling.max_new_tokens)}

    def _complete(self, row: Row, completion: str, token_ids: list[int], finish_reason: str) -> Row:
        return {
            **row,
            "completion": completion,
            "token_ids": token_ids,
            "finish_reason": finish_reason,
            "model": self.model_name_or_path,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_new_tokens": self.sampling.max_new_tokens,
        }


def too_long(row: Row, limit: int | None, max_new_tokens: int) -> str:
    """The message for a prompt that is too long to be answered."""
    return (
        f"the prompt has {len(row['prompt_token_ids'])} tokens; the model takes {limit} before a response of "
        f"max_new_tokens={max_new_tokens}"
    )
