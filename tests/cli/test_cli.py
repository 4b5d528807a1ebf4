"""The command line as users meet it: help, typing errors, flags, configs, bad input."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from road import PATTERNS, write_lines
from test_attribution_module import Averages, trainer_of

from gradsteer.__main__ import main
from gradsteer.cli.accepted import _ACCEPTED
from gradsteer.cli.commands import COMMANDS
from gradsteer.reports.condition_selection import Selection
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.version import __version__


def fresh(*words):
    """Runs gradsteer in a fresh interpreter and says which heavy packages it imported."""
    code = (
        "import sys; from gradsteer.__main__ import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules);"
        "print('HEAVY', sorted(heavy), status)"
    )
    environment = {**os.environ, "COLUMNS": "200"}  # help is wrapped to the terminal
    line = [sys.executable, "-c", code, *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "pile-average gradients and the steering vectors"),
        ([], "usage: gradsteer"),
        (["--version"], __version__),
        (["atribute"], "did you mean 'attribute'?"),
        (["run", "--help"], "an ordered list of stages"),
        (["run", "--config", "nowhere.yaml"], "no such file: 'nowhere.yaml'"),
        (["corpus", "--help"], "byte for byte"),
        (["inspect", "--help"], "norms by layer"),
        (["export", "--help"], "adapter whose scaling is alpha"),
        (["judge", "--help"], "sensitivity"),
        (["doctor", "--help"], "which keys are set (never their values)"),
        (["report", "--help"], "examples chosen by a rule"),
    ],
)
def test_the_top_level_answers(words, shown, capsys):
    with suppress(SystemExit):
        main(words)
    assert shown in " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize("words", [["--help"], ["atribute"], ["run", "--config", "nowhere.yaml"]])
def test_the_top_level_answers_without_importing_torch(words):
    out, _ = fresh(*words)
    assert "HEAVY []" in out, out


ALL = [
    "corpus",
    "fit",
    "validate",
    "evaluate",
    "attribute",
    "discover",
    "forecast",
    "steer",
    "judge",
    "export",
    "inspect",
]
ALL += ["report", "doctor", "run"]


def test_an_unknown_command_has_status_2(capsys):
    assert main(["steeer"]) == 2
    said = capsys.readouterr().err
    assert f"accepted: {', '.join(ALL)}" in said


def test_ctrl_c_before_the_trainer_hears_it_is_no_traceback(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradsteer.__main__.importlib.import_module", interrupted)
    assert main(["steer"]) == 130
    assert capsys.readouterr().err == "gradsteer steer: interrupted; the same command goes on with what was kept\n"


def help_of(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("fit", ["a hub id or a local directory", "--data.loss_mask {assistant,answer,full}", "default: 3"]),
        ("evaluate", ["responses per prompt", "--evaluation.judge", "default: 128"]),
        ("attribute", ["--vectors", "[PLUS_PILE, MINUS_PILE]", "--model.reduction {example,token,sum}"]),
        ("steer", ["Positive alpha reduces", "--steering.alphas", "both signs"]),
        ("validate", ["--data.validation"]),
    ],
)
def test_help_shows_the_commands_real_options_explained(command, shown, capsys):
    text = help_of(command, capsys)
    for words in shown:
        assert words in text
    assert text.startswith(f"usage: gradsteer {command} [--config FILE] [options]")
    assert "ckpt_path" not in text or command == "fit"


def flags(parser):
    """Our own flags: not the Trainer's, not the helps."""
    names = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
    return sorted(n for n in names if not n.startswith("--trainer") and not n.endswith(("help", "print_config", "+")))


