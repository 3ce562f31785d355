"""One advantage a token, without a critic. Unbiased where it says so: what is subtracted is known before the token."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from tisdpo_jax import arguments

Array = jax.Array


def return_to_go(token_rewards: Array, mask: Array) -> Array:
    """`G_t = sum_{s >= t} r_s`: what is still to come, this token included.

    Args:
      token_rewards: `[..., N]`.
      mask: `[..., N]`, 1 on real response tokens.

    Returns: `[..., N]` float32, 0 where the mask is 0.
    """
    token_rewards, mask = arguments.elements("return_to_go", mask, token_rewards=token_rewards)
    real = mask > 0
    rewards = jnp.where(real, jax.lax.stop_gradient(token_rewards).astype(jnp.float32), 0.0)
    return jnp.where(real, jax.lax.cumsum(rewards, rewards.ndim - 1, reverse=True), 0.0)


def leave_one_out_by_position(returns: Array, mask: Array) -> Array:
    """`A_{i,t} = G_{i,t} - mean_{j != i} G_{j,t}`: the return to go, less what the others have from this place on.

    Args:
      returns: `[..., K, N]`, K at least 2, from `return_to_go`. Behind the end of a response its return is 0.
      mask: `[..., K, N]`. A response without a token, or with a return of NaN, has no part; fewer than two give 0.

    Returns: `[..., K, N]` float32, 0 where the mask is 0. Unbiased: the baseline sees the others and the place alone.
    Source: of this package.
    """
    returns, mask = arguments.group_arrays("leave_one_out_by_position", mask, returns=returns)
    _at_least_two("leave_one_out_by_position", "returns", returns.shape)
    real = mask > 0
    values = jnp.where(real, jax.lax.stop_gradient(returns).astype(jnp.float32), 0.0)
    part = real.any(-1, keepdims=True) & ~jnp.isnan(values).any(-1, keepdims=True)
    return jnp.where(real & part, _less_the_others(jnp.where(part, values, 0.0), part), 0.0)


def prefix_baseline(advantages: Array, contrast: Array, mask: Array, *, coef: float | Array | None = None) -> Array:
    """`A_{i,t} = A_i - coef (P_{i,t} - mean_{j != i} P_{j,t})`, with `P_{i,t} = sum_{s < t} c_{i,s}`.

    The contrast of TIS-DPO, `c = log pi+ - log pi-`, is an estimate of token rewards; its sum over what came before a
    token says how well it went so far, which is not the token's merit: a value function for nothing.

    Args:
      advantages: `[..., K]`, K at least 2, of `leave_one_out`.
      contrast: `[..., K, N]`, by token (`weights.token_rewards`). P of a response stays at its total behind its end.
      mask: `[..., K, N]`, 1 on real response tokens. A response without any has no part; put 0 where one has no reward.
      coef: a number, or `[...]`, one each prompt. None fits it by `prefix_coef`, each prompt's to the others.

    Returns: `[..., K, N]` float32, 0 where the mask is 0. Unbiased, whatever the contrast is worth: what is subtracted
    depends on the prefix, on other responses, and on a coefficient from elsewhere.
    Source: of this package; potential-based shaping: Ng et al., 1999.
    """
    advantages, shifted, real = _prefixes("prefix_baseline", advantages, contrast, mask)
    if coef is None:
        _other_prompts("prefix_baseline", "coef", advantages.shape)
        coef = _fitted(advantages, shifted)
    else:
        coef = arguments.number_or_array("prefix_baseline", "coef", coef, advantages.shape[:-1])
    coef = jax.lax.stop_gradient(jnp.broadcast_to(coef, advantages.shape[:-1]))
    return jnp.where(real, advantages[..., None] - coef[..., None, None] * shifted, 0.0)


def prefix_coef(advantages: Array, contrast: Array, mask: Array) -> Array:
    """The coefficient of `prefix_baseline` for each prompt, by least squares on all *other* prompts.

    It makes the sum of squares of their `A_{i,t}` least. A prompt's own samples have no part in its own, which would
    bias its gradient.

    Args:
      advantages, contrast, mask: as in `prefix_baseline`, of at least two prompts.

    Returns: `[...]` float32; 0 where the others have no contrast.
    """
    advantages, shifted, _ = _prefixes("prefix_coef", advantages, contrast, mask)
    _other_prompts("prefix_coef", "advantages", advantages.shape)
    return _fitted(advantages, shifted)


def _prefixes(function: str, advantages: Array, contrast: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Advantages, `P_{i,t} - mean_{j != i} P_{j,t}` (0 behind the mask), and the mask."""
    contrast, mask = arguments.group_arrays(function, mask, contrast=contrast)
    _at_least_two(function, "contrast", contrast.shape)
    advantages = arguments.floats(function, "advantages", advantages)
    if advantages.shape != contrast.shape[:-1]:
        raise ValueError(
            f"{function}: advantages has shape {advantages.shape}; it must be {contrast.shape[:-1]}, one each response"
        )
    real = mask > 0
    part = real.any(-1, keepdims=True)
    c = jnp.where(real, jax.lax.stop_gradient(contrast).astype(jnp.float32), 0.0)
    before = jnp.cumsum(c, -1) - c
    advantages = jnp.where(part[..., 0], jax.lax.stop_gradient(advantages).astype(jnp.float32), 0.0)
    return advantages, jnp.where(real, _less_the_others(before, part), 0.0), real


def _fitted(advantages: Array, shifted: Array) -> Array:
    """Least squares of advantages on shifted prefixes, for each prompt over all others."""
    own = (advantages[..., None] * shifted).sum((-2, -1)), jnp.square(shifted).sum((-2, -1))
    # sums before and behind, not the total less the own: where that is most of the total, nothing else would be left
    xy, xx = (_of_others(x.reshape(-1)).reshape(advantages.shape[:-1]) for x in own)
    return jnp.where(xx > 0, xy / jnp.where(xx > 0, xx, 1.0), 0.0)


def _of_others(x: Array) -> Array:
    """`[B]` -> `[B]`: the sum of all but one."""
    zero = jnp.zeros_like(x[:1])
    before = jnp.concatenate([zero, jnp.cumsum(x[:-1])])
    behind = jnp.concatenate([jax.lax.cumsum(x[1:], 0, reverse=True), zero])
    return before + behind


def _less_the_others(values: Array, part: Array) -> Array:
    """`x_i - mean_{j != i} x_j` over responses, axis -2, that have a part `[..., K, 1]`; 0 where fewer than two do."""
    count = part.sum(-2, keepdims=True)
    mean = jnp.where(part, values, 0.0).sum(-2, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(part & (count > 1), (values - mean) * (count / jnp.maximum(count - 1, 1)), 0.0)


def _at_least_two(function: str, name: str, shape: tuple[int, ...]) -> None:
    if shape[-2] < 2:
        raise ValueError(
            f"{function}: {name} has shape {shape}; it must be [..., K, N], K responses to a prompt, at least 2"
        )


def _other_prompts(function: str, name: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape[:-1]) < 2:
        raise ValueError(
            f"{function}: {name} is fitted to other prompts, and advantages of shape {shape} have none; give a number"
        )
