"""``gradsteer corpus``: writes the embedded demo's data to OUTPUT_DIR/corpus."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradsteer.cli.commands import COMMANDS
from gradsteer.cli.stages import Stage
from gradsteer.records import check_writable


def main(args: Sequence[str]) -> int:
    """Writes the corpus from the command line.

    Args:
        args: the options.

    Raises:
        ValueError: the directory holds a corpus of other settings and overwrite is off.
    """
    from gradsteer.demo.write import write_corpus

    options = options_parser().parse_args(list(args))
    directory = Path(options.output_dir or Path("lightning_logs") / options.experiment).expanduser()
    check_writable(directory, "--output_dir")
    config = {"seed": options.seed, "num_samples": options.num_samples}
    stage = Stage.of(directory, COMMANDS["corpus"], None)
    state = stage.state(config)
    if state == "done" and not options.overwrite:
        print("corpus is done already with this configuration: nothing to do")
        return 0
    if state == "other" and not options.overwrite:
        raise ValueError(
            f"{str(directory)!r} holds a corpus of other settings; choose another --output_dir, or --overwrite true"
        )
    stage.write(config, finished=False)
    paths = write_corpus(directory / "corpus", seed=options.seed, num_samples=options.num_samples)
    stage.write(config, finished=True)
    for name, path in paths.items():
        print(f"{name:<20} {path}")
    return 0


def options_parser() -> Any:
    """The parser of all options."""
    from gradsteer.options import OptionsParser

    parser = OptionsParser(
        prog="gradsteer corpus",
        description="Writes the embedded demo's corpus: training data, finetune data, prompts, held-out text, a "
        "tokenizer and a model config. The same seed gives the same files, byte for byte.",
    )
    parser.add_argument("--config", action="config", help="a config file (YAML) with these options.")
    parser.add_argument("--output_dir", type=str | None, help="files go to OUTPUT_DIR/corpus.")
    parser.add_argument("--experiment", type=str, default="default", help="OUTPUT_DIR is lightning_logs/EXPERIMENT.")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything random in the corpus.")
    parser.add_argument("--num_samples", type=int, default=20_000, help="number of conversations to train the base on.")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace a corpus of other settings.")
    return parser