def test_the_flags_are_those_that_others_rely_on(parsers):
    """A snapshot: a renamed or lost flag breaks configs; a new one is added here on purpose."""
    common = ["--experiment", "--input_dir", "--output_dir", "--overwrite"]
    loading = ["attn_implementation", "dtype", "gguf_file", "model_name_or_path", "revision", "trust_remote_code"]
    tuned, loading = [*loading, "adapter_base"], [*loading, "adapter_base", "adapter_reading", "quantization"]
    sampling = ["max_new_tokens", "num_samples", "sampling_seed", "temperature", "top_p"]
    prompts = ["batch_size", "columns", "duplicates", "max_prompts", "prompts", "split", "system_prompt"]
    rendering = ["system_role", "template_kwargs"]
    prompts += [*rendering, "benign_prompts", "harmful_prompts", "max_refusal_prompts"]
    judging = ["heldout", "heldout_split", "judge", "labelled", "max_unscored", "count_degenerate"]
    chat = ["batch_size", "columns", "group_by_length", "loss_mask", "max_length", "shuffle_seed", "train"]
    chat += ["train_split", "validation", "validation_split", *rendering]
    tuning = ["config", "final_lr_fraction", "gradient_checkpointing", "optimizer", "schedule", "tokenizer"]
    tuning += ["warmup_steps", "lr_reference_width", "lora", "quantization"]
    piles = ["columns", "fisher", "halves", "loss_mask", "max_length", "permutation_seed", "permutations", "piles"]
    piles += ["token_budget", "allow_other_dtype", "sampled_along", *rendering]
    attributing = ["calibrate", "slope_responses", "gradient_checkpointing", "packing", "parameters", "reduction"]
    attributing += ["temperature", "credit", "advantage_lambda"]
    attributing += ["loss", "kl_direction", "reference", "base", "path_points"]
    attributing += [f"mask_{option}" for option in ("draws", "keep_rate", "components", "origin", "seed")]
    writing = ["precondition", "precondition_power", "precondition_damping", "unit_contrast"]
    steering = ["allow_other_model", "alphas", "base", "both_signs", "control_seed", "random_controls", "sign_controls"]
    steering += ["transforms", "vectors", "relative_norms", "log_odds_shifts", "kl_budgets", "kl_statistic"]
    steering += ["target_rates", "curve_points", "behaviors", "on_base", "permuted_controls", "control_vectors"]
    steering += ["graddiff_steps", "delta_scales", "system_prompts", "forecast", "select", "rounding", "rounding_seed"]
    steering += ["min_retained", "anchor_resamples", "seed_faithful", "controls_both_signs", "allow_imprecise"]
    forecasting = ["responses", "temperature", "top_p", "draws", "seed", "min_sample_size", "token_budget"]
    forecasting += ["control_slopes", "allow_other_dtype"]

    responses = ["base", "columns", "heldout", "max_length", "responses", "token_budget", *rendering]
    discovering = ["base", "features", "keep_topics", "least_stability", "method", "min_size", "most", "note", "number"]
    discovering += ["precondition", "reach", "repeats", "ridge", "seed", "shifts", "size", "sketch_seed"]
    discovering += ["threshold", "token_weights", "unit_norm"]

    def group(name, options):
        return [f"--{name}", *(f"--{name}.{option}" for option in options)]

    evaluation = group("model", loading + sampling) + group("data", prompts) + group("evaluation", judging)
    expected = {
        "fit": [
            *(*common, "--name", "--saving.checkpoint_minutes", "--saving.second_moment"),
            *(*group("model", tuned + tuning), *group("data", chat)),
        ],
        "validate": [*common, *group("model", tuned + tuning), *group("data", chat)],
        "evaluate": [*common, "--name", "--dry_run", *evaluation, *group("report", ["note", "verbose"])],
        "attribute": [
            *common,
            *("--vectors", "--dry_run"),
            "--partial_sums",
            "--partial_sums.every_minutes",
            *group("model", loading + attributing),
            *group("data", piles),
            *group("writing", writing),
            *group("graddiff", ["alpha", "steps"]),
        ],
        "discover": [*common, *group("model", loading), *group("data", responses), *group("discovery", discovering)],
        "forecast": [
            *(*common, *group("model", loading), *group("forecasting", forecasting), *group("steering", steering)),
            *("--report", "--report.note", *group("data", rendering)),
        ],
        "steer": [
            *(*common, *evaluation, *group("forecasting", forecasting), *group("steering", steering)),
            *(*group("report", ["note", "verbose"]), "--dry_run"),
            *group("fluency", ["base_perplexity", "mark_incoherent"]),
            *group("comparisons", ["draws", "seed"]),
        ],
    }
    for name, parser in parsers.items():
        linked = {
            "--saving",
            "--writing",
            "--preflight",
            "--report",
            "--figures",
            "--data",
        }  # groups without an option of ours
        assert sorted(set(flags(parser)) - linked) == sorted(set(expected[name]) - linked), name


