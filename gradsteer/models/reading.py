"""A model's files as transformers reads them: what it raises where they are not as save_pretrained writes them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from gradsteer.models.memory import is_out_of_memory

ACCEPTED = "a directory that save_pretrained wrote, or a hub id such as meta-llama/Llama-3.2-1B-Instruct"
# found by trying: cut or garbled files, configs whose values fit no model, tokenizers of a class that is not there
_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    ZeroDivisionError,
    AssertionError,
    EOFError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    pickle.UnpicklingError,
)


@contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """Around the library's own reading of a model's files: its errors name the model and what is accepted.

    Args:
        what: is read: config, tokenizer or model.
        name: directory or hub id of the model.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        yield
    except _BROKEN as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(_not_to_be_had(what, name, error)) from error


def _not_to_be_had(what: str, name: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # of a config that fits no model the field is in the first line and the reason in the second
    said = " ".join(lines[:2] if isinstance(error, StrictDataclassError) else lines[:1]).rstrip(".:")
    if isinstance(error, StrictDataclassError):
        what = "config"  # which a tokenizer is read by, too
    elif not isinstance(error, OSError | ValueError) or not said:  # KeyError: 'added_tokens'
        said = f"{type(error).__name__}: {said}"
    if Path(name).exists():
        return f"the {what} in {name!r} cannot be read: {said}; accepted: {ACCEPTED}"
    return f"no {what} {name!r}, neither as a directory here nor from the hub; accepted: {ACCEPTED} ({said})"
