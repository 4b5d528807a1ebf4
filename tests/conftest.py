"""Tiny models and batches that the tests share; built from configs, never downloaded."""

import gc
import os
import signal
import sys
from functools import cache
from io import BytesIO
from pathlib import Path

import docstring_parser
import importing  # noqa: F401 (before what takes long to import)
import numpy as np
import overriding  # noqa: F401 (before anything takes the program's main)
import pytest
import road
import torch
from judged import judged, steps  # noqa: F401 (fixtures)
from matplotlib.figure import Figure
from road import experiment, inputs  # noqa: F401 (fixtures)
from torch.utils.tensorboard import writer as tensorboard_writer
from transformers import AutoModelForCausalLM, LlamaConfig

from gradsteer.cli.commands import TRAINER_COMMANDS
from gradsteer.cli.lightning_cli import CommandParser, GradsteerCLI
from gradsteer.data.chat import EncodedExample
from gradsteer.trainer.trainer import GradsteerTrainer

torch.set_num_threads(1)
# what the tests share is imported by its file's name, in the processes that they start too
_FOLDERS = [str(path) for path in (Path(__file__).parent, *Path(__file__).parent.glob("[a-z]*/"))]
os.environ["PYTHONPATH"] = os.pathsep.join([*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[1:] = []  # LightningCLI warns of words on the process's own command line, here pytest's

# a parser is built for every command that a test runs, and most of that is reading the same docstrings again
docstring_parser.parse_from_object = cache(docstring_parser.parse_from_object)

VOCABULARY = 61


def tiny_llama(*, seed: int = 0, tied: bool = True, dtype: torch.dtype = torch.float64, **options):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **options,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def ragged_examples(count: int, *, seed: int = 0, longest: int = 20) -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(4, longest, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        prompt = int(torch.randint(1, length - 1, (1,), generator=generator))
        examples.append(EncodedExample(ids, [-100] * prompt + ids[prompt:]))
    return examples


_BLANK = BytesIO()
Figure(figsize=(0.1, 0.1), dpi=10).savefig(_BLANK, format="png")
PAINT = Figure.savefig


def _savefig(self, target, **options):
    """What commands draw is not painted, which takes half of their time; the shared experiment's pictures are."""
    if road.PAINTED in Path(target).parts:
        PAINT(self, target, **options)
    else:
        Path(target).write_bytes(_BLANK.getvalue())


Figure.savefig = _savefig
tensorboard_writer.figure_to_image = lambda figure, close: np.zeros((3, 1, 1), dtype=np.uint8)


def rest_slow(values, kept=1):
    """A test's parameters, all but the first ones of them marked slow."""
    values = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*each, marks=[pytest.mark.slow] * (place >= kept)) for place, each in enumerate(values)]


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


def pytest_collection_finish():
    """What was imported stays: collecting garbage need not look at it again, which saves a quarter of a command."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter):
    """The table of architectures, also where processes share the tests."""
    reports = terminalreporter.getreports("passed")
    rows = [value for report in reports for key, value in report.user_properties if key == "architecture"]
    if rows:
        terminalreporter.section("float32 gradients: error against float64 autograd")
        for name, *cells in [["architecture", "parameters", "padded", "packs", "chunks"], *sorted(rows)]:
            terminalreporter.line(f"{name:<46} " + " ".join(f"{cell:>10}" for cell in cells))
