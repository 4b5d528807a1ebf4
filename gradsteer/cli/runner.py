"""``gradsteer run``: an experiment as an ordered list of stages, each an ordinary command with its config.

Every stage runs as a child process, because DDP's launcher executes the command line again and so needs a real one.
A stage whose configuration and input files are those it left behind is skipped, said aloud. Knows of files and
processes only; imports nothing heavy.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gradsteer.cli.commands import COMMANDS
from gradsteer.cli.stages import Stage, read_record, write_record
from gradsteer.records import text_digest


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
    """

    name: str
    command: str
    config: Path
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    unneeded: str = ""

    @property
    def artifact(self) -> str | None:
        """The name of what the stage makes, where its command names it."""
        named = COMMANDS[self.command].named
        return str(self.values.get("name", named)) if named is not None else None

    def command_line(self, overwrite: bool) -> list[str]:
        """The child process."""
        words = [sys.executable, "-m", "gradsteer", self.command, "--config", str(self.config), *self.overrides]
        return [*words, "--overwrite", "true"] if overwrite else words


@dataclass(frozen=True)
class Run:
    """An experiment, planned.

    Attributes:
        directory: where all artifacts go.
        stages: in order.
        environment: variables of the stages' processes, where the user has not set them.
    """

    directory: Path
    stages: tuple[PlannedStage, ...]
    environment: Mapping[str, str]


def read_run(
    path: Path,
    *,
    output_dir: str | None = None,
    base_model: str | None = None,
    judge: Path | None = None,
    extra: Sequence[str] = (),
) -> Run:
    """Reads a run file and plans its stages.

    Args:
        path: YAML with ``experiment``, ``stages: [{name, command, config}, ...]``; where the base model is to be
            replaceable, ``base_model``; and optionally ``environment``, variables for the stages' processes.
            Configs are found beside the run file.
        output_dir: where all artifacts go; ``lightning_logs/EXPERIMENT`` by default.
        base_model: takes the place of the run file's base model in every stage that starts from it; a stage that
            only makes the base is left out.
        judge: config that evaluate and steer are given after their own: another judge.
        extra: options for every Trainer stage, such as ``["--trainer.accelerator", "gpu"]``.

    Raises:
        ValueError: the file is not a run file; names the stage and the key.
        FileNotFoundError: the run file or a stage's config does not exist.
    """
    run = _read_yaml(path, "a run file")
    experiment, stages = run.get("experiment"), run.get("stages")
    if not isinstance(experiment, str) or not isinstance(stages, list) or not stages:
        raise ValueError(f"{path}: a run file has `experiment: NAME` and a list of `stages`")
    unknown = set(run) - {"experiment", "stages", "base_model", "environment"}
    if unknown:
        accepted = "experiment, base_model, environment, stages"
        raise ValueError(f"{path}: unknown key {sorted(unknown)[0]!r}; accepted: {accepted}")
    environment = run.get("environment", {})
    if not isinstance(environment, dict):
        raise ValueError(f"{path}: environment is {environment!r}; accepted: a mapping of names to values")
    directory = Path(output_dir or Path("lightning_logs") / experiment)
    declared = run.get("base_model")
    if base_model is not None and declared is None:
        raise ValueError(f"{path}: the run file has no base_model that --model.model_name_or_path could replace")
    planned: list[PlannedStage] = []
    for index, stage in enumerate(stages):
        where = f"{path}: stage {index + 1}"
        if not isinstance(stage, dict) or set(stage) != {"name", "command", "config"}:
            raise ValueError(f"{where} is {stage!r}; accepted: {{name, command, config}}")
        if stage["command"] not in COMMANDS or stage["command"] == "run":
            accepted = ", ".join(name for name in COMMANDS if name != "run")
            raise ValueError(f"{where} has command {stage['command']!r}; accepted: {accepted}")
        if stage["name"] in [other.name for other in planned]:
            raise ValueError(f"{where}: a second stage is called {stage['name']!r}")
        config = path.parent / stage["config"]
        values = _read_yaml(config, f"the config of stage {stage['name']!r}")
        overrides = ["--output_dir", str(directory), "--experiment", experiment]
        unneeded = ""
        if base_model is not None:
            overrides += _replace_base(values, str(declared), base_model)
            if stage["command"] == "fit" and str(declared) == f"{{output_dir}}/{values.get('name', 'anchor')}":
                unneeded = f"the base model is {base_model}"
        if judge is not None and stage["command"] in ("evaluate", "steer"):
            overrides += ["--config", str(judge)]
            values = {**values, "--judge": _read_yaml(judge, "the judge's config")}  # its content decides too
        if COMMANDS[stage["command"]].module:
            overrides += extra
        planned.append(PlannedStage(stage["name"], stage["command"], config, values, tuple(overrides), unneeded))
    return Run(directory, tuple(planned), {str(key): str(value) for key, value in environment.items()})


def _replace_base(values: Mapping[str, Any], declared: str, base_model: str) -> list[str]:
    options = []
    for group, key in (("model", "model_name_or_path"), ("steering", "base")):
        if str(values.get(group, {}).get(key)).replace("{input_dir}", "{output_dir}") == declared:
            options += [f"--{group}.{key}", base_model]
    return options


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r} ({what})")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {what} is a mapping; found {type(values).__name__}")
    return values


