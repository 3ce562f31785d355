"""The arrays that travel between the rooms, and the legend of their axes.

Axis letters, used in every docstring of the package:

    B  group: a prompt and its responses      V  vocabulary entry
    S  response of a group; of a pair, 0 chosen, 1 rejected      D  model width
    R  row of tokens            L  layer
    T  place in a row           M  response slot of a row
    N  element of a response: its n-th token, counted from 0

A preference pair is a group of two. Responses are an axis, never a concatenation along the batch: on
several hosts the halves of a concatenation do not line up, and a loss written on `[..., S, N]` does not
care what stands before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = dict[str, Any]
"""A plain nested dict of arrays. Path names are public: `layers/attention/q/kernel`."""

Variables = dict[str, Params]
"""What a model is applied to: `{"params": ...}` and, with adapters on, `"lora"` beside it."""


class Tree(NamedTuple):
    """Attention structure of packed rows: a token sees the prompt of its group and its own response, up to itself."""

    pair: Array  # [R, T] int32, number of the group in its row, from 1; 0 padding
    branch: Array  # [R, T] int32, 0 prompt (the trunk), s + 1 response s


class Copies(NamedTuple):
    """Packed rows with the prompt repeated for every response: for attention kernels without a notion of trees."""

    source: Array  # [R, U] int32, place in the row of each copied token; -1 padding
    segments: Array  # [R, U] int32, one number a response, from 1; 0 padding
    back: Array  # [R, T, S] int32, places of a token's copies; -1 where there are fewer


class Rows(NamedTuple):
    """Tokens as the model reads them: R rows of T. One response a row, or groups packed, each behind its one prompt."""

    tokens: Array  # [R, T] int32
    positions: Array  # [R, T] int32, rotary; all responses of a group go on where its prompt ends
    tree: Tree | None = None  # None: a row is one conversation, left-aligned
    copies: Copies | None = None


class Slots(NamedTuple):
    """The response tokens of each row, one after the other: M slots a row. Only these reach the vocabulary."""

    source: Array  # [R, M] int32, place in the row whose hidden state predicts the slot's token
    readers: Array  # [R, T, S] int32, slots that read the hidden state at a place; -1 where there are fewer
    targets: Array  # [R, M] int32, the token; 0 in an empty slot
    elements: Array  # [R, M] int32, index into the flattened [B, S, N]; -1 in an empty slot


class View(NamedTuple):
    """One way of showing the groups to a model: the same responses behind some prompt.

    Indices into flattened rows count those of the own micro-batch, where a batch has several.
    """

    rows: Rows
    slots: Slots
    place: Array  # [B, S, N] int32, index into the flattened [R, M] of each element; -1 where there is none
    ends: Array  # [B, S] int32, index into the flattened [R, T] of the last token of each response; -1 for empty ones


class Batch(NamedTuple):
    """Groups of responses as the training step takes them."""

    views: dict[str, View]  # "main" always; "plus" and "minus" where prompts make the contrast
    mask: Array  # [B, S, N] float32, 1 on real response tokens (the end-of-turn token too)
    record: Array  # [B] int32, index of the group in its data set; -1 in a filler row
    columns: dict[str, Array]  # precomputed values by group, [B, ...]: "weights", "reference_logps", "margin"
    states: Array | None = None  # [R, M, D], last hidden states of the reference by slot of "main"


class Scores(NamedTuple):
    """What a model, or two, say about the responses of a batch. float32, natural logarithms."""

    logps: Array  # [B, S, N], log-likelihood of each response token; 0 where the mask is 0
    kl: Array | None = None  # [B, S, N], full-vocabulary KL against another model


class TrainState(NamedTuple):
    """All that training changes, and so all that a checkpoint has to hold."""

    step: Array  # [] int32, optimizer steps done; the data position follows from it
    trained: Params  # the parameters, or the adapter alone
    opt_state: Any
    skipped: Array  # [] int32, consecutive updates skipped because they were not finite
