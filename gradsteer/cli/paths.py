"""Which values of a configuration are paths, and the one way in which each of them is written.

``~`` is the home directory wherever a path is meant, and nowhere else: Lightning expands it by itself, Python does not.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace

_OUTPUT = "{output_dir}"
# the options that name files or directories that a command reads
_READ = re.compile(
    r"(^|\.)(model_name_or_path|gguf_file|config|tokenizer|train|validation|prompts|heldout|base|reference|responses)$"
    r"|(^|\.)(benign_prompts|harmful_prompts|labelled|rubrics|file|path)$|^evaluation\.judge\..*\b(model|directory)$"
    r"|(^|\.)(precondition|second_moment|vector_file|patterns|sampled_along)$|^steering\.forecast$"
    r"|^(steering\.vectors|steering\.control_vectors|data\.piles)\.[^.]+$"
)
# those where something goes to
_WRITTEN = re.compile(r"(^|\.)(output_dir|input_dir|default_root_dir|save_dir|dirpath|ckpt_path|store)$")


def is_read(key: str) -> bool:
    """Whether an option, by its dotted key, names a file or directory that its command reads."""
    return _READ.search(key) is not None


def expanded(key: str, text: str) -> str:
    """An option's value with ``~`` expanded, where the option names a path."""
    return os.path.expanduser(text) if text.startswith("~") and (is_read(key) or _WRITTEN.search(key)) else text


def one_spelling(text: str, directory: str | os.PathLike[str]) -> str:
    """A path as every other spelling of it is written, too: without links, dots and a slash at the end, from the root.

    Args:
        text: a value of a configuration; what is no path here, such as a hub id, stays as it is.
        directory: the output directory; a path in it begins with its placeholder, so that it may be moved.
    """
    path = text.replace(_OUTPUT, str(directory))
    if not os.path.exists(path):  # which takes a text too long for a name
        return text
    path, top = os.path.realpath(path), os.path.realpath(directory)
    return _OUTPUT + path.removeprefix(top) if path == top or path.startswith(top + os.sep) else path


def map_strings(value: Any, function: Callable[[str, str], str], key: str = "") -> Any:
    """The same configuration with every string in it replaced by the function's result.

    Args:
        value: a configuration, or a part of one.
        function: takes a string's dotted key, and the string.
        key: of the part.
    """
    if isinstance(value, str):
        return function(key, value)
    if isinstance(value, Namespace):
        return Namespace(**map_strings(vars(value), function, key))
    if isinstance(value, dict):
        below = f"{key}." if key else ""
        return {name: map_strings(inner, function, f"{below}{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [map_strings(inner, function, key) for inner in value]  # an entry is what the list is
    return value
