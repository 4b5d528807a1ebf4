"""What the metadata of a vector that is made of others says: what they share, and the prompts of all of them."""

import json
from collections.abc import Mapping


def contrast_metadata(plus: Mapping[str, str], minus: Mapping[str, str], names: tuple[str, str]) -> dict[str, str]:
    """What two gradients share, and of each side its pile, its size and the verdicts that made it (``where``).

    Of weighed piles the effective sample size, too.
    """
    metadata = {key: value for key, value in plus.items() if minus.get(key) == value}
    for key in ("pile", "where", "effective_sample_size"):
        metadata.pop(key, None)
    for side, name, gradient in zip(("plus", "minus"), names, (plus, minus), strict=True):
        metadata[side] = name
        metadata[f"{side}_num_examples"] = gradient.get("num_examples", "")
        for key in ("where", "effective_sample_size"):
            if key in gradient:
                metadata[f"{side}_{key}"] = gradient[key]
    return {**metadata, **merged_prompts(plus, minus)}


def merged_prompts(*sources: Mapping[str, str]) -> dict[str, str]:
    """Metadata of the prompts that all of them were made on; it is marked incomplete where one does not say its own."""
    said = [source for source in sources if "prompt_digests" in source]
    digests = sorted({digest for source in said for digest in json.loads(source["prompt_digests"])})
    whole = len(said) == len(sources) and not any("prompt_digests_incomplete" in source for source in said)
    return {"prompt_digests": json.dumps(digests), **({} if whole else {"prompt_digests_incomplete": "true"})}


def num_prompts_text(metadata: Mapping[str, str]) -> str | None:
    """How many different prompts a vector was made on: ``100``, or ``at least 100``; None where it does not say."""
    if "prompt_digests" not in metadata:
        return None
    number = str(len(json.loads(metadata["prompt_digests"])))
    return f"at least {number}" if "prompt_digests_incomplete" in metadata else number
