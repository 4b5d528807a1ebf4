"""The files that a configuration names, before anything runs: whether they are there, and what a row of them is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsteer.cli.paths import is_read
from gradsteer.cli.stages import leaves
from gradsteer.data.chat_formats import check_first_row
from gradsteer.data.row_files import SUFFIXES
from gradsteer.data.sources import DataSource
from gradsteer.records import resolve_resource

_FILES = (*SUFFIXES, ".safetensors", ".yaml")
_OF_CHATS = ("data.train", "data.validation", "evaluation.heldout")
_OF_PROMPTS = ("data.prompts", "data.benign_prompts", "data.harmful_prompts")


def check_inputs(config: Mapping[str, Any], output_dir: Path) -> None:
    """Looks at the files that a command will read, as far as they cannot come from an earlier stage.

    Args:
        config: of the command; values in the output directory, or by its placeholders, may not be there yet.
        output_dir: where the earlier stages leave theirs.

    Raises:
        ValueError: a file is not there, or its first row has no shape that the option takes; names option and file.
    """
    for key, value in leaves(config):
        if not isinstance(value, str) or not is_read(key) or not value.endswith(_FILES) or _comes(value, output_dir):
            continue
        if not os.path.exists(resolve_resource(value)):
            raise ValueError(f"--{key} is {value!r}: no such file; accepted: a file that is there, or that an earlier "
                             "stage leaves in {output_dir}")  # fmt: skip
    for key, prompts in (*((key, False) for key in _OF_CHATS), *((key, True) for key in _OF_PROMPTS)):
        group, _, name = key.partition(".")
        given = (config.get(group) or {}).get(name)
        source: Any = DataSource(**given) if isinstance(given, dict) else given
        if source is None or _comes(getattr(source, "path", source), output_dir):
            continue
        try:
            check_first_row(source, (config[group] or {}).get("columns"), prompts=prompts)
        except ValueError as error:
            raise ValueError(f"--{key}: {error}") from error


def _comes(value: str, output_dir: Path) -> bool:
    """Whether a file may come from an earlier stage."""
    there = os.path.abspath(value).startswith(os.path.abspath(output_dir) + os.sep)
    return "{output_dir}" in value or "{input_dir}" in value or there
