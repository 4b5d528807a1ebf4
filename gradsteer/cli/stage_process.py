"""The process that runs an experiment's stages: one for all of them where that will do, so that it imports once.

Each stage is served as if it were its process's only command. DDP's launcher executes the command line again and so
needs a real one: a stage that asks for devices or a strategy, or that finds several devices, has a process of its own.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from gradsteer.cli.commands import COMMANDS
from gradsteer.cli.termination import Terminated

_THREADS = "OMP_NUM_THREADS"
# the Trainer's options by which it may start other processes
_LAUNCHING = ("strategy", "devices", "num_nodes", "plugins")
_ELSEWHERE = "elsewhere"  # the answer where a command needs a process of its own
# Windows gives a process no descriptors but its own three: there each stage has a process of its own
_SHARED = sys.platform != "win32"
_PARSE = "import sys; from gradsteer.__main__ import main; sys.exit(main(sys.argv[1:], parse_only=True))"
_PATIENCE = 60.0  # seconds for a stage to end in order
_OWN_ACCORD = 5.0  # seconds in which a stage that the terminal's Ctrl-C reached, too, has begun to


class StageProcess:
    """Runs command lines one after another, in one process as long as its environment stays the same.

    The number of threads (``OMP_NUM_THREADS``) may differ between the commands of one process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._requests: TextIO | None = None
        self._answers: TextIO | None = None

    def run(self, words: Sequence[str], options: Mapping[str, object], environment: Mapping[str, str]) -> int:
        """Runs a command line, and waits for it.

        Args:
            words: the command and its options, as behind ``gradsteer``.
            options: what its config file says of the Trainer.
            environment: of its process.

        Returns:
            Its exit status; that of a process that a signal killed is the signal's number, negative.

        Raises:
            KeyboardInterrupt: the command has ended in order by then, or after a minute without one.
        """
        if not _launches(words, options, environment):
            status = self._serve(words, environment, parse_only=False)
            if status is not None:
                return status
        with _ending(subprocess.Popen([sys.executable, "-m", "gradsteer", *words], env=dict(environment))) as process:
            return process.wait()

    def check(self, words: Sequence[str], environment: Mapping[str, str]) -> int:
        """The exit status of a command line that is parsed alone; what is wrong with it is said."""
        status = self._serve(words, environment, parse_only=True)
        assert status is not None
        return status

    def close(self) -> None:
        """Lets the process end."""
        if self._process is None:
            return
        for stream in (self._requests, self._answers):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        with _ending(self._process):
            self._process.wait()
        self._process = None

    def _serve(self, words: Sequence[str], environment: Mapping[str, str], *, parse_only: bool) -> int | None:
        """The exit status of a command in the shared process; None where it cannot run there."""
        if not _SHARED:
            if not parse_only:
                return None
            with _ending(subprocess.Popen([sys.executable, "-c", _PARSE, *words], env=dict(environment))) as process:
                return process.wait()
        fixed = {name: value for name, value in environment.items() if name != _THREADS}
        if self._process is not None and fixed != self._environment:
            self.close()
        if self._process is None:
            self._start(environment)
            self._environment = fixed
        assert self._process is not None
        assert self._requests is not None
        assert self._answers is not None
        with _ending(self._process):
            try:
                asked = {"words": list(words), "threads": environment.get(_THREADS), "parse_only": parse_only}
                self._requests.write(json.dumps(asked) + "\n")
                self._requests.flush()
                answer = self._answers.readline()
            except BrokenPipeError:
                answer = ""
        if not answer:  # it was killed, or crashed
            status = self._process.wait()
            self.close()
            return status or 1
        status = json.loads(answer)
        return None if status == _ELSEWHERE else int(status)

    def _start(self, environment: Mapping[str, str]) -> None:
        (reads, self_writes), (self_reads, writes) = os.pipe(), os.pipe()
        words = [sys.executable, "-c", f"from {__name__} import serve; serve({reads}, {writes})"]
        self._process = subprocess.Popen(words, env=dict(environment), pass_fds=(reads, writes))
        os.close(reads)
        os.close(writes)
        self._requests, self._answers = os.fdopen(self_writes, "w"), os.fdopen(self_reads)


@contextlib.contextmanager
def _ending(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Ends a process in order where this one is interrupted inside."""
    try:
        yield process
    except KeyboardInterrupt as interrupt:
        if not isinstance(interrupt, Terminated):  # the terminal's Ctrl-C has reached it as well
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_OWN_ACCORD)
        try:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
        finally:
            process.kill()
        raise


def _launches(words: Sequence[str], options: Mapping[str, object], environment: Mapping[str, str]) -> bool:
    """Whether a command may start further processes by its own command line."""
    asked = [*options, *(word.removeprefix("--trainer.") for word in words if word.startswith("--trainer."))]
    whole = any(word.split("=")[0] == "--trainer" for word in words) or words.count("--config") > 1
    preset = any(name.startswith("PL_TRAINER_") for name in environment)
    return whole or preset or any(key.startswith(_LAUNCHING) for key in asked)


def serve(requests: int, answers: int) -> None:
    """The shared process: takes a command line a line and answers with its exit status, until one fails.

    Args:
        requests: file descriptor of JSON lines with ``words``, ``threads`` (the number of them or None) and
            ``parse_only``.
        answers: file descriptor of what is answered.
    """
    with os.fdopen(requests) as lines, os.fdopen(answers, "w") as out, contextlib.suppress(KeyboardInterrupt):
        for line in lines:
            asked = json.loads(line)
            elsewhere = not asked["parse_only"] and _several_devices(asked["words"])
            status = _ELSEWHERE if elsewhere else _status(asked["words"], asked["threads"], asked["parse_only"])
            out.write(f"{json.dumps(status)}\n")
            out.flush()
            if status not in (0, _ELSEWHERE):
                return


def _several_devices(words: list[str]) -> bool:
    if not COMMANDS[words[0]].module:
        return False
    import torch

    return torch.accelerator.device_count() > 1


def _status(words: list[str], threads: str | None, parse_only: bool) -> int:
    """The exit status of a command line, run as if it were the process's own."""
    import gradsteer.__main__ as program

    with _as_new(threads):
        sys.argv = [str(program.__file__), *words]
        try:
            return program.main(parse_only=parse_only)
        except SystemExit as end:
            if end.code is not None and not isinstance(end.code, int):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)


@contextlib.contextmanager
def _as_new(threads: str | None) -> Iterator[None]:
    """Puts back what a command changes for its whole process, and frees what it held."""
    before = dict(os.environ)
    if threads is not None:
        os.environ[_THREADS] = threads
        if threads.isdigit() and "torch" in sys.modules:  # which reads the variable once
            sys.modules["torch"].set_num_threads(int(threads))
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()
        sys.stdout.flush()
        sys.stderr.flush()
