"""Checkpoints and diffs tensor by tensor: the same values as with loaded models, and a few of them in memory."""

import json
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen2Config, conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter

from gradsteer.models.checkpoints import CheckpointWeights, write_safetensors_streamed
from gradsteer.models.loading import load_causal_lm
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import apply_transforms
from gradsteer.vectors.weight_diff import WeightDiff, named_weights


def saved(model, directory, **options):
    model.save_pretrained(directory, **options)
    return directory


def rewritten(directory, change):
    """Changes the tensors of a directory's file."""
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def same_as_loaded(directory, dtype="float32"):
    weights = CheckpointWeights(directory)
    loaded = named_weights(load_causal_lm(str(directory), dtype=dtype))
    assert list(weights) == list(loaded)
    assert weights.shapes == {name: tensor.shape for name, tensor in loaded.items()}
    assert all(torch.equal(weights[name].to(tensor), tensor) for name, tensor in loaded.items())
    return weights


SMALL = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama, tied": LlamaConfig(**SMALL, intermediate_size=24, tie_word_embeddings=True),
    "llama, not tied": LlamaConfig(**SMALL, intermediate_size=24, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SMALL, intermediate_size=24, num_key_value_heads=1, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_order_and_values_are_those_of_the_loaded_model(name, tmp_path):
    same_as_loaded(saved(AutoModelForCausalLM.from_config(CONFIGS[name]), tmp_path))


def test_sharded_files(tmp_path):
    directory = saved(tiny_llama(dtype=torch.float32), tmp_path, max_shard_size="5KB")
    assert not (directory / "model.safetensors").exists()
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    same_as_loaded(directory)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_values_have_the_files_dtype(dtype, tmp_path):
    weights = same_as_loaded(saved(tiny_llama(dtype=getattr(torch, dtype)), tmp_path), dtype)
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}


