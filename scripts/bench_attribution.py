#!/usr/bin/env python
"""Tokens a second and peak memory of the pile-average gradient: gradsteer, a dense floor, plain loops, other packages.

Every contender takes the mean over responses of each response's summed gradient (reduction `sum`, a constant factor
from `token`; all of them can do it) of the same random model on the same random responses, each in a process of its
own; the rounds go round the contenders by turns, so that what slows the machine down slows all of them. Every gradient
is compared with a float64 oracle.

    python scripts/bench_attribution.py                                # about ten minutes on one CPU thread
    python scripts/bench_attribution.py --shape tiny --repeats 1       # does it run?
    python scripts/bench_attribution.py --dtype bfloat16 --output lightning_logs/bench.md
    python scripts/bench_attribution.py --shape 1b --dtype bfloat16 --device cuda

Other packages need an environment of their own, once:

    python -m venv .venv-bench
    .venv-bench/bin/python -m pip install torch==2.13.0
    .venv-bench/bin/python -m pip install --no-deps -r scripts/bench_requirements.txt
    python scripts/bench_attribution.py --peer-python .venv-bench/bin/python

What cannot run is printed with its reason, and so is what falls short of a goal.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.options import CHOOSING, CONTENDERS, PEERS, parse
from bench.pool import Worker, WorkerError
from bench.report import (
    Goal,
    Row,
    as_record,
    contender_table,
    fair_lines,
    goal_table,
    speed_goals,
    study_goals,
    study_lines,
)
from bench.setting import EXACT_MALLOC, SHAPES, Setting, write_responses


def main() -> int:
    """Runs the bench; 0 where it ran, whatever it found."""
    arguments = parse(__doc__ or "")
    directory = tempfile.mkdtemp(prefix="bench-attribution-")
    try:
        text, record = Bench(arguments, directory).run()
    finally:
        if arguments.keep:
            print(f"kept {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(text)
    if arguments.output is not None:
        content = json.dumps(record, indent=1) + "\n" if arguments.output.suffix == ".json" else text + "\n"
        arguments.output.write_text(content, encoding="utf-8")
        print(f"wrote {arguments.output}", file=sys.stderr)
    return 0


class Bench:
    """One run.

    Args:
        arguments: as `parse` gives them.
        directory: for the model, the responses and the logs.
    """

    def __init__(self, arguments: argparse.Namespace, directory: str) -> None:
        self.arguments, self.directory = arguments, Path(directory)
        self.setting = Setting(
            *(arguments.shape, arguments.dtype, arguments.device, arguments.threads, arguments.clock),
            *(directory, arguments.seed),
        )
        self.started = time.monotonic()
        self.rows = {name: Row(name, CONTENDERS[name]) for name in arguments.contenders}
        self.studies: dict[str, dict[str, Any]] = {}
        self.workers: dict[str, Worker] = {}

    def run(self) -> tuple[str, dict[str, Any]]:
        """Everything; returns the printed text and the record."""
        counts = write_responses(self.setting, max(2, self.arguments.repeats), self.arguments.responses)
        self.saved = self.setting.save()
        try:
            with self._worker("oracle") as oracle:
                self._say("the model, and its gradient in float64")
                counts.update(oracle.ask("make_model"))
                oracle.ask("reference_gradient")
                self._prepare()
                self._study()
                self._rounds()
                self._compare(oracle)
        finally:
            for worker in self.workers.values():
                worker.close()
        return self._text(counts)

    def _worker(self, name: str, label: str = "", environment: dict[str, str] | None = None) -> Worker:
        python = (self.arguments.peer_python or sys.executable) if name in PEERS else sys.executable
        log = self.directory / f"{label or name}.log"
        return Worker(self.setting, self.saved, python, log, environment)

    def _prepare(self) -> None:
        """A process for every contender, with its best setting, which another process found."""
        # the tiny shape shows that things run, and its numbers mean nothing
        names = [name for name in self.rows if name in CHOOSING and self.setting.shape != "tiny"]
        choosing = {name: self._worker(name, f"{name}-choice") for name in names}
        self.workers = {name: self._worker(name) for name in self.rows}
        try:
            for worker in [*choosing.values(), *self.workers.values()]:
                with contextlib.suppress(WorkerError):  # said where it matters
                    worker.ask("start")
            self._choose(choosing)
        finally:
            for worker in choosing.values():
                worker.close()

    def _choose(self, choosing: dict[str, Worker]) -> None:
        for name, row in self.rows.items():
            choice = None
            try:
                if name in choosing:
                    self._say(f"{name}: its best setting")
                    choice = choosing[name].ask("choose", contender=name)["choice"]
                    choosing[name].close()
                if name == "ours-best" and choice == SHAPES[self.setting.shape].budgets[-1] and "ours" in self.rows:
                    row.title, row.failure = "gradsteer (best packs)", "the default size is the fastest"
                    self.workers.pop(name).close()
                    continue
                self._say(f"{name}: loading")
                told = self.workers[name].ask("prepare", contender=name, choice=choice)
                row.title, row.note = told["title"], told["note"]
            except WorkerError as error:
                self._fail(name, error)

    def _fail(self, name: str, error: WorkerError) -> None:
        reason = str(error)
        if name in PEERS and self.arguments.peer_python is None and ("ModuleNotFound" in reason or "ImportE" in reason):
            reason += " (give --peer-python, see --help)"
        self.rows[name].failure = f"not run: {reason}"
        self._say(f"{name}: {reason}")
        if name in self.workers:
            self.workers.pop(name).close()

    def _study(self) -> None:
        arguments = self.arguments
        orders: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
        if "trainer" in arguments.studies:
            options = {"repeats": min(3, arguments.repeats), "piles": arguments.piles}
            orders.append(("trainer", "trainer", options, {}))
        if "memory" in arguments.studies:
            orders += [(f"{what} memory", "memory", {"what": what}, EXACT_MALLOC) for what in ("ours", "plain")]
        if "head" in arguments.studies:
            names = {"chunked head": True, "whole head": False}
            orders += [(label, "head", {"chunked": chunked}, EXACT_MALLOC) for label, chunked in names.items()]
        for label, name, options, environment in orders:
            self._say(f"study: {label}")
            try:
                with self._worker("study", f"study {label}", environment) as worker:
                    self.studies[label] = worker.ask("study", name=name, **options)
            except WorkerError as error:
                self.studies[label] = {"failure": str(error)}

    def _rounds(self) -> None:
        from tqdm import tqdm

        longest = 0.0
        for number in range(self.arguments.repeats):
            begun = time.monotonic()
            if number >= 2 and begun + longest - self.started > 60 * self.arguments.minutes:
                self._say(f"{number} rounds of {self.arguments.repeats} fit into {self.arguments.minutes:g} minutes")
                break
            running = list(self.workers)
            shift = number % max(1, len(running))  # no contender always follows the same other one
            for name in tqdm(running[shift:] + running[:shift], desc=f"round {number + 1}", file=sys.stderr):
                if name not in self.workers:
                    continue
                save = str(self.directory / f"{name}.safetensors") if number == 0 else None
                try:
                    self.rows[name].rounds.append(self.workers[name].ask("run", number=number, save=save))
                except WorkerError as error:
                    self._fail(name, error)
            longest = max(longest, time.monotonic() - begun)

    def _compare(self, oracle: Worker) -> None:
        for name, row in self.rows.items():
            path = self.directory / f"{name}.safetensors"
            if row.failure is None and path.is_file():
                try:
                    found = oracle.ask("compare", path=str(path))
                except WorkerError as error:
                    self._fail(name, error)
                    continue
                row.error, row.covered = found["error"], found["covered"]

    def _text(self, counts: dict[str, int]) -> tuple[str, dict[str, Any]]:
        arguments, shape = self.arguments, SHAPES[self.arguments.shape]
        goals: list[Goal] = [*speed_goals(self.rows, arguments.dtype), *study_goals(self.studies)]
        rounds = max((len(row.rounds) for row in self.rows.values()), default=0)
        minutes = (time.monotonic() - self.started) / 60
        got = [round_["cpu"] / round_["wall"] for row in self.rows.values() for round_ in row.rounds]
        clock = {"wall": "Seconds are the wall clock's", "cpu": "Seconds are the processor's"}[arguments.clock]
        if arguments.device == "cpu" and got:
            clock += f"; the processes got {statistics.median(got) / arguments.threads:.0%} of the processor"
        about = {
            "shape": arguments.shape,
            "config": shape.config,
            "dtype": arguments.dtype,
            "device": arguments.device,
            "threads": arguments.threads,
            "clock": arguments.clock,
            "rounds": rounds,
            "responses": arguments.responses,
            "minutes": minutes,
            **counts,
        }
        text = [
            f"## Pile-average gradient, {arguments.shape} ({counts['parameters'] / 1e6:.1f} M parameters), "
            f"{arguments.dtype}, {arguments.device}, {arguments.threads} thread{'s' * (arguments.threads > 1)}",
            "",
            f"{rounds} rounds of {arguments.responses} responses ({counts['tokens']:,} tokens with their prompts, "
            f"{counts['labelled']:,} labelled, the longest {counts['longest']}); reduction `sum`; "
            f"{minutes:.1f} minutes. "
            "Median [smallest .. largest] over rounds; ratios are taken round by round. Tokens are the responses' and "
            "prompts' own, without padding. Peak memory is above the weights, in the first round of a fresh process. "
            "The error is that of the whole gradient, or of the parameters that a contender covers, against float64. "
            f"{clock}.",
            "",
            contender_table(self.rows, arguments.dtype),
            "",
            *fair_lines(self.rows),
            *study_lines(self.studies),
            "",
            goal_table(goals),
        ]
        return "\n".join(text), as_record(about, self.rows, self.studies, goals)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
