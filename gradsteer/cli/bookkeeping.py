"""What a command line leaves beside its artifacts: a config that replays it, and the record of its stage."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from gradsteer.cli.stages import Stage
from gradsteer.locks import locked
from gradsteer.provenance import git_sha
from gradsteer.records import write_text
from gradsteer.trainer.callbacks.run_locks import LockHolder
from gradsteer.trainer.session import is_trial
from gradsteer.version import __version__


class AlreadyDoneError(Exception):
    """The same command has finished in this directory before."""


class SaveReplayableConfig(SaveConfigCallback):
    """Saves the configuration beside the logs; its first line says how to run it again."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes config.yaml to the logger's directory, or to OUTPUT_DIR/COMMAND without a logger."""
        command = self.parser.command.name  # type: ignore[attr-defined]
        directory = trainer.logger.log_dir if trainer.logger is not None else None
        path = Path(directory or Path(self.config["output_dir"]) / command) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        if _is_default_logger(config):  # a replay into another directory logs there
            config["trainer"]["logger"] = None
        if config["trainer"]["default_root_dir"] == config["output_dir"]:
            config["trainer"]["default_root_dir"] = None
        config["overwrite"] = False  # nor does it replace anything unasked
        # what was parsed is valid: checking every value again takes as long as parsing it
        text = self.parser.dump(config, skip_none=False, skip_link_targets=True, skip_check=True)
        head = f"# replay: python -m gradsteer {command} --config {path}\n# made by gradsteer {__version__} {git_sha()}"
        write_text(path, f"{head.rstrip()}\n{text}")


class ExclusiveStage(LockHolder):
    """Keeps others from a stage, where its command has no finer locks."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Takes the lock, before the model is loaded.

        Raises:
            ValueError: another command is at work on the stage, or has finished it with another configuration.
            AlreadyDoneError: another command has finished it with this one.
        """
        if not is_trial(trainer):
            path = self.stage.path.parent / ".locks" / f"{self.stage.key}.lock"
            self.hold(trainer, [locked(path, repr(self.stage.key), self.stage.directory)])


class StageRecord(L.Callback):
    """Notes that a command started when its first batch does: bad input found before that leaves no record."""

    def __init__(self, stage: Stage, config: dict[str, Any], inputs: dict[str, str]) -> None:
        self.stage, self.config, self.inputs = stage, config, inputs
        self._written = False

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and not self._written and not is_trial(trainer):
            self.stage.write(self.config, finished=False, inputs=self.inputs)
        self._written = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Notes the start of a finetune."""
        self._write(trainer)

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Notes the start of the commands on the test loop."""
        self._write(trainer)


def check_stage(stage: Stage, config: dict[str, Any], *, overwrite: bool) -> None:
    """Decides whether a command may run.

    Raises:
        AlreadyDoneError: it has finished before with this configuration and these inputs.
        ValueError: the directory holds what another configuration, or other input files, made.
    """
    state = stage.state(config)
    if state == "done" and not overwrite:
        raise AlreadyDoneError(stage.key)
    if state in ("other", "changed") and not overwrite:
        what = "another configuration of" if state == "other" else "other input files for"
        differs = stage.difference(config)
        raise ValueError(
            f"{str(stage.directory)!r} holds the results of {what} {stage.key!r}"
            f"{f', which differs in {differs}' if differs else ''}; choose another --output_dir (with "
            f"--input_dir {stage.directory} to read from this one), or replace them with --overwrite true"
        )


def _is_default_logger(config: Any) -> bool:
    logger = config["trainer"]["logger"]
    arguments = getattr(logger, "init_args", None)
    return arguments is not None and arguments.get("save_dir") == config["output_dir"]
