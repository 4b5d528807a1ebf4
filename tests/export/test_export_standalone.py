"""Both exports in a process that cannot import gradsteer."""

import subprocess
import sys

import pytest
import torch
from anchors import anchor, edited, export, held_names, probe

from gradsteer.vectors.parameter_vectors import SteeringVector

SCRIPT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gradsteer":
            raise ImportError("gradsteer is not installed here")

sys.meta_path.insert(0, Block())
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

for anchor, model, adapter, out in zip(*(sys.argv[start::4] for start in (1, 2, 3, 4)), strict=True):
    base = AutoModelForCausalLM.from_pretrained(anchor)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, base.config.vocab_size, (3, 11), generator=generator)
    with torch.no_grad():
        found = [
            AutoModelForCausalLM.from_pretrained(model)(input_ids=ids).logits,
            PeftModel.from_pretrained(base, adapter)(input_ids=ids).logits,
            AutoPeftModelForCausalLM.from_pretrained(adapter)(input_ids=ids).logits,
        ]
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert "hello" in tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    torch.save(found, out)
assert not any(name.partition(".")[0] == "gradsteer" for name in sys.modules)
"""


@pytest.mark.slow
def test_they_load_where_gradsteer_is_not_installed(tmp_path):
    words, kinds = [], ("llama tied", "gpt2")
    for kind in kinds:
        here = tmp_path / kind
        path, file = anchor(here, kind)
        export(here / "model", path, file, "model")
        export(here / "adapter", path, file, "adapter", "--rank", "full")
        words += [path, here / "model", here / "adapter", here / "logits.pt"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, *map(str, words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for kind in kinds:
        here = tmp_path / kind
        model, adapter, again = torch.load(here / "logits.pt")
        path, vector = here / "anchor0", SteeringVector.load(here / "v0.safetensors")
        held = {name: vector[name] for name in held_names(kind, path)}
        assert float((model - probe(edited(path, vector, -0.3))).abs().max()) <= 1e-5
        assert float((adapter - probe(edited(path, held, -0.3))).abs().max()) <= 1e-5
        assert torch.equal(adapter, again)
