"""The work list: rows, seeds, sets, and a plan that is the same whenever it should be."""

import json
from types import SimpleNamespace

import lightning as L
import pytest
from road import write_lines
from sampler import tiny_checkpoint  # noqa: F401 (a fixture)
from tokenizers_zoo import CHATML_TEMPLATE

from gradsteer.data.sources import DataSource
from gradsteer.generation.sampling import fresh_seeds
from gradsteer.steering.conditions import Condition
from gradsteer.trainer.datamodules.prompts import PromptDataModule
from gradsteer.trainer.modules.generation import GenerationModule


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prompts")
    sets = {
        "prompts": [{"id": name, "prompt": text} for name, text in (("p", "the?"), ("q", "the golden gate?"))],
        "benign": [{"id": "p", "prompt": "bread?"}, {"prompt": "the?"}],
        "harmful": [{"id": "p", "prompt": "spread?"}],
    }
    return {name: str(write_lines(directory / f"{name}.jsonl", rows)) for name, rows in sets.items()}


@pytest.fixture(scope="module")
def data_of(files, tiny_checkpoint):  # noqa: F811 (the fixture)
    """A set-up datamodule with a Trainer around it."""

    def make(seeds=0, prompts=None, template=None, **options):
        generation = GenerationModule(tiny_checkpoint, sampling_seed=seeds, max_new_tokens=4)
        generation.tokenizer.chat_template = template or generation.tokenizer.chat_template
        data = PromptDataModule(prompts or files["prompts"], **options)
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        trainer.strategy.connect(generation)
        data.trainer = trainer
        data.setup("test")
        return data

    return make


def rows_of(data, condition=None):
    rows = [row for batch in data._batches_of(condition) for row in batch]
    return sorted(rows, key=lambda row: row["position"])


def test_one_seed_is_as_ever(data_of):
    found = [
        [row[key] for key in ("id", "sample", "seed", "draw", "set")] for row in rows_of(data_of(3, num_samples=2))
    ]
    assert found == [[name, k, 3, k, "evaluation"] for name in "pq" for k in range(2)]


def test_several_seeds_run_prompt_by_prompt_and_samples_run_on(data_of):
    rows = rows_of(data_of([4, 9], num_samples=2))
    found = [[row[key] for key in ("id", "sample", "seed", "draw")] for row in rows]
    assert found == [[name, 2 * i + k, seed, k] for name in "pq" for i, seed in enumerate((4, 9)) for k in range(2)]
    assert [row["position"] for row in rows] == list(range(8))


def test_a_repeated_prompt_draws_further_samples_with_each_seed(data_of, tmp_path):
    prompts = [{"id": str(i), "prompt": "the?"} for i in range(2)]
    rows = rows_of(data_of([4, 9], str(write_lines(tmp_path / "p.jsonl", prompts)), num_samples=2))
    assert [row["draw"] for row in rows] == [0, 1, 0, 1, 2, 3, 2, 3]


def test_the_datamodules_own_seeds_are_the_models_where_they_are_not_given(data_of):
    assert {row["seed"] for row in rows_of(data_of(5))} == {5}
    assert {row["seed"] for row in rows_of(data_of(5, sampling_seed=[6, 7]))} == {6, 7}


def test_a_resampled_condition_has_fresh_seeds(data_of):
    data = data_of([4, 9], num_samples=2)
    again = SimpleNamespace(system_prompt=None, resample=2)
    rows, usual = rows_of(data, again), rows_of(data)
    first, second = fresh_seeds([4, 9], 2)
    assert [row["seed"] for row in rows] == [first, first, second, second] * 2
    assert [row | {"seed": 0} for row in rows] == [row | {"seed": 0} for row in usual]
    assert rows_of(data, SimpleNamespace(system_prompt=None, resample=0)) == usual
    assert rows_of(data, Condition("anchor", "anchor")) == usual


def test_refusal_prompts_are_sampled_once_with_the_first_seed(data_of, files):
    options = {"benign_prompts": files["benign"], "harmful_prompts": files["harmful"]}
    data = data_of([4, 9], num_samples=2, batch_size=3, **options)
    rows = rows_of(data)
    assert rows[:8] == rows_of(data_of([4, 9], num_samples=2))
    found = [[row[key] for key in ("set", "sample", "seed", "position")] for row in rows[8:]]
    assert found == [["benign", 0, 4, 8], ["benign", 0, 4, 9], ["harmful", 0, 4, 10]]
    assert [rows[8]["id"], rows[10]["id"]] == ["benign:p", "harmful:p"]
    assert len({row["id"] for row in rows}) == 5
    assert rows[9]["draw"] == 2  # the same prompt as p, which has drawn two with this seed
    lengths = [len(row["prompt_token_ids"]) for batch in data.batches for row in batch]
    assert lengths == sorted(lengths, reverse=True)  # planned over all together
    fewer = rows_of(data_of([4, 9], num_samples=2, max_refusal_prompts=1, **options))
    assert [row["set"] for row in fewer[8:]] == ["benign", "harmful"]


