"""Wrong inputs over all commands, found by trying: each is one line with the option or file, and what is accepted."""

import json
import shutil

import pytest
import torch
import yaml
from road import PATTERNS, write_lines
from safetensors.torch import save_file

from gradsteer.__main__ import main
from gradsteer.options import type_text
from gradsteer.vectors.parameter_vectors import SteeringVector

QUIET = {"--trainer.accelerator": "cpu", "--trainer.enable_progress_bar": "false", "--trainer.logger": "false"}


class Bench:
    """A small experiment and a directory for what is wrong with it."""

    def __init__(self, experiment, inputs, tmp_path):
        self.experiment, self.inputs, self.tmp_path = experiment, inputs, tmp_path
        self.responses = experiment / "responses" / "first.jsonl"

    def words(self, command, changes):
        """A working command line, with some options changed; what is no option stands at the end."""
        model = {"--model.model_name_or_path": self.experiment / "anchor"}
        sampling = {"--data.prompts": self.inputs / "prompts.jsonl", "--model.max_new_tokens": 2}
        sampling |= {"--evaluation.judge": "KeywordJudge", "--evaluation.judge.patterns": PATTERNS}
        steering = {"--steering.vectors.a": self.experiment / "vectors" / "a.safetensors", "--steering.alphas": "[0.1]"}
        steering |= {"--steering.seed_faithful": "true"}
        options = {
            "fit": model | {"--data.train": self.inputs / "chat.jsonl"},
            "validate": model | {"--data.validation": self.inputs / "chat.jsonl"},
            "evaluate": model | sampling,
            "attribute": model | {"--data.piles.x": self.responses},
            "forecast": model | steering | {"--forecasting.responses": self.responses},
            "steer": model | sampling | steering,
        }.get(command)
        options = {} if options is None else {**options, **QUIET, "--output_dir": self.tmp_path / "out"}
        return [command, *(str(word) for pair in {**options, **changes}.items() for word in pair if word is not None)]

    def file(self, name, content):
        path = self.tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def model(self, **files):
        """The anchor with other files; a mapping changes the config."""
        path = self.tmp_path / "model"
        shutil.copytree(self.experiment / "anchor", path)
        for name, content in files.items():
            file = path / name.replace("_json", ".json").replace("_safetensors", ".safetensors")
            if isinstance(content, dict):
                content = json.dumps({**json.loads(file.read_text()), **content})
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, **changes):
        """The responses with some keys changed in every row."""
        rows = [json.loads(line) for line in self.responses.read_text().splitlines()]
        return write_lines(self.tmp_path / "rows.jsonl", [{**row, **changes} for row in rows])

    def vector(self, change, **metadata):
        vector = SteeringVector.load(self.experiment / "vectors" / "a.safetensors")
        tensors = {name: change(tensor) for name, tensor in vector.items()}
        return SteeringVector(tensors, {**vector.metadata, **metadata}).save(self.tmp_path / "v.safetensors")

    def pile(self, **changes):
        return json.dumps({"x": {"responses": str(self.rows(**changes)), "where": {"a": True}}})

    def config(self, text):
        return self.file("config.yaml", text)

    def run_file(self, **stage):
        stage = {"name": "one", "command": "fit", "config": "config.yaml", **stage}
        return self.file("run.yaml", yaml.dump({"experiment": "x", "stages": [stage]}))


def option(name, value):
    return lambda bench: {f"--{name}": value(bench) if callable(value) else value}


