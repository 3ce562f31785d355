"""Preference data: from files and data sets to batches of token ids.

    pair_set = apply_policy(read_pairs("pairs.jsonl"), "fail", 0.05)
    encoded = encode_pairs(pair_set, tokenizer, template="auto", max_length=512, max_response=256)
    order = Order(encoded.lengths(), batch_size=32, seed=0, epochs=1.0)
    layout = fit(encoded, order.batches(), elements=encoded.elements())
    batch = make_batch(encoded, order.batch(step), layout=layout)

A record that cannot be used is never dropped in silence: it is a `Rejection` with its line and reason.
"""

from tisdpo_jax.data.batching import Batches, Order, balanced_batches, make_batch, num_steps, recorded_columns
from tisdpo_jax.data.encoded import EncodedGroup, EncodedSet
from tisdpo_jax.data.identity import tokenizer_identity
from tisdpo_jax.data.inspection import file_summary, inspect_text
from tisdpo_jax.data.packing import Layout, RowShape, Share, fit
from tisdpo_jax.data.policy import apply_policy, split_by_prompt, split_prompts
from tisdpo_jax.data.prompts import Prompt, conversation_text, prompt_ids, read_prompts
from tisdpo_jax.data.records import Message, Pair, PairSet, Rejection
from tisdpo_jax.data.sources import read_pairs
from tisdpo_jax.data.states import States
from tisdpo_jax.data.template import Template, open_template
from tisdpo_jax.data.tokenization import encode_groups, encode_pairs

__all__ = [
    "Batches",
    "EncodedGroup",
    "EncodedSet",
    "Layout",
    "Message",
    "Order",
    "Pair",
    "PairSet",
    "Prompt",
    "Rejection",
    "RowShape",
    "Share",
    "States",
    "Template",
    "apply_policy",
    "balanced_batches",
    "conversation_text",
    "encode_groups",
    "encode_pairs",
    "file_summary",
    "fit",
    "inspect_text",
    "make_batch",
    "num_steps",
    "open_template",
    "prompt_ids",
    "read_pairs",
    "read_prompts",
    "recorded_columns",
    "split_by_prompt",
    "split_prompts",
    "tokenizer_identity",
]
