"""What pytest calls. A process that only hands tests out to others imports neither torch nor Lightning."""

import gc
import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

# what the tests share is imported by its file's name, in the processes that they start too
_FOLDERS = [str(path) for path in (Path(__file__).parent, *Path(__file__).parent.glob("[a-z]*/"))]
os.environ["PYTHONPATH"] = os.pathsep.join([*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[1:] = []  # LightningCLI warns of words on the process's own command line, here pytest's


def pytest_configure(config):
    """Loads what the tests share, where they run: no garbage is collected until then, which takes a quarter less."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()
        config.pluginmanager.register(importlib.import_module("in_tests"))


def rest_slow(values, kept=1):
    """A test's parameters, all but the first ones of them marked slow."""
    values = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*each, marks=[pytest.mark.slow] * (place >= kept)) for place, each in enumerate(values)]


def pytest_collection_finish():
    """What was imported stays: collecting garbage need not look at it again, which saves a quarter of a command."""
    gc.collect()
    gc.freeze()
    gc.enable()
    if "processes" in sys.modules:
        sys.modules["processes"].serve()


def pytest_terminal_summary(terminalreporter):
    """The table of architectures, also where processes share the tests."""
    reports = terminalreporter.getreports("passed")
    rows = [value for report in reports for key, value in report.user_properties if key == "architecture"]
    if rows:
        terminalreporter.section("float32 gradients: error against float64 autograd")
        for name, *cells in [["architecture", "parameters", "padded", "packs", "chunks"], *sorted(rows)]:
            terminalreporter.line(f"{name:<46} " + " ".join(f"{cell:>10}" for cell in cells))
