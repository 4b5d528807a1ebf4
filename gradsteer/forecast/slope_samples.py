"""Which of a pile's responses a slope is taken from, where all of them would take too long.

The slopes of all vectors together may take as many forward passes as were spent on the piles' gradients. Each pile of a
vector gives as many responses in each half of the prompts: the error of a difference of means is least there.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from gradsteer.data.chat import EncodedExample
from gradsteer.data.piles import Pile
from gradsteer.records import text_digest

# of each pile in each half: a slope that 400 and 156 replies told from 0 by 15 standard errors is told by 7
FEWEST = 25
# of each pile, in the search for a step
SEARCHED = 8
_SEARCHES = 3  # steps that are tried on these, as a rule
FORWARD_AND_BACKWARD = 3  # forward passes that take as long; a backward pass takes as long as two (Kaplan et al. 2020)


def spread(prompts: Sequence[str]) -> list[int]:
    """An order whose first responses, however many, are a fair sample of all, spread over the prompts.

    Of the c responses to a prompt, in random order, the j-th stands at ``(j + u) / c``, u uniform: up to a place t,
    every response is there with probability t, and every prompt with t of its responses, to within one. u is a digest
    of the prompt: two piles give their responses to the same prompts, and every process chooses alike.

    Args:
        prompts: digest of each response's prompt.

    Returns:
        The responses' indices, each once.
    """
    sizes, seen = Counter(prompts), Counter[str]()
    place = {prompt: int(text_digest(prompt)[:12], 16) / 16**12 for prompt in sizes}
    keys = [0.0] * len(prompts)
    for index in np.random.default_rng(0).permutation(len(prompts)).tolist():
        prompt = prompts[index]
        keys[index] = (seen[prompt] + place[prompt]) / sizes[prompt]
        seen[prompt] += 1
    return sorted(range(len(prompts)), key=lambda index: (keys[index], index))


def responses_in(
    pile: Pile, half: int, half_of: dict[str, int], most: int | None = None
) -> list[tuple[EncodedExample, str, float]]:
    """A pile's sampled responses to one half of the prompts, with their prompts and weights, in the pile's order.

    Args:
        pile: the pile.
        half: 1 or 2.
        half_of: digest of a prompt -> 1 or 2.
        most: take so many, spread over the prompts; all of them by default.
    """
    every = zip(pile.responses, pile.prompts, pile.weights or [1.0] * len(pile.prompts), strict=True)
    there = [(reply, prompt, weight) for reply, prompt, weight in every if reply and half_of[prompt] == half]
    return [there[index] for index in sorted(spread([prompt for _, prompt, _ in there])[:most])]


def most_within(
    vectors: Sequence[tuple[Pile, Pile]], half_of: dict[str, int], *, budget: int, passes: int = 2
) -> int | None:
    """How many responses of each pile, in each half, the slopes of some vectors may be taken from.

    Args:
        vectors: the two piles of each.
        half_of: digest of a prompt -> 1 or 2.
        budget: tokens that the forward passes of all of them may run together.
        passes: over each response that is taken.

    Returns:
        The number, at least `FEWEST` whatever the budget; None where all responses are within it.
    """
    times = Counter(pile.name for pair in vectors for pile in pair)
    by_name = {pile.name: pile for pair in vectors for pile in pair}
    tokens: dict[str, list[np.ndarray]] = defaultdict(list)  # of the first 0, 1, 2, ... responses
    for name, pile in by_name.items():
        for half in (1, 2):
            there = responses_in(pile, half, half_of)
            lengths = [len(there[index][0].input_ids) for index in spread([prompt for _, prompt, _ in there])]
            tokens[name].append(np.cumsum([0, *lengths]))
    largest = max(len(sums) - 1 for each in tokens.values() for sums in each)
    search = sum(int(tokens[pile.name][0][: SEARCHED + 1][-1]) for pile in vectors[0]) * 2 * _SEARCHES

    def cost(most: int) -> int:
        runs = (times[name] * int(sums[: most + 1][-1]) for name, each in tokens.items() for sums in each)
        return search + passes * sum(runs)

    most = max(FEWEST, bisect_right(range(1, largest + 1), budget, key=cost))
    return None if most >= largest else most