WITHOUT_SYSTEM = CHATML_TEMPLATE.replace("message in messages %}", "message in messages if message.role != 'system' %}")


def test_the_first_prompt_is_shown_as_the_model_reads_it(data_of, caplog):
    template = CHATML_TEMPLATE.replace(
        "assistant\\n' }}", "assistant\\n' }}{%- if mood is defined %}{{ mood }}{%- endif %}"
    )
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        data = data_of(template=template, system_prompt="I help", template_kwargs={"mood": "So: "})
    text = "<|im_start|>system\nI help<|im_end|>\n<|im_start|>user\nthe?<|im_end|>\n<|im_start|>assistant\nSo: "
    (shown,) = [line for line in caplog.messages if "first prompt" in line]
    assert f"{text!r} (" in shown
    assert data.module.tokenizer.decode(rows_of(data)[0]["prompt_token_ids"]) == text


def test_a_system_prompt_that_the_template_drops_is_refused_before_the_work_or_folded(data_of):
    data = data_of(template=WITHOUT_SYSTEM)
    with pytest.raises(ValueError, match=r"condition 'polite': the chat template of .* leaves the text of a system"):
        data.check_system_prompt("polite", "Be kind.")
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: the chat template of .* leaves the text of a system turn"):
        data_of(template=WITHOUT_SYSTEM, system_prompt="Be kind.")
    data = data_of(template=WITHOUT_SYSTEM, system_role="fold")
    data.check_system_prompt("polite", "Be kind.")
    row = rows_of(data, SimpleNamespace(system_prompt="Be kind.", resample=0))[0]
    assert "<|im_start|>user\nBe kind.\n\nthe?<|im_end|>" in data.module.tokenizer.decode(row["prompt_token_ids"])
    assert row["prompt"] == "the?"


