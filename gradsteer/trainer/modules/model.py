"""A module that holds a causal LM; callbacks change its weights from condition to condition."""

from typing import Any

import lightning as L

from gradsteer.models.adapter_loading import Quantization, Reading
from gradsteer.models.loading import Loading, load_causal_lm, load_tokenizer
from gradsteer.trainer.session import session_of


class ModelModule(L.LightningModule):
    """Holds a causal LM and its tokenizer. Each data loader is one condition.

    Args:
        model_name_or_path: hub id or local directory.
        dtype: dtype of the weights: float32 (default; preserves small steps), bfloat16 or float16.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that ships with the model; enable only if you trust its author.
        attn_implementation: attention implementation by its transformers name, such as sdpa or flash_attention_2.
        gguf_file: a GGUF file in the model's directory or hub repository; its weights are dequantised.
        adapter_base: of an adapter: the model that it was trained on, a hub id (with @REVISION, if not the one that the
            adapter records) or a directory. Default: the one that the adapter names.
        adapter_reading: of an adapter: "merged" into its base, in float32, after which everything is of the merged
            weights; or "adapter": its own tensors are the parameters, and the base is frozen.
        quantization: of the base in the adapter reading: "4bit" or "8bit", by bitsandbytes.
    """

    def __init__(
        self,
        model_name_or_path: str,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        gguf_file: str | None = None,
        adapter_base: str | None = None,
        adapter_reading: Reading = "merged",
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        self.loading = Loading(
            *(model_name_or_path, dtype, revision, trust_remote_code, attn_implementation, gguf_file),
            *(adapter_base, adapter_reading, quantization),
        )
        self.loading.check()
        self.model_name_or_path, self.dtype_name = model_name_or_path, dtype
        self.tokenizer = load_tokenizer(self.loading)
        self.model: Any = None

    @property
    def num_ids(self) -> int:
        """Token ids of the model, of which the tokenizer may know fewer; available before it is loaded."""
        return self.loading.num_ids

    def configure_model(self) -> None:
        """Loads the model, once."""
        if self.model is None:
            self.model = load_causal_lm(self.loading)

    def loader_title(self, dataloader_idx: int) -> str:
        """A data loader's name in the progress bar."""
        conditions = session_of(self.trainer).conditions
        return conditions[dataloader_idx].name if conditions else "the model"
