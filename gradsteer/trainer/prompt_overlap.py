"""Keeping the prompts that vectors are measured on apart from those that they were made on."""

import json
from collections.abc import Collection, Mapping

from lightning.pytorch.utilities import rank_zero_info

from gradsteer.steering.condition_plan import Plan
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.preconditioning import SecondMoment
from gradsteer.vectors.transforms import parse_transform

_KEY = "prompt_digests"
_INCOMPLETE = "prompt_digests_incomplete"  # there where a sum's part, say, did not say its own
_FILE, _MOMENT = "vector_file", "second_moment"  # arguments of transforms that read another vector, or a moment

Sources = dict[str, Mapping[str, str]]


def read_sources(vectors: Mapping[str, SteeringVector], plan: Plan) -> Sources:
    """The metadata of all that goes into a plan: vectors steered with, of controls, baselines and transforms, moments.

    A second moment that comes from an optimizer is left out: it knows of no prompts.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: it is no vector, or no second moment.
    """
    found: Sources = {f"vector {name}": vector.metadata for name, vector in vectors.items()}
    for _, recipe in plan:
        if recipe is None:
            continue
        arguments = [parse_transform(spec)[2] for spec in recipe.pipeline]
        files = [recipe.file, *(str(given[_FILE]) for given in arguments if _FILE in given)]
        found.update({f"vector {file!r}": SteeringVector.read_header(file) for file in files if file is not None})
        moments = {
            path: SecondMoment.read_header(path) for path in (str(g[_MOMENT]) for g in arguments if _MOMENT in g)
        }
        found.update({f"second moment {p!r}": said for p, said in moments.items() if SecondMoment.is_of_prompts(said)})
    return found


def refuse_overlap(
    sources: Sources,
    prompts: Collection[str],
    *,
    faithful: bool,
    others: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Refuses prompts that a vector was made on, or says so where they were asked for, or where nobody can know.

    Args:
        sources: what a vector is called in messages -> its metadata; see `read_sources`.
        prompts: digests of the prompts that they are measured on; see `gradsteer.data.response_rows.prompt_digest`.
        faithful: measure them there all the same, as the research note did.
        others: the digests of further sets of prompts by the set's name, such as ``harmful``.

    Raises:
        ValueError: prompts are shared, and that was not asked for.
    """
    sets = {"prompts": set(prompts), **{f"{name} prompts": set(other) for name, other in (others or {}).items()}}
    for name, metadata in sources.items():
        made_on = set(json.loads(metadata.get(_KEY, "[]")))
        for kind, digests in sets.items():
            shared = digests & made_on
            if not shared:
                continue
            text = (
                f"{name} was made on responses to {len(shared)} of the {len(digests)} {kind} that it is "
                "measured on: its effect looks larger there than on prompts that it has not seen"
            )
            if not faithful:
                raise ValueError(
                    f"{text}. Give other prompts, or take them all the same: --steering.seed_faithful true"
                )
            rank_zero_info(text)
        if any(sets.values()) and (_KEY not in metadata or _INCOMPLETE in metadata):
            rank_zero_info(
                f"{name} does not say which prompts it was made on{', not all of them' if _KEY in metadata else ''}: "
                "whether they are those that it is measured on, where its effect would look larger, could not be "
                "checked"
            )
