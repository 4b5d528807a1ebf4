"""Keeping evaluation prompts apart from the prompts that vectors were made from."""

import json
from collections.abc import Collection, Mapping

from lightning.pytorch.utilities import rank_zero_info

from gradsteer.steering.condition_plan import Plan
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.preconditioning import SecondMoment
from gradsteer.vectors.transforms import parse_transform

_KEY = "prompt_digests"
_INCOMPLETE = "prompt_digests_incomplete"  # set if a combination's term, say, lacks its digests
_FILE, _MOMENT = "vector_file", "second_moment"  # arguments of transforms that read another vector, or a moment

Sources = dict[str, Mapping[str, str]]


def read_sources(vectors: Mapping[str, SteeringVector], plan: Plan) -> Sources:
    """The metadata of every file in a plan: vectors, controls, baselines, transforms' vectors and second moments.

    An optimizer's second moment is left out, because it has no prompts.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not a vector or a second moment.
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
    """Refuses evaluation prompts that a vector was made from; logs a note if that is allowed or cannot be checked.

    Args:
        sources: name of a vector, for messages -> its metadata; see `read_sources`.
        prompts: digests of the evaluation prompts; see `gradsteer.data.response_rows.prompt_digest`.
        faithful: allow the overlap, as in the research note.
        others: digests of further prompt sets by name, such as ``harmful``.

    Raises:
        ValueError: prompts overlap and `faithful` is false.
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
                "measured on: its effect looks larger there than on unseen prompts"
            )
            if not faithful:
                raise ValueError(f"{text}. Use other prompts, or allow the overlap: --steering.seed_faithful true")
            rank_zero_info(text)
        if any(sets.values()) and (_KEY not in metadata or _INCOMPLETE in metadata):
            rank_zero_info(
                f"{name} does not say which prompts it was made on{', not all of them' if _KEY in metadata else ''}: "
                "overlap with the evaluation prompts, where its effect would look larger, could not be checked"
            )
