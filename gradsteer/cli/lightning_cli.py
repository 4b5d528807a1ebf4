"""The command line of the Trainer commands: one LightningCLI, driven by the command table.

Uses LightningCLI's public hooks only: a parser class that is told its command, and core arguments added from the
table. Everything else about a command is in `gradsteer.cli.commands`.
"""

import importlib
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.cli.accepted import accepted
from gradsteer.cli.bookkeeping import AlreadyDoneError, ExclusiveStage, SaveReplayableConfig, StageRecord, check_stage
from gradsteer.cli.commands import COMMANDS, TRAINER_COMMANDS, TRAINER_DEFAULTS, Command
from gradsteer.cli.input_files import check_inputs
from gradsteer.cli.paths import expanded, map_strings
from gradsteer.cli.stages import Stage, judge_settings
from gradsteer.cli.warning_filters import quieten
from gradsteer.data.sources import DataSource
from gradsteer.models.exact import exact_device
from gradsteer.models.threads import advice_on_threads
from gradsteer.options import LineErrors
from gradsteer.records import check_writable
from gradsteer.steering.conditions import check_name
from gradsteer.trainer.callbacks.saving import SavePretrained
from gradsteer.trainer.dry_run import DryRunDoneError
from gradsteer.trainer.room import RoomCheck
from gradsteer.trainer.session import is_trial, session_of
from gradsteer.trainer.trainer import GradsteerTrainer
from gradsteer.trainer.trainer_options import check_checkpoint

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class CommandParser(LineErrors, LightningArgumentParser):
    """A parser that knows which command it parses (None for the parser above the commands)."""

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command = COMMANDS[command] if command else None

    def takes(self, key: str) -> str | None:
        """What an option takes, where it is known here."""
        return accepted(key)


