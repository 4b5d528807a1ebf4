"""The module on a Trainer's test loop: what its rows say, what it does with prompts too long, and what it counts."""

import json
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from conftest import rest_slow
from road import write_lines
from sampler import save_checkpoint, tiny_checkpoint  # noqa: F401 (a fixture)

from gradsteer.generation.decoding import Draw, sample_batch, stop_token_ids
from gradsteer.trainer.datamodules.prompts import PromptDataModule
from gradsteer.trainer.modules.generation import GenerationModule
from gradsteer.trainer.session import session_of

TEXTS = ["the?", "the golden gate?", "how can I help you today?", "bread and bread and bread"]


class Keep(L.Callback):
    """Keeps all outputs, and hands out given rows by batch number."""

    def __init__(self, given=()):
        self.rows, self.progress, self.given, self.stats = [], [], dict(given), []

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        pl_module.given = self.given.get(batch_idx)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.rows += outputs["responses"]
        self.progress.append(outputs["progress"])
        self.stats.append(pl_module.sampling_stats())


@pytest.fixture
def prompts(tmp_path):
    return str(
        write_lines(tmp_path / "prompts.jsonl", [{"id": str(i), "prompt": text} for i, text in enumerate(TEXTS)])
    )


@pytest.fixture
def sampled(tiny_checkpoint, prompts):  # noqa: F811 (the fixture)
    def run(keep=None, *, path=prompts, checkpoint=tiny_checkpoint, conditions=None, prepare=None, data=(), **options):
        keep = keep or Keep()
        options = {"max_new_tokens": 6, "num_samples": 2, **options}
        module = GenerationModule(checkpoint, **options)
        module.configure_model()
        if prepare is not None:
            prepare(module.model)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[keep],
            enable_checkpointing=False, use_distributed_sampler=False, inference_mode=False,
        )  # fmt: skip
        session_of(trainer).plan = [(condition, None) for condition in conditions or ()]
        loader = PromptDataModule(path, num_samples=options["num_samples"], **dict(data))
        trainer.test(module, datamodule=loader, verbose=False)
        keep.module = module
        return sorted(keep.rows, key=lambda row: row["position"])

    return run


def texts(rows):
    return [row["token_ids"] for row in rows]


def test_rows_are_those_of_the_sampler_with_their_own_seeds(sampled):
    keep = Keep()
    rows = sampled(keep, sampling_seed=[3, 5], temperature=0.9, top_p=0.95)
    module = keep.module
    draws = [Draw(row["prompt_token_ids"], row["sample"] % 2, row["seed"]) for row in rows]
    expected = sample_batch(
        module.model, draws, module.sampling, stop_token_ids=stop_token_ids(module.model, module.tokenizer),
        pad_token_id=module.tokenizer.pad_token_id,
    )  # fmt: skip
    assert texts(rows) == [each.token_ids for each in expected]
    assert [row["finish_reason"] for row in rows] == [each.finish_reason for each in expected]
    assert [(row["seed"], row["sample"]) for row in rows[:4]] == [(3, 0), (3, 1), (5, 2), (5, 3)]
    assert len({(row["id"], row["sample"]) for row in rows}) == len(rows) == 16
    assert {(row["temperature"], row["top_p"], row["max_new_tokens"], row["set"]) for row in rows} == {
        (0.9, 0.95, 6, "evaluation")
    }
    assert all("failed" not in row for row in rows)


def test_one_of_several_seeds_gives_what_it_gives_alone(sampled):
    both = sampled(sampling_seed=[3, 5])
    for seed in (3, 5):
        assert texts(sampled(sampling_seed=seed)) == texts(row for row in both if row["seed"] == seed)


