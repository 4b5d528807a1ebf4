"""What a configuration needs from outside, before anything runs: files, their rows, the keys of judges' servers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsteer.cli.paths import is_read
from gradsteer.cli.stages import leaves
from gradsteer.data.chat_formats import check_first_row
from gradsteer.data.row_files import SUFFIXES
from gradsteer.data.sources import DataSource
from gradsteer.judges.checks import key_in, server_address
from gradsteer.records import resolve_resource

_FILES = (*SUFFIXES, ".safetensors", ".yaml")
_OF_CHATS = ("data.train", "data.validation", "evaluation.heldout")
_OF_PROMPTS = ("data.prompts", "data.benign_prompts", "data.harmful_prompts")


def check_inputs(config: Mapping[str, Any], output_dir: Path) -> None:
    """Looks at the files that a command will read, as far as they cannot come from an earlier stage, and at keys.

    Args:
        config: of the command; values in the output directory, or by its placeholders, may not be there yet.
        output_dir: where the earlier stages leave theirs.

    Raises:
        ValueError: a file is not there, or its rows have no shape that the option takes, or a judge's key is not set;
            names option and file.
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
    _check_keys((config.get("evaluation") or {}).get("judge"), "evaluation.judge")


def _check_keys(judge: Any, option: str) -> None:
    """Refuses a judge behind a server whose key is not set, and one in it; its answers are not asked for yet."""
    if not isinstance(judge, Mapping):
        return
    arguments = judge.get("init_args") or {}
    if str(judge.get("class_path")).endswith(".OpenAIJudge"):
        url = arguments.get("base_url")
        try:
            key_in(arguments["api_key_env"], None if url is None else server_address(url))
        except ValueError as error:
            raise ValueError(f"--{option}: {error}") from error
    _check_keys(arguments.get("judge"), f"{option}.judge")


def _comes(value: str, output_dir: Path) -> bool:
    """Whether a file may come from an earlier stage."""
    there = os.path.abspath(value).startswith(os.path.abspath(output_dir) + os.sep)
    return "{output_dir}" in value or "{input_dir}" in value or there
