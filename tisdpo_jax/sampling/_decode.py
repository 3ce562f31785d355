"""Prefill, and the loop over tokens: two programs a shape, whatever is sampled."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tisdpo_jax import partitioning
from tisdpo_jax.models import LayerCache, Model, decode, head_of, prefill, split_layers
from tisdpo_jax.sampling._draw import SamplingParams, choose
from tisdpo_jax.types import Variables

Array = jax.Array


class State(NamedTuple):
    """Answers that are being written, R rows."""

    step: Array  # [] int32, tokens chosen so far
    token: Array  # [R] int32, the newest; the model has not read it yet
    position: Array  # [R] int32, of the newest
    keys: Array  # [R, 2] uint32
    seen: Array  # [R, M] int32, position of the token in each slot, -1 where there is none
    cache: tuple[LayerCache, ...]
    out: Array  # [R, new] int32, the end token included
    logps: Array  # [R, new] float32, at temperature 1 without filters
    length: Array  # [R] int32, tokens of `out` that count
    done: Array  # [R] bool, ended by an end token or from outside


class Weights(NamedTuple):
    """What the loop reads: the variables, and the layers apart where they are better copied once."""

    variables: Variables
    layers: tuple[Variables, ...] | None


def weights_for(variables: Variables) -> Weights:
    """On CPUs a matrix product cannot read a slice of stacked weights in place: the layers are copied out, once."""
    if jax.default_backend() != "cpu":
        return Weights(variables, None)
    return Weights(variables, jax.jit(split_layers)(variables))


@functools.partial(jax.jit, static_argnames=("model", "how", "new"))
def begin(
    model: Model,
    weights: Weights,
    tokens: Array,
    lengths: Array,
    keys: Array,
    eos: Array,
    done: Array,
    *,
    how: SamplingParams,
    new: int,
) -> State:
    """Reads prompts `[R, T]` and chooses the first token. `done [R]`: rows that only fill the batch."""
    tokens, keys = (partitioning.constrain(x, ("batch", None)) for x in (tokens, keys))
    lengths, done = (partitioning.constrain(x, ("batch",)) for x in (lengths, done))
    rows = len(tokens)
    with jax.named_scope("prefill"):
        hidden, cache, seen = prefill(model, weights.variables, tokens, lengths, room=new)
    zero, none = jnp.zeros((), jnp.int32), jnp.zeros(rows, jnp.int32)
    out, logps = jnp.zeros((rows, new), jnp.int32), jnp.zeros((rows, new), jnp.float32)
    state = State(zero, none, lengths - 1, keys, seen, cache, out, logps, none, done)
    return _next(model, weights.variables, state, hidden, eos, how)


@functools.partial(jax.jit, static_argnames=("model", "how"), donate_argnames="state")
def advance(
    model: Model, weights: Weights, state: State, eos: Array, until: Array, stopped: Array, *, how: SamplingParams
) -> State:
    """Goes on until `until` tokens are chosen, or all rows are done; `stopped [R]` are done from now on."""
    width = state.seen.shape[1] - state.out.shape[1]
    state = state._replace(done=partitioning.constrain(state.done | stopped, ("batch",)))

    def more(state: State) -> Array:
        return (state.step < until) & ~state.done.all()

    def body(state: State) -> State:
        slot = width + state.step - 1
        seen = jax.lax.dynamic_update_slice_in_dim(state.seen, state.position[:, None], slot, axis=1)
        layers = weights.layers or split_layers(weights.variables)
        hidden, cache = decode(model, weights.variables, layers, state.token, state.position, slot, state.cache, seen)
        return _next(model, weights.variables, state._replace(seen=seen, cache=cache), hidden, eos, how)

    with jax.named_scope("decode"):
        return jax.lax.while_loop(more, body, state)


def _next(model: Model, variables: Variables, state: State, hidden: Array, eos: Array, how: SamplingParams) -> State:
    """Chooses the token that follows `hidden [R, D]` and notes it in rows that are not done."""
    with jax.named_scope("draw"):
        logits = head_of(model.config, variables).logits(hidden)
        logits = partitioning.constrain(logits, ("batch", "vocab"))
        token, logp = choose(logits, state.keys, state.step, how)
    going = ~state.done
    column = (0, state.step)
    out = jax.lax.dynamic_update_slice(state.out, jnp.where(going, token, 0)[:, None], column)
    logps = jax.lax.dynamic_update_slice(state.logps, jnp.where(going, logp, 0.0)[:, None], column)
    return state._replace(
        step=state.step + 1,
        token=token,
        position=state.position + 1,
        out=out,
        logps=logps,
        length=state.length + going,
        done=state.done | (token[:, None] == eos).any(-1),
    )
