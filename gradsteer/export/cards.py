"""The model card (README.md) of an export: what it is, in words that a reader who has never heard of us understands.

Texts that come from files are shown in a fenced block and can neither end it nor become markup; of local paths the
last part is shown.
"""

import re
from collections.abc import Mapping, Sequence

import yaml

from gradsteer.export.inputs import Steering, is_hub_id, shown_name
from gradsteer.vectors.metadata import num_prompts_text
from gradsteer.version import __version__

_FROM_THE_VECTOR = (
    *("plus", "minus", "plus_num_examples", "minus_num_examples", "reduction", "loss", "loss_mask", "contrast"),
    *("points", "path_points", "mask_draws", "parameters", "dtype", "precision", "derivation"),
    *("model_fingerprint", "base_fingerprint", "adapter_fingerprint", "quantization", "tokenizer_digest"),
    *("split_half_cosine", "gradsteer_version", "git_sha"),
)
_LONGEST = 300
SERVED = (
    "The model's generation_config sets what servers and generate() do unless told otherwise. Rates that were measured "
    "on samples of the model's own distribution (gradsteer's default) are not those of a model served so:"
)


def card(
    steering: Steering, *, title: str, library: str, tags: Sequence[str], numbers: Mapping[str, str], usage: str
) -> str:
    """The text of a model card.

    Args:
        steering: what was exported.
        title: a heading.
        library: the Hugging Face library that loads it.
        tags: for the hub.
        numbers: a name and what it says, in order: what was lost on the way.
        usage: Python code.
    """
    front = {"library_name": library, "pipeline_tag": "text-generation", "tags": ["gradsteer", *tags]}
    if is_hub_id(steering.model_name):
        front["base_model"] = steering.model_name  # a directory's name would be read as a hub id
    step = {
        "model": shown_name(steering.model_name),
        "vector": shown_name(steering.vector_file),
        "alpha": repr(steering.alpha),
        "transforms": ", ".join(steering.transforms) or "none",
        "norm of V": f"{steering.vector.norm():.6g}",
    }
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    direction = "raises the loss of the PLUS pile and reduces its behavior" if steering.alpha > 0 else (
        "lowers the loss of the PLUS pile and raises its behavior"
    )  # fmt: skip
    return "\n".join(
        [
            f"---\n{head}---\n",
            f"# {title}\n",
            f"The step `theta + alpha * V`, exported by gradsteer {__version__}. V is a steering vector, "
            "the mean gradient of the loss over a pile of responses (PLUS) less that over another pile (MINUS), on the "
            "model theta. Positive alpha raises the PLUS pile's loss and reduces its behavior, negative alpha raises "
            f"the behavior; the alpha here, {steering.alpha:g}, {direction}.\n",
            _fenced(step),
            "## What was lost on the way\n",
            _fenced(numbers),
            *_served(steering),
            "## What the vector's file says\n",
            _fenced(vector_facts(steering)),
            f"## Use\n\n```python\n{usage}```\n",
            "This card does not say how often the model shows the behavior before and after: measure it.\n",
        ]
    )


def _served(steering: Steering) -> list[str]:
    """What the model's generation_config sets, where it sets something."""
    found = steering.served
    return ["## How it is served\n", f"{SERVED}\n", _fenced({"sets": ", ".join(found)})] if found else []


def vector_facts(steering: Steering) -> dict[str, str]:
    """What a vector's metadata says of where it comes from; only known keys, so that nothing unforeseen travels."""
    metadata = steering.vector.metadata
    facts = {key: metadata[key] for key in _FROM_THE_VECTOR if metadata.get(key)}
    if metadata.get("model"):
        facts["model"] = shown_name(metadata["model"])
    if (number := num_prompts_text(metadata)) is not None:
        facts["num_prompts"] = number
    return facts


def _fenced(rows: Mapping[str, str]) -> str:
    """Names and texts in a block that none of them can end."""
    width = max(map(len, rows), default=0)
    lines = [f"{name:<{width}}  {_one_line(text)}" for name, text in rows.items()]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence + "text", *lines, fence, ""])


def _one_line(text: str) -> str:
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."
