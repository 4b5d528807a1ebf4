"""``gradsteer run``: an experiment as an ordered list of stages, each an ordinary command with its config.

A stage whose configuration and input files are those it left behind is skipped, said aloud. Imports nothing heavy.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from gradsteer.cli.commands import COMMANDS
from gradsteer.cli.paths import one_spelling
from gradsteer.cli.run_file import PlannedStage, Run, read_run
from gradsteer.cli.stage_process import StageProcess
from gradsteer.cli.stages import Stage, read_record, write_record
from gradsteer.cli.termination import Terminated
from gradsteer.records import text_digest


def stage_state(directory: Path, stage: PlannedStage) -> str:
    """``done``, ``new``, ``stale`` (its inputs are other files by now) or ``other`` (another configuration)."""
    left = Stage.of(directory, COMMANDS[stage.command], stage.artifact)
    child = left.read()
    record = read_record(_record_path(directory, stage))
    if record is None or child is None or not child["finished"] or left.missing:
        return "new"
    if all(record.get(key) != digest for key, digest in _digests(directory, stage).items()):
        return "other"
    if record.get("child_digest") not in (None, child["config_digest"]):
        return "other"  # somebody ran the stage's command by hand, with other options
    found = {path: left.digest_of(path) for path in child["inputs"]}
    return "done" if found == child["inputs"] else "stale"


def run_stages(run: Run, *, overwrite: bool = False) -> int:
    """Runs what is not done yet, in order, after the options of all of it were parsed.

    Args:
        run: as `read_run` plans it.
        overwrite: replace stages that another configuration made.

    Returns:
        0, or the exit status of the stage that failed; the stages before it are kept.

    Raises:
        ValueError: a stage in the directory was made by another configuration and overwrite is off.
    """
    started = time.monotonic()
    directory, stages = run.directory, run.stages
    for stage in stages:
        if not stage.unneeded and stage_state(directory, stage) == "other" and not overwrite:
            raise ValueError(
                f"{str(directory)!r} holds a stage {stage.name!r} of another configuration; choose another "
                "--output_dir, or replace it (and what follows from it) with --overwrite true"
            )
    seconds: dict[str, float] = {}
    waiting = [stage for stage in stages if not stage.unneeded and stage_state(directory, stage) != "done"]
    if waiting:
        _say(f"checking the options of {len(waiting)} stages")
    with closing(StageProcess()) as process:
        for stage in waiting:  # a mistake in the last one's options would be found hours later
            status = process.check(stage.words(overwrite), {**waiting[0].environment, **os.environ})
            if status != 0:
                _say(f"the options of stage {stage.name!r} ({stage.config}) are not accepted: nothing was run")
                return status if status >= 0 else 1
        for index, stage in enumerate(stages, 1):
            head = f"[{index}/{len(stages)}] {stage.name} ({stage.command})"
            if stage.unneeded:
                _say(f"{head}: left out, {stage.unneeded}")
                continue
            state = stage_state(directory, stage)
            if state == "done":
                _say(f"{head}: done already, skipped")
                continue
            write_record(_record_path(directory, stage), _digests(directory, stage))
            _say(f"{head}: {' '.join(stage.words(False))}")
            begun = time.monotonic()
            if state == "stale":
                _say(f"{head}: what it reads has changed since, so it runs again")
            status = _run_stage(process, stage, head, overwrite=overwrite or state == "stale")
            if status != 0:
                return status
            child = Stage.of(directory, COMMANDS[stage.command], stage.artifact).read() or {}
            digests = {**_digests(directory, stage), "child_digest": child.get("config_digest")}
            write_record(_record_path(directory, stage), digests)
            seconds[stage.name] = time.monotonic() - begun
            _say(f"{head}: finished in {seconds[stage.name]:.0f} s")
    if seconds:
        print(time_table(seconds))
    _say(f"all {len(stages)} stages done in {time.monotonic() - started:.0f} s; artifacts in {directory}")
    return 0


def _print_estimate(run: Run) -> int:
    """Prints what the run would take, or says why that is not known: a base that the run makes, or no connection."""
    from gradsteer.cli.run_estimate import estimates, lines, uncounted

    try:
        print("\n".join(lines(list(estimates(run)))))
        if left := uncounted(run):
            print(f"not counted: {', '.join(left)}")
    except ValueError as error:
        _say(f"no estimate: {error}")
    return 0


def _run_stage(process: StageProcess, stage: PlannedStage, head: str, *, overwrite: bool) -> int:
    """The exit status of a stage; what was wrong is said."""
    options = stage.values.get("trainer") or {}
    try:
        status = process.run(stage.words(overwrite), options, {**stage.environment, **os.environ})
    except KeyboardInterrupt as interrupt:
        _say(f"{head}: interrupted; the same command goes on with this stage")
        return interrupt.status if isinstance(interrupt, Terminated) else 130
    if status != 0:
        _say(f"{head}: failed with status {status}; the same command goes on with this stage")
    return status if status >= 0 else 1


def time_table(seconds: Mapping[str, float]) -> str:
    """Where the time went: each stage's seconds, and its share.

    Args:
        seconds: by stage.
    """
    total = sum(seconds.values())
    width = max(map(len, [*seconds, "together"]))
    rows = [*seconds.items(), ("together", total)]
    return "\n".join(f"{name:<{width}}  {each:6.0f} s  {each / max(total, 1e-9):5.0%}" for name, each in rows)


def _record_path(directory: Path, stage: PlannedStage) -> Path:
    return directory / "stages" / f"run-{re.sub(r'[^A-Za-z0-9_.-]+', '_', stage.name)}.json"


def _digests(directory: Path, stage: PlannedStage) -> dict[str, str]:
    """Digests of a stage's options, whatever the output directory is called.

    Returns:
        ``config_digest`` as they are written, ``paths_digest`` with the run's own paths in their one spelling.
    """
    kept = list(stage.overrides)
    place = kept.index("--output_dir")
    del kept[place : place + 2]
    respelled = [word if word.startswith("--") else one_spelling(word, directory) for word in kept]
    return {
        key: text_digest(json.dumps([stage.command, stage.values, words], sort_keys=True, default=str))
        for key, words in (("config_digest", kept), ("paths_digest", respelled))
    }


def _say(text: str) -> None:
    print(f"gradsteer run {text}", flush=True)


def main(args: Sequence[str]) -> int:
    """Runs an experiment from the command line.

    Args:
        args: the options; what follows ``--`` goes to every Trainer stage.
    """
    from gradsteer.options import OptionsParser

    words, extra = list(args), []
    if "--" in words:
        words, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = OptionsParser(
        prog="gradsteer run",
        description="Runs an experiment: an ordered list of stages, each an ordinary command with its config. Stages "
        "that are done are skipped; the same command resumes an interrupted run. Options after -- go to every Trainer "
        "stage, such as: -- --trainer.accelerator gpu",
    )
    parser.add_argument("--config", type=str, required=True, help="the run file (YAML).")
    parser.add_argument(
        "--output_dir", type=str | None, help="where all artifacts go; lightning_logs/EXPERIMENT by default."
    )
    parser.add_argument(
        "--input_dir", type=str | None, help="where the artifacts are that it goes on from; as the run file says."
    )
    parser.add_argument(
        "--model.model_name_or_path",
        type=str | None,
        help="another base model (hub id or directory) for every stage that starts from the run's base model.",
    )
    parser.add_argument(
        "--judge",
        type=str | None,
        help="config of another judge for all stages that judge, such as configs/judges/hybrid.yaml.",
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="replace stages of another configuration.")
    parser.add_argument(
        "--dry_run",
        type=bool,
        default=False,
        help="only print what would run, and, where the base model's config can be had, what it would take on paper: "
        "tokens, memory and hours of a GPU, and the judge's price.",
    )
    options = parser.parse_args(words)
    run = read_run(
        Path(options.config).expanduser(),
        output_dir=options.output_dir,
        input_dir=options.input_dir,
        base_model=options.model.model_name_or_path,
        judge=None if options.judge is None else Path(options.judge).expanduser(),
        extra=extra,
    )
    if options.dry_run:
        for stage in run.stages:
            state = f"left out, {stage.unneeded}" if stage.unneeded else stage_state(run.directory, stage)
            print(f"{stage.name:<18} {state:<8} {' '.join(stage.words(False))}")
        return _print_estimate(run)
    return run_stages(run, overwrite=options.overwrite)
