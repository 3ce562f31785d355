"""What a reply says: an answer, why there is none, or that something is wrong with every question. Pure."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tisdpo_jax.chat._errors import Again, EndpointFailed, Unanswered

Finish = Literal["stop", "length", "filtered", "failed"]

LONGEST_WORDS = 300  # characters of the server's words that are kept

# finish_reason, as OpenAI, vLLM, TGI, Anthropic and Google call them
_STOPPED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"}
_UNFINISHED = {"length", "max_tokens", "model_length", "max_output_tokens"}
_FILTERED = {
    *("content_filter", "content-filter", "content_filtered", "safety", "recitation", "blocklist", "spii", "refusal"),
    *("prohibited_content", "image_safety", "sensitive", "moderation"),
}
_BROKEN_OFF = {"abort", "aborted", "cancelled", "canceled", "incomplete", "interrupted"}
# `code` and `type` of an error
_JOB = {
    *("invalid_api_key", "authentication_error", "unauthorized", "permission_denied", "insufficient_quota"),
    *("billing_hard_limit_reached", "billing_error", "model_not_found", "invalid_model", "unsupported_parameter"),
    *("unsupported_value", "unknown_parameter", "invalid_parameter", "unknown_url", "account_deactivated"),
}
_ABOUT_THE_TEXT = {"context_length_exceeded", "string_above_max_length", "prompt_too_long", "invalid_prompt"}
_FILTER_CODES = _FILTERED | {
    *("content_policy_violation", "responsibleaipolicyviolation", "responsible_ai_policy_violation"),
    *("data_inspection_failed", "moderation_blocked"),
}
_BUSY = {
    *("rate_limit_exceeded", "rate_limit_error", "overloaded_error", "overloaded", "server_error", "internal_error"),
    *("internal_server_error", "service_unavailable", "timeout", "api_error"),
}
_JOB_STATUS = {401, 402, 404, 405, 407, 410}
_RETRIED = {408, 409, 425, 429}  # and everything from 500 on
# parts of the request that are the same for every question
_SAME_FOR_ALL = {
    *("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "n"),
}


@dataclasses.dataclass(frozen=True)
class Completion:
    """What came of a question.

    `finish`: "stop", answered; "length", unfinished: the tokens ran out, in thinking perhaps, or the server broke off;
    "filtered", the server withheld the answer or its end; "failed", there is no whole answer for another reason.
    `reason`: the server's words for it.
    """

    text: str
    finish: Finish = "stop"
    reason: str = ""


def read_completion(content: bytes) -> Completion:
    """The first choice of a reply of status 200.

    Raises: Again for what cannot be read; Unanswered and EndpointFailed for an error in place of an answer.
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        raise Again(f"the reply is no JSON: {words_of(content)!r}", kind="status") from None
    if not isinstance(reply, dict):
        raise Again(f"the reply is no chat completion: {words_of(content)!r}", kind="status")
    if reply.get("error") or reply.get("object") == "error":
        return read_error(200, content)
    choices = reply.get("choices")
    if not isinstance(choices, list):
        raise Again(f"the reply is no chat completion: {words_of(content)!r}", kind="status")
    if not choices:
        raise _no_answer("the reply has no choices")
    if not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        raise _no_answer("the reply's choice has no message")
    return _read_choice(choices[0], choices[0]["message"])


def _no_answer(why: str) -> Again:
    return Again(why, settled=Completion("", "failed", why), kind="reply")


