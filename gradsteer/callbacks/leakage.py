"""Keeping the prompts that vectors are measured on apart from those that they were made on."""

import json
from collections.abc import Collection, Mapping

from lightning.pytorch.utilities import rank_zero_info

from gradsteer.plans import Plan
from gradsteer.transforms import parse_transform
from gradsteer.vectors import SteeringVector

_KEY = "prompt_digests"
_FILE = "vector_file"  # argument of a transform that reads another vector

Sources = dict[str, Mapping[str, str]]


def read_sources(vectors: Mapping[str, SteeringVector], plan: Plan) -> Sources:
    """The metadata of every vector that goes into a plan: those steered with, of controls, baselines and transforms.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: it is no vector.
    """
    found: Sources = {f"vector {name}": vector.metadata for name, vector in vectors.items()}
    for _, recipe in plan:
        if recipe is None:
            continue
        arguments = [parse_transform(spec)[2] for spec in recipe.pipeline]
        files = [recipe.file, *(str(given[_FILE]) for given in arguments if _FILE in given)]
        found.update({f"vector {file!r}": SteeringVector.read_header(file) for file in files if file is not None})
    return found


def refuse_overlap(sources: Sources, prompts: Collection[str], *, faithful: bool) -> None:
    """Refuses prompts that a vector was made on, or says so where they were asked for, or where nobody can know.

    Args:
        sources: what a vector is called in messages -> its metadata; see `read_sources`.
        prompts: digests of the prompts that they are measured on; see `gradsteer.response_rows.prompt_digest`.
        faithful: measure them there all the same, as the research note did.

    Raises:
        ValueError: prompts are shared, and that was not asked for.
    """
    for name, metadata in sources.items():
        if prompts and _KEY not in metadata:
            rank_zero_info(
                f"{name} does not say which prompts it was made on: whether they are those that it is measured on, "
                "where its effect would look larger, could not be checked"
            )
            continue
        shared = set(prompts) & set(json.loads(metadata.get(_KEY, "[]")))
        if not shared:
            continue
        text = (
            f"{name} was made on responses to {len(shared)} of the {len(set(prompts))} prompts that it is "
            "measured on: its effect looks larger there than on prompts that it has not seen"
        )
        if not faithful:
            raise ValueError(f"{text}. Give other prompts, or take them all the same: --steering.seed_faithful true")
        rank_zero_info(text)
