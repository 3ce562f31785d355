"""Drawing tokens: prefill, and the loop over tokens; two programs a shape, whatever is sampled.

The noise of a token is a function of (seed, prompt id, sample number, step). Neither the batch in which a sample is
drawn, nor its place there, nor the mesh has a part in it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from tisdpo_jax import partitioning
from tisdpo_jax.models import LayerCache, Model, decode, head_of, prefill, split_layers
from tisdpo_jax.types import Variables

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen; hashable. Filters work in this order, each on what the one before left."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # the k likeliest tokens; 0 takes all
    top_p: float = 1.0  # the fewest tokens that together have this probability
    min_p: float = 0.0  # tokens at least this share as likely as the likeliest

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"{self}: temperature and top_k are at least 0, top_p in (0, 1], min_p in [0, 1]")


def row_keys(seed: int, names: Sequence[tuple[str, int]]) -> npt.NDArray[np.uint32]:
    """Key data `[R, 2]` of each (prompt id, sample number)."""
    digests = [hashlib.sha256(f"{seed}\0{sample}\0{name}".encode()).digest()[:8] for name, sample in names]
    return np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2).astype(np.uint32)


def choose(logits: Array, keys: Array, step: Array, how: SamplingParams) -> tuple[Array, Array]:
    """The next token of each row.

    Args:
      logits: `[R, V]` float32.
      keys: `[R, 2]` from `row_keys`.
      step: `[]` int32, number of the token in its answer.

    Returns: tokens `[R]` int32, and their log-likelihoods `[R]` under the model as it is: temperature 1, no filter.
    """

    def noise(key: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step)
        return jax.random.gumbel(key, logits.shape[-1:], jnp.float32)

    if how.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        token = jnp.argmax(filtered(logits / how.temperature, how) + jax.vmap(noise)(keys), axis=-1)  # Gumbel-max
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def filtered(z: Array, how: SamplingParams) -> Array:
    """`z [R, V]` with -inf where a filter of `how` leaves a token out; of equal tokens none is preferred."""
    if 0 < how.top_k < z.shape[-1]:
        lowest = jax.lax.top_k(z, how.top_k)[0][:, -1:]
        z = jnp.where(z < lowest, -jnp.inf, z)
    if how.top_p < 1:
        ordered = -jnp.sort(-z, axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p  # 0 for the likeliest, which always stays
        lowest = jnp.min(jnp.where(before < how.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        z = jnp.where(z < lowest, -jnp.inf, z)
    if how.min_p > 0:
        z = jnp.where(z < z.max(-1, keepdims=True) + np.log(how.min_p), -jnp.inf, z)
    return z


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
    return Weights(variables, jax.jit(split_layers)(variables) if jax.default_backend() == "cpu" else None)


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
    return state._replace(
        step=state.step + 1,
        token=token,
        position=state.position + 1,
        out=jax.lax.dynamic_update_slice(state.out, jnp.where(going, token, 0)[:, None], column),
        logps=jax.lax.dynamic_update_slice(state.logps, jnp.where(going, logp, 0.0)[:, None], column),
        length=state.length + going,
        done=state.done | (token[:, None] == eos).any(-1),
    )
