"""Many questions: tried patiently, several at a time, and one that has no answer does not end the others."""

from __future__ import annotations

import contextlib
import functools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from tisdpo_jax.chat._errors import Again, Unanswered
from tisdpo_jax.chat._wire import Endpoint

Q = TypeVar("Q")
R = TypeVar("R")

LONGEST_WAIT = 60.0  # seconds between two tries
SETTLED_TRIES = 2  # further tries of a question whose result is known if they bring nothing better
MOST_UNANSWERED = 8  # questions in a row without an answer, after which it is time to see whether the endpoint works
MOST_SILENT = 3  # the same for time-outs and the like, where nothing has been answered yet
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
    """Questions without an answer since the last one that had one. Another question's answer shows that the endpoint
    works, and settles them: they are at fault themselves. A question that was answered before, the witness, is asked
    again to find that out where no other is left, or too many are unanswered."""

    def __init__(self, witness: Q | None) -> None:
        self.witness = witness
        self.held: list[tuple[Q, Unanswered]] = []
        self.asking = False  # the witness

    def answered(self, question: Q) -> list[tuple[Q, Unanswered]]:
        self.witness = question
        settled, self.held = self.held, []
        return settled

    def too_many(self) -> bool:
        silent = sum(error.kind == "silence" for _, error in self.held)
        return len(self.held) >= MOST_UNANSWERED or silent >= (1 if self.witness is not None else MOST_SILENT)


def ask_all(
    endpoint: Endpoint,
    questions: Sequence[Q],
    ask: Callable[[Q, threading.Event], R | None],
    take: Callable[[Q, R], None],
    poll: Callable[[], None],
    *,
    give_up: Callable[[Q, str], None],
    witness: Q | None = None,
) -> None:
    """Asks every question, several at a time; `take` gets each reply as it comes, one at a time, in any order.

    `poll` is called all the time, also while replies are waited for, and may raise. After an error nothing more is
    asked; what is on its way is still taken, after a request to stop for GRACE seconds. `give_up` gets a question that
    has no answer, and why, once the answer to another one has shown that the endpoint works.

    Args:
      witness: a question that the endpoint has answered before, if there is one.

    Raises: what `ask`, `take`, `give_up` or `poll` raised first; Unanswered, of a question that shares its fate with
      all others.
    """
    halt, lock = threading.Event(), threading.Lock()
    sure = threading.Event()  # not while the witness is asked
    sure.set()
    left: Iterator[Q] = iter(questions)
    events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    doubts: _Doubts[Q] = _Doubts(witness)
    count = min(endpoint.concurrency, len(questions))
    busy = [count]  # workers

    def next_question() -> list[Q]:
        sure.wait()
        with lock:
            return [] if halt.is_set() else [question for question in (next(left, None),) if question is not None]

    def settle(settled: Sequence[tuple[Q, Unanswered]]) -> None:
        for question, error in settled:
            events.put(functools.partial(give_up, question, error.why))

    def look(error: Unanswered) -> None:
        """Finds out whether it is the endpoint or the questions, if that can be found out."""
        with lock:
            known = doubts.witness
        works = False
        try:
            if known is not None:
                with contextlib.suppress(Unanswered):
                    works = ask(known, halt) is not None
            with lock:
                settled = doubts.answered(known) if works and known is not None else []
                works = works or all(other is not error for _, other in doubts.held)  # one that was on its way came
            settle(settled)
            if not works and not halt.is_set():
                halt.set()
                events.put(_raiser(error))
        finally:
            doubts.asking = False
            sure.set()

    def one(question: Q) -> None:
        try:
            reply = ask(question, halt)
        except Unanswered as error:
            with lock:
                doubts.held.append((question, error))
                doubtful = doubts.too_many() and not doubts.asking
                doubts.asking = doubts.asking or doubtful
            if doubtful:
                sure.clear()
                look(error)
            return
        if reply is not None:
            with lock:
                settled = doubts.answered(question)
            events.put(functools.partial(take, question, reply))
            settle(settled)

    def at_the_end() -> None:
        """Of the last worker: what is left in doubt when nothing is left to ask."""
        if doubts.witness is None:  # a reply that says why is an answer, even where all are of that kind
            settle([(question, error) for question, error in doubts.held if error.kind == "reply"])
            doubts.held = [(question, error) for question, error in doubts.held if error.kind != "reply"]
        if doubts.held:
            look(doubts.held[0][1])

    def work() -> None:
        try:
            while found := next_question():
                one(found[0])
            with lock:
                busy[0] -= 1
                last = busy[0] == 0
            if last and not halt.is_set():
                at_the_end()
        except BaseException as error:
            halt.set()  # here, before this thread takes up another question
            events.put(_raiser(error))
        events.put(None)

    # not a pool: a request that hangs must not keep the process from ending
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
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


def _raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