def stage_state(directory: Path, stage: PlannedStage) -> str:
    """``done``, ``new``, ``stale`` (its inputs are other files by now) or ``other`` (another configuration)."""
    left = Stage.of(directory, COMMANDS[stage.command], stage.artifact)
    child = left.read()
    record = read_record(_record_path(directory, stage))
    if record is None or child is None or not child["finished"] or left.missing:
        return "new"
    if record["config_digest"] != _config_digest(stage):
        return "other"
    if record.get("child_digest") not in (None, child["config_digest"]):
        return "other"  # somebody ran the stage's command by hand, with other options
    found = {path: left.digest_of(path) for path in child["inputs"]}
    return "done" if found == child["inputs"] else "stale"


def run_stages(run: Run, *, overwrite: bool = False) -> int:
    """Runs what is not done yet, in order.

    Args:
        run: as `read_run` plans it.
        overwrite: replace stages that another configuration made.

    Returns:
        0, or the exit status of the stage that failed; the stages before it are kept.

    Raises:
        ValueError: a stage in the directory was made by another configuration and overwrite is off.
    """
    started = time.monotonic()
    directory, stages = run.directory, run.stages
    environment = {**run.environment, **os.environ}
    for stage in stages:
        if not stage.unneeded and stage_state(directory, stage) == "other" and not overwrite:
            raise ValueError(
                f"{str(directory)!r} holds a stage {stage.name!r} of another configuration; choose another "
                "--output_dir, or replace it (and what follows from it) with --overwrite true"
            )
    for index, stage in enumerate(stages, 1):
        head = f"[{index}/{len(stages)}] {stage.name} ({stage.command})"
        if stage.unneeded:
            _say(f"{head}: left out, {stage.unneeded}")
            continue
        state = stage_state(directory, stage)
        if state == "done":
            _say(f"{head}: done already, skipped")
            continue
        write_record(_record_path(directory, stage), {"config_digest": _config_digest(stage)})
        _say(f"{head}: {' '.join(stage.command_line(False)[3:])}")
        begun = time.monotonic()
        words = stage.command_line(overwrite or state == "stale")
        if state == "stale":
            _say(f"{head}: what it reads has changed since, so it runs again")
        try:
            status = subprocess.run(words, check=False, env=environment).returncode
        except KeyboardInterrupt:
            _say(f"{head}: interrupted; the same command goes on with this stage")
            return 130
        if status != 0:
            _say(f"{head}: failed with status {status}; the same command goes on with this stage")
            return status if status > 0 else 1
        child = Stage.of(directory, COMMANDS[stage.command], stage.artifact).read() or {}
        digests = {"config_digest": _config_digest(stage), "child_digest": child.get("config_digest")}
        write_record(_record_path(directory, stage), digests)
        _say(f"{head}: finished in {time.monotonic() - begun:.0f} s")
    _say(f"all {len(stages)} stages done in {time.monotonic() - started:.0f} s; artifacts in {directory}")
    return 0


def _record_path(directory: Path, stage: PlannedStage) -> Path:
    return directory / "stages" / f"run-{re.sub(r'[^A-Za-z0-9_.-]+', '_', stage.name)}.json"


def _config_digest(stage: PlannedStage) -> str:
    """Digest of a stage's options, whatever the output directory is called."""
    kept = list(stage.overrides)
    place = kept.index("--output_dir")
    del kept[place : place + 2]
    return text_digest(json.dumps([stage.command, stage.values, kept], sort_keys=True, default=str))


def _say(text: str) -> None:
    print(f"gradsteer run {text}", flush=True)


def main(args: Sequence[str]) -> int:
    """Runs an experiment from the command line.

    Args:
        args: the options; what follows ``--`` goes to every Trainer stage.
    """
    from jsonargparse import ArgumentParser

    words, extra = list(args), []
    if "--" in words:
        words, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = ArgumentParser(
        prog="gradsteer run",
        description="Runs an experiment: an ordered list of stages, each an ordinary command with its config. Stages "
        "that are done are skipped; a run that was cut off goes on with the same command. Options after -- go to "
        "every Trainer stage, such as: -- --trainer.accelerator gpu",
    )
    parser.add_argument("--config", type=str, required=True, help="the run file (YAML).")
    parser.add_argument("--output_dir", type=str | None, help="where all artifacts go; lightning_logs/EXPERIMENT.")
    parser.add_argument(
        "--model.model_name_or_path",
        type=str | None,
        help="another base model (hub id or directory) for every stage that starts from the run's base model.",
    )
    parser.add_argument(
        "--judge",
        type=str | None,
        help="config of another judge for all stages that judge, such as configs/judges/hybrid.yaml.",
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="replace stages of another configuration.")
    parser.add_argument("--dry_run", type=bool, default=False, help="only say what would run.")
    options = parser.parse_args(words)
    run = read_run(
        Path(options.config),
        output_dir=options.output_dir,
        base_model=options.model.model_name_or_path,
        judge=None if options.judge is None else Path(options.judge),
        extra=extra,
    )
    if options.dry_run:
        for stage in run.stages:
            state = f"left out, {stage.unneeded}" if stage.unneeded else stage_state(run.directory, stage)
            print(f"{stage.name:<18} {state:<8} {' '.join(stage.command_line(False)[3:])}")
        return 0
    return run_stages(run, overwrite=options.overwrite)
