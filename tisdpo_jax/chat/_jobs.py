"""Many questions: tried patiently, several at a time, and one that has no answer does not end the others."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from tisdpo_jax.chat._errors import Again, EndpointFailed, Unanswered
from tisdpo_jax.chat._wire import Endpoint

Q = TypeVar("Q")
R = TypeVar("R")

LONGEST_WAIT = 60.0  # seconds between two tries
SETTLED_TRIES = 2  # further tries of a question whose result is known if they bring nothing better
MOST_UNANSWERED = {"reply": 8, "status": 8, "silence": 2}  # in a row: then it is the endpoint, not the questions
TICK = 0.1  # seconds between two looks at whether to stop
GRACE = 5.0  # seconds that replies on their way have after a request to stop


def patiently(endpoint: Endpoint, attempt: Callable[[int], R], halt: threading.Event, *, label: str = "") -> R | None:
    """What `attempt(number)` returns, tried until it raises no `Again`; None when `halt` is set between two tries.

    Raises: Unanswered when the tries are used up and none of them settled the question; `label` names it.
    """
    last, settled, number = Again(""), None, 0
    while number <= (endpoint.retries if settled is None else min(endpoint.retries, SETTLED_TRIES)):
        if number:
            wait = endpoint.first_wait * 2.0 ** (number - 1) * random.uniform(0.75, 1.25)
            if halt.wait(min(LONGEST_WAIT, max(wait, last.wait))):
                return None
        try:
            return attempt(number)
        except Again as error:
            last, settled, number = error, settled if error.settled is None else error.settled, number + 1
    if settled is not None:
        result: R = settled
        return result
    raise Unanswered(
        f"{endpoint.url}: no answer {label and f'{label} '}in {number} tries, the last: {last}; what was answered so "
        "far is kept, the same command asks for the others",
        f"no answer in {number} tries, the last: {last}",
        last.kind,
    )


class _Doubts(Generic[Q]):
    """Questions without an answer since the last one that had one. Any other question's answer shows that the endpoint
    works, and settles them; too many in a row show that it does not."""

    def __init__(self, worked: bool) -> None:
        self.worked = worked
        self._held: list[tuple[Q, Unanswered]] = []

    def answered(self) -> list[tuple[Q, Unanswered]]:
        self.worked = True
        settled, self._held = self._held, []
        return settled

    def unanswered(self, question: Q, error: Unanswered) -> bool:
        """Whether there are too many now."""
        self._held.append((question, error))
        kinds = [held.kind for _, held in self._held]
        return len(kinds) >= MOST_UNANSWERED["status"] or kinds.count("silence") >= MOST_UNANSWERED["silence"]

    def at_the_end(self) -> tuple[list[tuple[Q, Unanswered]], Unanswered | None]:
        """Those that are settled when nothing else is left to ask, and the first of the others."""
        sure = {"reply", "status"} if self.worked else {"reply"}
        left = [error for _, error in self._held if error.kind not in sure]
        first = left[0] if left else None
        return [(question, error) for question, error in self._held if error.kind in sure], first


def ask_all(
    endpoint: Endpoint,
    questions: Sequence[Q],
    ask: Callable[[Q, threading.Event], R | None],
    take: Callable[[Q, R], None],
    poll: Callable[[], None],
    *,
    give_up: Callable[[Q, str], None],
    worked: bool = False,
) -> None:
    """Asks every question, several at a time; `take` gets each reply as it comes, one at a time, in any order.

    `poll` is called all the time, also while replies are waited for, and may raise. After an error nothing more is
    asked; what is on its way is still taken, after a request to stop for GRACE seconds. `give_up` gets a question that
    has no answer, and why, once the answer to another one has shown that the endpoint works.

    Args:
      worked: whether the endpoint has answered such questions before.

    Raises: what `ask`, `take`, `give_up` or `poll` raised first; Unanswered, of a question that shares its fate with
      all others.
    """
    halt, lock = threading.Event(), threading.Lock()
    left: Iterator[Q] = iter(questions)
    events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    doubts: _Doubts[Q] = _Doubts(worked)

    def next_question() -> list[Q]:
        with lock:
            return [] if halt.is_set() else [question for question in (next(left, None),) if question is not None]

    def work() -> None:
        while found := next_question():
            question = found[0]
            try:
                reply = ask(question, halt)
                with lock:
                    settled = [] if reply is None else doubts.answered()
                if reply is not None:
                    events.put(lambda question=question, reply=reply: take(question, reply))  # type: ignore[misc]
                for other, error in settled:
                    events.put(lambda other=other, error=error: give_up(other, error.why))  # type: ignore[misc]
            except Unanswered as error:
                with lock:
                    hopeless = doubts.unanswered(question, error)
                if hopeless:
                    halt.set()
                    events.put(_raiser(error))
            except BaseException as error:
                halt.set()  # here, before this thread takes up another question
                events.put(_raiser(error))
        events.put(None)

    # not a pool: a request that hangs must not keep the process from ending
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(endpoint.concurrency, len(questions)))]
    for thread in threads:
        thread.start()
    failure: BaseException | None = None
    working, until = len(threads), float("inf")
    try:
        while working and time.monotonic() < until:
            try:
                event = events.get(timeout=TICK)
                if event is None:
                    working -= 1
                    continue
                event()
            except queue.Empty:
                pass
            except BaseException as error:
                halt.set()
                failure = failure or error
            try:
                poll()
            except BaseException as error:
                halt.set()
                failure = failure or error
                until = min(until, time.monotonic() + GRACE)
    finally:
        halt.set()
    if failure is not None:
        raise failure
    settled, hopeless = doubts.at_the_end()
    for question, why in settled:
        give_up(question, why.why)
    if hopeless is not None:
        raise hopeless


def _raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


__all__ = ["EndpointFailed", "ask_all", "patiently"]
