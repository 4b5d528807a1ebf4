"""Times the sampler against a plain loop of model.generate with left padding, on the same prompts in one run.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench_sampling.py                 # the demo's anchor, where there is one
    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench_sampling.py --size 30m      # random weights
    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench_sampling.py --ablate        # what brings how much

Two settings. With stops, responses end where the model ends them (random weights: at every n-th word of the
vocabulary): a loop goes on with a batch until its last response has ended, and what is counted are the responses' own
tokens. Without stops, every response has --max_new_tokens tokens, so that the budgets are equal to the token and
nothing is won by dropping finished rows.

The loops take the prompts in their order, every sample a row, at the same temperature and top_p without top-k; both
draw from the same distribution, with numbers of their own, from the round's seed. The loop of batch 1 takes every
16th row only. Contenders take turns in every round and a ratio is taken within a round. Processor time on a CPU, wall
clock elsewhere; loading is left out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from gradsteer.data.batching import plan_batches
from gradsteer.data.chat import encode_prompt
from gradsteer.data.chat_formats import read_prompts
from gradsteer.generation.decoding import (
    Draw,
    SamplingConfig,
    SamplingStats,
    longest_prompt,
    sample_batch,
    stop_token_ids,
)
from gradsteer.generation.memory import footprint_of, free_bytes, rows_at_once
from gradsteer.models.loading import load_causal_lm, load_tokenizer

DEMO = Path("lightning_logs/demo")
SIZES = {"1m": (128, 352, 4, 4), "30m": (512, 1408, 8, 8), "100m": (768, 2048, 12, 12)}  # hidden, inner, layers, heads
VOCABULARY = 8192
PLAIN = "generate, batch "


@dataclass
class Work:
    """A model and what to sample from it."""

    model: Any
    prompts: list[list[int]]  # token ids
    stops: list[int]
    options: argparse.Namespace
    batch_size: int = 0
    clock: Callable[[], float] = time.process_time
    draws: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draws = [prompt for prompt in self.prompts for _ in range(self.options.num_samples)]
        device = self.model.device
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        numbers = sum(parameter.numel() for parameter in self.model.parameters())
        footprint = footprint_of(self.model.config, num_parameters=numbers, dtype=self.model.dtype, loaded=True)
        self.batch_size = self.options.batch_size or rows_at_once(
            footprint, prompt_tokens=max(map(len, self.prompts)), max_new_tokens=self.options.max_new_tokens,
            device_type=device.type, free_bytes=free_bytes(device),
        )  # fmt: skip

    def ours(
        self, seed: int, stops: list[int], *, batch_size: int | None = None, by_length: bool = True, **options: Any
    ) -> SamplingStats:
        """The sampler."""
        config = SamplingConfig(self.options.max_new_tokens, self.options.temperature, self.options.top_p)
        draws = [Draw(prompt, sample, seed) for prompt in self.prompts for sample in range(self.options.num_samples)]
        lengths = [len(draw.prompt_token_ids) if by_length else 0 for draw in draws]
        stats, started = SamplingStats(), self.clock()
        for batch in plan_batches(lengths, batch_size or self.batch_size):
            chosen = [draws[index] for index in batch]
            sample_batch(self.model, chosen, config, stop_token_ids=stops, pad_token_id=0, stats=stats, **options)
        stats.seconds = self.clock() - started
        return stats

    def plain(self, seed: int, stops: list[int], *, batch_size: int) -> SamplingStats:
        """A loop of generate; batch 1 takes every 16th row."""
        draws = self.draws[:: 16 if batch_size == 1 else 1]
        torch.manual_seed(seed)
        stats, started = SamplingStats(), self.clock()
        for start in range(0, len(draws), batch_size):
            rows = draws[start : start + batch_size]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
            with torch.no_grad():
                out = self.model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=True, temperature=self.options.temperature,
                    top_p=self.options.top_p, top_k=0, max_new_tokens=self.options.max_new_tokens,
                    eos_token_id=stops or None, pad_token_id=0,
                )  # fmt: skip
            new = out[:, width:].cpu().numpy()
            ended = np.isin(new, stops)
            lengths = np.where(ended.any(1), ended.argmax(1) + 1, new.shape[1])
            stats.sampled_tokens += int(lengths.sum())
            stats.prompt_tokens += sum(map(len, rows))
            stats.prompt_positions += width * len(rows)
            stats.useful_positions += int((lengths - 1).sum())
            stats.decode_positions += (new.shape[1] - 1) * len(rows)
        stats.seconds = self.clock() - started
        return stats


def contenders(work: Work) -> dict[str, Callable[[int, list[int]], SamplingStats]]:
    """By name, the first is the measure."""

    def patched(*patches: Any, **options: Any) -> Callable[[int, list[int]], SamplingStats]:
        def run(seed: int, stops: list[int]) -> SamplingStats:
            with ExitStack() as stack:
                for each in patches:
                    stack.enter_context(each)
                return work.ours(seed, stops, **options)

        return run

    found = {f"sampler, batch {work.batch_size}": patched()}
    for size in (1, 16):
        found[f"{PLAIN}{size}"] = lambda seed, stops, size=size: work.plain(seed, stops, batch_size=size)
    for size in work.options.batch_sizes:
        found[f"sampler, batch {size}"] = patched(batch_size=size)
    if work.options.ablate:
        found["without: sorting by length"] = patched(by_length=False)
        found["without: dropping finished rows"] = patched(min_finished_share_to_drop=2.0)
        found["without: sharing a prompt's reading"] = patched(share_prompts=False)
        found["without: cache with room"] = patched(
            patch("gradsteer.generation.cache.roomy_cache", lambda config, capacity: DynamicCache(config=config))
        )
        if work.options.top_p < 1:
            found["without: numpy's sort"] = patched(
                patch(
                    "gradsteer.generation.sampling._descending",
                    lambda values: values.sort(dim=-1, descending=True).values,
                )
            )
        found["without: any of it, batch 16"] = patched(
            patch("gradsteer.generation.cache.roomy_cache", lambda config, capacity: DynamicCache(config=config)),
            batch_size=16, by_length=False, min_finished_share_to_drop=2.0, share_prompts=False,
        )  # fmt: skip
    return found


def demo_work(options: argparse.Namespace) -> Work:
    """The demo's anchor on its evaluation prompts, or what --model and --prompts name."""
    model = load_causal_lm(options.model, dtype=options.dtype).to(options.device)
    tokenizer = load_tokenizer(options.model)
    prompts = [encode_prompt(tokenizer, each.messages, each.source) for each in read_prompts(options.prompts)]
    return Work(model, prompts[: options.num_prompts], stop_token_ids(model, tokenizer), options)


