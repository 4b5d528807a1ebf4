"""Keeping the prompts that vectors are measured on apart from those that they were made on."""

import json
from collections.abc import Collection, Mapping

from lightning.pytorch.utilities import rank_zero_info

from gradsteer.vectors import SteeringVector


def refuse_overlap(vectors: Mapping[str, SteeringVector], prompts: Collection[str], *, faithful: bool) -> None:
    """Refuses prompts that a vector was made on, or says so where they were asked for.

    Args:
        vectors: by name.
        prompts: digests of the prompts that they are measured on; see `gradsteer.response_rows.prompt_digest`.
        faithful: measure them there all the same, as the research note did.

    Raises:
        ValueError: prompts are shared, and that was not asked for.
    """
    for name, vector in vectors.items():
        shared = set(prompts) & set(json.loads(vector.metadata.get("prompt_digests", "[]")))
        if not shared:
            continue
        text = (
            f"vector {name} was made on responses to {len(shared)} of the {len(set(prompts))} prompts that it is "
            "measured on: its effect looks larger there than on prompts that it has not seen"
        )
        if not faithful:
            raise ValueError(f"{text}. Give other prompts, or take them all the same: --steering.seed_faithful true")
        rank_zero_info(text)
