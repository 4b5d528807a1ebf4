"""The options of ``gradsteer judge``."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradsteer.judges import Judge


def parse_options(parser: Any, words: Sequence[str]) -> Any:
    """The options, with the output directory, which ``{output_dir}`` in a path stands for.

    Args:
        parser: see `options_parser`.
        words: of the command line.
    """
    options = parser.parse_args(_joined(list(words)))
    directory = os.path.expanduser(options.output_dir or Path("lightning_logs") / options.experiment)
    options.output_dir = directory
    for name in ("responses", "labelled", "write"):
        value = options[name]
        if isinstance(value, str):
            options[name] = os.path.expanduser(value.replace("{output_dir}", directory))
        elif value is not None:
            options[name] = [os.path.expanduser(path.replace("{output_dir}", directory)) for path in value]
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


@dataclass(kw_only=True)
class JudgeOptions:
    """The options, with their help.

    Attributes:
        responses: responses/NAME.jsonl files or globs, one or several. {output_dir} stands for the output directory
            here, in --labelled and in --write.
        judges: judges by names of your choice, each a class and its arguments, such as --judges.words KeywordJudge
            --judges.words.patterns '{"bridge": ["golden gate"]}'.
        labelled: JSON lines {"prompt", "completion", "labels": {BEHAVIOR: true or false}}, labelled by people: every
            judge judges them too, which gives its sensitivity and specificity, and rates corrected for them. Label
            responses like those that are judged.
        stored: whether the verdicts that stand in the files take part as one more judge, called file; those of one of
            --judges do not, as a judge always agrees with itself. A hybrid's verdicts hold those of its parts: where
            you ask these, give false.
        output_dir: where agreement.json and agreement.csv go.
        experiment: OUTPUT_DIR is lightning_logs/EXPERIMENT by default.
        overwrite: replace a report of other judges or responses, and other files in --write.
        max_unscored: share of a judge's verdicts on a behavior in one file, or in the labelled set, that may be
            missing; with more, the command fails when the report is written.
        write: a directory for copies of the files with the verdicts of one of the judges.
        write_judge: that judge's name; not needed where there is one judge.
        dry_run: only say how many exchanges each judge would be asked about, and the estimated cost.
    """

    responses: list[str] | str
    judges: dict[str, Judge] = field(default_factory=dict)
    labelled: str | None = None
    stored: bool = True
    output_dir: str | None = None
    experiment: str = "default"
    overwrite: bool = False
    max_unscored: float = 0.1
    write: str | None = None
    write_judge: str | None = None
    dry_run: bool = False


def options_parser() -> Any:
    """The parser of all options."""
    from gradsteer.options import OptionsParser

    parser = OptionsParser(
        prog="gradsteer judge",
        description="Judges existing responses with one or several judges and measures how far they agree: Cohen's "
        "kappa for each pair, Krippendorff's alpha for all. With a labelled set it also measures each judge's accuracy "
        "and corrects the rates for it. Writes OUTPUT_DIR/agreement.json and .csv. Stored verdicts are not requested "
        "again.",
    )
    parser.add_argument("--config", action="config", help="a config file (YAML) with these options.")
    parser.add_class_arguments(JudgeOptions, as_group=False)
    return parser
