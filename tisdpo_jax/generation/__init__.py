"""Answers to prompts: by the models that are trained, by an endpoint, or by whoever fills in a file."""

from tisdpo_jax.generation.asking import EndpointFailed, ask_all
from tisdpo_jax.generation.client import Endpoint, open_endpoint
from tisdpo_jax.generation.decoding import SamplingParams
from tisdpo_jax.generation.engines import ask_endpoint, from_file
from tisdpo_jax.generation.prompts import (
    end_tokens,
    open_prompts,
    options_of,
    prompts_of,
    read_by_model,
    show_prompts,
)
from tisdpo_jax.generation.replies import Completion
from tisdpo_jax.generation.responses import (
    Lines,
    Response,
    as_line,
    check_key,
    read_answers,
    read_response,
    summary,
)
from tisdpo_jax.generation.sampler import Options, Request, sample

__all__ = [
    "Completion",
    "Endpoint",
    "EndpointFailed",
    "Lines",
    "Options",
    "Request",
    "Response",
    "SamplingParams",
    "as_line",
    "ask_all",
    "ask_endpoint",
    "check_key",
    "end_tokens",
    "from_file",
    "open_endpoint",
    "open_prompts",
    "options_of",
    "prompts_of",
    "read_answers",
    "read_by_model",
    "read_response",
    "sample",
    "show_prompts",
    "summary",
]
