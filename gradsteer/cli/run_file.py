"""A run file, read: an experiment's stages in order, each an ordinary command with its config."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradsteer.cli.commands import COMMANDS
from gradsteer.config_files import read_config
from gradsteer.nearest import did_you_mean

_KEYS = ("experiment", "base_model", "input_dir", "judge", "environment", "stages")


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run.

    Attributes:
        name: of the stage, for messages.
        command: the gradsteer command.
        config: its config file.
        values: what the config file holds.
        overrides: command-line options that the run adds.
        unneeded: why the stage is left out, or an empty string.
        environment: variables of its process, where the user has not set them.
    """

    name: str
    command: str
    config: Path
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    unneeded: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def artifact(self) -> str | None:
        """The name of what the stage makes, where its command names it."""
        named = COMMANDS[self.command].named
        return str(self.values.get("name", named)) if named is not None else None

    def words(self, overwrite: bool) -> list[str]:
        """The stage's command and its options, as behind ``gradsteer``."""
        words = [self.command, "--config", str(self.config), *self.overrides]
        return [*words, "--overwrite", "true"] if overwrite and "--overwrite" not in words else words


@dataclass(frozen=True)
class Run:
    """An experiment, planned.

    Attributes:
        directory: where all artifacts go.
        stages: in order.
        base_model: that it starts from; None where the run file does not say.
    """

    directory: Path
    stages: tuple[PlannedStage, ...]
    base_model: str | None = None


def read_run(
    path: Path,
    *,
    output_dir: str | None = None,
    input_dir: str | None = None,
    base_model: str | None = None,
    judge: Path | None = None,
    extra: Sequence[str] = (),
) -> Run:
    """Reads a run file and plans its stages.

    Args:
        path: YAML with ``experiment``, ``stages: [{name, command, config}, ...]``; where the base model is to be
            replaceable, ``base_model``; where the run goes on from another, that one's directory as ``input_dir``; for
            another judge than its stages' configs name, ``judge``, a config that they are given after their own; and,
            if wanted, ``environment``, variables for the stages' processes, which a stage may have of its own, too.
            Configs are found beside the run file.
        output_dir: where all artifacts go; ``lightning_logs/EXPERIMENT`` by default.
        input_dir: takes the place of the run file's ``input_dir``.
        base_model: takes the place of the run file's base model in every stage that starts from it; a stage that
            only makes the base is left out.
        judge: config that evaluate and steer are given after their own: another judge, in place of the run file's.
        extra: options for every Trainer stage, such as ``["--trainer.accelerator", "gpu"]``.

    Raises:
        ValueError: the file is not a run file; names the stage and the key.
        FileNotFoundError: the run file or a stage's config does not exist.
    """
    output_dir, input_dir, base_model = (
        None if given is None else os.path.expanduser(given) for given in (output_dir, input_dir, base_model)
    )
    run = read_config(path, "a run file")
    unknown = sorted(map(str, set(run) - set(_KEYS)))
    if unknown:
        key = unknown[0]
        raise ValueError(f"{path}: unknown key {key!r}{did_you_mean(key, _KEYS)}; accepted: {', '.join(_KEYS)}")
    experiment, stages = run.get("experiment"), run.get("stages")
    if not isinstance(experiment, str) or not isinstance(stages, list) or not stages:
        raise ValueError(f"{path}: a run file has `experiment: NAME` and a list of `stages`")
    environment = _environment(run, str(path))
    directory = Path(output_dir or Path("lightning_logs") / experiment)
    declared = run.get("base_model")
    if base_model is not None and declared is None:
        raise ValueError(f"{path}: the run file has no base_model that --model.model_name_or_path could replace")
    if input_dir is None and run.get("input_dir") is not None:
        input_dir = os.path.expanduser(str(run["input_dir"]))
    if judge is None and run.get("judge") is not None:
        judge = path.parent / os.path.expanduser(str(run["judge"]))
    planned: list[PlannedStage] = []
    for index, stage in enumerate(stages):
        where = f"{path}: stage {index + 1}"
        if not isinstance(stage, dict) or set(stage) - {"environment"} != {"name", "command", "config"}:
            raise ValueError(f"{where} is {stage!r}; accepted: {{name, command, config}}, and environment if wanted")
        if not all(isinstance(stage[key], str) for key in ("name", "command", "config")):
            raise ValueError(f"{where} is {stage!r}; accepted: texts for name, command and config")
        known = [name for name in COMMANDS if name != "run"]
        if stage["command"] not in known:
            hint = did_you_mean(stage["command"], known)
            raise ValueError(f"{where} has command {stage['command']!r}{hint}; accepted: {', '.join(known)}")
        if stage["name"] in [other.name for other in planned]:
            raise ValueError(f"{where}: a second stage is called {stage['name']!r}")
        config = path.parent / os.path.expanduser(stage["config"])
        values = read_config(config, f"the config of stage {stage['name']!r}")
        overrides = ["--output_dir", str(directory), "--experiment", experiment]
        if input_dir is not None and COMMANDS[stage["command"]].module:
            overrides += ["--input_dir", str(input_dir)]
        unneeded = ""
        if base_model is not None:
            overrides += _replace_base(values, str(declared), base_model)
            if stage["command"] == "fit" and str(declared) == f"{{output_dir}}/{values.get('name', 'anchor')}":
                unneeded = f"the base model is {base_model}"
        if judge is not None and stage["command"] in ("evaluate", "steer"):
            overrides += ["--config", str(judge)]
            values = {**values, "--judge": read_config(judge, "the judge's config")}  # its content decides too
        if COMMANDS[stage["command"]].module:
            overrides += extra
        own = {**environment, **_environment(stage, where)}
        planned.append(PlannedStage(stage["name"], stage["command"], config, values, tuple(overrides), unneeded, own))
    return Run(directory, tuple(planned), base_model or declared)


def _environment(values: Mapping[str, Any], where: str) -> dict[str, str]:
    environment = values.get("environment", {})
    if not isinstance(environment, dict):
        raise ValueError(f"{where}: environment is {environment!r}; accepted: a mapping of names to values")
    return {str(key): str(value) for key, value in environment.items()}


def _replace_base(values: Mapping[str, Any], declared: str, base_model: str) -> list[str]:
    options = []
    for group, key in (("model", "model_name_or_path"), ("steering", "base")):
        if str(values.get(group, {}).get(key)).replace("{input_dir}", "{output_dir}") == declared:
            options += [f"--{group}.{key}", base_model]
    return options
