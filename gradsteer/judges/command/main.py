"""``gradsteer judge``: the command line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsteer.provenance import provenance
from gradsteer.records import file_digest, resolve_resource

if TYPE_CHECKING:
    from gradsteer.judges import Exchange, Judge, Verdicts
    from gradsteer.judges.command.inputs import ResponseFile
    from gradsteer.judges.labels import LabelledSet

REPORT = "agreement.json"


def main(args: Sequence[str]) -> int:
    """Judges from the command line.

    Args:
        args: the options.

    Raises:
        ValueError: an option's value is not accepted, or a file is not as it should be; nothing was asked then. Or more
            verdicts than --max_unscored allows are missing; the report is written then.
    """
    parser = _parser()
    options = _filled(parser.parse_args(_joined(list(args))))
    # the older name is deprecated, the newer not in every version that will do
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    judges: dict[str, Judge] = instantiate(options).judges
    try:
        return _judge(options, judges)
    finally:
        for judge in judges.values():
            judge.close()


def _judge(options: Any, judges: dict[str, "Judge"]) -> int:
    from gradsteer.judges.command import asking, report
    from gradsteer.judges.command.copies import check_copies, write_copy
    from gradsteer.judges.command.inputs import STORED, find_files, read_response_file
    from gradsteer.judges.labels import read_labelled

    _check_names(judges, stored=options.stored)
    if not 0 <= options.max_unscored <= 1:
        raise ValueError(f"--max_unscored is {options.max_unscored}; accepted: a share, from 0 to 1")
    writer = _writer(options, judges)
    patterns = [options.responses] if isinstance(options.responses, str) else options.responses
    files = [read_response_file(path, stored=options.stored) for path in find_files(patterns)]
    behaviors = {name: tuple(judge.behaviors) for name, judge in judges.items()}
    labelled = None
    if options.labelled is not None:
        judged_ones = dict.fromkeys(behavior for of_judge in behaviors.values() for behavior in of_judge)
        labelled = read_labelled(options.labelled, tuple(judged_ones))
        for name in judges:
            labelled.check(name, behaviors[name])
    directory = Path(options.output_dir)
    asked = _asked(options, judges, files)
    _check_different(asked["judges"])
    report.check_report(directory / REPORT, asked, overwrite=options.overwrite)
    if writer is not None:
        check_copies(files, Path(options.write), judges[writer].fingerprint(), overwrite=options.overwrite)
    exchanges = [exchange for file in files for exchange in file.exchanges if exchange is not None]
    exchanges += labelled.exchanges if labelled is not None else ()
    if options.dry_run:
        for name, judge in judges.items():
            print(asking.expect(name, judge, exchanges))
        return 0

    asking.check_all(judges, exchanges)
    found = asking.ask_all(judges, exchanges)
    judged = {name: [file.verdicts(found[name], behaviors[name]) for file in files] for name in judges}
    result = {"asked": asked, **_result(files, judged, behaviors, labelled, found, asked["judges"]), **provenance()}
    for name, judge in judges.items():
        usage = judge.usage()
        result["judges"][name] |= {"class": type(judge).__name__, "usage": None if usage is None else vars(usage)}
    report.write_report(directory / REPORT, result)
    written = [directory / REPORT, (directory / REPORT).with_suffix(".csv")]
    if writer is not None:
        fingerprint = judges[writer].fingerprint()
        for file, verdicts in zip(files, judged[writer], strict=True):
            written.append(write_copy(file, verdicts, Path(options.write), fingerprint))
    report.print_report(result)
    shown = f" ({STORED}: the verdicts in the files)" if STORED in result["judges"] else ""
    print(f"wrote {', '.join(map(str, written))}{shown}")
    for name in judges:
        _check_unscored(options, name, behaviors[name], files, judged[name], labelled, found[name])
    return 0


def _check_unscored(
    options: Any,
    judge: str,
    behaviors: Sequence[str],
    files: Sequence["ResponseFile"],
    judged: Sequence[Sequence["Verdicts"]],
    labelled: "LabelledSet | None",
    found: Mapping["Exchange", "Verdicts"],
) -> None:
    """Refuses rates and errors of a judge that left too much open, when all is written that it was asked for."""
    from gradsteer.judges.command.comparison import too_many_unscored

    clear = [
        [verdict for verdict, degenerate in zip(verdicts, file.degenerate, strict=True) if not degenerate]
        for file, verdicts in zip(files, judged, strict=True)
    ]
    excess = too_many_unscored([file.path for file in files], clear, behaviors, options.max_unscored)
    if labelled is not None and excess is None:
        pairs = list(zip(labelled.exchanges, labelled.labels, strict=True))
        by_behavior = {name: [found[each] for each, labels in pairs if name in labels] for name in behaviors}
        reasons = (
            too_many_unscored([labelled.path], [verdicts], [behavior], options.max_unscored)
            for behavior, verdicts in by_behavior.items()
        )
        excess = next((reason for reason in reasons if reason is not None), None)
    if excess is not None:
        raise ValueError(
            f"the judge {judge!r}, {excess}. What was judged is kept and the report is written: the same command asks "
            "for what is missing, but for what was refused for good; with a higher --max_unscored it passes"
        )


def _result(
    files: Sequence["ResponseFile"],
    judged: dict[str, list[list["Verdicts"]]],
    behaviors: dict[str, tuple[str, ...]],
    labelled: "LabelledSet | None",
    found: Mapping[str, Mapping[Any, "Verdicts"]],
    fingerprints: Mapping[str, str],
) -> dict[str, Any]:
    """The report: what the judges found, with the verdicts that stand in the files as one more judge's."""
    from gradsteer.judges.command.comparison import agreements, rates
    from gradsteer.judges.command.inputs import STORED, stored_verdicts

    errors = {}
    if labelled is not None:
        for name, verdicts in found.items():
            errors[name] = labelled.errors_of(behaviors[name], [verdicts[each] for each in labelled.exchanges])
    stored, of_stored, num_repeated = stored_verdicts(files, fingerprints)
    if of_stored:
        judged, behaviors = {**judged, STORED: stored}, {**behaviors, STORED: of_stored}
    pairs, groups = agreements(files, judged, behaviors)
    return {
        "judges": {name: {"behaviors": list(behaviors[name])} for name in judged},
        "files": [
            {
                "path": file.path,
                "condition": file.condition,
                "num_responses": len(file),
                "num_prompts": len(set(file.prompts)),
                "num_degenerate": sum(file.degenerate),
            }
            for file in files
        ],
        "num_repeated": num_repeated,
        "num_labelled": None if labelled is None else len(labelled),
        "rates": rates(files, judged, behaviors, errors),
        "errors": [
            {"judge": name, "behavior": behavior, **error.to_dict()}
            for name, of_judge in errors.items()
            for behavior, error in of_judge.items()
        ],
        "pairs": pairs,
        "groups": groups,
    }


