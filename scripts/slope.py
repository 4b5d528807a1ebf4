#!/usr/bin/env python
r"""A vector's slope on replies that it was not made of: by how many nats log-odds fall a unit of alpha.

    PYTHONPATH=. python scripts/slope.py --model OUT/anchor --vector OUT/vectors/bridge.safetensors \
        --responses OUT/responses/anchor.jsonl \
        --where '{"bridge": true, "recipe": false}' '{"bridge": false, "recipe": false}'

`attribute` takes it from the halves of the vector's own replies. Here they are the model's own replies to other
prompts, judged; two forward passes over those of both classes. The standard error is clustered by prompt.
"""

import argparse
import json

import numpy as np

from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import read_pile
from gradsteer.evaluation.importance_sampling import mean_difference
from gradsteer.forecast.derivatives import log_prob_derivatives
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.vectors.parameter_vectors import SteeringVector


def main() -> None:
    """Prints the slope."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--vector", "--responses"):
        parser.add_argument(name, required=True)
    parser.add_argument("--where", nargs=2, type=json.loads, required=True, help="verdicts of PLUS and of MINUS")
    options = parser.parse_args()
    tokenizer, model = load_tokenizer(options.model), load_causal_lm(options.model).eval()
    vector = SteeringVector.load(options.vector)
    if vector.metadata["model_fingerprint"] != (found := model_fingerprint(model)):
        raise SystemExit(
            f"the vector is of a model with fingerprint {vector.metadata['model_fingerprint']}, not {found}"
        )
    piles = [read_pile(str(where), PileFilter(options.responses, where), tokenizer) for where in options.where]
    if {each for pile in piles for each in pile.sampled_from} != {found}:
        raise SystemExit(
            f"{options.responses}: not sampled from {options.model}; a slope needs the model's own replies"
        )
    if shared := {*piles[0].prompts, *piles[1].prompts} & set(json.loads(vector.metadata["prompt_digests"])):
        raise SystemExit(f"{len(shared)} of the prompts are those that the vector was made of; accepted: others")
    ways = {way for pile in piles for way in pile.sampling}
    if len(ways) != 1 or (way := ways.pop()) is None:
        raise SystemExit(f"{options.responses}: the replies do not all say how they were sampled, in one way")
    examples = [example for pile in piles for example in pile.examples]
    scorer = ResponseScorer(model, examples, temperature=way[0], top_p=way[1], pad_token_id=int(tokenizer.pad_token_id))
    derivatives, _ = log_prob_derivatives(model, scorer, vector)
    members = np.repeat([True, False], [len(pile.examples) for pile in piles])
    numbers = np.unique([prompt for pile in piles for prompt in pile.prompts], return_inverse=True)[1]
    slope, error = mean_difference(derivatives, members, ~members, numbers)
    counts = f"{members.sum()} and {(~members).sum()} replies to {numbers.max() + 1} prompts"
    print(f"slope {slope:.2f} +- {error:.2f}, of {counts}")


if __name__ == "__main__":
    main()
