"""Sampling from the models that are trained."""

from tisdpo_jax.sampling._draw import Draw
from tisdpo_jax.sampling._generate import generate
from tisdpo_jax.sampling._sample import Answer, Options, Planned, Request, plan_batches, prompt_width, sample, stop_at

__all__ = [
    "Answer",
    "Draw",
    "Options",
    "Planned",
    "Request",
    "generate",
    "plan_batches",
    "prompt_width",
    "sample",
    "stop_at",
]