@pytest.mark.parametrize("batch_size", rest_slow(["auto", 1, 3]))
def test_responses_do_not_depend_on_the_batch(sampled, batch_size):
    rows = sampled(num_samples=4, max_new_tokens=12, data={"batch_size": batch_size})
    expected = sampled(num_samples=4, max_new_tokens=12, data={"batch_size": 5})
    differing = sum(ours != theirs for ours, theirs in zip(texts(rows), texts(expected), strict=True))
    assert differing <= 0.01 * len(rows)  # near-ties in float32


def test_a_resampled_condition_draws_anew_and_keeps_the_others_as_they_are(sampled):
    conditions = [SimpleNamespace(name=f"c{i}", system_prompt=None, resample=i) for i in range(3)]
    keep = Keep()
    sampled(keep, conditions=conditions)
    by_seed = {}
    for row in keep.rows:
        by_seed.setdefault(row["seed"], []).append(row)
    found = [texts(sorted(rows, key=lambda row: row["position"])) for rows in by_seed.values()]
    assert len(found) == 3
    assert found[0] == texts(sampled())
    assert all(sum(a != b for a, b in zip(found[0], other, strict=True)) >= 6 for other in found[1:])
    assert found[1] != found[2]


def test_given_rows_are_not_sampled_again_and_count_in_no_figure(sampled):
    whole = Keep()
    sampled(whole, data={"batch_size": 3})
    marked = [row | {"marked": True} for row in whole.rows[:3]]
    fed = []
    keep = Keep({0: marked})
    sampled(
        keep, data={"batch_size": 3}, prepare=lambda model: model.register_forward_pre_hook(lambda *_: fed.append(0))
    )
    assert keep.rows == marked + whole.rows[3:]
    assert keep.stats[0]["sampled_tokens"] == keep.stats[0]["seconds"] == 0
    assert keep.stats[1]["sampled_tokens"] == sum(len(row["token_ids"]) for row in whole.rows[3:6])
    assert keep.progress[0] == "from the interrupted run"
    assert keep.progress[1].endswith(" tokens/s")
    assert keep.module.given is None
    sampled(all_given := Keep({0: whole.rows}), prepare=lambda model: model.register_forward_pre_hook(pytest.fail))
    assert all_given.rows == whole.rows


def test_the_figures_start_anew_with_every_condition(sampled):
    keep = Keep()
    conditions = [SimpleNamespace(name=str(i), system_prompt=None) for i in range(2)]
    sampled(keep, data={"batch_size": 4}, conditions=conditions)
    tokens = [sum(len(row["token_ids"]) for row in keep.rows[start : start + 4]) for start in (0, 4, 8, 12)]
    assert [stats["sampled_tokens"] for stats in keep.stats] == [
        tokens[0], tokens[0] + tokens[1], tokens[2], tokens[2] + tokens[3],
    ]  # fmt: skip
    last = keep.stats[-1]
    assert last["tokens_per_second"] == last["sampled_tokens"] / last["seconds"]
    assert 0 < last["prefill_padding"] < 1
    assert 0 <= last["decode_waste"] < 1


def test_a_prompt_too_long_fails_alone(sampled, tmp_path, prompts):
    lines = [json.loads(line) for line in Path(prompts).read_text().splitlines()]
    lines.insert(1, {"id": "long", "prompt": "the golden gate bridge " * 30})
    rows = sampled(path=str(write_lines(tmp_path / "long.jsonl", lines)), data={"batch_size": 4})
    failed = [row for row in rows if "failed" in row]
    assert [(row["id"], row["sample"]) for row in failed] == [("long", 0), ("long", 1)]
    length = len(failed[0]["prompt_token_ids"])
    for row in failed:
        assert (row["completion"], row["token_ids"], row["finish_reason"]) == ("", [], "length")
        assert row["failed"] == (
            f"the prompt has {length} tokens; the model takes 122 before a response of max_new_tokens=6"
        )
    assert texts(row for row in rows if "failed" not in row) == texts(sampled())


