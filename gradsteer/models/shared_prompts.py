"""Packs that read a prompt once for all of its replies.

The first reply stands behind its prompt as in any pack. The others leave the prompt out: their positions go on from
its end, they attend to it and to themselves, and its last position predicts the first token of each.
"""

from collections.abc import Sequence

import torch

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, weights_of
from gradsteer.models.packing import Pack, plan_packs


def prompt_of(example: EncodedExample) -> tuple[int, ...]:
    """The token ids before the first labelled one, at least one."""
    return tuple(example.input_ids[: _start_of_reply(example)])


def plan_shared(examples: Sequence[EncodedExample], token_budget: int, *, backward: bool = False) -> list[list[int]]:
    """Fills packs with whole groups of replies to one prompt, as `plan_packs`.

    Args:
        examples: prompts with their replies.
        token_budget: the most tokens in a pack, a group's prompt counted once. A larger group is split; every part
            reads the prompt again.
        backward: count the prompt for every reply: for the backward pass each keeps its keys and values. Such packs are
            within the budget where prompts are not shared, too.

    Returns:
        The indices into `examples`, each once, those of a group next to each other; the fullest packs first.

    Raises:
        ValueError: the budget is not positive.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(prompt_of(example), []).append(index)
    parts, sizes = [], []
    for prompt, members in groups.items():
        replies = [len(examples[index].input_ids) - len(prompt) for index in members]
        if backward:
            split = plan_packs([len(prompt) + reply for reply in replies], token_budget)
        else:
            split = plan_packs(replies, max(1, token_budget - len(prompt)))
        for part in split:
            parts.append([members[place] for place in part])
            times = len(part) if backward else 1
            sizes.append(times * len(prompt) + sum(replies[place] for place in part))
    return [[index for part in pack for index in parts[part]] for pack in plan_packs(sizes, token_budget)]


def pack_shared(examples: Sequence[EncodedExample], device: torch.device | str = "cpu") -> Pack:
    """Packs examples in their order; neighbours with equal prompts share it.

    Tokens behind the last one that predicts a label are left out: nothing depends on them.
    """
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    predictors: list[int] = []
    owners: list[int] = []
    lengths: list[int] = []
    shared: list[int] = []
    weights: list[float] = []
    prompt: tuple[int, ...] = ()
    whole = 0  # where the last whole segment begins
    weighted = any(example.weights is not None for example in examples)
    for owner, example in enumerate(examples):
        labelled = [place for place, label in enumerate(example.labels) if label != IGNORE_INDEX and place > 0]
        end = max(labelled, default=len(example.input_ids))
        skipped = len(prompt) if (own := prompt_of(example)) == prompt else 0
        if not skipped:
            prompt, whole = own, len(ids)
        start = len(ids) - skipped  # where its first token would be
        targets += [example.labels[place] for place in labelled]
        weights += [weights_of(example)[place] for place in labelled] if weighted else []
        predictors += [(whole if place <= skipped else start) + place - 1 for place in labelled]
        owners += [owner] * len(labelled)
        ids += example.input_ids[skipped:end]
        positions += range(skipped, end)
        lengths.append(end - skipped)
        shared.append(skipped)
    columns = (targets, predictors, owners)
    targets_, predictors_, owners_ = (torch.tensor(each, dtype=torch.int64, device=device) for each in columns)
    input_ids, position_ids = (torch.tensor([each], device=device) for each in (ids, positions))
    given = torch.tensor(weights, device=device) if weighted else None
    return Pack(input_ids, position_ids, targets_, predictors_, owners_, tuple(lengths), tuple(shared), given)


def _start_of_reply(example: EncodedExample) -> int:
    places = range(1, len(example.labels))
    return next((place for place in places if example.labels[place] != IGNORE_INDEX), len(example.labels))
