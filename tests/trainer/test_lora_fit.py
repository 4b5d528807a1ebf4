"""`fit --model.lora`: an adapter trained on a frozen base, saved as peft saves it, resumed, read again."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from road import QUIET, run
from safetensors.torch import load_file
from transformers import AutoTokenizer

from gradsteer.__main__ import main
from gradsteer.models.adapter_weights import quiet_peft
from gradsteer.models.base_record import recorded_base
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import fresh_causal_lm, load_causal_lm
from gradsteer.models.lora import LoraOptions
from gradsteer.records import file_digest
from gradsteer.trainer.modules.finetune import FinetuneModule
from gradsteer.vectors.preconditioning import SecondMoment


@pytest.fixture(scope="module")
def base(inputs, tmp_path_factory):
    """A tiny model with fresh weights, and its tokenizer."""
    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    fresh_causal_lm(str(inputs / "config.json")).save_pretrained(directory)
    AutoTokenizer.from_pretrained(inputs / "tokenizer").save_pretrained(directory)
    return directory


def words(base, inputs, *more):
    return [
        "fit", "--model.model_name_or_path", str(base), "--data.train", str(inputs / "chat.jsonl"),
        "--model.lora", "{rank: 2, targets: [q_proj, v_proj], rank_pattern: {v_proj: 3}}",
        "--model.optimizer.lr", "0.05", "--data.batch_size", "4", "--seed_everything", "3", *map(str, more),
    ]  # fmt: skip


def test_it_is_saved_as_peft_does_and_records_its_base(base, inputs, tmp_path):
    run(*words(base, inputs), "--output_dir", tmp_path, "--trainer.max_epochs", 2, "--name", "tuned",
        "--data.validation", inputs / "chat.jsonl", "--model.gradient_checkpointing", "true",
        "--saving.second_moment", "true")  # fmt: skip
    path = tmp_path / "tuned"
    settings = json.loads((path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["rank_pattern"]) == (2, 4, {"v_proj": 3})
    assert settings["base_model_name_or_path"] == str(base)
    assert settings["inference_mode"]
    tensors = load_file(path / "adapter_model.safetensors")
    assert len(tensors) == 8
    assert all(bool(tensor.any()) for tensor in tensors.values())
    assert recorded_base(str(path)) == str(base)
    plain_base = load_causal_lm(str(base))
    assert json.loads((path / "gradsteer.json").read_text())["base_fingerprint"] == model_fingerprint(plain_base)
    space = load_causal_lm(str(path), adapter_reading="adapter")
    moment = SecondMoment.load(tmp_path / "second_moments" / "tuned.safetensors")
    moment.check_fits(space)
    assert len(moment) == 8
    ids = torch.arange(3, 13)[None]
    with quiet_peft():
        plain = AutoPeftModelForCausalLM.from_pretrained(path).eval()(input_ids=ids).logits
    for model in (space, load_causal_lm(str(path))):
        torch.testing.assert_close(model(ids).logits, plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain_base(ids).logits, space(ids).logits, atol=1e-3)


def module(base, **options):
    lora = LoraOptions(2, targets=["q_proj"])
    return FinetuneModule(str(base), lora=lora, **options)


def test_only_the_adapter_is_trained_and_kept_in_checkpoints(base):
    fresh = module(base, dtype="bfloat16")
    fresh.configure_model()
    assert {p.dtype for p in fresh.model.parameters()} == {torch.float32}
    assert fresh.model.dtype == torch.bfloat16
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} == {
        f"model.{name}" for name, _ in fresh.model.named_parameters()
    }
    checkpoint = {"state_dict": fresh.state_dict()}
    fresh.on_save_checkpoint(checkpoint)
    assert len(checkpoint["state_dict"]) == 4
    assert not fresh.strict_loading
    assert fresh.num_trained == sum(p.numel() for p in fresh.model.parameters())


def test_checkpointed_activations_give_the_same_gradients(base):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        fresh = module(base, gradient_checkpointing=checkpointing)
        fresh.configure_model()
        fresh.model.train()
        ids = torch.arange(3, 13)[None]
        fresh.model(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in fresh.model.parameters()])
    assert any(bool(g.any()) for g in gradients[0])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_fit_that_broke_off_is_resumed_and_ends_with_the_same_adapter(base, inputs, tmp_path, monkeypatch):
    line = words(base, inputs, "--saving.checkpoint_minutes", 0, "--trainer.max_epochs", 3, *QUIET)
    line += ["--trainer.logger", "false"]
    assert main([*line, "--output_dir", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"

    def breaking(self, batch, batch_idx):
        if (out / ".anchor.resume.ckpt").is_file():
            raise RuntimeError("a fault")
        return step(self, batch, batch_idx)

    step = FinetuneModule.training_step
    with monkeypatch.context() as patched:
        patched.setattr(FinetuneModule, "training_step", breaking)
        with pytest.raises(RuntimeError, match="a fault"):
            main([*line, "--output_dir", str(out)])
    held = torch.load(out / ".anchor.resume.ckpt", weights_only=False)["state_dict"]
    assert len(held) == 8
    assert not (out / "anchor").exists()
    assert main([*line, "--output_dir", str(out)]) == 0
    weights = "anchor/adapter_model.safetensors"
    assert file_digest(out / weights) == file_digest(tmp_path / "whole" / weights)


def test_an_adapter_is_not_resumed_on_another_base_or_with_other_settings(base, tmp_path):
    """Of a hub id whose branch has moved, say: files in a directory are compared before that."""
    begun = module(base)
    begun.configure_model()
    checkpoint = {"state_dict": begun.state_dict()}
    begun.on_save_checkpoint(checkpoint)
    again = module(base)
    again.configure_model()
    again.on_load_checkpoint(checkpoint)
    other = load_causal_lm(str(base))
    other.get_input_embeddings().weight.data[5] += 1e-3
    other.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    moved = module(tmp_path)
    moved.configure_model()
    said = f"began with the base's fingerprint {begun.base_fingerprint}, and .* goes on with {moved.base_fingerprint}"
    with pytest.raises(ValueError, match=said):
        moved.on_load_checkpoint(checkpoint)
    louder = FinetuneModule(str(base), lora=LoraOptions(2, alpha=9, targets=["q_proj"]))
    louder.configure_model()
    with pytest.raises(ValueError, match=r'began with model.lora .*"alpha": 4.* goes on with .*"alpha": 9'):
        louder.on_load_checkpoint(checkpoint)
    whole = FinetuneModule(str(base))
    with pytest.raises(ValueError, match="goes on with None"):
        whole.on_load_checkpoint(checkpoint)
    whole.on_load_checkpoint({"state_dict": {}})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "model.lora.rank is 0"),
        ({"alpha": -1.0}, "model.lora.alpha is -1.0"),
        ({"dropout": 1.0}, "model.lora.dropout is 1.0"),
        ({"rank_pattern": {"q_proj": 0}}, "model.lora.rank_pattern.q_proj is 0"),
        ({"targets": ["w1"]}, "model.lora does not fit LlamaForCausalLM: Target modules {'w1'} not found"),
        ({"modules_to_save": ["score"]}, "modules_to_save names 'score'"),
        ({"rank_pattern": {"w1": 3}}, "rank_pattern names 'w1'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(base, options, said):
    with pytest.raises(ValueError, match=said):
        FinetuneModule(str(base), lora=LoraOptions(**options))


def test_what_no_adapter_can_be_read_on_again_is_refused(base, inputs):
    lora = LoraOptions(2)
    with pytest.raises(ValueError, match="is fresh weights"):
        FinetuneModule(config=str(inputs / "config.json"), tokenizer=str(inputs / "tokenizer"), lora=lora)
    with pytest.raises(ValueError, match="which has no effect without model.lora"):
        FinetuneModule(str(base), quantization="4bit")
