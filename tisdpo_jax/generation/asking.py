"""Many questions to an endpoint: tried patiently, several at a time, and one without an answer ends no others."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tisdpo_jax.errors import UserError
from tisdpo_jax.generation.client import Endpoint, complete
from tisdpo_jax.generation.replies import Completion, Trouble

LONGEST_WAIT = 60.0  # seconds between two tries
SETTLED_TRIES = 3  # of a question whose result is known if they bring nothing better
MOST_UNANSWERED = 8  # questions in a row without an answer, after which it is time to see whether the endpoint works
MOST_SILENT = 3  # the same for time-outs and the like, where nothing has been answered yet
TICK = 0.1  # seconds between two looks at whether to stop
GRACE = 5.0  # seconds that replies on their way have after a request to stop

Body = dict[str, Any]  # of a request
Result = tuple[str, Completion]  # of a question, by its name
Outcome = Completion | Trouble | None  # of asking: an answer, none, or a stop between two tries


class EndpointFailed(UserError):
    """The endpoint does not answer, or not in a way that another try could mend: this concerns the whole job."""


def ask(
    endpoint: Endpoint, body: Body, halt: threading.Event, clear: Callable[[Completion], bool] = lambda reply: True
) -> Outcome:
    """What comes of a question after as many tries as it takes; None when `halt` is set between two of them.

    `clear`: whether a reply says what was asked for; one that does not is the result when all tries bring no better.
    """
    last, settled, tries, most = Trouble("", "again"), None, 0, endpoint.retries + 1
    while tries < most:
        wait = endpoint.first_wait * 2.0 ** (tries - 1) * random.uniform(0.75, 1.25)
        if tries and halt.wait(min(LONGEST_WAIT, max(wait, last.wait))):
            return None
        tries += 1
        try:
            completion = dataclasses.replace(complete(endpoint, body), tries=tries)
            if clear(completion):
                return completion
            last, settled = Trouble("the reply is not clear", "again"), completion
        except Trouble as error:
            if error.fate != "again":
                return error
            last = error
            if error.settled is not None:
                settled, most = error.settled, min(most, SETTLED_TRIES)
    if settled is not None:
        return dataclasses.replace(settled, tries=tries)
    return Trouble(f"no answer in {tries} tries, the last: {last.why}", "question", kind=last.kind)


class _Job:
    """Which question is asked next, and what a question without an answer means for the others.

    Such a question is held back. Another one's answer shows that the endpoint works, and settles those that are held:
    they are at fault themselves. A question that was answered before, the witness, is asked again to find that out
    where no other is left, or too many are held.
    """

    def __init__(self, endpoint: Endpoint, questions: Mapping[str, Body], witness: Body | None) -> None:
        self._endpoint, self._left, self._witness = endpoint, iter(questions.items()), witness
        self._probe: Body | None = None  # the witness while it is asked again; until then nothing else is
        self._urgent: list[Body] = []
        self._held: dict[str, Trouble] = {}
        self.failure: BaseException | None = None

    @property
    def in_doubt(self) -> bool:
        return bool(self._held) and self.failure is None

    def fail(self, error: BaseException) -> None:
        if isinstance(error, Trouble):
            error = EndpointFailed(
                f"{self._endpoint.url}: {error.why}; check {self._endpoint.fields} and the key; what was answered so "
                "far is kept, the same command asks for the others"
            )
        self.failure = self.failure or error

    def next(self) -> tuple[str | None, Body] | None:
        """A question by its name, or the witness, which has none."""
        if self.failure is not None:
            return None
        if self._urgent:
            return None, self._urgent.pop()
        return next(self._left, None) if self._probe is None else None

    def heard(self, name: str | None, body: Body, outcome: Outcome | BaseException) -> list[Result]:
        """What is settled now that this came of a question."""
        if isinstance(outcome, Completion):
            settled = self._give_up(self._held)
            self._witness, self._probe = body, None
            return settled if name is None else [(name, outcome), *settled]
        if isinstance(outcome, BaseException) and (not isinstance(outcome, Trouble) or outcome.fate == "job"):
            self.fail(outcome)
        elif isinstance(outcome, Trouble) and name is not None:
            self._held[name] = outcome
            silent = sum(error.kind == "silence" for error in self._held.values())
            if len(self._held) >= MOST_UNANSWERED or silent >= (MOST_SILENT if self._witness is None else 1):
                self._doubt()
        elif isinstance(outcome, Trouble) and body is self._probe:  # else an answer has come in the meantime
            self.fail(next(iter(self._held.values())))
        return []

    def at_the_end(self) -> list[Result]:
        """What is settled when no question is left to ask."""
        settled: list[Result] = []
        if self._witness is None:  # a reply that says why is an answer, even where all are of that kind
            settled = self._give_up({name: error for name, error in self._held.items() if error.kind == "reply"})
        if self._held:
            self._doubt()
        return settled

    def _doubt(self) -> None:
        """Asks the witness again; without one it is the endpoint."""
        if self._witness is None:
            self.fail(next(iter(self._held.values())))
        elif self._probe is None:
            self._probe = dict(self._witness)
            self._urgent.append(self._probe)

    def _give_up(self, held: dict[str, Trouble]) -> list[Result]:
        self._held = {name: error for name, error in self._held.items() if name not in held}
        return [(name, Completion("", "failed", error.why)) for name, error in held.items()]


def ask_all(
    endpoint: Endpoint,
    questions: Mapping[str, Body],
    take: Callable[[str, Completion], None],
    poll: Callable[[], None] = lambda: None,
    *,
    clear: Callable[[Completion], bool] = lambda reply: True,
    witness: Body | None = None,
) -> None:
    """Asks every question, several at a time; `take` gets each result as it comes, one at a time, in any order.

    `poll` is called all the time, also while replies are waited for, and may raise. After an error nothing more is
    asked; what is on its way is still taken, after a request to stop for GRACE seconds. A question that has no answer
    has failed (`Completion.finish`) once the answer to another one has shown that the endpoint works.

    Args:
      clear: as in `ask`.
      witness: a question that the endpoint has answered before, if there is one.

    Raises: EndpointFailed for what concerns all questions; what `take` or `poll` raised first.
    """
    job, halt = _Job(endpoint, questions, witness), threading.Event()
    waiting: queue.SimpleQueue[tuple[str | None, Body] | None] = queue.SimpleQueue()
    replies: queue.SimpleQueue[tuple[str | None, Body, Outcome | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        while (question := waiting.get()) is not None:
            try:
                replies.put((*question, ask(endpoint, question[1], halt, clear)))
            except BaseException as error:
                replies.put((*question, error))

    def attempt(act: Callable[..., None], *arguments: Any) -> bool:
        try:
            act(*arguments)
        except BaseException as error:
            job.fail(error)
            return False
        return True

    workers, busy, until = min(endpoint.concurrency, len(questions)), 0, float("inf")
    for _ in range(workers):  # no pool: a request that hangs must not keep the process from ending
        threading.Thread(target=work, daemon=True).start()
    ready: list[Result] = []
    try:
        while True:
            while busy < workers and (question := job.next()) is not None:
                waiting.put(question)
                busy += 1
            for result in ready:  # with the next questions on their way
                attempt(take, *result)
            if not attempt(poll):
                until = min(until, time.monotonic() + GRACE)
            if job.failure is not None:
                halt.set()
            if time.monotonic() >= until or not (busy or job.in_doubt):
                break
            ready = [] if busy else job.at_the_end()
            if busy:
                with contextlib.suppress(queue.Empty):
                    ready = job.heard(*replies.get(timeout=TICK))
                    busy -= 1
    finally:
        halt.set()
        for _ in range(workers):
            waiting.put(None)
    if job.failure is not None:
        raise job.failure
