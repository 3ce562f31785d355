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

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedGroup, EncodedSet, Ids, response_names
from tisdpo_jax.data.records import InvalidRecord, Message, PairSet, Prompt, Unusable
from tisdpo_jax.data.rendering import Rendered, frame, render
from tisdpo_jax.data.template import Template, Tokenizer, adds_bos, check_message, open_template
from tisdpo_jax.data.views import PromptView, check_views, contrast_ranges, make_views, show_as
from tisdpo_jax.errors import ConfigError

CHUNK = 256  # pairs tokenised in one call, which a fast tokenizer spreads over threads


class Unencoded(NamedTuple):
    """A prompt and its responses: `group` is what they become, but for the tokens."""

    group: EncodedGroup  # without prompts and responses; its weights not cut
    responses: tuple[Message, ...]
    unread: tuple[str, ...] = ()


class Written(NamedTuple):
    """A prompt and its responses as text, in one view."""

    responses: tuple[Rendered, ...]  # each with the prompt before it
    kept: list[tuple[int, int]]  # character ranges of the prompt that cutting must leave
    head: str  # what sampling begins from, where the text of a response parts from it; "" where it does not
    unread: tuple[str, ...]  # names in the messages that the template does not write


class TokenRow(NamedTuple):
    """A tokenised conversation, split at the seam."""

    prompt: Ids  # [P]
    response: Ids  # [N]
    fixed: npt.NDArray[np.bool_]  # [P], prompt tokens that cutting must leave
    parts: bool  # whether the prompt ends before what sampling begins from

    def shorten(self, length: int) -> TokenRow:
        """The row with its prompt's tokens from `length` on in the response."""
        return TokenRow(self.prompt[:length], np.append(self.prompt[length:], self.response), self.fixed[:length], True)


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
    waiting = []
    for pair in pair_set.pairs:
        both = (pair.chosen_weights, pair.rejected_weights)
        weights = None if None in both else tuple(np.asarray(values, np.float32) for values in both)
        group = EncodedGroup(pair.id, pair.origin, {}, (), margin=pair.margin, weights=weights, subset=pair.group)
        group = dataclasses.replace(group, messages=pair.messages, strength=pair.strength)
        waiting.append(Unencoded(group, pair.answers, pair.unread))
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
    waiting = []
    for prompt, texts in zip(prompts, responses, strict=True):
        group = EncodedGroup(prompt.id, prompt.origin, {}, (), messages=prompt.messages)
        waiting.append(Unencoded(group, tuple(Message("assistant", text) for text in texts)))
    return _encode(waiting, tokenizer, source, (), **options)