def test_the_flags_of_export_are_those_that_others_rely_on():
    """Likewise."""
    from gradsteer.export.command import options_parser

    steering = ["allow_other_model", "alpha", "base", "gguf_file", "model", "transforms", "trust_remote_code", "vector"]
    writing = ["config", "format", "overwrite", "to", "dtype", "rounding", "seed", "rounded_anchor"]
    adapter = ["behavior", "min_energy", "rank", "ranks", "responses", "adapter_base", "adapter_reading"]
    assert set(flags(options_parser())) == {f"--{name}" for name in (*steering, *writing, *adapter)}


def parsed(parsers, command, *words):
    return parsers[command].parse_args([str(word) for word in words])


def test_negative_alphas_are_read_from_the_command_line(parsers):
    needed = ["--model.model_name_or_path", "m", "--data.prompts", "p", "--evaluation.judge", "KeywordJudge"]
    needed += ["--evaluation.judge.patterns", PATTERNS, "--steering.vectors.a", "v.safetensors"]
    for words in (["--steering.alphas", "[-1e-3]"], ["--steering.alphas=[-1e-3]"]):
        assert parsed(parsers, "steer", *needed, *words).steering.alphas == [-1e-3]
    by_vector = parsed(parsers, "steer", *needed, "--steering.alphas", '{"a": [-1e-3, 0.1]}').steering.alphas
    assert by_vector == {"a": [-1e-3, 0.1]}
    assert parsed(parsers, "steer", *needed, "--steering.alphas", "[1]").steering.vectors == {"a": "v.safetensors"}


def test_a_later_file_replaces_a_mapping_and_a_flag_adds_to_it(parsers, tmp_path):
    model = {"model": {"model_name_or_path": "m"}}
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(yaml.dump({**model, "data": {"piles": {"x": "x.jsonl", "y": "y.jsonl"}}}))
    second.write_text(yaml.dump({"data": {"piles": {"z": "z.jsonl"}}}))
    parser = parsers["attribute"]
    if "--config" not in parser._option_string_actions:
        parser.add_argument("--config", action="config")
    both = parsed(parsers, "attribute", "--config", first, "--config", second)
    assert both.data.piles == {"z": "z.jsonl"}
    flag = parsed(parsers, "attribute", "--config", first, "--data.piles.z", "z.jsonl")
    assert flag.data.piles == {"x": "x.jsonl", "y": "y.jsonl", "z": "z.jsonl"}


def test_the_output_directory_follows_the_experiment(parsers):
    config = parsed(parsers, "fit", "--experiment", "mine", "--model.model_name_or_path", "m")
    assert config.saving.output_dir == "lightning_logs/mine"
    assert config.saving.name == "anchor"


def test_print_config_round_trips(capsys, tmp_path):
    words = ["attribute", "--model.model_name_or_path", "m", "--data.piles.x", "x.jsonl", "--vectors.v", "[x, y]"]
    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    first = capsys.readouterr().out
    assert yaml.safe_load(first)["vectors"] == {"v": ["x", "y"]}
    config = tmp_path / "config.yaml"
    config.write_text(first)
    with pytest.raises(SystemExit):
        main(["attribute", "--config", str(config), "--print_config"])
    assert capsys.readouterr().out == first