def random_work(options: argparse.Namespace) -> Work:
    """A Llama of --size with random weights, on random prompts of 8 to 64 tokens."""
    hidden, inner, layers, heads = SIZES[options.size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=2,
        pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval().to(options.device)
    random = np.random.default_rng(0)
    prompts = [random.integers(4, VOCABULARY, int(random.integers(8, 65))).tolist() for _ in range(options.num_prompts)]
    # of near-uniform words, one in max_new_tokens / 2 ends a response: half the budget is a response's mean length
    return Work(model, prompts, list(range(2, VOCABULARY, max(2, options.max_new_tokens // 2))), options)


def shown(values: list[float], form: str = ",.0f") -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


def compare(work: Work, stops: list[int], title: str) -> list[str]:
    """Runs all contenders in turns; returns the goals that were missed."""
    runs = contenders(work)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(work.options.rounds + 1):
        names = list(runs) if number % 2 else list(reversed(runs))
        for name in names:
            print(f"round {number}: {name} ...", end="\r", file=sys.stderr)
            stats = runs[name](number, stops).to_dict()
            if number:  # round 0 warms up
                found[name].append(stats)
    print(f"\n{title}")
    print(
        f"{'':38s} {'tokens/s':28s} {'sampler / it':20s} {'tokens':>7s} {'prompt padding':>15s} {'decode waste':>13s}"
    )
    ours, missed = next(iter(runs)), []
    goals = {f"{PLAIN}1": 4.0, f"{PLAIN}16": 1.2}
    for name, rounds in found.items():
        speeds = [stats["tokens_per_second"] for stats in rounds]
        ratios = [mine["tokens_per_second"] / speed for mine, speed in zip(found[ours], speeds, strict=True)]
        goal = f" goal {goals[name]}" if name in goals else ""
        padding, waste = (
            statistics.mean(stats[key] for stats in rounds) for key in ("prefill_padding", "decode_waste")
        )
        tokens = statistics.mean(stats["sampled_tokens"] for stats in rounds)
        ratio = f"{shown(ratios, '.2f')}{goal}"
        print(f"{name:38s} {shown(speeds):28s} {ratio:28s} {tokens:7,.0f} {padding:8.1%} {waste:13.1%}")
        if name in goals and statistics.median(ratios) < goals[name]:
            missed.append(f"{title}: {statistics.median(ratios):.2f} times {name}, goal {goals[name]}")
    return missed


def main() -> int:
    """Runs the bench; 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory; the demo's anchor by default, where there is one")
    parser.add_argument("--prompts", help="prompts for --model; the demo's evaluation prompts by default")
    parser.add_argument("--size", choices=SIZES, help="random weights of this size instead of a model")
    parser.add_argument("--num_prompts", type=int, default=100)
    parser.add_argument("--num_samples", type=int, default=8, help="responses a prompt")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--batch_size", type=int, help="of the sampler; by memory by default")
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[], help="of the sampler, further ones")
    parser.add_argument("--settings", choices=["stops", "fixed", "both"], default="both")
    parser.add_argument("--ablate", action="store_true", help="also the sampler without each of its parts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.size is None and options.model is None:
        found = (DEMO / "anchor" / "config.json").is_file()
        options.model = str(DEMO / "anchor") if found else None
        options.size = None if found else "1m"
    options.prompts = options.prompts or str(DEMO / "corpus" / "evaluation_prompts.jsonl")
    work = random_work(options) if options.size else demo_work(options)
    limit = longest_prompt(work.model.config, options.max_new_tokens)
    if limit is not None and max(map(len, work.prompts)) > limit:
        parser.error(
            f"the longest prompt has {max(map(len, work.prompts))} tokens; with --max_new_tokens it may {limit}"
        )
    numbers = sum(parameter.numel() for parameter in work.model.parameters())
    print(
        f"{options.model or 'random Llama'}: {numbers / 1e6:,.1f} M parameters, {options.dtype} on {options.device}; "
        f"{len(work.prompts)} prompts of {min(map(len, work.prompts))} to {max(map(len, work.prompts))} tokens, "
        f"{options.num_samples} samples each; temperature {options.temperature}, top_p {options.top_p}, "
        f"max_new_tokens {options.max_new_tokens}; medians [least..most] of {options.rounds} rounds"
    )
    settings = {"stops": (work.stops, "with stops"), "fixed": ([], "without stops")}
    missed = []
    for name, (stops, title) in settings.items():
        if options.settings in (name, "both"):
            missed += compare(work, stops, title)
    print("\n".join(missed) or "\nall goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
