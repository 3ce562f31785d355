"""Parity of log-likelihoods and KL with PyTorch in float64, values and gradients, fused and plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tisdpo_jax.scoring import fused_logps, fused_logps_and_kl, kl_from_logits, logps_from_logits

torch = pytest.importorskip("torch", reason="parity with PyTorch: install the extra `parity`")
RTOL = 1e-5
DIRECTIONS = ("policy||reference", "reference||policy")
Tensor = Any


def near(ours: Any, theirs: Tensor, *, what: str) -> None:
    expected = theirs.detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max(), err_msg=what)


def kl(policy: Tensor, reference: Tensor, direction: str) -> Tensor:
    log_p, log_q = torch.log_softmax(policy, -1), torch.log_softmax(reference, -1)
    if direction == "reference||policy":
        log_p, log_q = log_q, log_p
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def doubles(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays]


def compare(ours: Callable[..., jax.Array], theirs: Callable[..., Tensor], arrays: tuple[np.ndarray, ...]) -> Any:
    """Values, which it returns, and gradients with respect to every array."""

    def total(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        out = ours(*arrays)
        return out.sum(), out

    grads, value = jax.jit(jax.grad(total, has_aux=True))(arrays)
    tensors = doubles(*arrays)
    expected = theirs(*tensors)
    near(value, expected, what="values")
    expected.sum().backward()
    for index, (grad, tensor) in enumerate(zip(grads, tensors, strict=True)):
        near(grad, tensor.grad, what=f"gradient {index}")
    return value


@pytest.mark.parametrize("spread", [1.0, 10.0])
@pytest.mark.parametrize("vocabulary", [11, 1000])
def test_log_likelihoods(vocabulary: int, spread: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, spread, (4, 2, 7, vocabulary)).astype("float32")
    targets = random.integers(0, vocabulary, (4, 2, 7))
    index = torch.tensor(targets)[..., None]
    compare(
        lambda z: logps_from_logits(z, jnp.asarray(targets)),
        lambda z: torch.log_softmax(z, -1).gather(-1, index)[..., 0],
        (logits,),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("distance", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("vocabulary", [11, 1000])
def test_kl(vocabulary: int, distance: float, direction: Any) -> None:
    """Close models too: a KL of 0.005 to five digits, where the plain sum in float32 has three."""
    random = np.random.default_rng(1)
    policy = random.normal(0, 3, (4, 2, 7, vocabulary)).astype("float32")
    reference = (policy + distance * random.normal(0, 1, policy.shape)).astype("float32")
    values = compare(
        lambda x, y: kl_from_logits(x, y, direction=direction), lambda x, y: kl(x, y, direction), (policy, reference)
    )
    np.testing.assert_allclose(values, kl(*doubles(policy, reference), direction).detach(), rtol=RTOL)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_fused(direction: Any) -> None:
    random = np.random.default_rng(2)
    hidden, head = random.normal(0, 1, (4, 2, 7, 16)), random.normal(0, 0.5, (16, 61))
    hidden, head = hidden.astype("float32"), head.astype("float32")
    reference_hidden, reference_head = hidden[..., :12] + np.float32(0.1), head[:12]
    targets = random.integers(0, 61, (4, 2, 7))
    index = torch.tensor(targets)[..., None]
    frozen = doubles(reference_hidden, reference_head)

    def theirs(hidden: Tensor, head: Tensor) -> Tensor:
        logits, reference = hidden @ head, (frozen[0] @ frozen[1]).detach()
        return torch.log_softmax(logits, -1).gather(-1, index)[..., 0] - 0.7 * kl(logits, reference, direction)

    def ours(hidden: jax.Array, head: jax.Array) -> jax.Array:
        logps, _, divergence = fused_logps_and_kl(
            hidden,
            head,
            jnp.asarray(reference_hidden),
            jnp.asarray(reference_head),
            jnp.asarray(targets),
            direction=direction,
            chunk=3,
        )
        return logps - 0.7 * divergence

    with jax.default_matmul_precision("highest"):
        compare(ours, theirs, (hidden, head))
        compare(
            lambda hidden, head: fused_logps(hidden, head, jnp.asarray(targets), chunk=3),
            lambda hidden, head: torch.log_softmax(hidden @ head, -1).gather(-1, index)[..., 0],
            (hidden, head),
        )