def test_tied_weights_that_are_stored_twice_or_under_the_other_name(tmp_path):
    both = saved(tiny_llama(dtype=torch.float32), tmp_path / "both")
    rewritten(both, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert "lm_head.weight" not in same_as_loaded(both)
    rewritten(both, lambda tensors: {**tensors, "model.rotary_emb.inv_freq": torch.ones(4)})  # no parameter
    assert "model.rotary_emb.inv_freq" not in CheckpointWeights(both)
    other = saved(tiny_llama(dtype=torch.float32), tmp_path / "other")
    rewritten(other, lambda tensors: {"lm_head.weight": tensors.pop("model.embed_tokens.weight"), **tensors})
    assert "model.embed_tokens.weight" in same_as_loaded(other)


def config_with(**values):
    def change(directory):
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def tensors_with(change):
    return lambda directory: rewritten(directory, change)


EMBEDDING = "model.embed_tokens.weight"
UNSERVED = {
    "renamed": (tensors_with(lambda t: {"gpt_" + key: value for key, value in t.items()}), "other names .* 'gpt_model"),
    "missing": (tensors_with(lambda t: {k: v for k, v in t.items() if "norm" not in k}), "no tensor .*norm.weight'"),
    "resized": (tensors_with(lambda t: {**t, EMBEDDING: torch.ones(62, 16)}), r"\(62, 16\) in the file and \(61, 16\)"),
    "untied": (tensors_with(lambda t: {**t, "lm_head.weight": torch.ones(61, 16)}), "different values for tied"),
    "half tied": (tensors_with(lambda t: {**t, "lm_head.weight": t[EMBEDDING].half()}), "different values for tied"),
    "quantized": (config_with(quantization_config={"quant_method": "x"}), "config has 'quantization_config'"),
    "own code": (config_with(auto_map={"AutoModelForCausalLM": "code.Model"}), "config has 'auto_map'"),
    "adapter": (lambda directory: (directory / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "pickled": (lambda directory: (directory / "model.safetensors").unlink(), "no model.safetensors and no"),
    "no config": (lambda directory: (directory / "config.json").unlink(), "no directory with a config.json"),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_what_has_to_be_loaded_is_said_and_not_served(name, tmp_path):
    directory = saved(tiny_llama(dtype=torch.float32), tmp_path)
    assert CheckpointWeights.try_open(directory) is not None
    change, message = UNSERVED[name]
    change(directory)
    with pytest.raises(ValueError, match=f"{message}.*; load the model instead"):
        CheckpointWeights(directory)
    assert CheckpointWeights.try_open(str(directory)) is None


def test_hub_ids_and_fused_experts_are_not_served(tmp_path):
    assert CheckpointWeights.try_open("meta-llama/Llama-3.2-1B") is None
    experts = MixtralConfig(**SMALL, intermediate_size=24, num_local_experts=2, num_key_value_heads=1)
    directory = saved(AutoModelForCausalLM.from_config(experts), tmp_path)
    with pytest.raises(ValueError, match="load the model instead"):
        CheckpointWeights(directory)


def test_values_that_loading_would_convert_under_the_same_name_are_not_served(tmp_path, monkeypatch):
    directory = saved(tiny_llama(dtype=torch.float32), tmp_path)
    turned = WeightConverter("o_proj.weight", "o_proj.weight", operations=[Transpose(0, 1)])
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: [turned])
    with pytest.raises(ValueError, match="that loading converts, such as .*o_proj"):
        CheckpointWeights(directory)


def test_broken_directories_are_refused(tmp_path):
    directory = saved(tiny_llama(dtype=torch.float32), tmp_path / "file")
    (directory / "model.safetensors").write_bytes(b"no safetensors")
    sharded = saved(tiny_llama(dtype=torch.float32), tmp_path / "sharded", max_shard_size="5KB")
    next(sharded.glob("model-*.safetensors")).unlink()
    for path, message in ((directory, "not a readable safetensors file"), (sharded, "names a file that is not there")):
        with pytest.raises(ValueError, match=message):
            CheckpointWeights.try_open(path)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match='has no "weight_map"'):
        CheckpointWeights(sharded)
    (sharded / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable as JSON"):
        CheckpointWeights(sharded)


@pytest.fixture
def directories(tmp_path):
    """An anchor in bfloat16 and a base in float32, beside each other."""
    anchor = saved(tiny_llama(seed=1, dtype=torch.bfloat16), tmp_path / "anchor")
    return anchor, saved(tiny_llama(seed=2, dtype=torch.float32), tmp_path / "base")


def test_a_streamed_diff_is_the_diff(directories, tmp_path):
    anchor, base = (CheckpointWeights(directory) for directory in directories)
    streamed, held = WeightDiff.streamed(anchor, base), WeightDiff.between(anchor, base)
    assert list(streamed) == list(held)
    assert len(streamed) == len(held)
    assert streamed.numel() == held.numel() == sum(tensor.numel() for tensor in held.values())
    assert all(torch.equal(streamed[name], tensor) and tensor.dtype == torch.float32 for name, tensor in held.items())
    assert streamed.norm() == held.norm() > 0
    assert streamed.layer_sum_squares() == held.layer_sum_squares()
    assert streamed.cosine(held) == pytest.approx(1)
    doubled = streamed * 2
    assert type(doubled) is WeightDiff
    assert doubled.norm() == pytest.approx(2 * held.norm())
    models = [load_causal_lm(str(directory)) for directory in directories]
    of_models = WeightDiff.streamed(*(named_weights(model) for model in models))
    assert of_models.norm() == held.norm()
    loaded = WeightDiff.load(WeightDiff(streamed, {"origin": "here"}).save(tmp_path / "delta.safetensors"))
    assert loaded.metadata == {"origin": "here"}
    again = WeightDiff.load(streamed.save(tmp_path / "delta.safetensors"))
    assert set(again) == set(held)
    assert all(torch.equal(again[name], loaded[name]) and torch.equal(again[name], held[name]) for name in held)


def test_a_streamed_diff_of_another_architecture_is_refused(directories, tmp_path):
    untied = saved(tiny_llama(tied=False, dtype=torch.float32), tmp_path / "untied")
    with pytest.raises(ValueError, match="lm_head.weight"):
        WeightDiff.streamed(CheckpointWeights(untied), CheckpointWeights(directories[1]))
    with pytest.raises(ValueError, match="1 parameters differ in shape or name, such as 'w'"):
        WeightDiff.streamed({"w": torch.ones(3)}, {"w": torch.ones(4)})


BY_DIFF = [
    "diff_weighting", {"diff_weighting": {"scale": "tail_median"}}, {"diff_weighting": {"scale": "tail_mean"}},
    {"sign_restricted": {"of": "diff"}}, "sign_agreement", {"diff_subspaces": {"rank": 2}}, "diff_projection",
    {"diff_projection": {"per": "tensor"}},
]  # fmt: skip


class Watched(dict):
    """Tensors that are made when asked for, and a count of those alive at once."""

    alive = most = 0

    def __getitem__(self, name):
        tensor = super().__getitem__(name).clone()
        self.alive, self.most = self.alive + 1, max(self.most, self.alive + 1)
        weakref.finalize(tensor, self._gone)
        return tensor

    def _gone(self):
        self.alive -= 1


@pytest.fixture
def counted(monkeypatch):
    """A vector, the diff that fits it, streamed, and a count of the diff's tensors that are alive."""
    vector, base = (named_weights(tiny_llama(seed=seed, dtype=torch.float32)) for seed in (1, 2))
    anchor = named_weights(tiny_llama(seed=3, dtype=torch.float32))
    diff, held = WeightDiff.streamed(anchor, base), WeightDiff.between(anchor, base)
    watched = Watched(held.tensors)
    monkeypatch.setattr(type(diff), "__getitem__", lambda self, name: (watched if self is diff else self.tensors)[name])
    return SteeringVector(vector), diff, held, watched


@pytest.mark.parametrize("spec", BY_DIFF, ids=str)
def test_transforms_hold_few_tensors_of_the_diff_and_give_the_same(spec, counted):
    vector, diff, held, watched = counted
    expected = apply_transforms(vector, held, [spec])
    found = apply_transforms(vector, diff, [spec])
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert 1 <= watched.most <= 2 < len(vector)  # the one before is alive until the next is bound


def test_norms_and_files_hold_few_tensors_of_the_diff(counted, tmp_path):
    _, diff, _, watched = counted
    assert diff.norm() > 0
    assert diff.layer_sum_squares()
    diff.save(tmp_path / "delta.safetensors")
    assert 1 <= watched.most <= 2


def test_the_written_format_is_safetensors(tmp_path):
    tensors = {"ä.weight": torch.randn(3, 5).mT, "scalar": torch.tensor(2.0), "none": torch.empty(0, 4)}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    path = tmp_path / "deep" / "file.safetensors"
    write_safetensors_streamed(path, shapes, tensors.__getitem__, {"a": 'b"\n'})
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": 'b"\n'}
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"'scalar' has shape \(\); accepted: \(1,\)"):
        write_safetensors_streamed(path, {**shapes, "scalar": (1,)}, tensors.__getitem__, {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["file.safetensors"]


MEASURED = """
    import sys
    import torch
    from gradsteer.models.checkpoints import CheckpointWeights
    from gradsteer.vectors.weight_diff import WeightDiff
    from gradsteer.vectors.percentiles import magnitude_percentile

    def peak():
        # not getrusage: its peak begins with that of the process that started this one
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

    def use(anchor, base, target):
        diff = WeightDiff.streamed(CheckpointWeights(anchor), CheckpointWeights(base))
        diff.norm()
        magnitude_percentile(lambda: diff.values(), 97)
        diff.save(target)

    torch.set_num_threads(1)
    small, anchor, base, target = sys.argv[1:]
    use(small, small, target)  # what the libraries take is not counted
    before = peak()
    use(anchor, base, target)
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_of_two_checkpoints_is_a_few_tensors(tmp_path):
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 10}
    config = LlamaConfig(vocab_size=1024, **shape, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters()) // 1024  # kB, in tensors of at most 2 MB
    assert whole > 100_000
    for name in ("anchor", "base"):
        with torch.no_grad():
            next(model.parameters()).normal_()
        saved(model, tmp_path / name)
    small = saved(tiny_llama(dtype=torch.float32), tmp_path / "small")
    paths = [small, tmp_path / "anchor", tmp_path / "base", tmp_path / "delta.safetensors"]
    command = [sys.executable, "-c", textwrap.dedent(MEASURED), *map(str, paths)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < whole / 2, f"{grown} kB more than before, of {3 * whole} kB for both and their difference"


def test_what_a_model_computes_for_itself_is_not_rounded(tmp_path):
    """Rotary frequencies, which transformers keeps in float32 where the checkpoint is in bfloat16."""
    model = tiny_llama(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    half = load_causal_lm(str(tmp_path), dtype="bfloat16")
    assert all(parameter.dtype == torch.bfloat16 for parameter in half.parameters())
    tables = dict(half.named_buffers())
    assert tables
    for name, table in model.named_buffers():
        assert tables[name].dtype == torch.float32
        assert torch.equal(tables[name], table)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = torch.arange(3, 40)[None]
    assert torch.equal(half(input_ids=ids).logits, theirs(input_ids=ids).logits)