def test_logits_that_are_not_finite_name_condition_prompt_and_sample(sampled):
    lengths = {row["id"]: len(row["prompt_token_ids"]) for row in sampled(num_samples=1)}
    third = sorted(lengths, key=lambda name: (-lengths[name], int(name)))[2]  # batches are planned by length

    def spoil(_module, _args, inputs, output):
        if inputs["input_ids"].shape[1] > 1:
            output.logits[2] = float("nan")

    message = f"condition 'hot', prompt '{third}', sample 0: the model's logits are not finite at token 0"
    with pytest.raises(ValueError, match=message):
        sampled(
            conditions=[SimpleNamespace(name="hot", system_prompt=None)],
            prepare=lambda model: model.register_forward_hook(spoil, with_kwargs=True),
        )


def test_out_of_memory_halves_the_batch_and_is_said_once(sampled):
    expected, sizes = sampled(num_samples=4), []

    def crowd(_module, _args, inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    keep = Keep()
    conditions = [SimpleNamespace(name=str(i), system_prompt=None) for i in range(2)]
    with pytest.warns(UserWarning, match="out of memory with 8 responses at once: sampled again with 2") as caught:
        sampled(
            keep, num_samples=4, data={"batch_size": 8}, conditions=conditions,
            prepare=lambda model: model.register_forward_pre_hook(crowd, with_kwargs=True),
        )  # fmt: skip
    assert len([each for each in caught if "out of memory" in str(each.message)]) == 1
    rows = sorted(keep.rows, key=lambda row: row["position"])
    assert texts(rows[::2]) == texts(rows[1::2]) == texts(expected)
    assert sum(size > 3 for size in sizes) == 2  # eight, then four: never again
    # what was thrown away counts in no figure
    assert keep.stats[-1]["sampled_tokens"] == sum(len(row["token_ids"]) for row in expected)


@pytest.mark.parametrize("where", ["config", "generation config"])
def test_a_training_setting_does_not_turn_the_cache_off(sampled, tmp_path, where):
    directory = tmp_path / "trained"
    save_checkpoint(directory)
    file = directory / ("config.json" if where == "config" else "generation_config.json")
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"use_cache": False}))
    widths, used = [], set()

    def note(_module, _args, inputs):
        widths.append(inputs["input_ids"].shape[1])
        used.add(inputs["use_cache"])

    prepare = {"prepare": lambda model: model.register_forward_pre_hook(note, with_kwargs=True)}
    keep = Keep()
    rows = sampled(keep, checkpoint=str(directory), data={"batch_size": 8}, **prepare)
    held = keep.module.model.config if where == "config" else keep.module.model.generation_config
    assert held.use_cache is False  # the setting did arrive
    assert widths[0] == max(len(row["prompt_token_ids"]) for row in rows)
    assert set(widths[1:]) == {1}
    assert used == {True}
    assert texts(rows) == texts(sampled())


def test_the_module_knows_limit_and_weights_before_and_after_loading(tiny_checkpoint):  # noqa: F811 (the fixture)
    module = GenerationModule(tiny_checkpoint, max_new_tokens=8, dtype="bfloat16")
    before, limit = module.footprint(), module.longest_prompt
    module.configure_model()
    after = module.footprint()
    numbers = sum(parameter.numel() for parameter in module.model.parameters())
    assert (limit, module.longest_prompt) == (120, 120)
    assert (before.num_parameters, before.weights) == (numbers, 2 * numbers)
    assert (after.num_parameters, after.weights) == (numbers, 0)
    assert before.cache_per_token == after.cache_per_token


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "model.num_samples is 0"),
        ({"sampling_seed": -1}, "sampling_seed is -1; accepted"),
        ({"sampling_seed": [2, 2]}, r"sampling_seed is \[2, 2\]; accepted"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_checkpoint, options, message):  # noqa: F811 (the fixture)
    with pytest.raises(ValueError, match=message):
        GenerationModule(tiny_checkpoint, **options)
