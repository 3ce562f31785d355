"""Preference data: from files and data sets to batches of token ids.

    pair_set = apply_policy(read_pairs("pairs.jsonl"), "fail", 0.05)
    encoded = encode_pairs(pair_set, tokenizer, template="auto", max_length=512, max_response=256)
    order = Order(encoded.lengths(), batch_size=32, seed=0, epochs=1.0)
    layout = fit(encoded, order.batches(), elements=encoded.elements())
    batch = make_batch(encoded, order.batch(step), layout=layout)

A record that cannot be used is never dropped in silence: it is an `InvalidRecord` with its line and reason.
"""

from tisdpo_jax.data.batching import Batches, States, create, make_batch, open_states, recorded_columns
from tisdpo_jax.data.encoded import EncodedGroup, EncodedSet
from tisdpo_jax.data.files import read_file
from tisdpo_jax.data.inspection import file_summary, inspect_text
from tisdpo_jax.data.order import Order, balanced_batches, num_steps
from tisdpo_jax.data.packing import Layout, RowShape, Share, fit
from tisdpo_jax.data.policy import apply_policy, split_by_prompt, split_prompts
from tisdpo_jax.data.records import (
    SETTINGS,
    InvalidRecord,
    Message,
    Pair,
    PairSet,
    Prompt,
    Unusable,
    as_record,
    conversation_text,
    count_reasons,
)
from tisdpo_jax.data.rendering import frame, render
from tisdpo_jax.data.sources import read_pairs, read_prompts
from tisdpo_jax.data.template import (
    HH_MARKS,
    Template,
    adds_bos,
    check_message,
    open_template,
    tokenizer_identity,
)
from tisdpo_jax.data.tokenization import encode_groups, encode_pairs, prompt_ids
from tisdpo_jax.data.views import PromptView, check_views, make_views, show_as

__all__ = [
    "HH_MARKS",
    "SETTINGS",
    "Batches",
    "EncodedGroup",
    "EncodedSet",
    "InvalidRecord",
    "Layout",
    "Message",
    "Order",
    "Pair",
    "PairSet",
    "Prompt",
    "PromptView",
    "RowShape",
    "Share",
    "States",
    "Template",
    "Unusable",
    "adds_bos",
    "apply_policy",
    "as_record",
    "balanced_batches",
    "check_message",
    "check_views",
    "conversation_text",
    "count_reasons",
    "create",
    "encode_groups",
    "encode_pairs",
    "file_summary",
    "fit",
    "frame",
    "inspect_text",
    "make_batch",
    "make_views",
    "num_steps",
    "open_states",
    "open_template",
    "prompt_ids",
    "read_file",
    "read_pairs",
    "read_prompts",
    "recorded_columns",
    "render",
    "show_as",
    "split_by_prompt",
    "split_prompts",
    "tokenizer_identity",
]
