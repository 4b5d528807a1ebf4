"""The other side of `bench.worker`: processes that are asked one thing at a time."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.setting import Setting


class WorkerError(Exception):
    """A worker that failed, with its reason in one line."""


class Worker:
    """A process with a contender, or with one study.

    Args:
        setting: the run's.
        path: of the saved setting.
        python: the interpreter that has the contender's packages.
        log: receives what the process prints.
        environment: on top of this process's.
    """

    def __init__(
        self, setting: Setting, path: Path, python: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        threads = str(setting.threads)
        variables = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            **({"CUDA_VISIBLE_DEVICES": ""} if setting.device == "cpu" else {}),
            **(environment or {}),
        }
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [python, "-m", "bench.worker", str(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=variables,
                cwd=setting.directory,
            )  # fmt: skip

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """Sends an order and waits for the answer.

        Raises:
            WorkerError: it failed, or the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **options}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            lines = self.log.read_text(errors="replace").strip().splitlines()
            reason = "killed: out of memory?" if status == -9 else lines[-1] if lines else f"exit status {status}"
            raise WorkerError(reason)
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise WorkerError(answer["failure"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
