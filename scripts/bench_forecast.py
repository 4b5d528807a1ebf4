"""Times the forecast of 40 conditions (2 vectors, 20 alphas each) against sampling and judging them, in one run.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench_forecast.py --model lightning_logs/demo/anchor \
        --prompts lightning_logs/demo/corpus/evaluation_prompts.jsonl --judge lightning_logs/demo/corpus/judge.json

Without --model a Llama of 30 M random weights, on random prompts. The vectors are made here: each contrasts the
replies that show a behavior with those that do not. Their alphas reach to where replies' log-probabilities have changed
by 1.5 nats (root mean square). In every round all vectors' curves are drawn and 40 forecasts read, then --conditions of
the 40 are sampled and judged; what all 40 would take is scaled up from these, and the ratio taken within the round.
Processor time, startup and loading left out. The last lines time the slopes of 1, 2 and 6 vectors against the gradients
of their piles.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.batching import plan_batches
from gradsteer.data.chat import EncodedExample, encode_prompt, encode_sampled
from gradsteer.data.chat_formats import read_prompts
from gradsteer.data.piles import Pile
from gradsteer.forecast.curve import VectorCurve
from gradsteer.forecast.derivatives import log_prob_derivatives
from gradsteer.forecast.forecaster import Forecaster
from gradsteer.forecast.judged_responses import JudgedResponses
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.slope_samples import FORWARD_AND_BACKWARD, most_within
from gradsteer.forecast.slopes import CrossFittedSlopes
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch, stop_token_ids
from gradsteer.judges import Exchange, KeywordJudge
from gradsteer.models.batches import BatchLayout
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.steering.weight_steering import holding, steered
from gradsteer.vectors.parameter_vectors import SteeringVector

NUM_ALPHAS = 20
NUM_SLOPES = (1, 2, 6)
REACH = 1.5  # nats of a response
SIZES = {"tiny": (32, 64, 2, 2), "30m": (512, 1408, 8, 8)}  # hidden, intermediate, layers, heads


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory; random weights by default")
    parser.add_argument("--prompts", help="prompts for --model")
    parser.add_argument("--judge", help="a JSON file of patterns of two behaviors or more for --model")
    parser.add_argument("--num_prompts", type=int, default=100)
    parser.add_argument("--num_samples", type=int, default=8, help="responses a prompt")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=400, help="of the sampler")
    parser.add_argument("--conditions", type=int, default=4, help="sampled in a round, of the 40")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


class Bench:
    """A model, its prompts and its judge; `examples` and `verdicts` are of the responses sampled at first."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.decode = options, str
        if options.model is None:
            self.model, self.stops, self.pad = random_llama("30m"), [2], 0
            generator = torch.Generator().manual_seed(0)
            self.prompts = [
                torch.randint(3, 8192, (20,), generator=generator).tolist() for _ in range(options.num_prompts)
            ]
            self.judge: Any = KeywordJudge({"a": ["11"], "b": ["77"]})
        else:
            self.model, tokenizer = load_causal_lm(options.model), load_tokenizer(options.model)
            self.stops, self.pad = stop_token_ids(self.model, tokenizer), int(tokenizer.pad_token_id)
            found = read_prompts(options.prompts)[: options.num_prompts]
            self.prompts = [encode_prompt(tokenizer, prompt.messages) for prompt in found]
            self.judge, self.decode = KeywordJudge(options.judge), tokenizer.decode
        self.model.to(options.device).eval()
        self.draws = [Draw(prompt, sample, 0) for prompt in self.prompts for sample in range(options.num_samples)]
        replies = self.sample()
        self.examples = [reply for reply, _ in replies]
        self.verdicts = {
            name: np.array([float(verdict[name]) for _, verdict in replies]) for name in list(replies[0][1])[:2]
        }
        self.lengths = np.array([example.num_target_tokens for example in self.examples], dtype=np.float64)

    def sample(self) -> list[tuple[EncodedExample, Any]]:
        """Samples and judges a reply for each draw, with the model's present weights."""
        found: list[Any] = [None] * len(self.draws)
        how = SamplingConfig(self.options.max_new_tokens, self.options.temperature)
        for batch in plan_batches([len(draw.prompt_token_ids) for draw in self.draws], self.options.batch_size):
            chosen = [self.draws[index] for index in batch]
            drawn = sample_batch(self.model, chosen, how, stop_token_ids=self.stops, pad_token_id=self.pad)
            judged = self.judge.judge([Exchange("", self.decode(each.token_ids)) for each in drawn])
            for index, draw, each, verdict in zip(batch, chosen, drawn, judged, strict=True):
                example = encode_sampled(
                    draw.prompt_token_ids, each.token_ids, each.finish_reason, loss_mask="assistant"
                )
                found[index] = example, verdict.values
        return found

    def gradients(self, shows: np.ndarray) -> tuple[SteeringVector, float]:
        """The contrast of the replies that show a behavior with the others, and the seconds it took."""
        start, sides = self.clock(), []
        for members in (shows == 1, shows == 0):
            chosen = [example for example, member in zip(self.examples, members, strict=True) if member]
            layout = BatchLayout.of(self.model, chosen, pad_token_id=self.pad)
            pile = PileGradient(self.model, head_chunk=layout.head_chunk)
            for indices in layout.plan([len(example.input_ids) for example in chosen], 1024):
                pile.add(layout.make([chosen[index] for index in indices]))
            sides.append(pile.average())
        vector = SteeringVector({name: sides[0][name] - sides[1][name] for name in sides[0]})
        return vector, self.clock() - start

    def pile(self, name: str, members: np.ndarray) -> Pile:
        """Some of the replies as a pile."""
        chosen = [index for index, member in enumerate(members) if member]
        examples = [self.examples[index] for index in chosen]
        return Pile(
            name, examples, [""] * len(chosen), [str(index // self.options.num_samples) for index in chosen],
            sampled=[True] * len(chosen), responses=list(examples),
            sampling=[(self.options.temperature, 1.0)] * len(chosen),
        )  # fmt: skip

    def slopes(self, vector: SteeringVector, shows: np.ndarray, number: int) -> tuple[float, int | None]:
        """The seconds that the slopes of so many vectors take, all of these piles, and the responses each is from."""
        pair = self.pile("shows", shows == 1), self.pile("does not", shows == 0)
        half_of, tokens = halves_of_prompts(pair), sum(len(each.input_ids) for pile in pair for each in pile.examples)
        start = self.clock()
        most = most_within([pair] * number, half_of, budget=FORWARD_AND_BACKWARD * tokens)
        slopes = CrossFittedSlopes(self.model, half_of, self.scorer, most=most)
        for _ in range(number):
            slopes.of(*pair, (vector, vector))
        return self.clock() - start, most

    def scorer(self, examples: Any, temperature: float, top_p: float) -> ResponseScorer:
        """Scores replies."""
        return ResponseScorer(self.model, examples, temperature=temperature, top_p=top_p, pad_token_id=self.pad)

    def responses(self) -> JudgedResponses:
        """The responses as a forecast reads them."""
        number, each = len(self.examples), self.options.num_samples
        return JudgedResponses(
            path="responses", examples=self.examples, verdicts=self.verdicts, prompts=np.arange(number) // each,
            traits={"mean_length": self.lengths}, temperature=self.options.temperature, top_p=1.0, top_k=None,
            max_new_tokens=None, fingerprint=None, prompt_digests=frozenset(), prompt_texts=[""] * number,
        )  # fmt: skip

    def clock(self) -> float:
        """Seconds of the processor; of another device, which it waits for, those that pass."""
        if self.options.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds of a piece of work."""
        start = self.clock()
        work()
        return self.clock() - start


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
    return AutoModelForCausalLM.from_config(config)


def main(words: list[str]) -> None:
    """Prints a few lines."""
    options = parse(words)
    bench = Bench(options)
    model, responses = bench.model, bench.responses()
    scorer = bench.scorer(bench.examples, options.temperature, 1.0)
    vectors, alphas = {}, {}
    for name, shows in bench.verdicts.items():
        vectors[name] = bench.gradients(shows)[0]
        size = float(np.sqrt(np.mean(np.square(log_prob_derivatives(model, scorer, vectors[name])[0]))))
        alphas[name] = [float(a) for a in np.linspace(-REACH / size, REACH / size, NUM_ALPHAS)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shown = ", ".join(f"{int(values.sum())} {name}" for name, values in bench.verdicts.items())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(bench.examples)} responses to {len(bench.prompts)} prompts "
        f"({shown}), {scorer.num_tokens} sampled tokens, {options.rounds} rounds, {torch.get_num_threads()} threads, "
        f"{options.device}"
    )
    passes: list[int] = []

    def forecast() -> None:
        forecaster = Forecaster(responses, scorer)
        for name, vector in vectors.items():
            curve = VectorCurve(
                name,
                forecaster,
                lambda alpha, vector=vector: steered(model, vector, alpha),
                lambda vector=vector: vector,
            )
            curve.cover(alphas[name])
            for alpha in alphas[name]:
                curve.forecast(alpha)
            print(f"  {curve}")
        passes.append(forecaster.num_passes)

    places = [(name, alpha) for name in vectors for alpha in alphas[name]]
    chosen = places[:: max(1, len(places) // options.conditions)][: options.conditions]

    def sample() -> None:
        for name, alpha in chosen:
            with steered(model, vectors[name], alpha):
                bench.sample()

    with holding(model):
        pairs = [(bench.timed(forecast), bench.timed(sample)) for _ in range(options.rounds)]
    scale = len(places) / len(chosen)
    ratios = sorted(forecast_ / (scale * sampled) for forecast_, sampled in pairs)
    forecasts, samplings = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{len(vectors)} vectors x {NUM_ALPHAS} alphas: {max(passes)} passes, {forecasts:.1f} s; sampling and judging "
        f"{len(chosen)} conditions {samplings:.1f} s, all {len(places)} {scale * samplings:.1f} s: the forecast takes "
        f"1/{1 / statistics.median(ratios):.1f} of it [1/{1 / ratios[0]:.1f}..1/{1 / ratios[-1]:.1f}]"
    )
    name = next(iter(vectors))
    for number in NUM_SLOPES:
        rounds = [
            (bench.gradients(bench.verdicts[name])[1], *bench.slopes(vectors[name], bench.verdicts[name], number))
            for _ in range(options.rounds)
        ]
        ratios = sorted(taken / gradients for gradients, taken, _ in rounds)
        gradients, taken = (statistics.median(each[index] for each in rounds) for index in (0, 1))
        most = "all" if rounds[0][2] is None else f"at most {rounds[0][2]} of each pile in each half"
        print(
            f"gradients of {name}'s piles {gradients:.1f} s, slopes of {number} such vectors {taken:.1f} s ({most}): "
            f"{statistics.median(ratios):.2f} times as long [{ratios[0]:.2f}..{ratios[-1]:.2f}]"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
