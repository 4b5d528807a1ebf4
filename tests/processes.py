"""Command lines in processes of their own, forked from one that has imported gradsteer: imports take longest."""

import gc
import multiprocessing
import os
import socket
import sys
import time

import importing  # noqa: F401
import torch
from overriding import overridden

from gradsteer.__main__ import main
from gradsteer.cli import lightning_cli  # noqa: F401 (what a command imports when it is called)

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["processes"])


def _work(function, arguments, log, environment):
    gc.freeze()  # what was imported stays
    gc.enable()
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(log_file := os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.close(log_file)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def fork(function, *arguments, log=os.devnull, environment=()):
    """Calls a function of a module in a process of its own; what it says goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)}
    with open(log, "a"):  # it is looked at before the process writes
        pass
    process = _FORKS.Process(target=_work, args=(function, arguments, str(log), environment), daemon=True)
    process.start()
    return process


def _command(words):
    sys.argv[1:] = words
    return main(words)


def fork_command(words, **options):
    """Runs a command line in a process of its own."""
    return fork(_command, overridden(words), **options)


def two_places():
    """The environments of two processes of one run, as a cluster's launcher would set them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    return [{**run, "LOCAL_RANK": str(rank)} for rank in range(2)]


def kill_when(words, condition):
    """Starts a command line as a process and kills it, without a warning, as soon as the condition holds."""
    process = fork_command(words)
    deadline = time.monotonic() + 90
    while not condition():
        assert process.is_alive(), "it finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
