"""Generation: samples responses to prompts, one pass over the prompts for each condition."""

import time
from typing import Any

from gradsteer.generation import Draw, Sampled, SamplingConfig, sample_batch, stop_token_ids
from gradsteer.modules.model import ModelModule


class GenerationModule(ModelModule):
    """Samples responses from a causal LM.

    Random numbers belong to the prompt, the sample and the seed: the same seed gives the same responses however
    they are batched.

    Args:
        model_name_or_path: hub id or local directory.
        num_samples: responses a prompt.
        temperature: 1 samples from the model's distribution, lower is sharper, 0 always takes the likeliest token.
        top_p: sample from the smallest set of tokens that holds this probability; 1 keeps all.
        max_new_tokens: tokens of a response at most; a response that has not ended by then is cut.
        sampling_seed: another seed gives other responses.
        dtype: of the weights: float32 (default; steps of a small size survive), bfloat16 or float16.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that comes with the model; off unless you trust its author.
        attn_implementation: attention kernel by transformers' name, such as sdpa or flash_attention_2.
    """

    def __init__(
        self,
        model_name_or_path: str,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 128,
        sampling_seed: int = 0,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__(model_name_or_path, dtype, revision, trust_remote_code, attn_implementation)
        if num_samples < 1:
            raise ValueError(f"model.num_samples is {num_samples}; accepted: at least 1")
        self.sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        self.num_samples, self.sampling_seed = num_samples, sampling_seed
        self._num_tokens, self._started = 0, 0.0

    def test_step(self, batch: list[dict[str, Any]], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Samples one response for each row of the batch.

        Returns:
            ``responses``: rows as responses/NAME.jsonl holds them, without verdicts and condition, and the row's
            ``position``; ``progress``: text for the progress bar.
        """
        if batch_idx == 0:
            self._num_tokens, self._started = 0, time.monotonic()
        draws = [Draw(row["prompt_token_ids"], row["draw"], self.sampling_seed) for row in batch]
        drawn: list[Sampled] = []
        if draws:
            try:
                drawn = sample_batch(
                    self.model,
                    draws,
                    self.sampling,
                    stop_token_ids=stop_token_ids(self.model, self.tokenizer),
                    pad_token_id=int(self.tokenizer.pad_token_id),
                )
            except ValueError as error:
                ids = ", ".join(dict.fromkeys(str(row["id"]) for row in batch))
                where = f"condition {self.loader_title(dataloader_idx)!r}, prompts {ids}"
                raise ValueError(f"{where} (draws are counted within these): {error}") from error
        self._num_tokens += sum(len(response.token_ids) for response in drawn)
        speed = self._num_tokens / (time.monotonic() - self._started)
        rows = [self._row(row, response) for row, response in zip(batch, drawn, strict=True)]
        return {"responses": rows, "progress": f"{speed:,.0f} tokens/s"}

    def _row(self, row: dict[str, Any], response: Sampled) -> dict[str, Any]:
        return {
            **row,
            "completion": self.tokenizer.decode(response.token_ids, skip_special_tokens=True),
            "token_ids": response.token_ids,
            "finish_reason": response.finish_reason,
            "model": self.model_name_or_path,
            "seed": self.sampling_seed,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_new_tokens": self.sampling.max_new_tokens,
        }
