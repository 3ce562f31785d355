"""From responses as text to groups of token ids: pairs of records, or any number of answers to a prompt.

Every whole conversation is tokenised once, response included, and split by character offsets; a token
that lies across the seam belongs to the response, unless it is a marker of the prompt that swallows the blanks
behind it (an added token with `rstrip`). So the ids at the seam are those of the whole text,
and masks follow from lengths: no id, not even the padding one, means anything here.

Cutting, where a pair is too long: a response loses its end (and with it the end-of-turn token, so
nothing teaches the model to stop there); the prompt, shared by all responses, loses its beginning but
keeps its BOS token. In the contrastive views the conversation is cut to the same tail as in the main view, and
the contrastive text is kept: those rows may be longer than `max_length` by its length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedGroup, EncodedSet, Ids, response_names
from tisdpo_jax.data.prompts import Prompt
from tisdpo_jax.data.records import InvalidRecord, Message, Pair, PairSet, Unusable
from tisdpo_jax.data.template import (
    Rendered,
    Template,
    Tokenizer,
    check_message,
    frame,
    open_template,
    render,
)
from tisdpo_jax.data.views import PromptView, check_views, contrast_ranges, make_views, show_as
from tisdpo_jax.errors import ConfigError

CHUNK = 256  # pairs tokenised in one call, which a fast tokenizer spreads over threads


class Written(NamedTuple):
    """A prompt and its responses as text, in one view."""

    responses: tuple[Rendered, ...]  # each with the prompt before it
    kept: list[tuple[int, int]]  # character ranges of the prompt that cutting must leave
    head: str  # what sampling begins from, where the text of a response parts from it; "" where it does not
    unread: tuple[str, ...]  # names in the messages that the template does not write


class Unencoded(NamedTuple):
    """A prompt and its responses, and what else becomes a group's."""

    id: str
    origin: str
    messages: tuple[Message, ...]
    responses: tuple[Message, ...]
    weights: tuple[tuple[float, ...], ...] | None = None
    margin: float | None = None
    subset: str | None = None
    unread: tuple[str, ...] = ()


class TokenRow(NamedTuple):
    """A tokenised conversation, split at the seam."""

    prompt: Ids  # [P]
    response: Ids  # [N]
    fixed: npt.NDArray[np.bool_]  # [P], prompt tokens that cutting must leave
    parts: bool  # whether the prompt ends before what sampling begins from


def encode_pairs(pair_set: PairSet, tokenizer: Tokenizer, **options: Any) -> EncodedSet:
    """Token ids of every pair, in every view: groups of two, the chosen response first.

    Args:
        pair_set: the pairs; their invalid are carried over.
        tokenizer: a fast tokenizer of transformers.
        template: an open template, or what `data.template` says: "auto", "hh", the path of a jinja file.
        system: system text for conversations that have none; "", the default, adds none.
        max_length: tokens of prompt and response together, in the main view.
        max_response: tokens of a response.
        contrast: (positive, negative) prompt text, None by default. Each is a system text put before the
            conversation's own or, with `{prompt}` in it, a template for the last turn of the user.

    Returns:
        An `EncodedSet`. A pair that cannot be encoded is among its invalid.

    Raises:
        ConfigError: lengths, template or contrastive prompts that can suit no pair.
    """
    waiting = [_of_pair(pair) for pair in pair_set.pairs]
    return _encode(waiting, tokenizer, pair_set.source, pair_set.invalid, **options)


def encode_groups(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    *,
    source: str = "responses",
    **options: Any,
) -> EncodedSet:
    """Token ids of K texts in answer to each prompt, else as `encode_pairs`; `source` is their name in errors."""
    waiting = [
        Unencoded(prompt.id, prompt.origin, prompt.messages, tuple(Message("assistant", text) for text in texts))
        for prompt, texts in zip(prompts, responses, strict=True)
    ]
    return _encode(waiting, tokenizer, source, (), **options)


def _of_pair(pair: Pair) -> Unencoded:
    answers = (pair.chosen, pair.chosen_extra), (pair.rejected, pair.rejected_extra)
    responses = tuple(Message("assistant", *answer) for answer in answers)
    weights = None
    if pair.chosen_weights is not None and pair.rejected_weights is not None:
        weights = (pair.chosen_weights, pair.rejected_weights)
    return Unencoded(pair.id, pair.origin, pair.messages, responses, weights, pair.margin, pair.group, pair.unread)