def _encode(
    waiting: Sequence[Unencoded],
    tokenizer: Tokenizer,
    source: str,
    invalid: Sequence[InvalidRecord],
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
    left_out = list(invalid)
    for start in range(0, len(waiting), CHUNK):
        written: list[tuple[Unencoded, list[Written]]] = []
        for one in waiting[start : start + CHUNK]:
            try:
                written.append((one, _write(opened, views, one)))
            except Unusable as problem:
                left_out.append(problem.at(one.group.origin))
        rows = _tokenize(tokenizer, [texts for _, texts in written], added)
        for one, texts in written:
            by_view = {view.name: [next(rows) for _ in one.responses] for view in views}
            try:
                encoded.append(_assemble(one.group, by_view, added, max_length, max_response))
            except Unusable as problem:
                left_out.append(problem.at(one.group.origin))
                continue
            unread.update({*one.unread, *(name for view in texts for name in view.unread)})
    return EncodedSet(tuple(encoded), tuple(left_out), source, unread)


def _write(template: Template, views: Sequence[PromptView], one: Unencoded) -> list[Written]:
    """The conversations as text in every view; `Unusable` where the template or the text does not allow it."""
    for message in one.group.messages:
        check_message(template, message)
    for name, response in zip(response_names(len(one.responses)), one.responses, strict=True):
        check_message(template, response, name)
    written = []
    for view in views:
        messages = show_as(view, one.group.messages)
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
    texts = [(text, view) for views in written for view in views for text in view.responses]
    if not texts:
        return
    tokens = tokenizer(
        [text.text for text, _ in texts],
        add_special_tokens=False,  # the template wrote them; BOS is seen to below
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,  # else it warns of rows longer than the model takes, which are cut later
    )
    bos, puts_bos = tokenizer.bos_token_id, adds_bos(tokenizer)
    for (text, view), ids, offsets in zip(texts, tokens["input_ids"], tokens["offset_mapping"], strict=True):
        if puts_bos and ids[:1] != [bos]:
            ids, offsets = [bos, *ids], [(0, 0), *offsets]
        row = _split(ids, offsets, text, view.kept, added)
        row.fixed[:1] |= bos is not None and ids[:1] == [bos]
        if view.head:  # the prompt ends where its tokens part from those that sampling begins from
            head = tokenizer(view.head, add_special_tokens=False).input_ids
            shift = int(row.prompt[:1].tolist() != head[:1])  # the BOS that the template did not write
            row = row.shorten(shift + _shared(row.prompt[shift:], np.asarray(head, np.int32)))
        yield row


def _shared(one: Ids, other: Ids) -> int:
    """Number of tokens with which both begin."""
    length = min(len(one), len(other))
    return int(np.append(one[:length] != other[:length], True).argmax())


def _split(
    ids: list[int],
    offsets: list[tuple[int, int]],
    text: Rendered,
    kept: Sequence[tuple[int, int]],
    added: Set[int],
) -> TokenRow:
    starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
    first = int(np.argmax(ends > text.start)) if (ends > text.start).any() else len(ids)
    if first < len(ids) and ids[first] in added:
        content = text.text[starts[first] : ends[first]].rstrip()
        if content and starts[first] + len(content) <= text.start:
            first += 1  # only the blanks that it swallows lie behind the seam
    fixed = np.zeros(first, bool)
    for start, end in kept:
        fixed |= (starts[:first] < end) & (ends[:first] > start)
    array = np.asarray(ids, np.int32)
    return TokenRow(array[:first], array[first:], fixed, bool((starts[first : first + 1] < text.start).any()))


def _assemble(
    group: EncodedGroup, by_view: dict[str, list[TokenRow]], added: Set[int], max_length: int, max_response: int
) -> EncodedGroup:
    """One group from the rows of its views, cut to length."""
    by_view = {name: _align(name, rows, added) for name, rows in by_view.items()}
    responses = [row.response for row in by_view["main"]]
    sides = response_names(len(responses))
    for name, rows in by_view.items():
        if not len(rows[0].prompt):
            raise Unusable("empty prompt", f"no token of the {name} view stands before the response")
        for side, row, response in zip(sides, rows, responses, strict=True):
            if not len(response):
                raise Unusable("empty response", f"{side} has no tokens")
            if not np.array_equal(row.response, response):
                detail = f"those of {side} in the {name} view from those in the main view"
                raise Unusable("response tokens differ", detail)
    for side, values, response in zip(sides, group.weights or (), responses, strict=group.weights is not None):
        if len(values) != len(response):
            detail = f"{side}_weights holds {len(values)} numbers for {len(response)} tokens, the end of turn included"
            raise Unusable("weights do not fit", detail)
    cut = tuple(response[:max_response] for response in responses)
    if len(cut) == 2 and np.array_equal(*cut):
        raise Unusable("responses equal", f"their first {len(cut[0])} tokens, to which they are cut, are the same")
    main = by_view["main"][0]
    room = max_length - max(map(len, cut)) - int(main.fixed.sum())
    if room < 1:
        raise Unusable("no room for the prompt", f"of data.max_length {max_length} the response leaves none")
    truncated = int((~main.fixed).sum()) > room
    return dataclasses.replace(
        group,
        prompts={name: _lose_beginning(row, room) if truncated else row.prompt for name, (row, *_) in by_view.items()},
        responses=cut,
        truncated=tuple(len(response) > max_response for response in responses),
        truncated_prompt=truncated,
        parts=any(row.parts for rows in by_view.values() for row in rows),
        weights=group.weights and tuple(values[:max_response] for values in group.weights),
    )


def _align(name: str, rows: list[TokenRow], added: Set[int]) -> list[TokenRow]:
    """Where the end of the prompt is tokenised otherwise before one response (it merges there), it goes to them all."""
    shared = min(_shared(rows[0].prompt, row.prompt) for row in rows)
    if all(len(row.prompt) == shared for row in rows):
        return rows
    if any(token in added for row in rows for token in row.prompt[shared:].tolist()):
        raise Unusable("prompt tokens differ", f"those of the two sides of the {name} view, by more than a merged end")
    return [row.shorten(shared) for row in rows]


def _lose_beginning(row: TokenRow, room: int) -> Ids:
    """The prompt without its first loose tokens, so that `room` of them are left."""
    loose = np.flatnonzero(~row.fixed)
    return np.delete(row.prompt, loose[: max(0, len(loose) - room)])


def prompt_ids(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template, *, system: str = "", max_length: int
) -> npt.NDArray[np.int32]:
    """What a model reads before it answers; a prompt that is too long loses its beginning, but not its BOS token.

    Raises: Unusable when the template cannot write the conversation, or its text holds special tokens.
    """
    for message in messages:
        check_message(template, message)
    (view,) = make_views(system, None)
    # blanks before the response belong to it, as in `render`
    head = frame(template, show_as(view, messages)).head.rstrip(" ")
    ids = list(tokenizer(head, add_special_tokens=False).input_ids)
    bos = tokenizer.bos_token_id
    first = [bos] if bos is not None and (ids[:1] == [bos] or adds_bos(tokenizer)) else []
    rest = ids[1:] if first and ids[:1] == first else ids
    return np.asarray([*first, *rest[-max(1, max_length - len(first)) :]], np.int32)
