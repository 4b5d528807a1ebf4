import json
import re

import pytest

from gradsteer.cli.commands import COMMANDS
from gradsteer.cli.stages import Stage, config_digest
from gradsteer.version import __version__


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, "evaluate-anchor", ("out.json",))


def test_a_stage_goes_from_new_over_unfinished_to_done(stage, tmp_path):
    config = {"model": {"temperature": 0.6}}
    assert stage.state(config) == "new"
    stage.write(config, finished=False)
    assert stage.state(config) == "unfinished"
    stage.write(config, finished=True)
    assert stage.state(config) == "unfinished"  # its output is not there
    (tmp_path / "out.json").write_text("{}")
    assert stage.state(config) == "done"
    assert stage.state({"model": {"temperature": 0.7}}) == "other"


def test_changed_input_files_are_noticed(stage, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("1\n")
    config = {"data": {"prompts": str(prompts)}}
    (tmp_path / "out.json").write_text("{}")
    stage.write(config, finished=True)
    assert stage.state(config) == "done"
    prompts.write_text("2\n")
    assert stage.state(config) == "changed"


def test_a_directory_may_be_moved(stage, tmp_path):
    (tmp_path / "out.json").write_text("{}")
    (tmp_path / "anchor").mkdir()
    config = {"model": {"model_name_or_path": "{output_dir}/anchor"}, "output_dir": str(tmp_path)}
    stage.write(config, finished=True)
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-moved"))
    there = Stage(moved, stage.key, stage.outputs)
    assert list(there.inputs(config)) == ["{output_dir}/anchor"]
    assert there.state({**config, "output_dir": str(moved)}) == "done"


def test_every_spelling_of_a_path_is_the_same_stage(stage, tmp_path, monkeypatch):
    (tmp_path / "out.json").write_text("{}")
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    place = tmp_path.with_name(tmp_path.name + "-elsewhere")
    place.mkdir()
    (place / "p.jsonl").write_text("1\n")
    (place / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(place)

    def config(model, prompts="p.jsonl"):
        return {"model": {"model_name_or_path": str(model)}, "data": {"prompts": str(prompts)}}

    stage.write(config("{output_dir}/model", "p.jsonl"), finished=True)
    spellings = [tmp_path / "model", f"{tmp_path}/model/", f"../{tmp_path.name}/./model", "link", "link/"]
    for model in spellings:
        for prompts in ("p.jsonl", "./p.jsonl", place / "p.jsonl"):
            assert stage.state(config(model, prompts)) == "done", (model, prompts)
    assert stage.state(config(tmp_path / "other")) == "other"  # of the same content, but another
    monkeypatch.chdir(tmp_path)
    assert stage.state(config("model", place / "p.jsonl")) == "done"
    assert stage.state(config("model", "p.jsonl")) == "other"  # there is none here
    (place / "p.jsonl").write_text("2\n")
    assert stage.state(config("model", place / "p.jsonl")) == "changed"


def test_inputs_are_files_directories_and_shipped_resources(stage, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    config = {
        "model": {"model_name_or_path": str(tmp_path / "model"), "hub": "meta-llama/Llama-3.2-1B"},
        "data": {"prompts": "gradsteer://topics/evaluation_prompts.jsonl", "word": "tests"},
    }
    assert sorted(stage.inputs(config)) == sorted(
        [str(tmp_path / "model"), "gradsteer://topics/evaluation_prompts.jsonl"]
    )


def test_controls_beside_a_steering_vector_are_inputs(stage, tmp_path):
    names = ["a", "permuted/a-0", "permuted/a-1", "graddiff/a-20", "permuted/b-0", "permuted/a-b-0", "graddiff/a"]
    for name in names:
        path = tmp_path / "vectors" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "out.json").write_text("{}")
    config = {"steering": {"vectors": {"a": "{output_dir}/vectors/a.safetensors", "c": "a + a"}}}
    expected = [f"{{output_dir}}/vectors/{name}.safetensors" for name in sorted(names[:4])]
    assert list(stage.inputs(config)) == expected
    absolute = str(tmp_path / "vectors" / "a.safetensors")
    other = {"steering": {"vectors": {"a": absolute}, "control_vectors": {"b": absolute}}}
    assert sorted(stage.inputs(other)) == [
        str(tmp_path / "vectors" / f"{name}.safetensors") for name in sorted(names[:4])
    ]
    assert all(len(digest) >= 16 for given in (config, other) for digest in stage.inputs(given).values())
    stage.write(config, finished=True)
    assert stage.state(config) == "done"
    (tmp_path / "vectors" / "permuted" / "a-b-0.safetensors").write_text("of another vector")
    assert stage.state(config) == "done"
    control = tmp_path / "vectors" / "permuted" / "a-1.safetensors"
    control.write_text("made anew")
    assert stage.state(config) == "changed"
    control.write_text("permuted/a-1")
    assert stage.state(config) == "done"
    (tmp_path / "vectors" / "graddiff" / "a-40.safetensors").write_text("one more")
    assert stage.state(config) == "changed"


def test_where_and_how_loudly_a_command_runs_is_no_part_of_its_digest():
    config = {"alpha": [0.1, -0.1], "output_dir": "a", "trainer": {"logger": None, "enable_progress_bar": True}}
    same = {"alpha": [0.1, -0.1], "output_dir": "b", "trainer": {"logger": False, "enable_progress_bar": False}}
    assert config_digest(config) == config_digest(same)
    assert config_digest(config) != config_digest({**config, "alpha": [-0.1, 0.1]})
    assert config_digest(config) != config_digest({**config, "alpha": []})


@pytest.mark.parametrize("name", ["device", "store", "timeout", "prices", "concurrency", "batch_size"])
def test_a_behavior_named_like_an_option_of_the_judge_is_part_of_the_digest(name):
    def digest(**arguments):
        judge = {"class_path": "KeywordJudge", "init_args": arguments}
        hybrid = {"class_path": "HybridJudge", "init_args": {"judge": judge, "patterns": arguments.get("patterns")}}
        return [config_digest({"evaluation": {"judge": each}}) for each in (judge, hybrid)]

    for key in ("patterns", "rubrics", "labels"):
        for first, second in ((["bridge"], ["gate"]), ("bridge", "gate")):
            before, after = (digest(**{key: {name: value}}) for value in (first, second))
            assert all(one != other for one, other in zip(before, after, strict=True))
    assert digest(**{name: 1}) == digest(**{name: 2}) == digest(**{name: [1, 2]}) == digest()


def test_a_record_of_another_format_or_a_broken_one_is_refused(stage):
    stage.path.parent.mkdir(parents=True)
    stage.path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="has format 99; accepted: 1"):
        stage.state({})
    stage.path.write_text("{")
    with pytest.raises(ValueError, match="delete it to start afresh"):
        stage.state({})


def test_a_named_commands_stage_carries_the_name(tmp_path):
    stage = Stage.of(tmp_path, COMMANDS["evaluate"], "base")
    assert stage.key == "evaluate-base"
    assert "responses/base.jsonl" in stage.outputs
    assert Stage.of(tmp_path, COMMANDS["steer"], None).key == "steer"


def test_what_differs_is_named_with_both_values(stage, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("1\n")
    config = {"model": {"num_samples": 40, "a": 1, "b": 1, "c": 1}, "data": {"prompts": str(prompts)}}
    stage.write(config, finished=True)

    def difference(**model):
        return stage.difference({**config, "model": {**config["model"], **model}})

    assert difference(num_samples=0) == "model.num_samples (now 0, then 40)"
    assert difference(d=[0.5]) == "model.d.0 (now 0.5, then absent)"
    assert difference(a=2, b=2, num_samples=1, c=2).endswith("model.c (now 2, then 1), 1 more")
    prompts.write_text("2\n")
    assert re.fullmatch(
        r"the file '.*prompts.jsonl' \(now digest \w{12}, then digest \w{12}\)", stage.difference(config)
    )
    assert difference(num_samples=0) == "model.num_samples (now 0, then 40)"


def test_a_record_of_before_says_no_option_and_another_version_is_said(stage):
    stage.write({"a": 1}, finished=True)
    record = json.loads(stage.path.read_text())
    stage.path.write_text(json.dumps({key: value for key, value in record.items() if key != "options"}))
    assert stage.difference({"a": 2}) == ""
    stage.path.write_text(
        json.dumps({**record, "version": "0.0.1", "config_digest": "of that version", "paths_digest": "likewise"})
    )
    assert stage.difference({"a": 1}) == f"the version of gradsteer (now {__version__}, then 0.0.1)"


def test_no_text_of_a_judge_and_no_address_is_repeated(stage):
    def config(secret):
        judge = {
            "class_path": "OpenAIJudge",
            "init_args": {"base_url": f"http://me:{secret}@x", "model": secret, "seed": 1},
        }
        return {"evaluation": {"judge": judge}, "data": {"prompts": f"https://x/?token={secret}"}}

    stage.write(config("sk-first"), finished=True)
    said = stage.difference(config("sk-other")) + stage.path.read_text()
    assert "evaluation.judge.init_args.model (now digest " in said
    assert "sk-" not in said
    other = config("sk-first")
    other["evaluation"]["judge"]["class_path"] = "KeywordJudge"
    assert stage.difference(other) == 'evaluation.judge.class_path (now "KeywordJudge", then "OpenAIJudge")'
