"""What a reply of an endpoint says: an answer, why there is none, or that something is wrong with all questions. Pure.

What another try may mend is tried again: time-outs, lost connections, status 408, 409, 425, 429 and 5xx, replies that
cannot be read. What is wrong with one question, a filter for example, is its result (`Completion.finish`). What
concerns the whole job (key, model, a parameter, the address) stops it. Where a reply does not say which of the two it
is, the other questions do (`asking.ask_all`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tisdpo_jax.generation.responses import Finish

# finish_reason, as OpenAI, vLLM, TGI, Anthropic and Google call them
_FILTERED = (
    *("content_filter", "content-filter", "content_filtered", "safety", "recitation", "blocklist", "spii", "refusal"),
    *("prohibited_content", "image_safety", "sensitive", "moderation"),
)
_FINISH = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens"), "length"),
    **dict.fromkeys(("abort", "aborted", "cancelled", "canceled", "incomplete", "interrupted"), "broken off"),
    **dict.fromkeys(_FILTERED, "filtered"),
}
# `code` and `type` of an error, by what they mean; of several meanings the first counts
_CODES: dict[str, tuple[str, ...]] = {
    "filtered": (
        *(*_FILTERED, "content_policy_violation", "responsibleaipolicyviolation", "responsible_ai_policy_violation"),
        *("data_inspection_failed", "moderation_blocked"),
    ),
    "failed": ("context_length_exceeded", "string_above_max_length", "prompt_too_long", "invalid_prompt"),
    "job": (
        *("invalid_api_key", "authentication_error", "unauthorized", "permission_denied", "insufficient_quota"),
        *("billing_hard_limit_reached", "billing_error", "model_not_found", "invalid_model", "unsupported_parameter"),
        *("unsupported_value", "unknown_parameter", "invalid_parameter", "unknown_url", "account_deactivated"),
    ),
    "again": (
        *("rate_limit_exceeded", "rate_limit_error", "overloaded_error", "overloaded", "server_error", "api_error"),
        *("internal_error", "internal_server_error", "service_unavailable", "timeout"),
    ),
}
_JOB_STATUS = (401, 402, 404, 405, 407, 410)
_RETRIED = (408, 409, 425, 429)  # and everything from 500 on
# parts of the request that are the same for every question
_SAME_FOR_ALL = ("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "n")

Kind = Literal["reply", "status", "silence"]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What came of a question.

    `finish`: "stop", answered; "length", unfinished: the tokens ran out, in thinking perhaps, or the server broke off;
    "filtered", the server withheld the answer or its end; "failed", there is no whole answer for another reason.
    """

    text: str
    finish: Finish = "stop"
    reason: str = ""  # the server's words for it
    tries: int = 1


class Trouble(Exception):
    """A try brought no answer.

    `fate`: "again", another try may mend it; "question", this one has no answer, and whether that concerns the others
    cannot be told from it alone; "job", none will have one. `kind`: "reply", the server said why in a reply of status
    200; "status", by an HTTP status, or in a reply that cannot be read; "silence", nothing of the kind. `wait`: what
    the server asked for, in seconds. `settled`: the result of the question where no further try does better.
    """

    def __init__(
        self,
        why: str,
        fate: Literal["again", "question", "job"],
        *,
        kind: Kind = "silence",
        wait: float = 0.0,
        settled: Completion | None = None,
    ) -> None:
        super().__init__(why)
        self.why, self.fate, self.kind, self.wait, self.settled = why, fate, kind, wait, settled