def _encode(
    waiting: Sequence[Unencoded],
    tokenizer: Tokenizer,
    source: str,
    rejected: Sequence[InvalidRecord],
    *,
    template: Template | str,
    max_length: int,
    max_response: int,
    system: str = "",
    contrast: tuple[str, str] | None = None,
) -> EncodedSet:
    if max_response < 1:
        raise ConfigError(f"data.max_response is {max_response}; it must be at least 1")
    if max_length <= max_response:
        raise ConfigError(
            f"data.max_length {max_length} must be above data.max_response {max_response}: "
            "a full response would leave no room for a prompt"
        )
    opened = open_template(template, tokenizer) if isinstance(template, str) else template
    views = make_views(system, contrast)
    check_views(opened, views)
    added = set(tokenizer.added_tokens_decoder)
    encoded: list[EncodedGroup] = []
    unread: Counter[str] = Counter()
    invalid = list(rejected)
    for start in range(0, len(waiting), CHUNK):
        written: list[tuple[Unencoded, list[Written]]] = []
        for one in waiting[start : start + CHUNK]:
            try:
                written.append((one, _write(opened, views, one)))
            except Unusable as problem:
                invalid.append(InvalidRecord(one.origin, problem.reason, problem.detail))
        rows = _tokenize(tokenizer, [texts for _, texts in written], added)
        for one, texts in written:
            by_view = {view.name: [next(rows) for _ in one.responses] for view in views}
            try:
                encoded.append(_assemble(one, by_view, added, max_length, max_response))
            except Unusable as problem:
                invalid.append(InvalidRecord(one.origin, problem.reason, problem.detail))
                continue
            unread.update({*one.unread, *(name for view in texts for name in view.unread)})
    return EncodedSet(tuple(encoded), tuple(invalid), source, unread)


def _write(template: Template, views: Sequence[PromptView], one: Unencoded) -> list[Written]:
    """The conversations as text in every view; `Unusable` where the template or the text does not allow it."""
    for message in one.messages:
        check_message(template, message)
    for name, response in zip(response_names(len(one.responses)), one.responses, strict=True):
        check_message(template, response, name)
    written = []
    for view in views:
        messages = show_as(view, one.messages)
        around = frame(template, messages)
        texts = [render(template, around, messages, response.content, response.extra) for response in one.responses]
        seam = min(text.start for text in texts)  # where one of them parts from the prompt, all do
        written.append(
            Written(
                tuple(text._replace(start=seam) for text in texts),
                contrast_ranges(template, view, around.head, messages),
                around.head if seam < len(around.head.rstrip(" ")) else "",
                (*around.unread, *(name for text in texts for name in text.unread)),
            )
        )
    return written


def _tokenize(tokenizer: Tokenizer, written: Sequence[Sequence[Written]], added: Set[int]) -> Iterator[TokenRow]:
    """Rows in the order group, view, response."""
    sides = [(side, view) for views in written for view in views for side in view.responses]
    if not sides:
        return
    tokens = tokenizer(
        [side.text for side, _ in sides],
        add_special_tokens=False,  # the template wrote them; BOS is seen to below
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,  # else it warns of rows longer than the model takes, which are cut later
    )
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    for (side, view), ids, offsets in zip(sides, tokens["input_ids"], tokens["offset_mapping"], strict=True):
        row = _split(ids, offsets, side, view.kept, bos, adds_bos, added)
        yield _part(row, tokenizer(view.head, add_special_tokens=False).input_ids) if view.head else row


def _split(
    ids: list[int],
    offsets: list[tuple[int, int]],
    side: Rendered,
    kept: Sequence[tuple[int, int]],
    bos: int | None,
    adds_bos: bool,
    added: Set[int],
) -> TokenRow:
    if adds_bos and ids[:1] != [bos]:
        ids, offsets = [bos or 0, *ids], [(0, 0), *offsets]
    starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
    first = int(np.argmax(ends > side.start)) if (ends > side.start).any() else len(ids)
    if first < len(ids) and ids[first] in added:
        content = side.text[starts[first] : ends[first]].rstrip()
        if content and starts[first] + len(content) <= side.start:
            first += 1  # only the blanks that it swallows lie behind the seam
    fixed = np.zeros(first, bool)
    for start, end in kept:
        fixed |= (starts[:first] < end) & (ends[:first] > start)
    if bos is not None and ids[:1] == [bos]:
        fixed[:1] = True
    array = np.asarray(ids, np.int32)
    return TokenRow(array[:first], array[first:], fixed, bool((starts[first : first + 1] < side.start).any()))


