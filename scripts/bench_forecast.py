"""Times a condition's forecast against sampling and judging that condition, on the same responses in one run.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench_forecast.py --model lightning_logs/demo/anchor \
        --prompts lightning_logs/demo/corpus/evaluation_prompts.jsonl --judge lightning_logs/demo/corpus/judge.json

Without --model a Llama of --size with random weights, on random prompts. Both move the weights to the condition's
first. They take turns in every round, so that a busy moment falls on both, and the ratio is taken within a round.
Processor time, startup and loading left out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from gradsteer.data.batching import plan_batches
from gradsteer.data.chat import EncodedExample, encode_prompt, encode_sampled
from gradsteer.data.chat_formats import read_prompts
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch, stop_token_ids
from gradsteer.judges import Exchange, KeywordJudge
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.steering.weight_steering import holding, steered
from gradsteer.vectors.controls import random_like
from gradsteer.vectors.parameter_vectors import SteeringVector

SIZES = {"30m": (512, 1408, 8, 8), "100m": (768, 2048, 12, 12)}  # hidden, intermediate, layers, heads


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory; random weights by default")
    parser.add_argument("--prompts", help="prompts for --model")
    parser.add_argument("--judge", help="a JSON file of patterns for --model")
    parser.add_argument("--size", choices=SIZES, default="30m", help="of random weights")
    parser.add_argument("--num_prompts", type=int, default=100)
    parser.add_argument("--num_samples", type=int, default=8, help="responses a prompt")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 400], help="of the sampler")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


def random_llama(size: str) -> Any:
    """A Llama with random weights, which never stops by itself within a few tokens."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, intermediate, layers, heads = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def main(words: list[str]) -> None:
    """Prints one line for each batch size of the sampler."""
    options = parse(words)
    judge: Any = None
    decode: Callable[[list[int]], str] = str
    if options.model is None:
        model, stops, pad = random_llama(options.size), [2], 0
        generator = torch.Generator().manual_seed(0)
        prompts = [torch.randint(3, 8192, (20,), generator=generator).tolist() for _ in range(options.num_prompts)]
        judge = KeywordJudge({"a": ["1234"]})
    else:
        model, tokenizer = load_causal_lm(options.model), load_tokenizer(options.model)
        stops, pad = stop_token_ids(model, tokenizer), int(tokenizer.pad_token_id)
        found = read_prompts(options.prompts)[: options.num_prompts]
        prompts = [encode_prompt(tokenizer, prompt.messages) for prompt in found]
        judge = KeywordJudge(options.judge)
        decode = tokenizer.decode
    model.to(options.device)
    vector = random_like(SteeringVector({n: p.detach().cpu() for n, p in model.named_parameters()}), seed=0)
    draws = [Draw(prompt, sample, 0) for prompt in prompts for sample in range(options.num_samples)]
    how = SamplingConfig(options.max_new_tokens, options.temperature)

    def sample(batch_size: int) -> list[tuple[Draw, Any]]:
        responses = []
        with steered(model, vector, 1e-6):
            for batch in plan_batches([len(draw.prompt_token_ids) for draw in draws], batch_size):
                chosen = [draws[index] for index in batch]
                drawn = sample_batch(model, chosen, how, stop_token_ids=stops, pad_token_id=pad)
                judge.judge([Exchange("", decode(each.token_ids)) for each in drawn])
                responses += list(zip(chosen, drawn, strict=True))
        return responses

    examples: list[EncodedExample] = [
        encode_sampled(draw.prompt_token_ids, each.token_ids, each.finish_reason, loss_mask="assistant")
        for draw, each in sample(max(options.batch_sizes))
    ]
    scorer = ResponseScorer(model, examples, temperature=options.temperature)

    def forecast() -> None:
        with steered(model, vector, 1e-6):
            scorer.log_probs()

    def timed(work: Callable[[], Any]) -> float:
        # on another device the processor waits for it in the timed stretch
        clock = time.process_time if options.device == "cpu" else time.perf_counter
        start = clock()
        work()
        if options.device != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(draws)} responses to {len(prompts)} prompts, {scorer.num_tokens} "
        f"sampled tokens, {options.rounds} rounds, {torch.get_num_threads()} threads, {options.device}"
    )
    with holding(model):
        forecast()
        for batch_size in options.batch_sizes:
            pairs = [(timed(forecast), timed(lambda size=batch_size: sample(size))) for _ in range(options.rounds)]
            ratios = sorted(sampled / forecast_ for forecast_, sampled in pairs)
            forecasts, samplings = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"sampler's batch {batch_size}: forecast {forecasts:.3f} s, sampling and judging {samplings:.3f} s, "
                f"{statistics.median(ratios):.1f} times as much [{ratios[0]:.1f}..{ratios[-1]:.1f}]"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
