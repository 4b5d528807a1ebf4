"""Every config in configs/: read by its command's parser, with a header that says what it is and how to launch it."""

import re
from pathlib import Path

import pytest
import yaml

from gradsteer.cli.commands import COMMANDS
from gradsteer.cli.lightning_cli import CommandParser, GradsteerCLI
from gradsteer.cli.runner import read_run
from gradsteer.demo import JUDGE_PATTERNS
from gradsteer.demo.write import write_corpus
from gradsteer.judges import KeywordJudge
from gradsteer.records import resolve_resource
from gradsteer.trainer.trainer import GradsteerTrainer

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted(path for path in CONFIGS.glob("*/*.yaml") if "stages" in yaml.safe_load(path.read_text()))
STAGES = [(run, stage) for run in RUNS for stage in yaml.safe_load(run.read_text())["stages"]]


@pytest.fixture(scope="module")
def attribute_parser():
    """As in conftest, and it takes --config as the command line does."""
    cli = object.__new__(GradsteerCLI)
    cli.trainer_class, cli.parser_class = GradsteerTrainer, CommandParser
    parser = cli.init_parser(command="attribute")
    cli.add_core_arguments_to_parser(parser)
    return parser


def leaves(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.parametrize(("run", "stage"), STAGES, ids=str)
def test_every_stage_is_read_by_its_commands_parser(run, stage, parsers):
    values = yaml.safe_load((run.parent / stage["config"]).read_text())
    if COMMANDS[stage["command"]].module:
        parser = parsers[stage["command"]]
        config = parser.parse_object(values)
        # a stage of another run's directory is of that run's experiment: read_run passes --experiment
        own = (run.parent / stage["config"]).resolve().parent
        experiments = [yaml.safe_load(each.read_text())["experiment"] for each in RUNS if each.parent == own]
        assert any(f"{each}-".startswith(f"{config.experiment}-") for each in experiments)
    for value in leaves(values):
        if isinstance(value, str) and value.startswith("gradsteer://"):
            assert Path(resolve_resource(value)).is_file()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_opens_with_what_it_is_and_its_launch_line(path):
    head = re.match(r"(#.*\n)+", path.read_text())
    assert head, "no header"
    launch = re.search(r"Launch: python -m gradsteer (\w+)(.*)", head[0])
    assert launch, head[0]
    assert launch[1] in COMMANDS
    named = [(CONFIGS.parent / config).resolve() for config in re.findall(r"--(?:config|judge) (\S+)", launch[2])]
    assert path.resolve() in named
    assert all(each.is_file() for each in named)


STRATEGIES = {
    "ddp": ("ddp", "auto"),
    "fsdp": (
        {
            "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
            "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1},
        },
        2,
    ),
}


def test_every_strategy_is_listed():
    assert set(STRATEGIES) == {path.stem for path in (CONFIGS / "strategy").glob("*.yaml")}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_read_together_with_a_command(name, attribute_parser):
    topics, strategy = CONFIGS / "topics" / "attribute.yaml", CONFIGS / "strategy" / f"{name}.yaml"
    words = [word for path in (topics, strategy) for word in ("--config", str(path))]
    plain, config = (attribute_parser.parse_args(some).as_dict() for some in (words[:2], words))
    # 2D strategies have more arguments, at their defaults
    found, expected = config["trainer"]["strategy"], STRATEGIES[name][0]
    if isinstance(expected, dict):
        found = {
            "class_path": found["class_path"],
            "init_args": {key: found["init_args"][key] for key in expected["init_args"]},
        }
    assert (found, config["trainer"]["devices"]) == STRATEGIES[name]
    for changed in (plain, config):
        del changed["trainer"]["strategy"], changed["trainer"]["devices"], changed["config"]
    assert config == plain, "nothing else changes"


def test_the_launch_line_of_fsdp_gives_every_process_its_place(attribute_parser):
    text = (CONFIGS / "strategy" / "fsdp.yaml").read_text()
    words = re.search(r"Launch: python -m gradsteer attribute (.*)", text)[1].split()
    words = [str(CONFIGS.parent / word) if word.endswith(".yaml") else word for word in words]
    trainer = attribute_parser.parse_args(words).as_dict()["trainer"]
    assert trainer["strategy"]["init_args"]["data_parallel_size"] == int(trainer["devices"]) == 8


@pytest.mark.parametrize("directory", sorted({path.parent for path in RUNS}), ids=lambda path: path.name)
def test_every_config_beside_a_run_is_a_stage_of_one_or_given_after_one(directory):
    runs = [path for path in RUNS if path.parent == directory]
    stages = {stage.config.resolve() for run in runs for stage in read_run(run).stages}
    beside = {path.resolve() for path in directory.glob("*.yaml")}
    after = {path for path in beside - stages - set(runs) if path != _launched(path)}
    assert {path for path in stages if path.parent == directory} | set(runs) | after == beside
    elsewhere = stages - beside
    assert elsewhere <= {path.resolve() for other in RUNS for path in other.parent.glob("*.yaml")} - set(RUNS)


def _launched(path):
    """The config that a file's launch line begins with."""
    return (CONFIGS.parent / re.search(r"Launch: .*? --config (\S+)", path.read_text())[1]).resolve()


@pytest.mark.parametrize("name", ["evaluate_base", "evaluate_anchor", "steer"])
def test_the_demos_judge_knows_the_corpus_words(name, tmp_path):
    values = yaml.safe_load((CONFIGS / "demo" / f"{name}.yaml").read_text())
    written = write_corpus(tmp_path, num_samples=400)["judge"]
    named = values["evaluation"]["judge"]["init_args"]["patterns"]
    assert named == "{input_dir}/corpus/" + written.name
    assert KeywordJudge(str(written)).patterns == JUDGE_PATTERNS
    assert "0.34 M parameters" in values["report"]["note"]


def test_attribution_and_evaluation_prompts_are_different_files():
    for directory in ("demo", "topics"):
        read = {
            name: yaml.safe_load((CONFIGS / directory / f"{name}.yaml").read_text())["data"]["prompts"]
            for name in ("evaluate_anchor", "steer")
        }
        assert read["evaluate_anchor"] != read["steer"]
