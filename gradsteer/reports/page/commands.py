"""The commands that replay a run, from what they left."""

import json
import shlex

from gradsteer.reports.page.records import Records


def replay_commands(records: Records) -> list[str]:
    """One line for each command that left its configuration, in the order of the stages."""
    outputs = (found for each in records.configs if isinstance(found := each.option("output_dir"), str))
    return [
        *_corpus(records, next(outputs, None)),
        *(each.replay for each in records.configs if each.replay is not None),
    ]


def _corpus(records: Records, output_dir: str | None) -> list[str]:
    """The embedded corpus's command, which has no config of its own."""
    path = records.directory / "stages" / "corpus.json"
    if output_dir is None or not path.is_file():
        return []

    def line() -> str:
        options = json.loads(path.read_text(encoding="utf-8"))["options"]
        words = [f"--{key} {int(options[key])}" for key in ("num_samples", "seed")]
        return f"python -m gradsteer corpus {' '.join(words)} --output_dir {shlex.quote(output_dir)}"

    found = records.attempt("stages/corpus.json", line)
    return [] if found is None else [found]
