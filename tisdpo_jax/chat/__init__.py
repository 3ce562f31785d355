"""Chat completions of an OpenAI-compatible endpoint: a reply after as many tries as it takes, several at a time.

Three things can go wrong, and each is told apart. What another try may mend is tried again, each time after a longer
wait: time-outs, lost connections, status 408, 409, 425, 429 and 5xx, replies that cannot be read (`Again`). What is
wrong with one question, a filter for example, is that question's result (`Completion.finish`). What concerns the whole
job (key, model, a parameter, the address) stops it (`EndpointFailed`). Where a reply does not say which of the two it
is, the other questions do: `ask_all`.
"""

from tisdpo_jax.chat._errors import Again, EndpointFailed, Unanswered
from tisdpo_jax.chat._jobs import ask_all, patiently
from tisdpo_jax.chat._reply import Completion, read_completion
from tisdpo_jax.chat._wire import Endpoint, complete, key_from, seconds

__all__ = [
    "Again",
    "Completion",
    "Endpoint",
    "EndpointFailed",
    "Unanswered",
    "ask_all",
    "complete",
    "key_from",
    "patiently",
    "read_completion",
    "seconds",
]