MODEL = "model.model_name_or_path"
VECTOR = "steering.vectors.a"
SAVED = "accepted: a directory that save_pretrained wrote"
# command, what is wrong, what the line says
WRONG = [
    # the Trainer's options, as Lightning finds them
    ("fit", option("trainer.max_epochs", -2), ["--trainer.max_epochs is -2", "accepted: more than 0"]),
    ("fit", option("trainer.max_epochs", 0), ["--trainer.max_epochs is 0", "accepted: more than 0"]),
    ("fit", option("trainer.max_epochs", -1), ["--trainer.max_epochs is -1", "-1 with --trainer.max_steps"]),
    ("fit", option("trainer.max_steps", -3), ["--trainer.max_steps is -3", "accepted: more than 0"]),
    ("fit", option("trainer.accelerator", "gpu"), ["--trainer.accelerator is 'gpu'", "accepted: auto, or one"]),
    ("fit", option("trainer.accelerator", "tpu"), ["--trainer.accelerator is 'tpu'", "torch_xla", "accepted: auto"]),
    ("attribute", option("trainer.devices", 0), ["--trainer.devices is '0'", "accepted: auto, a number"]),
    ("evaluate", option("trainer.devices", "abc"), ["--trainer.devices is 'abc'", "accepted: auto, a number"]),
    ("steer", option("trainer.strategy", "deepspeed"), ["--trainer.strategy is 'deepspeed'", "accepted: auto, ddp"]),
    ("forecast", option("trainer.num_nodes", 0), ["--trainer.num_nodes is 0", "accepted: at least 1"]),
    ("validate", option("trainer.limit_val_batches", 2.5), ["--trainer.limit_val_batches is 2.5", "a share from 0.0"]),
    ("fit", option("trainer.accumulate_grad_batches", 0), ["--trainer.accumulate_grad_batches is 0", "at least 1"]),
    ("fit", option("trainer.gradient_clip_val", -1), ["--trainer.gradient_clip_val is -1", "accepted: 0 or more"]),
    ("fit", option("trainer.val_check_interval", 0), ["--trainer.val_check_interval is 0", "accepted: more than 0"]),
    ("fit", option("trainer.max_time", "soon"), ["--trainer.max_time is 'soon'", "accepted: DD:HH:MM:SS"]),
    ("fit", option("trainer.profiler", "no"), ["--trainer.profiler is 'no'", "accepted: simple"]),
    ("fit", option("seed_everything", -1), ["--seed_everything is -1", "accepted: from 0 to"]),
    (
        "fit",
        option("ckpt_path", lambda it: it.file("a.ckpt", "x")),
        ["--ckpt_path", "a.ckpt", "accepted: a .ckpt file"],
    ),
    ("fit", option("model.optimizer.lr", -1), ["--model.optimizer", "Invalid learning rate: -1.0", "accepted:"]),
    # values of the wrong type, as the parser finds them
    ("fit", option("trainer.max_epochs", 1.5), ["--trainer.max_epochs is 1.5; accepted: a whole number, or null"]),
    ("fit", option("model.schedule", "exp"), ["--model.schedule is exp; accepted: constant, linear, cosine"]),
    (
        "fit",
        option("model.optimizer", "Adamm"),
        ["--model.optimizer is Adamm (did you mean 'Adam'?)", "a class by its name"],
    ),
    ("fit", option("model.optimizer.lrr", 1), ["--model.optimizer.lrr: AdamW has no such option (did you mean 'lr'?)"]),
    ("fit", option("model.optimizer.lr", "nan"), ["--model.optimizer.lr is nan; accepted: a finite number"]),
    ("fit", option("trainer.callbacks", "EarlyStopping"), ["EarlyStopping needs --trainer.callbacks.monitor"]),
    ("evaluate", option("data.batch_size", "big"), ["--data.batch_size is big; accepted: a whole number, or auto"]),
    ("evaluate", option("model.temperature", "inf"), ["--model.temperature is inf; accepted: a finite number"]),
    ("attribute", option("model.parameters", "q"), ["--model.parameters is q; accepted: a list of texts, or null"]),
    ("attribute", option("vectors.v", "x"), ["--vectors is x; accepted: ", "[PLUS_PILE, MINUS_PILE]"]),
    ("steer", option("steering.alphas", "abc"), ["--steering.alphas is abc; accepted: [0.1, 0.2]"]),
    ("forecast", option("forecasting.draws", "x"), ["--forecasting.draws is x; accepted: a whole number"]),
    ("export", option("alpha", "nan"), ["--alpha is nan; accepted: a finite number"]),
    ("export", option("format", "ggml"), ["--format is ggml; accepted: model, adapter"]),
    ("inspect", lambda it: {}, ["missing: files"]),
    ("judge", option("judges.v", "Nope"), ["--judges is Nope", "KeywordJudge"]),
    ("corpus", option("num_samples", "x"), ["--num_samples is x; accepted: a whole number"]),
    # names that nobody knows
    ("fit", option("max_epochs", 3), ["unknown option --max_epochs (did you mean '--trainer.max_epochs'?)"]),
    ("fit", option("dat.train", 3), ["unknown option --dat.train (did you mean '--data.train'?)"]),
    ("fit", lambda it: {"stray": None}, ["'stray' belongs to no option; accepted: --OPTION VALUE"]),
    ("export", option("vectr", "x"), ["unknown option --vectr (did you mean '--vector'?)"]),
    ("run", option("confg", "x"), ["unknown option --confg (did you mean '--config'?)"]),
    (
        "steer",
        option("steering.transforms", "[[diff_wieghting]]"),
        ["'diff_wieghting' (did you mean 'diff_weighting'?)"],
    ),
    (
        "fit",
        option("config", lambda it: it.config("data:\n  traim: x\n")),
        ["config.yaml:2: unknown option 'data.traim' (did you mean 'data.train'?)"],
    ),
    ("run", option("config", lambda it: it.file("run.yaml", "stags: []\n")), ["'stags' (did you mean 'stages'?)"]),
    (
        "run",
        option("config", lambda it: it.run_file(command="fitt")),
        ["stage 1 has command 'fitt' (did you mean 'fit'?)"],
    ),
    # config files
    ("fit", option("config", "nope.yaml"), ["no such file: 'nope.yaml'"]),
    ("evaluate", option("config", lambda it: it.config("a: [b]]")), ["config.yaml:1: not readable as YAML"]),
    ("steer", option("config", lambda it: it.config("model:\n\tdtype: x\n")), ["config.yaml:2: not readable as YAML"]),
    (
        "attribute",
        option("config", lambda it: it.config("- a\n")),
        ["config.yaml: a config is a mapping", "found list"],
    ),
    ("forecast", option("config", lambda it: it.config("")), ["config.yaml: a config is a mapping", "found nothing"]),
    (
        "fit",
        option("config", lambda it: it.config("a: !!python/object:os.system {}")),
        ["config.yaml:1", "not readable"],
    ),
    (
        "corpus",
        option("config", lambda it: it.file("c.yaml", b"\xff\xfe")),
        ["c.yaml: not UTF-8", "accepted: YAML in UTF-8"],
    ),
    ("run", option("config", lambda it: it.run_file(command=["a"])), ["stage 1 is", "accepted: texts for name"]),
    ("run", option("config", lambda it: it.run_file(config=3)), ["stage 1 is", "accepted: texts for name"]),
    (
        "fit",
        option("config", lambda it: it.config("data:\n  a: &a [*a]\n")),
        ["config.yaml:2: an alias (*) stands within what it repeats"],
    ),
    (
        "steer",
        option(
            "config",
            lambda it: it.config("".join(f"k{n}: &a{n} [{f'*a{n - 1},' * 10 if n else ''}]\n" for n in range(9))),
        ),
        ["config.yaml:7: its aliases (*) stand for", "accepted: 1,000,000"],
    ),
    (
        "run",
        option("config", lambda it: it.config("a: " + "[" * 3000 + "]" * 3000)),
        ["config.yaml: not readable", "too deep"],
    ),
    ("fit", option("config", lambda it: it.tmp_path), ["a directory, not a file"]),
    ("fit", option("config", lambda it: it.config("\n1: 2\n")), ["config.yaml:2: a key is 1; accepted: names"]),
    ("fit", option("config", lambda it: it.config("model: hello\n")), ["--model is hello; accepted: a mapping of its"]),
    (
        "fit",
        option("config", lambda it: it.config("data: {validation: [a, {b: c}]}\n")),
        ["--data.validation is", "a mapping of path, name, split"],
    ),
    ("steer", option("steering.alpha", 1), ["unknown option --steering.alpha (did you mean '--steering.alphas'?)"]),
    (
        "attribute",
        option("data.piles.x", "{respnses: a.jsonl}"),
        [
            "respnses: DataSource has no such option",
            'accepted: names with files, or with filters: {"bridge": {"responses": FILE',
        ],
    ),
    # absurd sizes
    ("corpus", option("num_samples", 10**12), ["num_samples must be at least 1 and at most 10000000, got 1000000000"]),
    (
        "forecast",
        option("forecasting.draws", 10**12),
        ["forecasting.draws is 1000000000000; accepted: at least 100, up"],
    ),
    (
        "steer",
        option("steering.random_controls", 10**9),
        ["steering.random_controls is 1000000000; accepted: 0 or more"],
    ),
    ("steer", option("steering.curve_points", 10**9), ["steering.curve_points is 1000000000; accepted: 0 or more, up"]),
    ("attribute", option("data.permutations", 10**9), ["data.permutations is 1000000000; accepted: 0 or more, up"]),
    ("attribute", option("model.path_points", 10**9), ["model.path_points is 1000000000; accepted: 2 or more, up to"]),
    # models
    ("evaluate", option(MODEL, lambda it: it.model(model_safetensors=b"x" * 50)), ["the model in", SAVED]),
    (
        "export",
        lambda it: {
            "--model": it.model(model_safetensors=b""),
            "--to": it.tmp_path / "to",
            "--alpha": 1,
            "--format": "model",
            "--vector": it.experiment / "vectors" / "a.safetensors",
        },
        ["the model in", SAVED],
    ),
    ("fit", option(MODEL, lambda it: it.model(tokenizer_json="{}")), ["the tokenizer in", "added_tokens", SAVED]),
    ("steer", option(MODEL, lambda it: it.model(tokenizer_json="{")), ["the tokenizer in", SAVED]),
    ("validate", option(MODEL, lambda it: it.model(config_json="[]")), ["config.json' holds a JSON list; accepted"]),
    (
        "attribute",
        option(MODEL, lambda it: it.model(config_json={"hidden_size": "x"})),
        ["the config in", "hidden_size"],
    ),
    ("evaluate", option(MODEL, lambda it: it.model(config_json={"hidden_act": "x"})), ["the config in", "'x'", SAVED]),
    ("evaluate", option(MODEL, lambda it: it.model(config_json={"dtype": "float7"})), ["float7", SAVED]),
    ("evaluate", option(MODEL, "a b"), ["no model 'a b'", SAVED]),
    # data
    (
        "fit",
        option("data.train", lambda it: it.file("a.jsonl", '{"a":' + "[" * 100000)),
        ["a.jsonl:1: not JSON", "expected"],
    ),
    ("fit", option("data.train", lambda it: it.file("a.jsonl", '{"a": 1' + "0" * 5000 + "}")), ["a.jsonl:1: not JSON"]),
    ("fit", option("data.train", lambda it: it.file("a.parquet", "x")), ["a.parquet: not a Parquet file"]),
    ("fit", option("output_dir", lambda it: it.file("a", "x")), ["--output_dir is", "accepted: a directory"]),
    ("corpus", option("output_dir", "/proc/x"), ["--output_dir is '/proc/x'", "accepted: another directory"]),
    # piles
    (
        "attribute",
        option("data.piles", lambda it: it.pile(degenerate=True)),
        ["rows.jsonl:", "are degenerate", "sample more"],
    ),
    (
        "attribute",
        option("data.piles", lambda it: it.pile(verdicts={"a": None})),
        ["20 (", "lack a verdict: judge them"],
    ),
    (
        "attribute",
        option("data.piles.x", lambda it: it.rows(token_ids=[10**30])),
        ["rows.jsonl:1", "a list of token ids"],
    ),
    # vectors and doses
    (
        "steer",
        option(VECTOR, lambda it: it.vector(lambda tensor: tensor * float("nan"))),
        ["vector 'a'", "has the norm nan: it holds NaN or Inf"],
    ),
    (
        "inspect",
        lambda it: {it.vector(torch.clone, prompt_digests="["): None},
        ["v.safetensors': its header's 'prompt_digests' is not readable as JSON"],
    ),
    (
        "steer",
        option("steering.alphas", "[1e40]"),
        ["steering.alphas holds 1e+40; accepted: numbers that float32 holds"],
    ),
    ("steer", option("steering.transforms", "[[{top_k: 2}]]"), ["transform {'top_k': 2}: accepted: a name"]),
    (
        "steer",
        option("steering.forecast", lambda it: it.file("f.json", "[]")),
        ["f.json' holds a JSON list; accepted: an"],
    ),
    ("inspect", lambda it: {it.inputs / "chat.jsonl": None}, ["chat.jsonl' is not a readable safetensors file"]),
    ("report", lambda it: {it.tmp_path / "none": None}, ["no directory at", "accepted: the --output_dir of a run"]),
    ("report", option("directry", "x"), ["unknown option --directry"]),
    ("doctor", option("seconds", "soon"), ["--seconds is soon; accepted: a finite number"]),
    ("doctor", option("secods", "1"), ["unknown option --secods (did you mean '--seconds'?)"]),
]