def read_reply(status: int, content: bytes, wait: float = 0.0) -> Completion:
    """The first choice of a reply (2xx is 200), or what its error means for the question. Raises: Trouble."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        reply = None
    known = reply if isinstance(reply, dict) else {}
    said = _message(known) or content[:65536].decode("utf-8", "replace")
    if status != 200 or known.get("error") or known.get("object") == "error":
        return _read_error(status, known.get("error", known), said, wait)
    choices = known.get("choices")
    if not isinstance(choices, list):
        what = "JSON" if reply is None else "chat completion"
        raise Trouble(f"the reply is no {what}: {said!r}", "again", kind="status")
    if not choices:
        raise _no_answer("the reply has no choices")
    if not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        raise _no_answer("the reply's choice has no message")
    return _read_choice(choices[0], choices[0]["message"])


def _no_answer(why: str) -> Trouble:
    return Trouble(why, "again", kind="reply", settled=Completion("", "failed", why))


def _read_choice(choice: Mapping[str, Any], message: Mapping[str, Any]) -> Completion:
    reason, refusal = choice.get("finish_reason"), message.get("refusal")
    name = reason.lower() if isinstance(reason, str) else ""
    ended = "stop" if reason is None else _FINISH.get(name, "")
    text = _text(message.get("content"))
    if ended == "filtered":
        results = choice.get("content_filter_results")
        pairs = results.items() if isinstance(results, dict) else ()
        kinds = ", ".join(name for name, one in pairs if isinstance(one, dict) and one.get("filtered"))
        which = f" ({kinds})" if kinds else ""
        return Completion(text or "", "filtered", f"{reason}{which} {refusal or ''}")
    if isinstance(refusal, str) and refusal.strip() and not text:
        return Completion("", "filtered", f"refusal: {refusal}")
    thought = any(message.get(field) for field in ("reasoning_content", "reasoning", "thinking"))
    no_text = f"no text (finish_reason {name})"
    if ended == "length":
        return Completion(
            text or "", "length", "" if text else "the tokens ran out in thinking" if thought else no_text
        )
    if ended == "stop":
        if text is not None:
            return Completion(text)
        if message.get("tool_calls") or message.get("function_call"):
            return Completion("", "failed", "calls of tools in place of an answer")
        if reason is None:
            raise _no_answer("the reply has no text")
        return Completion("", "stop", "thought, and said nothing" if thought else no_text)
    if text and ended == "broken off":
        return Completion(text, "length", f"finish_reason {name}")
    said = _message(choice) if choice.get("error") else ""
    return Completion(text or "", "failed", f"finish_reason {reason!r}{f': {said}' if said else ''}")


def _text(content: Any) -> str | None:
    """The text of a message: as it is, or of its parts; None where there is none."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _no_answer(f"the answer cannot be read: content is of the type {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind not in ("thinking", "reasoning", "redacted_thinking"):
            raise _no_answer(f"the answer cannot be read: it has a part of the type {kind!r}")
    return "".join(texts) if texts else None


def _read_error(status: int, error: Any, said: str, wait: float) -> Completion:
    """The result of the question, where the error says that it is about its text. Raises: Trouble."""
    kind: Kind = "reply" if status == 200 else "status"
    names = {str(name).lower() for name in _names(error)} if isinstance(error, dict) else set()
    parameter = error.get("param") if isinstance(error, dict) else None
    if status == 200:
        status = next((int(name) for name in names if re.fullmatch("[345][0-9][0-9]", name)), 200)
    why = said if status == 200 else f"status {status}: {said}"
    meaning = next((meaning for meaning, codes in _CODES.items() if names.intersection(codes)), "")
    if meaning in ("filtered", "failed"):
        return Completion("", "filtered" if meaning == "filtered" else "failed", why)
    if meaning == "job" or status in _JOB_STATUS or parameter in _SAME_FOR_ALL:
        raise Trouble(why, "job")
    if meaning == "again" or status in _RETRIED or status >= 500:
        raise Trouble(why, "again", wait=wait)
    raise Trouble(why, "question", kind=kind)


def _names(error: Mapping[str, Any]) -> Iterator[Any]:
    """Codes and types of an error, of what it contains too."""
    yield from (error[field] for field in ("code", "type", "status") if isinstance(error.get(field), str | int))
    for field in ("innererror", "inner_error"):
        if isinstance(error.get(field), dict):
            yield from _names(error[field])


def _message(reply: Mapping[str, Any]) -> str:
    """The message in an error, wherever servers put it; "" where there is none."""
    for field in ("error", "message", "detail", "msg"):
        value = reply.get(field)
        value = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(value, dict) and (inner := _message(value)):
            return inner
        if isinstance(value, str) and value.strip():
            return value
    return ""