def _read_choice(choice: Mapping[str, Any], message: Mapping[str, Any]) -> Completion:
    reason, refusal = choice.get("finish_reason"), message.get("refusal")
    try:
        text = _text(message.get("content"))
    except TypeError as error:
        raise _no_answer(f"the answer cannot be read: {error}") from None
    name = reason.lower() if isinstance(reason, str) else reason
    if isinstance(name, str) and name in _FILTERED:
        kinds = ", ".join(_filters(choice.get("content_filter_results")))
        return Completion(text or "", "filtered", clip(f"{reason}{f' ({kinds})' if kinds else ''} {refusal or ''}"))
    if isinstance(refusal, str) and refusal.strip() and not text:
        return Completion("", "filtered", clip(f"refusal: {refusal}"))
    thought = any(message.get(field) for field in ("reasoning_content", "reasoning", "thinking"))
    if isinstance(name, str) and name in _UNFINISHED:
        why = "the tokens ran out in thinking" if thought else f"no text (finish_reason {name})"
        return Completion(text or "", "length", "" if text else why)
    if name is None or (isinstance(name, str) and name in _STOPPED):
        if text is not None:
            return Completion(text)
        if message.get("tool_calls") or message.get("function_call"):
            return Completion("", "failed", "calls of tools in place of an answer")
        if name is None:
            raise _no_answer("the reply has no text")
        return Completion("", "stop", "thought, and said nothing" if thought else f"no text (finish_reason {name})")
    if text and isinstance(name, str) and name in _BROKEN_OFF:
        return Completion(text, "length", f"finish_reason {name}")
    said = message_of(choice) if choice.get("error") else ""
    return Completion(text or "", "failed", clip(f"finish_reason {reason!r}{f': {said}' if said else ''}"))


def _text(content: Any) -> str | None:
    """The text of a message: as it is, or of its parts; None where there is none. Raises: TypeError."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError(f"content is of the type {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind not in ("thinking", "reasoning", "redacted_thinking"):
            raise TypeError(f"it has a part of the type {kind!r}")
    return "".join(texts) if texts else None


def _filters(results: Any) -> Iterator[str]:
    if isinstance(results, dict):
        yield from (str(name) for name, found in results.items() if isinstance(found, dict) and found.get("filtered"))


def read_error(status: int, content: bytes, wait: float = 0.0) -> Completion:
    """What an error, by its HTTP status or inside a reply of status 200, means for the question.

    Returns: the result of the question, where the error says that it is about its text.
    Raises: Again, Unanswered, EndpointFailed.
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        reply = None
    error = reply.get("error", reply) if isinstance(reply, dict) else None
    said, in_a_reply = words_of(content), status == 200
    names: set[str] = set()
    parameter = None
    if isinstance(error, dict):
        names = {str(name).lower() for name in _names(error)}
        parameter = error.get("param")
        if status == 200:
            status = next((int(name) for name in names if re.fullmatch("[345][0-9][0-9]", name)), 200)
    why = f"{f'status {status}: ' if status != 200 else ''}{said}"
    if names & _FILTER_CODES:
        return Completion("", "filtered", why)
    if names & _ABOUT_THE_TEXT:
        return Completion("", "failed", why)
    if names & _JOB or status in _JOB_STATUS or (isinstance(parameter, str) and parameter in _SAME_FOR_ALL):
        raise EndpointFailed(why)
    if status in _RETRIED or status >= 500 or names & _BUSY:
        raise Again(why, wait)
    raise Unanswered(why, why, "reply" if in_a_reply else "status")


def _names(error: Mapping[str, Any]) -> Iterator[Any]:
    """Codes and types of an error, of what it contains too."""
    for field in ("code", "type", "status"):
        if isinstance(error.get(field), str | int):
            yield error[field]
    for field in ("innererror", "inner_error"):
        if isinstance(error.get(field), dict):
            yield from _names(error[field])


def words_of(content: bytes) -> str:
    """The words of a reply that is no answer, on one short line."""
    text = content[:65536].decode("utf-8", "replace")
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        reply = None
    return clip((message_of(reply) if isinstance(reply, dict) else "") or text)


def message_of(reply: Mapping[str, Any]) -> str:
    """The message in an error, wherever servers put it; "" where there is none."""
    for field in ("error", "message", "detail", "msg"):
        value = reply.get(field)
        if isinstance(value, dict) and (inner := message_of(value)):
            return inner
        if isinstance(value, list) and value and isinstance(value[0], dict) and (inner := message_of(value[0])):
            return inner
        if isinstance(value, str) and value.strip():
            return value
    return ""


def clip(text: str) -> str:
    """One line of printable characters, not too long: words of a server may hold anything."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= LONGEST_WORDS else f"{line[: LONGEST_WORDS - 3]}..."