def refusal(capsys, *words):
    """The one line that a refused command says."""
    try:
        status = main([*map(str, words), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    except SystemExit as exit_:  # jsonargparse's own errors
        status = exit_.code
    assert status == 2
    return capsys.readouterr().err


def line(experiment, command, tmp_path, **changes):
    """A working command line with some flags changed (None leaves one out)."""
    flags_ = {
        "--model.model_name_or_path": experiment / "anchor",
        "--output_dir": tmp_path / "out",
        "--trainer.logger": "false",
    }
    if command in ("evaluate", "steer"):
        flags_ |= {
            "--evaluation.judge": "KeywordJudge",
            "--evaluation.judge.patterns": PATTERNS,
            "--model.max_new_tokens": 2,
            "--data.prompts": "gradsteer://topics/evaluation_prompts.jsonl",
            "--data.max_prompts": 2,
        }
    if command == "steer":
        flags_ |= {"--steering.vectors.a": experiment / "vectors" / "a.safetensors", "--steering.alphas": "[0.1]"}
    flags_ |= {key.replace("__", "."): value for key, value in changes.items()}
    return [command, *(str(word) for pair in flags_.items() if pair[1] is not None for word in pair)]


def test_a_missing_file_and_a_bad_line_are_named(experiment, tmp_path, capsys):
    message = refusal(capsys, *line(experiment, "evaluate", tmp_path, **{"--data.prompts": "no/such.jsonl"}))
    assert "no/such.jsonl" in message
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"}\n{"prompt": \n')
    message = refusal(capsys, *line(experiment, "evaluate", tmp_path, **{"--data.prompts": broken}))
    assert f"{broken}:2" in message


def test_an_example_without_an_assistant_turn_is_named(experiment, tmp_path, capsys):
    chats = write_lines(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": "hello"}]}])
    message = refusal(capsys, *line(experiment, "fit", tmp_path, **{"--data.train": chats}))
    assert f"{chats}:1" in message
    assert "assistant" in message


def test_an_empty_pile_says_what_was_looked_at(experiment, tmp_path, capsys):
    responses = experiment / "responses" / "first.jsonl"
    kept = [json.loads(text) for text in responses.read_text().splitlines()]
    only = write_lines(tmp_path / "only.jsonl", [row for row in kept if row["verdicts"]["a"]])
    pile = json.dumps({"x": {"responses": str(only), "where": {"a": False}}})
    message = refusal(capsys, *line(experiment, "attribute", tmp_path, **{"--data.piles": pile}))
    count = sum(row["verdicts"]["a"] for row in kept)
    assert f"pile 'x' is empty: none matched of {count} responses of '{only}' (where {{'a': False}})" in message
    pile = json.dumps({"x": {"responses": str(only), "where": {"colour": True}}})
    message = refusal(capsys, *line(experiment, "attribute", tmp_path, **{"--data.piles": pile}))
    assert "has no verdicts on 'colour'; it has: a, b" in message


def test_ids_of_another_tokenizer_are_refused(experiment, tmp_path, capsys):
    rows = [json.loads(text) for text in (experiment / "responses" / "first.jsonl").read_text().splitlines()]
    foreign = write_lines(tmp_path / "foreign.jsonl", [{**row, "tokenizer": "0" * 16} for row in rows])
    message = refusal(capsys, *line(experiment, "attribute", tmp_path, **{"--data.piles.x": foreign}))
    assert f"{foreign}:1: the token ids were sampled with tokenizer '{'0' * 16}'" in message


def test_a_vector_of_an_unknown_pile_or_of_one_pile_is_refused(experiment, tmp_path, capsys):
    responses = experiment / "responses" / "first.jsonl"
    words = line(experiment, "attribute", tmp_path, **{"--data.piles.x": responses})
    assert "names pile 'y'; the piles are: x" in refusal(capsys, *words, "--vectors.v", "[x, y]")
    assert "contrasts pile 'x' with itself" in refusal(capsys, *words, "--vectors.v", "[x, x]")


def test_a_vector_that_does_not_fit_is_refused(experiment, tmp_path, capsys):
    path = SteeringVector({"model.norm.weight": torch.ones(3)}).save(tmp_path / "small.safetensors")
    message = refusal(capsys, *line(experiment, "steer", tmp_path, **{"--steering.vectors.a": path}))
    assert "'model.norm.weight' has shape (3,) in the vector and (16,) in the model" in message
    message = refusal(capsys, *line(experiment, "steer", tmp_path, **{"--steering.vectors.a": "no.safetensors"}))
    assert "no vector file at 'no.safetensors'" in message


def test_a_vector_of_another_model_needs_the_explicit_flag(experiment, tmp_path, capsys):
    words = line(experiment, "steer", tmp_path, **{"--model.model_name_or_path": experiment / "base"})
    assert "was made on a model with fingerprint" in refusal(capsys, *words)
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--overwrite", "true"]
    assert main([*words, "--steering.allow_other_model", "true", *quiet]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--steering.alphas": "[]"}, "steering.alphas of vector 'a' is empty; accepted: one number or more"),
        ({"--steering.alphas": "[0]"}, "accepted: finite numbers other than 0"),
        ({"--steering.alphas": '{"b": [1]}'}, "names the vector 'b'; the vectors are: a"),
        (
            {"--steering.transforms": "[diff_wait]"},
            "'diff_wait' (did you mean 'diff_weighting'?); accepted: diff_",
        ),
        ({"--steering.transforms": "[diff_weighting]"}, "give the base model (--steering.base)"),
        ({"--steering.random_controls": -1}, "steering.random_controls is -1; accepted: 0 or more"),
        ({"--steering.sign_controls": -1}, "steering.sign_controls is -1; accepted: 0 or more"),
        ({"--model.temperature": -1}, "temperature"),
        ({"--model.num_samples": 0}, "model.num_samples is 0; accepted: at least 1"),
        ({"--model.dtype": "float31"}, "dtype is 'float31'; accepted: float32, bfloat16"),
        ({"--data.batch_size": 0}, "data.batch_size is 0; accepted: at least 1"),
        ({"--evaluation.judge.patterns": '{"a": ["("]}'}, "is no regular expression"),
        ({"--model.model_name_or_path": "./nowhere"}, "no model directory at './nowhere'"),
    ],
)
def test_bad_values_are_refused_with_the_accepted_form(experiment, tmp_path, capsys, changes, said):
    assert said in refusal(capsys, *line(experiment, "steer", tmp_path, **changes))


_JUDGES = "HybridJudge, KeywordJudge, LocalJudge, OpenAIJudge, GroupJudge, or a judge of your own by its import path"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"--evaluation.judge": "NoJudge", "--evaluation.judge.patterns": None},
            f"--evaluation.judge is NoJudge (did you mean 'LocalJudge'?); accepted: {_JUDGES}",
        ),
        (
            {"--evaluation.judge": "HybridJudge", "--evaluation.judge.judge": "NoJudge"},
            f"--evaluation.judge.judge is NoJudge; accepted: {_JUDGES}",
        ),
        (
            {"--evaluation.judge.patterns": '{"a": "golden"}'},
            'accepted: a list of patterns for each behavior, such as {"bridge": ["golden gate"]}, or a JSON file',
        ),
        (
            {"--steering.select": "{rule: nonsense}"},
            "accepted: {rule: target_rate, rate: 0.1} or {rule: selectivity, max_kl: 0.05}",
        ),
    ],
)
def test_an_error_of_the_parser_ends_with_what_the_option_takes(experiment, tmp_path, capsys, changes, said):
    message = refusal(capsys, *line(experiment, "steer", tmp_path, **changes))
    assert said in message
    assert message.count("accepted: ") == 1