class GradsteerCLI(LightningCLI):
    """LightningCLI with the project's commands; see `gradsteer.cli.commands`."""

    command_names: tuple[str, ...] = TRAINER_COMMANDS
    held: ExitStack  # locks, until the command has finished
    _parsers: ClassVar[dict[tuple[str, ...], dict[str, Any]]] = {}

    def setup_parser(self, *args: Any) -> None:
        """Builds the commands' parser, once in a process: a run parses many command lines, and each one twice."""
        if self.command_names not in self._parsers:
            before = set(vars(self))
            super().setup_parser(*args)
            self._parsers[self.command_names] = {key: value for key, value in vars(self).items() if key not in before}
        vars(self).update(self._parsers[self.command_names])

    def parse_arguments(self, *args: Any) -> None:
        """Parses, and refuses what Lightning takes from the options before it makes anything: seed and checkpoint."""
        super().parse_arguments(*args)
        config = self.config[self.config["subcommand"]]
        seed = config["seed_everything"]
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise ValueError(f"--seed_everything is {seed}; accepted: from 0 to {2**32 - 1}")
        if config.get("ckpt_path") is not None:
            check_checkpoint(config["ckpt_path"])

    def _dump_config(self) -> None:
        """Leaves out what Lightning would give to `save_hyperparameters`, which no module calls; it takes long."""
        self.config_dump: dict[str, Any] = {}

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer methods on the command line, and their parameters that are no options."""
        given = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "verbose"}
        return {name: given | {"ckpt_path", "weights_only"} - _resumable(name) for name in _selected()}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the command's trainer, module, data and callbacks, and its defaults, from the table."""
        command = parser.command  # type: ignore[attr-defined]
        if command is None:
            return
        parser.add_argument(
            "--output_dir",
            type=str | None,
            default=None,
            help="where the artifacts go; lightning_logs/EXPERIMENT by default. Config values may refer to it as "
            "{output_dir}.",
        )
        parser.add_argument(
            "--input_dir",
            type=str | None,
            default=None,
            help="where the earlier stages' artifacts are; the output directory by default. Config values may refer to "
            "it as {input_dir}.",
        )
        parser.add_argument("--experiment", type=str, default="default", help="name of the experiment, for reports.")
        if command.named is not None:
            parser.add_argument("--name", type=str, default=command.named, help="name of the artifact in output_dir.")
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="replace what another configuration of this command left in output_dir.",
        )
        parser.add_lightning_class_args(load(command.module), "model")
        parser.add_lightning_class_args(load(command.data), "data")
        for group, target in command.options.items():
            parser.add_class_arguments(load(target), group)
        for group, target in command.callbacks.items():
            parser.add_lightning_class_args(load(target), group)
        if {"preflight.dry_run", "model.dry_run"} & {action.dest for action in parser._actions}:
            parser.add_argument(
                "--dry_run",
                type=bool,
                default=False,
                help="evaluate, steer: only print how much would be sampled, and an estimate of the judging cost. "
                "attribute: only load the model and print the memory plan.",
            )
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for action in parser._actions:
            if DataSource.__name__ in str(getattr(action, "_typehint", "")):
                action._enable_path = False  # type: ignore[attr-defined]  # a data file is not the option's own config
        parser.set_defaults({**TRAINER_DEFAULTS, **command.defaults})
        _link(parser, command)

    def before_instantiate_classes(self) -> None:
        """Fills in the output directory and the default logger, and stops where there is nothing to do."""
        command = COMMANDS[str(self.subcommand)]
        config = map_strings(self.config[command.name], expanded)
        output_dir = output_directory(config)
        config["output_dir"] = str(output_dir)
        check_writable(output_dir, "--output_dir")
        input_dir = config["input_dir"] or "{output_dir}"
        self.stage = Stage.of(output_dir, command, config.get("name"))

        def fill(_key: str, text: str) -> str:
            return text.replace("{input_dir}", input_dir).replace("{output_dir}", str(output_dir))

        def unfill(_key: str, text: str) -> str:
            inside = text.startswith(f"{output_dir}/")
            return "{output_dir}" + text.removeprefix(str(output_dir)) if inside else text

        self.config[command.name] = config = map_strings(config, fill)
        if command.named is not None:
            check_name("the artifact (--name)", config["name"])
        # the record holds paths in the output directory by its placeholder, so that the directory may be moved
        self.stage_config = map_strings(config.clone().as_dict(), unfill)
        self.stage_config.pop("config", None)
        self.inputs = self.stage.inputs(self.stage_config)
        if command.outputs and not config.get("dry_run"):
            check_stage(self.stage, self.stage_config, overwrite=config["overwrite"])
        if config.get("dry_run"):
            config["trainer"]["logger"] = False
        elif config["trainer"]["logger"] in (None, True):
            arguments = Namespace(save_dir=str(output_dir), name=command.name, default_hp_metric=False)
            path = "lightning.pytorch.loggers.TensorBoardLogger"
            config["trainer"]["logger"] = Namespace(class_path=path, init_args=arguments)
        if config["trainer"]["default_root_dir"] is None:
            config["trainer"]["default_root_dir"] = str(output_dir)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds the callback that notes the start of the work."""
        callbacks = self.config_init[str(self.subcommand)]["trainer"]["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        command = COMMANDS[str(self.subcommand)]
        if command.outputs:
            locks = [] if "preflight" in command.callbacks else [ExclusiveStage(self.stage)]
            callbacks = [*callbacks, *locks, StageRecord(self.stage, self.stage_config, self.inputs)]
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        options = self.config[command.name]
        trainer.callbacks.append(RoomCheck(command.name, options, Path(options["output_dir"])))  # type: ignore[attr-defined]  # last of all setups
        device = trainer.strategy.root_device
        if exact_device(device) != device and self.config[command.name]["model"].get("dtype") == "float64":
            raise ValueError(
                f"--model.dtype is float64, which {device.type} does not have; accepted: float32, or "
                "--trainer.accelerator cpu"
            )
        if device.type == "cpu" and trainer.is_global_zero and (advice := advice_on_threads()) is not None:
            rank_zero_info(advice)
        session = session_of(trainer)
        session.held = self.held
        overwrite = self.config[command.name]["overwrite"]
        if command.outputs:
            session.check_again = partial(check_stage, self.stage, self.stage_config, overwrite=overwrite)
        session.judge_settings = judge_settings((self.stage_config.get("evaluation") or {}).get("judge"))
        return trainer

    def before_fit(self) -> None:
        """Resumes a finetune that was cut off, from the checkpoint that it kept."""
        options = self.config_init["fit"]
        kept = next((c.checkpoint for c in self.trainer.callbacks if isinstance(c, SavePretrained)), None)  # type: ignore[attr-defined]
        if kept is None or not kept.is_file() or options["ckpt_path"] is not None:
            return
        if options["overwrite"] or self.stage.state(self.stage_config) != "unfinished":
            kept.unlink()
            return
        rank_zero_info(f"resuming from {kept}")
        options["ckpt_path"], options["weights_only"] = str(kept), True  # tensors only: nothing is unpickled

    def finish(self) -> None:
        """Notes that the command finished."""
        outputs = COMMANDS[str(self.subcommand)].outputs
        if self.trainer.is_global_zero and not is_trial(self.trainer) and outputs:
            self.stage.write(self.stage_config, finished=True, inputs=self.inputs)
            for work in session_of(self.trainer).unfinished:
                work.finish()


class ParsedError(Exception):
    """A command line is accepted, and no more was asked."""


class ParsingCLI(GradsteerCLI):
    """Parses a command line; does nothing else."""

    parsed: ClassVar[dict[str, Any]] = {}  # the last one

    def parse_arguments(self, *args: Any) -> None:
        """Parses.

        Raises:
            ParsedError: it is accepted.
        """
        super().parse_arguments(*args)
        ParsingCLI.parsed = map_strings(self.config[self.config["subcommand"]], expanded).as_dict()
        raise ParsedError


class CheckingCLI(ParsingCLI):
    """Looks also at what the command line needs from outside."""

    def parse_arguments(self, *args: Any) -> None:
        """Parses, and looks.

        Raises:
            ParsedError: it is accepted.
            ValueError: a file is not there, its rows are not of the option's shape, or a judge's key is missing.
        """
        try:
            super().parse_arguments(*args)
        except ParsedError:
            check_inputs(self.parsed, output_directory(self.parsed))
            raise


def load(target: str) -> Any:
    """The class that ``package.module:Class`` names."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def output_directory(config: Any) -> Path:
    """Where a command's artifacts go."""
    return Path(config["output_dir"] or Path("lightning_logs") / config["experiment"])