def test_an_id_that_looks_like_another_sets_is_refused(data_of, files, tmp_path):
    prompts = write_lines(tmp_path / "p.jsonl", [{"id": "benign:p", "prompt": "the?"}])
    with pytest.raises(ValueError, match=r"p\.jsonl:1: id 'benign:p' is also the id of a prompt in data\.benign"):
        data_of(0, str(prompts), benign_prompts=files["benign"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; accepted: at least 1, or auto"),
        ({"max_prompts": 0}, "data.max_prompts is 0"),
        ({"max_refusal_prompts": 0}, "data.max_refusal_prompts is 0"),
        ({"max_refusal_prompts": 2}, "data.max_refusal_prompts has no effect without"),
        ({"sampling_seed": [1, 1]}, r"sampling_seed is \[1, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PromptDataModule("p.jsonl", **options)


def test_the_plan_counts_all_rows_and_is_json(data_of, files):
    data = data_of([4, 9], num_samples=2, batch_size=3, harmful_prompts=files["harmful"])
    plan = data.plan
    assert plan == json.loads(json.dumps(plan))
    assert (plan["batch_size"], plan["num_rows"], plan["num_batches"]) == (3, 9, 3)
    assert data_of([4, 9], num_samples=2, batch_size=3, harmful_prompts=files["harmful"]).plan == plan
    assert data.plan_of(Condition("steered", "steered", alpha=1.0)) == plan


def test_the_digest_changes_with_whatever_changes_the_work(data_of, files, tmp_path):
    usual, second_row = {"seeds": 4, "num_samples": 2, "batch_size": 3}, {"id": "q", "prompt": "the golden gate?"}
    other_id = write_lines(tmp_path / "i.jsonl", [{"id": "r", "prompt": "the?"}, second_row])
    other_text = write_lines(tmp_path / "t.jsonl", [{"id": "p", "prompt": "the"}, second_row])
    other_id = write_lines(
        tmp_path / "i.jsonl", [{"id": "r", "prompt": "the?"}, {"id": "q", "prompt": "the golden gate?"}]
    )
    changes = [
        {}, {"seeds": 5}, {"seeds": [4, 5], "num_samples": 1}, {"num_samples": 3}, {"batch_size": 2},
        {"max_prompts": 1},
        {"system_prompt": "I help"}, {"harmful_prompts": files["harmful"]}, {"benign_prompts": files["harmful"]},
        {"prompts": str(other_id)}, {"prompts": str(other_text)},
    ]  # fmt: skip
    data = data_of(**usual)
    digests = [data_of(**{**usual, **change}).plan["digest"] for change in changes]
    digests += [data.plan_of(SimpleNamespace(system_prompt=None, resample=number))["digest"] for number in (1, 2)]
    digests.append(data.plan_of(Condition("said", "baseline", system_prompt="I can"))["digest"])
    assert len(set(digests)) == len(digests)
    assert data.plan["digest"] == digests[0]


def test_auto_is_planned_from_memory_and_a_recorded_number_takes_its_place(data_of, monkeypatch):
    plans = []
    for free in (2 * 10**6, 2 * 10**6 + 5, 10**12):
        monkeypatch.setattr("gradsteer.trainer.datamodules.prompts.free_bytes", lambda device, free=free: free)
        plans.append(data_of(num_samples=100).plan)
    assert plans[0] == plans[1]
    assert 1 < plans[0]["batch_size"] < plans[2]["batch_size"] == 1024
    resumed = data_of(num_samples=100)
    resumed.use_batch_size(plans[0]["batch_size"])
    assert resumed.plan == plans[0]
    assert [len(batch) for batch in resumed.batches][0] == plans[0]["batch_size"]
    assert data_of(num_samples=100, batch_size=plans[0]["batch_size"]).plan == plans[0]
    early = PromptDataModule("p.jsonl")
    early.use_batch_size(7)
    assert early.resolved_batch_size == 7
    with pytest.raises(ValueError, match="the recorded batch size is 0"):
        early.use_batch_size(0)


def test_all_ranks_take_the_first_ones_number(data_of, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.broadcast", lambda self, value, src=0: 5)
    assert data_of().plan["batch_size"] == 5


def test_an_early_recorded_number_is_not_planned_over(data_of, files):
    data = PromptDataModule(files["prompts"])
    data.trainer = data_of().trainer
    data.use_batch_size(3)
    data.setup("test")
    assert data.plan["batch_size"] == 3


def test_when_no_evaluation_prompt_fits_nothing_starts(data_of, files):
    with pytest.raises(ValueError, match=r"every prompt is too long: the shortest has \d+ tokens, .* takes 124 before"):
        data_of(system_prompt="the " * 200)
    data = data_of(batch_size=4, benign_prompts=files["benign"])
    said = Condition("said", "baseline", system_prompt="the " * 200)
    with pytest.raises(ValueError, match="every prompt is too long"):
        data.plan_of(said)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_a_blank_prompt_is_refused_by_file_and_line(data_of, tmp_path, text):
    blank = str(write_lines(tmp_path / "blank.jsonl", [{"prompt": "the?"}, {"id": "b", "prompt": text}]))
    for options in ({"prompts": blank}, {"benign_prompts": blank}, {"harmful_prompts": blank}):
        with pytest.raises(ValueError, match=r"blank\.jsonl:2: the prompt is .*; accepted: a text that is not blank"):
            data_of(**options)
    turns = [{"role": "user", "content": "the?"}, {"role": "user", "content": text}]
    with pytest.raises(ValueError, match=r"turns\.jsonl:1: the prompt is"):
        data_of(prompts=str(write_lines(tmp_path / "turns.jsonl", [{"messages": turns}])))
    assert data_of(prompts=blank, max_prompts=1).plan["num_rows"] == 1


def test_one_prompt_that_fits_is_enough(data_of, tmp_path):
    prompts = [{"prompt": "the " * 200}, {"prompt": "the?"}]
    data = data_of(0, str(write_lines(tmp_path / "p.jsonl", prompts)))
    assert data.plan["num_rows"] == 2
    assert data.plan["batch_size"] == 1024  # by the prompts that fit


def test_repeats_are_dropped_where_asked_and_each_set_has_its_own_columns(data_of, tmp_path):
    repeated = write_lines(tmp_path / "p.jsonl", [{"prompt": "the?"}, {"prompt": "bread?"}, {"prompt": "the?"}])
    asked = write_lines(tmp_path / "q.jsonl", [{"question": "gate?", "ok": n} for n in range(2)])
    benign = DataSource(str(asked), columns={"prompt": "question"}, where={"ok": 1})
    data = data_of(prompts=str(repeated), duplicates="drop", benign_prompts=benign)
    assert [row["prompt"] for row in rows_of(data)] == ["the?", "bread?", "gate?"]
    assert len(rows_of(data_of(prompts=DataSource(str(repeated), duplicates="drop")))) == 2
    with pytest.raises(ValueError, match=r"p\.jsonl:3: id '\w+' already occurs"):
        data_of(prompts=str(repeated))


def test_more_responses_than_memory_lists_are_refused_by_their_count(data_of):
    with pytest.raises(ValueError, match="with 2 prompts and 2 seeds these are 4,000,000,000,000 responses; accepted"):
        data_of([0, 1], num_samples=10**12)