def test_what_a_judge_does_not_know_is_said_without_a_list_of_judges(experiment, tmp_path, capsys):
    message = refusal(capsys, *line(experiment, "steer", tmp_path, **{"--evaluation.judge.nope": 3}))
    assert "--evaluation.judge.nope: KeywordJudge has no such option" in message
    assert "accepted: " not in message


def test_the_selections_that_the_parser_names_are_accepted(parsers):
    [first, second] = (found[0] for found in re.finditer(r"{.*?}", _ACCEPTED["select"]))
    needed = ["--model.model_name_or_path", "m", "--data.prompts", "p", "--evaluation.judge", "KeywordJudge"]
    needed += ["--evaluation.judge.patterns", PATTERNS, "--steering.vectors.a", "v.safetensors"]
    for words, rule in ((first, "target_rate"), (second, "selectivity")):
        parser = parsers["steer"]
        assert parser.parse_args([*needed, "--steering.select", words]).steering.select.rule == rule
        Selection(**yaml.safe_load(words))


def test_a_loss_that_is_not_finite_names_the_example(experiment, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(experiment / "anchor")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(experiment / "anchor").save_pretrained(tmp_path / "broken")
    responses = experiment / "responses" / "first.jsonl"
    words = line(experiment, "attribute", tmp_path, **{
        "--data.piles.x": responses, "--model.model_name_or_path": tmp_path / "broken",
    })  # fmt: skip
    assert f"the loss of example {responses}:" in refusal(capsys, *words)


def test_fit_asks_for_a_base_or_a_config(experiment, tmp_path, capsys):
    words = line(experiment, "fit", tmp_path, **{"--model.model_name_or_path": None})
    assert "give either a base model" in refusal(capsys, *words)
    assert "fresh weights (--model.config) need a tokenizer" in refusal(capsys, *words, "--model.config", "c.json")
    assert "fit needs training data: --data.train" in refusal(capsys, *line(experiment, "fit", tmp_path))


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_scaled_losses_are_refused_for_attribute(experiment, precision):
    from gradsteer.trainer.modules.attribution import AttributionModule

    module = AttributionModule(str(experiment / "anchor"), packing="off")
    module._trainer = SimpleNamespace(precision=precision)  # a Trainer on a CPU takes neither
    with pytest.raises(ValueError, match=f"--trainer.precision {precision}; accepted: 32-true and bf16-mixed"):
        module.on_test_start()


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_other_precisions_are_accepted_for_attribute(experiment, inputs, precision):
    from gradsteer.trainer.datamodules.piles import PileDataModule
    from gradsteer.trainer.modules.attribution import AttributionModule

    averages = Averages()
    module = AttributionModule(str(experiment / "anchor"), packing="off")
    trainer_of(averages, precision=precision).attribute(module, PileDataModule({"x": str(inputs / "chat.jsonl")}))
    assert averages.found["x"].norm() > 0
    assert averages.found["x"].metadata["precision"] == precision


def test_every_command_in_the_table_has_a_help_line():
    assert all(command.help and (command.module or command.plain) for command in COMMANDS.values())


def test_a_data_source_is_a_path_or_a_mapping_and_no_file_is_taken_for_the_mapping(parsers, tmp_path):
    where = {"toxicity": [1, None], "challenging": False}
    source = {"path": "o/n", "name": "c", "split": "test", "where": where, "columns": {"completion": "rejected"}}
    needed = ["--model.model_name_or_path", "m"]
    found = parsers["attribute"].parse_args([*needed, "--data.piles.x", json.dumps(source)]).data.piles["x"]
    assert {**vars(found), **source} == vars(found)
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in source.items()}
    options = [word for key, value in words.items() for word in (f"--data.train.{key}", value)]
    assert vars(parsers["fit"].parse_args(options).data.train) == vars(found)
    for name, text in (("a.csv", "prompt\nWhy?\n"), ("a.jsonl", '{"path": "elsewhere"}\n')):
        path = str(tmp_path / name)
        Path(path).write_text(text)
        assert parsers["fit"].parse_args(["--data.train", path]).data.train == path
        assert parsers["attribute"].parse_args([*needed, "--data.piles.x", path]).data.piles == {"x": path}


def test_what_the_terminal_cannot_show_does_not_end_the_run(monkeypatch):
    bytes_, errors = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding="cp1252"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(errors, encoding="cp1252"))
    assert main(["мост"]) == 2
    print("мост")
    sys.stdout.flush()
    sys.stderr.flush()
    assert bytes_.getvalue().strip() == ascii("мост")[1:-1].encode()
    assert b"unknown command" in errors.getvalue()