def _part(row: TokenRow, head: list[int]) -> TokenRow:
    """The row with a prompt that ends where its tokens part from those that sampling begins from."""
    shift = int(row.prompt[:1].tolist() != head[:1])  # the BOS that the template did not write
    length = min(len(row.prompt) - shift, len(head))
    shared = shift + int(np.append(row.prompt[shift : shift + length] != head[:length], True).argmax())
    return _shorten(row, shared)


def _shorten(row: TokenRow, length: int) -> TokenRow:
    """The row with its prompt's tokens from `length` on in the response."""
    return TokenRow(row.prompt[:length], np.append(row.prompt[length:], row.response), row.fixed[:length], True)


def _assemble(
    one: Unencoded, by_view: dict[str, list[TokenRow]], added: Set[int], max_length: int, max_response: int
) -> EncodedGroup:
    """One group from the rows of its views, cut to length."""
    by_view = {name: _align(name, rows, added) for name, rows in by_view.items()}
    responses = [row.response for row in by_view["main"]]
    for name, rows in by_view.items():
        _check_rows(name, rows, responses)
    weights = _weights(one.weights, responses)
    cut = tuple(response[:max_response] for response in responses)
    if len(cut) == 2 and np.array_equal(*cut):
        raise Unusable("responses equal", f"their first {len(cut[0])} tokens, to which they are cut, are the same")
    main = by_view["main"][0]
    room = max_length - max(map(len, cut)) - int(main.fixed.sum())
    if room < 1:
        raise Unusable("no room for the prompt", f"of data.max_length {max_length} the response leaves none")
    truncated = int((~main.fixed).sum()) > room
    return EncodedGroup(
        id=one.id,
        origin=one.origin,
        prompts={name: _lose_beginning(row, room) if truncated else row.prompt for name, (row, *_) in by_view.items()},
        responses=cut,
        truncated=tuple(len(response) > max_response for response in responses),
        truncated_prompt=truncated,
        parts=any(row.parts for rows in by_view.values() for row in rows),
        weights=weights and tuple(values[:max_response] for values in weights),
        margin=one.margin,
        subset=one.subset,
        messages=one.messages,
    )


def _align(name: str, rows: list[TokenRow], added: Set[int]) -> list[TokenRow]:
    """Where the end of the prompt is tokenised otherwise before one response (it merges there), it goes to them all."""
    length = min(len(row.prompt) for row in rows)
    differs = [np.append(rows[0].prompt[:length] != row.prompt[:length], True).argmax() for row in rows]
    shared = int(min(differs))
    if all(len(row.prompt) == shared for row in rows):
        return rows
    if any(token in added for row in rows for token in row.prompt[shared:].tolist()):
        raise Unusable("prompt tokens differ", f"those of the two sides of the {name} view, by more than a merged end")
    return [_shorten(row, shared) for row in rows]


def _check_rows(name: str, rows: list[TokenRow], responses: list[Ids]) -> None:
    if not len(rows[0].prompt):
        raise Unusable("empty prompt", f"no token of the {name} view stands before the response")
    for side, row, response in zip(response_names(len(rows)), rows, responses, strict=True):
        if not len(response):
            raise Unusable("empty response", f"{side} has no tokens")
        if not np.array_equal(row.response, response):
            raise Unusable("response tokens differ", f"those of {side} in the {name} view from those in the main view")


def _weights(
    weights: tuple[tuple[float, ...], ...] | None, responses: list[Ids]
) -> tuple[npt.NDArray[np.float32], ...] | None:
    if weights is None:
        return None
    for side, values, response in zip(response_names(len(weights)), weights, responses, strict=True):
        if len(values) != len(response):
            raise Unusable(
                "weights do not fit",
                f"{side}_weights holds {len(values)} numbers for {len(response)} tokens, the end of turn included",
            )
    return tuple(np.asarray(values, np.float32) for values in weights)


def _lose_beginning(row: TokenRow, room: int) -> Ids:
    """The prompt without its first loose tokens, so that `room` of them are left."""
    loose = np.flatnonzero(~row.fixed)
    return np.delete(row.prompt, loose[: max(0, len(loose) - room)])
