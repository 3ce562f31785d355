"""Sampling from the models that are trained."""

from tisdpo_jax.sampling import http
from tisdpo_jax.sampling._draw import SamplingParams
from tisdpo_jax.sampling._generate import continuations
from tisdpo_jax.sampling._sample import Answer, Options, Planned, Request, plan_batches, prompt_width, sample, stop_at
from tisdpo_jax.sampling.responses import KINDS, Response, append_responses, read_responses, resume_responses

__all__ = [
    "KINDS",
    "Answer",
    "Options",
    "Planned",
    "Request",
    "Response",
    "SamplingParams",
    "append_responses",
    "continuations",
    "http",
    "plan_batches",
    "prompt_width",
    "read_responses",
    "resume_responses",
    "sample",
    "stop_at",
]
