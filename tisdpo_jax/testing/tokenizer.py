"""A tokenizer small enough to be trained while a test starts."""

from __future__ import annotations

import functools
from typing import Any

BOS, EOS, TURN, END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = """You are a harmless assistant. You are a helpful assistant. You will refuse to give harmful responses.
Human: What should I do if a friend is angry with me? Assistant: You could ask your friend what happened, and listen.
Human: How can I bake bread at home? Assistant: You will need flour, water, salt and yeast. Mix them, wait, and bake.
Human: Tell me about the weather on the moon. Assistant: There is no weather on the moon, because there is no air.
I am sorry, but I cannot help with that. Is there anything else that I can do for you? Sure, here is what you can do.
system user assistant The quick brown fox jumps over the lazy dog, and the dog does not think that this is funny at all.
"""


def tiny_tokenizer(chat_template: bool = True, *, vocab_size: int = 400, adds_bos: bool = True) -> Any:
    """A byte-level BPE `PreTrainedTokenizerFast` of about 400 tokens, the same on every call.

    Args:
        chat_template: give it a ChatML-like template; without, it is a tokenizer of a base model.
        vocab_size: an upper bound; the embedded text has merges for about 600.
        adds_bos: whether plain calls put `<s>` before the text, as those of Llama do.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_trained(vocab_size, adds_bos))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)
    tokenizer.chat_template = CHAT_TEMPLATE if chat_template else None
    return tokenizer


@functools.cache
def _trained(vocab_size: int, adds_bos: bool) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, TURN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT.splitlines(), trainer)
    if adds_bos:
        bos = (BOS, backend.token_to_id(BOS))
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return backend.to_str()
