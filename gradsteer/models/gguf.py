"""GGUF files: quantised weights with a tokenizer, in llama.cpp's format, dequantised when they are loaded.

transformers reads the weights. How the text is split before the tokenizer's merges apply is said by a name alone, which
transformers does not know for every model: other token ids than in training would be the consequence.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# llama.cpp's names of splits that take digits one by one, and words otherwise as GPT-2 does
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_AS_GPT2 = ("gpt-2", "mpt", "olmo", "jais")  # what transformers does where it does not know the name
_CONVERT = "accepted: a file that transformers dequantises, or the model's original directory"


@lru_cache(maxsize=4)  # read when the module is made and when its model is loaded
def _header(path: str, size: int) -> tuple[dict[str, Any], list[str]]:
    """A file's settings that are not lists, and the types of its tensors that cannot be dequantised."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType
    from gguf.quants import dequantize

    del size  # tells one state of the file from another
    reader = GGUFReader(path)
    plain = {key: field for key, field in reader.fields.items() if field.types[:1] != [GGUFValueType.ARRAY]}
    settings = {key: field.contents() for key, field in plain.items() if field.types}
    unknown = []
    for kind in {tensor.tensor_type for tensor in reader.tensors}:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError:
            unknown.append(kind.name)
    return settings, sorted(unknown)


def gguf_path(name: str, file: str, revision: str | None = None) -> Path:
    """Where a GGUF file of a directory or hub id lies on this machine.

    Raises:
        ValueError: there is none; names those that the directory holds.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        if not path.is_file():
            held = ", ".join(sorted(each.name for each in Path(name).glob("*.gguf"))) or "none"
            raise ValueError(f"no GGUF file {file!r} in {name!r}; it holds: {held}")
        return path
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(name, file, revision=revision)))
    except OSError as error:
        raise ValueError(f"no GGUF file {file!r} in {name!r}, neither here nor on the hub: {error}") from error


def check_gguf(name: str, file: str, revision: str | None = None) -> dict[str, Any]:
    """Refuses a GGUF file that cannot be dequantised, by its header alone, and returns the header's settings.

    Raises:
        ValueError: it is no GGUF file, is cut off, or holds an architecture, a type of weights or a split of text that
            is not known.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    path = gguf_path(name, file, revision)
    with path.open("rb") as opened:
        if (found := opened.read(4)) != b"GGUF":
            raise ValueError(f"{str(path)!r} is no GGUF file: it begins with {found!r}, not with b'GGUF'; {_CONVERT}")
    try:
        settings, unknown = _header(str(path), path.stat().st_size)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{str(path)!r} is cut off or broken ({error}): fetch it again; {_CONVERT}") from error
    architecture = settings.get("general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        known = ", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES))
        raise ValueError(f"{str(path)!r} is a {architecture!r}, which transformers does not read; it reads: {known}")
    if unknown:
        raise ValueError(f"{str(path)!r} has weights of type {unknown[0]}, which cannot be dequantised; {_CONVERT}")
    if not _has_tokenizer(path):
        _check_split(path, settings)
    return settings


def _check_split(path: Path, settings: dict[str, Any]) -> None:
    split = settings.get("tokenizer.ggml.pre")
    if settings.get("tokenizer.ggml.model") == "gpt2" and split not in {*_SINGLE_DIGITS, *_AS_GPT2, *_known_splits()}:
        raise ValueError(
            f"{str(path)!r} splits text by {split!r} (tokenizer.ggml.pre), which is not known here: other ids than in "
            "training would be read; accepted: the model's own tokenizer.json and tokenizer_config.json with it"
        )


def _known_splits() -> set[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # releases before it do not look at the name
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def _has_tokenizer(path: Path) -> bool:
    return (path.parent / "tokenizer.json").is_file()


def gguf_tokenizer(name: str, file: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file: the one that lies beside it, otherwise the one in it."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    path = gguf_path(name, file, revision)
    settings = check_gguf(name, file, revision)
    tokenizer: PreTrainedTokenizerBase
    if _has_tokenizer(path):
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent))
        tokenizer.chat_template = tokenizer.chat_template or settings.get("tokenizer.chat_template")
        return tokenizer
    tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=file, revision=revision)
    if settings.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if (longest := settings.get(f"{settings['general.architecture']}.context_length")) is not None:
        tokenizer.model_max_length = int(longest)
    return tokenizer


def dequantized_gguf() -> dict[str, Any]:
    """Options of from_pretrained that give dense weights whatever kernels are installed."""
    import transformers

    asked = getattr(transformers, "GgufConfig", None)  # earlier releases know nothing else
    return {} if asked is None else {"quantization_config": asked(dequantize=True)}
