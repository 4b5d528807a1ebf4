"""Command lines in processes of their own, forked from one that has imported gradsteer: imports take longest.

That one is forked from the test process itself, as it is before the first test: see `serve`.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import warnings

import torch
from overriding import overridden

from gradsteer.__main__ import main
from gradsteer.cli import lightning_cli  # noqa: F401 (what a command imports when it is called)

_FORKS = multiprocessing.get_context("fork")
_server = None  # this end of a pipe to it


def serve():
    """Forks the process that forks the others; called before the first test, when all is imported."""
    global _server
    _server, theirs = _FORKS.Pipe()
    if os.fork() == 0:
        _server.close()
        started = {}
        while True:
            try:
                asked, value = theirs.recv()
            except EOFError:  # the tests are over
                for process in started.values():
                    process.kill()
                os._exit(0)
            if asked == "start":
                process = _FORKS.Process(target=_work, args=(value,))
                process.start()
                started[process.pid] = process
                theirs.send(process.pid)
            else:
                theirs.send(started[value].exitcode)
    theirs.close()


class Forked:
    """A process that the server forked; the few methods of `multiprocessing.Process` that tests call."""

    def __init__(self, *work):
        _server.send(("start", pickle.dumps(work)))
        self.pid = _server.recv()

    @property
    def exitcode(self):
        _server.send(("exitcode", self.pid))
        return _server.recv()

    def is_alive(self):
        return self.exitcode is None

    def kill(self):
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)

    def join(self, timeout=60):
        deadline = time.monotonic() + timeout
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)


def _work(work):
    function, arguments, log, environment = pickle.loads(work)
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # pytest's own streams and its errors for warnings are not the command's
    caught = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    for logger in (logging.getLogger(name) for name in logging.root.manager.loggerDict):
        for handler in logger.handlers:
            if getattr(handler, "stream", None) in caught:
                handler.setStream(sys.stderr)
    warnings.simplefilter("default")
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def fork(function, *arguments, log=os.devnull, environment=()):
    """Calls a function of a module in a process of its own; what it says goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)}
    with open(log, "a"):  # it is looked at before the process writes
        pass
    return Forked(function, arguments, str(log), environment)


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