def _asked(options: Any, judges: Mapping[str, "Judge"], files: Sequence["ResponseFile"]) -> dict[str, Any]:
    """What decides the report: by it a report of something else is told from an earlier one of this."""
    return {
        "judges": {name: judge.fingerprint() for name, judge in judges.items()},
        "stored": options.stored,
        "responses": sorted(file_digest(file.path) for file in files),
        "labelled": None if options.labelled is None else file_digest(resolve_resource(options.labelled)),
    }


def _check_names(judges: Mapping[str, "Judge"], *, stored: bool) -> None:
    from gradsteer.judges.command.inputs import STORED

    if not judges:
        raise ValueError("there is no judge; accepted: one or more, such as --judges.words KeywordJudge")
    if stored and STORED in judges:
        raise ValueError(
            f"a judge is called {STORED!r}, as the verdicts in the files are; accepted: another name, or --stored false"
        )


def _check_different(fingerprints: Mapping[str, str]) -> None:
    names: dict[str, str] = {}
    for name, fingerprint in fingerprints.items():
        if names.setdefault(fingerprint, name) != name:
            raise ValueError(
                f"the judges {names[fingerprint]!r} and {name!r} are the same one, which agrees with itself; accepted: "
                "judges that differ"
            )


def _writer(options: Any, judges: Mapping[str, "Judge"]) -> str | None:
    """The name of the judge whose verdicts are written into copies; None where none are."""
    name: str | None = options.write_judge
    if options.write is None:
        if name is not None:
            raise ValueError(f"--write_judge is {name!r}, which needs --write DIR")
        return None
    if name is None and len(judges) == 1:
        return next(iter(judges))
    if name not in judges:
        raise ValueError(f"--write_judge is {name!r}; accepted: the judge to write with, one of {', '.join(judges)}")
    return name


