#!/usr/bin/env python
"""bfloat16 beside float32: sampling, scoring and attribution, as ratios round by round, with their peak memory.

    .venv/bin/python scripts/bench_precision.py  # 30 M parameters, random weights
    .venv/bin/python scripts/bench_precision.py --model lightning_logs/pretrained/SmolLM2-135M-Instruct
    .venv/bin/python scripts/bench_precision.py --size tiny --num_prompts 2 --rounds 1  # does it run?

Both precisions do the same work on the same responses, those that float32 sampled; sampling draws its own, each to the
full length. They take turns, and first is now the one, now the other, so that a busy moment falls on both. Processor
time on a CPU; loading is left out. Memory is measured in a process of its own for each, above the weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench.memory import peak_above
from bench.setting import EXACT_MALLOC
from bench_forecast import SIZES, random_llama

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample, encode_prompt, encode_sampled
from gradsteer.data.chat_formats import read_prompts
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch
from gradsteer.models.batches import BatchLayout, running
from gradsteer.models.loading import load_causal_lm, load_tokenizer, parse_dtype

DTYPES = ("float32", "bfloat16")
WORKS = ("sampling", "scoring", "attribution")
_TOKENS_AT_ONCE = 1024  # of attribution, as the command has it on a CPU


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory; random weights by default")
    parser.add_argument("--prompts", default="gradsteer://topics/attribution_prompts.jsonl", help="for --model")
    parser.add_argument("--size", choices=SIZES, default="30m", help="of random weights")
    parser.add_argument("--num_prompts", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--measure", nargs=2, metavar=("WORK", "DTYPE"), help="one peak of memory, as JSON (used within)"
    )
    return parser.parse_args(words)


class Bench:
    """A model in one precision, and what it is to do.

    Args:
        options: as `parse` gives them.
        dtype: of the weights.
    """

    def __init__(self, options: argparse.Namespace, dtype: str) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(options.seed)
        if options.model is None:
            self.model = random_llama(options.size).to(parse_dtype(dtype))
            self.pad = 0
            self.prompts = [
                torch.randint(3, 8192, (20,), generator=generator).tolist() for _ in range(options.num_prompts)
            ]
        else:
            self.model, tokenizer = load_causal_lm(options.model, dtype=dtype), load_tokenizer(options.model)
            self.pad = int(tokenizer.pad_token_id)
            found = read_prompts(options.prompts)[: options.num_prompts]
            self.prompts = [encode_prompt(tokenizer, prompt.messages) for prompt in found]
        self.model.to(options.device)
        self.examples: list[EncodedExample] = []

    def sample(self) -> None:
        """Samples a response of full length to each prompt; the first ones are what is scored."""
        draws = [Draw(prompt, 0, self.options.seed) for prompt in self.prompts]
        how = SamplingConfig(max_new_tokens=self.options.max_new_tokens, temperature=1.0)
        drawn = sample_batch(self.model, draws, how, stop_token_ids=[], pad_token_id=self.pad)
        pairs = zip(draws, drawn, strict=True)
        self.examples = self.examples or [
            encode_sampled(draw.prompt_token_ids, each.token_ids, each.finish_reason, loss_mask="assistant")
            for draw, each in pairs
        ]

    def prepare(self) -> None:
        """Plans the batches of scoring and attribution, which is no part of the work."""
        self.scorer = ResponseScorer(self.model, self.examples, pad_token_id=self.pad)
        self.layout = BatchLayout.of(self.model, self.examples[:2], pad_token_id=self.pad)
        plan = self.layout.plan([len(example.input_ids) for example in self.examples], _TOKENS_AT_ONCE)
        self.batches = [self.layout.make([self.examples[index] for index in indices]) for indices in plan]

    def score(self) -> None:
        """``log p`` of every response."""
        self.scorer.log_probs()

    def attribute(self) -> None:
        """The sum of the responses' gradients, in float32."""
        pile = PileGradient(self.model, reduction="sum", head_chunk=self.layout.head_chunk)
        for batch in self.batches:
            with running(batch, self.model):
                pile.add(batch)
        pile.average()

    def work(self, name: str) -> Callable[[], None]:
        """What a name stands for."""
        return {"sampling": self.sample, "scoring": self.score, "attribution": self.attribute}[name]


def multiplies_half() -> str:
    """Which instructions of this processor multiply bfloat16; without any it is emulated, and several times slower."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text().split()) if path.is_file() else set()
    found = sorted(words & {"amx_bf16", "avx512_bf16"})
    return f"bfloat16 by {', '.join(found)}" if found else "no instruction for bfloat16 found: it is emulated"


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds of the processor, or of the clock on another device."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def peak(words: list[str], name: str, dtype: str) -> int:
    """Bytes of a work's peak above the weights, in a fresh process."""
    line = [sys.executable, __file__, *words, "--measure", name, dtype]
    done = subprocess.run(line, check=True, capture_output=True, text=True, env={**os.environ, **EXACT_MALLOC})
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def measure(options: argparse.Namespace) -> None:
    """Prints one work's peak."""
    name, dtype = options.measure
    bench = Bench(options, dtype)
    if name != "sampling":
        reply = [3 + place % 500 for place in range(options.max_new_tokens)]  # memory does not depend on which tokens
        bench.examples = [encode_sampled(prompt, reply, "length", loss_mask="assistant") for prompt in bench.prompts]
        bench.prepare()
    print(json.dumps({"peak": peak_above(bench.work(name), options.device)}))


def main(words: list[str]) -> None:
    """Prints the table."""
    options = parse(words)
    if options.measure:
        measure(options)
        return
    benches: dict[str, Any] = {dtype: Bench(options, dtype) for dtype in DTYPES}
    benches["float32"].sample()
    benches["bfloat16"].examples = benches["float32"].examples
    for bench in benches.values():
        bench.prepare()
    parameters = sum(parameter.numel() for parameter in benches["float32"].model.parameters())
    tokens = sum(example.num_target_tokens for example in benches["float32"].examples)
    print(
        f"{parameters / 1e6:.1f} M parameters, {len(benches['float32'].prompts)} responses, {tokens} sampled tokens, "
        f"{options.rounds} rounds, {torch.get_num_threads()} threads, {options.device} ({multiplies_half()})\n\n"
        "| | float32, s | bfloat16, s | float32 / bfloat16 | float32, peak MiB | bfloat16, peak MiB |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for name in WORKS:
        rounds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
        for dtype in DTYPES:
            if name != "sampling" or dtype != "float32":  # once untimed: kernels are chosen, pages are there
                benches[dtype].work(name)()
        for number in range(options.rounds):
            for dtype in DTYPES if number % 2 == 0 else DTYPES[::-1]:
                rounds[dtype].append(timed(benches[dtype].work(name), options.device))
                print(f"{name}, round {number + 1}, {dtype}: {rounds[dtype][-1]:.2f} s", file=sys.stderr, flush=True)
        ratios = sorted(full / half for full, half in zip(*rounds.values(), strict=True))
        seconds = [f"{statistics.median(values):.2f}" for values in rounds.values()]
        ratio = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f} .. {ratios[-1]:.2f}]"
        peaks = [f"{peak(words, name, dtype) / 2**20:,.0f}" for dtype in DTYPES]
        print(f"| {' | '.join([name, *seconds, ratio, *peaks])} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