def _resumable(command: str) -> set[str]:
    return {"ckpt_path", "weights_only"} if command == "fit" else set()


def _selected() -> tuple[str, ...]:
    return GradsteerCLI.command_names


def _shared_output_dir(output_dir: str | None, experiment: str) -> str:
    return output_dir or str(Path("lightning_logs") / experiment)


def _link(parser: LightningArgumentParser, command: Command) -> None:
    """Gives the groups their share of the common options, so that each is said once."""
    options = {action.dest for action in parser._actions}
    for group in (*command.callbacks, "model"):
        if f"{group}.output_dir" in options:
            parser.link_arguments(("output_dir", "experiment"), f"{group}.output_dir", compute_fn=_shared_output_dir)
        for shared in ("experiment", "name", "overwrite", "dry_run"):
            if f"{group}.{shared}" in options:
                parser.link_arguments(shared, f"{group}.{shared}")
    for group in command.options:  # as one object, which is checked when it is made
        parser.link_arguments(group, f"report.{group}", apply_on="instantiate")
    for shared in ("num_samples", "sampling_seed"):
        if f"data.{shared}" in options:
            parser.link_arguments(f"model.{shared}", f"data.{shared}")
    if "writing.vectors" in options:
        parser.add_argument(
            "--vectors",
            type=dict[str, list[str]],
            default={},
            help="steering vectors as contrasts of two piles, V = gradient(PLUS) - gradient(MINUS): --vectors.NAME "
            '"[PLUS_PILE, MINUS_PILE]".',
        )
        for target in ("data.vectors", "writing.vectors", "graddiff.vectors"):
            parser.link_arguments("vectors", target)


def main(args: list[str]) -> int:
    """Runs one Trainer command.

    Args:
        args: the command and its options.
    """
    quieten()
    GradsteerCLI.command_names = (args[0],)  # building the other commands' parsers would only cost time
    with ExitStack() as held:
        GradsteerCLI.held = held
        return _run(args)


def check(args: list[str]) -> int:
    """Parses the command line of one Trainer command, and does not run it; an error ends the process, as in `main`.

    Args:
        args: the command and its options.
    """
    GradsteerCLI.command_names = (args[0],)
    return _run(args, CheckingCLI)


def configuration(args: list[str]) -> dict[str, Any]:
    """All options of the command line of one Trainer command, with their defaults; an error ends the process.

    Args:
        args: the command and its options.
    """
    GradsteerCLI.command_names = (args[0],)
    _run(args, ParsingCLI)
    return ParsingCLI.parsed


def _run(args: list[str], cli_class: type[GradsteerCLI] = GradsteerCLI) -> int:
    try:
        cli = cli_class(
            trainer_class=GradsteerTrainer,
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveReplayableConfig,
            save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
            seed_everything_default=0,
            parser_class=CommandParser,
            parser_kwargs={
                "prog": "gradsteer",
                **{
                    name: {
                        "command": name,
                        "description": COMMANDS[name].help,
                        # the generated one would bury an error under a list of some two hundred options
                        "usage": f"gradsteer {name} [--config FILE] [options]   (--help explains them)",
                    }
                    for name in GradsteerCLI.command_names
                },
            },
            auto_configure_optimizers=False,
            # words of the process itself are left to LightningCLI, which warns of any others
            args=None if args == sys.argv[1:] else args,
        )
    except AlreadyDoneError as done:
        print(f"{done} is done already with this configuration and these inputs: nothing to do")
        return 0
    except (DryRunDoneError, ParsedError):
        return 0
    cli.finish()
    return 0