def _filled(options: Any) -> Any:
    """The options with the output directory, also where a path begins with {output_dir}."""
    directory = str(options.output_dir or Path("lightning_logs") / options.experiment)
    options.output_dir = directory
    for name in ("responses", "labelled", "write"):
        value = options[name]
        if isinstance(value, str):
            options[name] = value.replace("{output_dir}", directory)
        elif value is not None:
            options[name] = [path.replace("{output_dir}", directory) for path in value]
    return options


def _joined(words: list[str]) -> list[str]:
    """The words with ``--responses A B`` as one list: a shell puts the names of all files in place of a glob."""
    if "--responses" not in words:
        return words
    start = words.index("--responses") + 1
    stop = next((place for place in range(start, len(words)) if words[place].startswith("--")), len(words))
    if stop - start > 1:
        words[start:stop] = [json.dumps(words[start:stop])]
    return words


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    from gradsteer.judges import Judge

    parser = ArgumentParser(
        prog="gradsteer judge",
        description="Judges responses that are there already with one or several judges, and says how far the judges "
        "agree: Cohen's kappa of every two, Krippendorff's alpha of all. With a labelled set also how often each is "
        "right, and rates corrected for it. Writes OUTPUT_DIR/agreement.json and .csv. Verdicts that a judge has "
        "stored are not asked for again.",
    )
    parser.add_argument("--config", action="config", help="a config file (YAML) with these options.")
    add = parser.add_argument
    add(
        "--responses",
        type=list[str] | str,
        required=True,
        help="responses/NAME.jsonl files or globs, one or several. {output_dir} stands for the output directory here, "
        "in --labelled and in --write.",
    )
    add(
        "--judges",
        type=dict[str, Judge],
        default={},
        help="judges by names of your choice, each a class and its arguments, such as --judges.words KeywordJudge "
        '--judges.words.patterns \'{"bridge": ["golden gate"]}\'.',
    )
    add(
        "--labelled",
        type=str | None,
        help='JSON lines {"prompt", "completion", "labels": {BEHAVIOR: true or false}}, labelled by people: every '
        "judge judges them too, which gives its sensitivity and specificity, and rates corrected for them. Label "
        "responses like those that are judged.",
    )
    add(
        "--stored",
        type=bool,
        default=True,
        help="whether the verdicts that stand in the files take part as one more judge, called file; those of one of "
        "--judges do not, as a judge always agrees with itself. A hybrid's verdicts hold those of its parts: "
        "where you ask these, give false.",
    )
    add("--output_dir", type=str | None, help="where agreement.json and agreement.csv go.")
    add("--experiment", type=str, default="default", help="OUTPUT_DIR is lightning_logs/EXPERIMENT by default.")
    add(
        "--overwrite",
        type=bool,
        default=False,
        help="replace a report of other judges or responses, and other files in --write.",
    )
    add(
        "--max_unscored",
        type=float,
        default=0.1,
        help="share of a judge's verdicts on a behavior in one file, or in the labelled set, that may be missing; with "
        "more, the command fails when the report is written.",
    )
    add("--write", type=str | None, help="a directory for copies of the files with the verdicts of one of the judges.")
    add("--write_judge", type=str | None, help="that judge's name; not needed where there is one judge.")
    add(
        "--dry_run",
        type=bool,
        default=False,
        help="only say how many exchanges each judge would be asked about, and the estimated cost.",
    )
    return parser