@pytest.mark.parametrize(
    ("command", "wrong", "said"), WRONG, ids=[f"{place}-{row[0]}" for place, row in enumerate(WRONG)]
)
def test_a_wrong_input_is_one_line(command, wrong, said, experiment, inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bench = Bench(experiment, inputs, tmp_path)
    try:
        status = main(bench.words(command, wrong(bench)))
    except SystemExit as end:
        status = end.code
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    [place] = [place for place, line in enumerate(lines) if line.startswith(f"gradsteer {command}: error: ")]
    assert len(lines) == place + 2  # what follows says how to learn more
    assert lines[-1] in (f"(gradsteer {command} --help explains the options)", "(GRADSTEER_TRACEBACK=1 shows where)")
    for words in said:
        assert words in lines[place]


def test_they_are_many_and_of_every_command():
    assert len(WRONG) >= 40
    assert {row[0] for row in WRONG} == {
        "corpus", "fit", "validate", "evaluate", "attribute", "forecast", "steer", "judge", "export", "inspect", "run",
        "report", "doctor",
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [option("trainer.max_epochs", 1.5), option("trainer.max_epochs", -2)])
def test_the_traceback_is_there_for_who_asks(wrong, experiment, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADSTEER_TRACEBACK", "1")
    bench = Bench(experiment, inputs, tmp_path)
    with pytest.raises(ValueError, match=r"--trainer.max_epochs is") as raised:
        main(bench.words("fit", wrong(bench)))
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("of", ["steering", "path"])
def test_a_base_of_another_size_says_how_it_differs(of, experiment, inputs, tmp_path, capsys):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(experiment / "anchor")
    config.num_hidden_layers = 3
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "deep")
    AutoTokenizer.from_pretrained(experiment / "anchor").save_pretrained(tmp_path / "deep")
    bench = Bench(experiment, inputs, tmp_path)
    options = {"--steering.base": tmp_path / "deep"}
    if of == "path":
        options = {"--model.base": tmp_path / "deep", "--model.path_points": 2}
    assert main(bench.words("steer" if of == "steering" else "attribute", options)) == 2
    said = capsys.readouterr().err
    assert "the base is no model that the anchor was finetuned from: 9 parameters differ" in said
    assert "absent in the anchor" in said
    assert said.count("accepted: the base of this anchor") == 1


def test_a_package_that_is_missing_and_memory_that_is_short_are_said(monkeypatch, capsys):
    for error, said in (
        (ModuleNotFoundError("No module named 'peft'", name="peft"), "pip install peft"),
        (MemoryError(), "out of memory (the system gave none); less at once: a smaller --data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "out of memory (Default"),
    ):

        def fails(name, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr("gradsteer.__main__.importlib.import_module", fails)
            assert main(["steer"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2"), ImportError("no name", name="gradsteer.x"), KeyError(1)]
)
def test_a_fault_of_the_program_keeps_its_traceback(error, monkeypatch):
    def fails(name):
        raise error

    monkeypatch.setattr("gradsteer.__main__.importlib.import_module", fails)
    with pytest.raises(type(error)):
        main(["steer"])


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int | None, "a whole number, or null"),
        (list[str] | dict[str, float], "a list of texts, or a mapping of names to finite numbers"),
        (bool, "true or false"),
    ],
)
def test_types_are_said_in_words(hint, text):
    assert type_text(hint) == text


def test_a_foreign_safetensors_file_is_named(experiment, inputs, tmp_path, capsys):
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    bench = Bench(experiment, inputs, tmp_path)
    assert main(bench.words("steer", {"--steering.vectors.a": tmp_path / "foreign.safetensors"})) == 2
    assert "foreign.safetensors' has no format version in its header" in capsys.readouterr().err
