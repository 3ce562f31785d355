"""What can go wrong with a question."""

from __future__ import annotations

from typing import Any, Literal

from tisdpo_jax.errors import UserError

Kind = Literal["reply", "status", "silence"]


class EndpointFailed(UserError):
    """What concerns the whole job: the endpoint does not answer, or not in a way that another try could mend."""


class Unanswered(EndpointFailed):
    """This question has no answer; whether that concerns the others cannot be told from it alone.

    `kind`: "reply", the server said why in a reply of status 200; "status", by an HTTP status, or in a reply that
    cannot be read; "silence", the tries are used up without an answer.
    """

    def __init__(self, message: str, why: str, kind: Kind) -> None:
        super().__init__(message)
        self.why, self.kind = why, kind


class Again(Exception):
    """This try failed.

    `wait`: what the server asked for, in seconds. `settled`: the result of the question where no further try does
    better; such a question is not tried as often. `kind`: see `Unanswered`.
    """

    def __init__(self, why: str, wait: float = 0.0, *, settled: Any = None, kind: Kind = "silence") -> None:
        super().__init__(why)
        self.wait, self.settled, self.kind = wait, settled, kind
