"""The demo's tokenizer: a byte-level BPE with a small chat template, trained on the demo's own corpus.

It knows the chat markup and no content. Heavy libraries are imported on use, so that the corpus can be
generated without them.
"""

from collections.abc import Iterable
from typing import Any

VOCABULARY_SIZE = 1280

PAD_TOKEN = "<|pad|>"
BOS_TOKEN = "<|begin_of_text|>"
EOS_TOKEN = "<|eot_id|>"
ROLE_TOKENS = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}

# Llama's layout with one token for each role's header, which keeps the demo's sequences short.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ '; accepted: system, user, assistant') }}"
    "{%- endif %}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> Any:
    """Train the tokenizer.

    Args:
        texts: Training text, without chat markup.
        vocabulary_size: Largest number of entries, special tokens included; a small corpus may yield fewer.

    Returns:
        A transformers `PreTrainedTokenizerFast` whose end-of-sequence token is the end of a turn. It adds
        no special tokens to plain text: the chat template writes them all.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # untyped in transformers
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, *ROLE_TOKENS.values()],
        # every byte is in the alphabet, so that any text can be encoded and decoded again
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped: Any = tokenizer_class(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        additional_special_tokens=list(ROLE_TOKENS.values()),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
