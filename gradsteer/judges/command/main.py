"""``gradsteer judge``: the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsteer.judges.command.options import options_parser, parse_options
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
    parser = options_parser()
    options = parse_options(parser, args)
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
        [verdict for verdict, counts in zip(verdicts, file.judged, strict=True) if counts]
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
