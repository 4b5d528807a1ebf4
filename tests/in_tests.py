"""Fixtures that many files share, and what makes commands cheaper in tests; loaded where tests run, by `conftest`."""

from functools import cache
from io import BytesIO
from pathlib import Path

import docstring_parser
import jsonargparse._core
import jsonargparse._subcommands
import numpy as np
import overriding  # noqa: F401 (before anything takes the program's main)
import pytest
import road
import torch
from judged import judged, steps  # noqa: F401 (fixtures)
from matplotlib.figure import Figure
from road import experiment, inputs  # noqa: F401 (fixtures)
from tiny_models import tiny_llama
from torch.utils.tensorboard import writer as tensorboard_writer

from gradsteer.cli.commands import TRAINER_COMMANDS
from gradsteer.cli.lightning_cli import CommandParser, GradsteerCLI
from gradsteer.trainer.callbacks import forecast_report, report
from gradsteer.trainer.trainer import GradsteerTrainer

torch.set_num_threads(1)

# a parser is built for every command that a test runs, and most of that is reading the same docstrings again
docstring_parser.parse_from_object = cache(docstring_parser.parse_from_object)


_FOUND = {}  # with each parser, or another one could take its place in memory
_find = jsonargparse._subcommands.find_action_and_subcommand


def _find_once(parser, dest, exclude=None):
    """Every option's place in the parser is looked for many times in one command: a fifth of a short one's time."""
    key = (id(parser), len(parser._actions), dest, exclude)
    if key not in _FOUND:
        _FOUND[key] = parser, _find(parser, dest, exclude=exclude)
    return _FOUND[key][1]


jsonargparse._core.find_action_and_subcommand = _find_once
jsonargparse._subcommands.find_action_and_subcommand = _find_once


_BLANK = BytesIO()
Figure(figsize=(0.1, 0.1), dpi=10).savefig(_BLANK, format="png")
PAINT, _save = Figure.savefig, report.save_figures


def _savefig(self, target, **options):
    """Painting takes longest of a picture: those of the shared experiment alone are painted."""
    if road.PAINTED in Path(target).parts:
        PAINT(self, target, **options)
    else:
        Path(target).write_bytes(_BLANK.getvalue())


def _save_figures(trainer, figures, directory):
    """Most commands draw nothing, which is up to a third of their time: no test looks at it."""
    return _save(trainer, figures, directory) if directory.parent.name.startswith(road.DRAWN) else []


Figure.savefig = _savefig
report.save_figures = forecast_report.save_figures = _save_figures
tensorboard_writer.figure_to_image = lambda figure, close: np.zeros((3, 1, 1), dtype=np.uint8)


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture(scope="session")
def parsers():
    """Each command's parser, made as the command line makes it."""
    made = {}
    for name in TRAINER_COMMANDS:
        cli = object.__new__(GradsteerCLI)
        cli.trainer_class = GradsteerTrainer
        parser = CommandParser(command=name)
        cli.add_core_arguments_to_parser(parser)
        made[name] = parser
    return made
