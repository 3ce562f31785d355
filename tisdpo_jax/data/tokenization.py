"""From pairs of text to pairs of token ids.

Every whole conversation is tokenised once, response included, and split by character offsets; a token
that lies across the seam belongs to the response, unless it is a marker of the prompt that swallows the blanks
behind it (an added token with `rstrip`). So the ids at the seam are those of the whole text,
and masks follow from lengths: no id, not even the padding one, means anything here.

Cutting, where a pair is too long: a response loses its end (and with it the end-of-turn token, so
nothing teaches the model to stop there); the prompt, shared by both sides, loses its beginning but keeps
its BOS token. In the contrastive views the conversation is cut to the same tail as in the main view, and
the contrastive text is kept: those rows may be longer than `max_length` by its length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tisdpo_jax.data.encoded import EncodedPair, EncodedSet, Ids
from tisdpo_jax.data.records import Message, Pair, PairSet, Rejection, Unusable
from tisdpo_jax.data.template import (
    Rendered,
    Template,
    Tokenizer,
    check_message,
    frame,
    open_template,
    render,
)
from tisdpo_jax.data.views import View, check_views, contrast_ranges, make_views, show
from tisdpo_jax.errors import ConfigError

CHUNK = 256  # pairs tokenised in one call, which a fast tokenizer spreads over threads


class Written(NamedTuple):
    """A pair as text, in one view."""

    chosen: Rendered
    rejected: Rendered
    kept: list[tuple[int, int]]  # character ranges of the prompt that cutting must leave
    head: str  # what sampling begins from, where the text of a side parts from it; "" where it does not
    unread: tuple[str, ...]  # names in the messages that the template does not write


class Row(NamedTuple):
    """A tokenised conversation, split at the seam."""

    prompt: Ids  # [P]
    response: Ids  # [N]
    fixed: npt.NDArray[np.bool_]  # [P], prompt tokens that cutting must leave
    parts: bool  # whether the prompt ends before what sampling begins from


def encode_pairs(
    pair_set: PairSet,
    tokenizer: Tokenizer,
    *,
    template: Template | str,
    system: str = "",
    max_length: int,
    max_response: int,
    contrast: tuple[str, str] | None = None,
) -> EncodedSet:
    """Token ids of every pair, in every view.

    Args:
        pair_set: the pairs; their rejections are carried over.
        tokenizer: a fast tokenizer of transformers.
        template: an open template, or what `data.template` says: "auto", "hh", the path of a jinja file.
        system: system text for conversations that have none; "" adds none.
        max_length: tokens of prompt and response together, in the main view.
        max_response: tokens of a response.
        contrast: (positive, negative) prompt text. Each is a system text put before the conversation's own
            or, with `{prompt}` in it, a template for the last turn of the user.

    Returns:
        An `EncodedSet`. A pair that cannot be encoded is among its rejections.

    Raises:
        ConfigError: lengths, template or contrastive prompts that can suit no pair.
    """
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
    encoded: list[EncodedPair] = []
    unread: Counter[str] = Counter()
    rejections = list(pair_set.rejections)
    for start in range(0, len(pair_set.pairs), CHUNK):
        written: list[tuple[Pair, list[Written]]] = []
        for pair in pair_set.pairs[start : start + CHUNK]:
            try:
                written.append((pair, _write(opened, views, pair)))
            except Unusable as problem:
                rejections.append(Rejection(pair.origin, problem.reason, problem.detail))
        rows = _tokenize(tokenizer, [texts for _, texts in written], added)
        for pair, texts in written:
            sides = {view.name: (next(rows), next(rows)) for view in views}
            try:
                encoded.append(_assemble(pair, sides, added, max_length, max_response))
            except Unusable as problem:
                rejections.append(Rejection(pair.origin, problem.reason, problem.detail))
                continue
            unread.update({*pair.unread, *(name for view in texts for name in view.unread)})
    return EncodedSet(tuple(encoded), tuple(rejections), pair_set.source, _count(encoded, rejections), unread)


def _write(template: Template, views: Sequence[View], pair: Pair) -> list[Written]:
    """The pair as text in every view; `Unusable` where the template or the text does not allow it."""
    for message in pair.messages:
        check_message(template, message)
    check_message(template, Message("assistant", pair.chosen, pair.chosen_extra), "chosen")
    check_message(template, Message("assistant", pair.rejected, pair.rejected_extra), "rejected")
    written = []
    for view in views:
        messages = show(view, pair.messages)
        around = frame(template, messages)
        chosen = render(template, around, messages, pair.chosen, pair.chosen_extra)
        rejected = render(template, around, messages, pair.rejected, pair.rejected_extra)
        seam = min(chosen.start, rejected.start)  # where one of them parts from the prompt, both do
        written.append(
            Written(
                chosen._replace(start=seam),
                rejected._replace(start=seam),
                contrast_ranges(template, view, around.head, messages),
                around.head if seam < len(around.head.rstrip(" ")) else "",
                (*around.unread, *chosen.unread, *rejected.unread),
            )
        )
    return written


def _tokenize(tokenizer: Tokenizer, written: Sequence[Sequence[Written]], added: Set[int]) -> Iterator[Row]:
    """Rows in the order pair, view, side."""
    sides = [(side, view) for views in written for view in views for side in (view.chosen, view.rejected)]
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
) -> Row:
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
    return Row(array[:first], array[first:], fixed, bool((starts[first : first + 1] < side.start).any()))


def _part(row: Row, head: list[int]) -> Row:
    """The row with a prompt that ends where its tokens part from those that sampling begins from."""
    shift = int(row.prompt[:1].tolist() != head[:1])  # the BOS that the template did not write
    length = min(len(row.prompt) - shift, len(head))
    shared = shift + int(np.append(row.prompt[shift : shift + length] != head[:length], True).argmax())
    return _shorten(row, shared)


def _shorten(row: Row, length: int) -> Row:
    """The row with its prompt's tokens from `length` on in the response."""
    return Row(row.prompt[:length], np.append(row.prompt[length:], row.response), row.fixed[:length], True)


def _assemble(
    pair: Pair, sides: dict[str, tuple[Row, Row]], added: Set[int], max_length: int, max_response: int
) -> EncodedPair:
    """One pair from the rows of its views, cut to length."""
    sides = {name: _align(name, rows, added) for name, rows in sides.items()}
    chosen, rejected = (row.response for row in sides["main"])
    for name, rows in sides.items():
        _check_rows(name, rows, chosen, rejected)
    weights = _weights(pair, chosen, rejected)
    cut = [chosen[:max_response], rejected[:max_response]]
    if np.array_equal(cut[0], cut[1]):
        raise Unusable("responses equal", f"their first {len(cut[0])} tokens, to which they are cut, are the same")
    main = sides["main"][0]
    room = max_length - max(len(cut[0]), len(cut[1])) - int(main.fixed.sum())
    if room < 1:
        raise Unusable("no room for the prompt", f"of data.max_length {max_length} the response leaves none")
    truncated = int((~main.fixed).sum()) > room
    prompts = {name: _lose_beginning(row, room) if truncated else row.prompt for name, (row, _) in sides.items()}
    return EncodedPair(
        id=pair.id,
        origin=pair.origin,
        prompt=prompts["main"],
        chosen=cut[0],
        rejected=cut[1],
        plus_prompt=prompts.get("plus"),
        minus_prompt=prompts.get("minus"),
        parts=any(row.parts for rows in sides.values() for row in rows),
        truncated_prompt=truncated,
        truncated_chosen=len(chosen) > max_response,
        truncated_rejected=len(rejected) > max_response,
        margin=pair.margin,
        chosen_weights=weights and weights[0][:max_response],
        rejected_weights=weights and weights[1][:max_response],
        group=pair.group,
        messages=pair.messages,
    )


def _align(name: str, rows: tuple[Row, Row], added: Set[int]) -> tuple[Row, Row]:
    """Where the end of the prompt is tokenised otherwise on one side (it merges there), it goes to both responses."""
    length = min(len(row.prompt) for row in rows)
    shared = int((np.append(rows[0].prompt[:length] != rows[1].prompt[:length], True)).argmax())
    if all(len(row.prompt) == shared for row in rows):
        return rows
    if any(token in added for row in rows for token in row.prompt[shared:].tolist()):
        raise Unusable("prompt tokens differ", f"those of the two sides of the {name} view, by more than a merged end")
    return _shorten(rows[0], shared), _shorten(rows[1], shared)


def _check_rows(name: str, rows: tuple[Row, Row], chosen: Ids, rejected: Ids) -> None:
    if not len(rows[0].prompt):
        raise Unusable("empty prompt", f"no token of the {name} view stands before the response")
    for side, row, response in zip(("chosen", "rejected"), rows, (chosen, rejected), strict=True):
        if not len(response):
            raise Unusable("empty response", f"{side} has no tokens")
        if not np.array_equal(row.response, response):
            raise Unusable("response tokens differ", f"those of {side} in the {name} view from those in the main view")


def _weights(pair: Pair, chosen: Ids, rejected: Ids) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    if pair.chosen_weights is None or pair.rejected_weights is None:
        return None
    for side, weights, response in (
        ("chosen", pair.chosen_weights, chosen),
        ("rejected", pair.rejected_weights, rejected),
    ):
        if len(weights) != len(response):
            raise Unusable(
                "weights do not fit",
                f"{side}_weights holds {len(weights)} numbers for {len(response)} tokens, the end of turn included",
            )
    return np.asarray(pair.chosen_weights, np.float32), np.asarray(pair.rejected_weights, np.float32)


def _lose_beginning(row: Row, room: int) -> Ids:
    """The prompt without its first loose tokens, so that `room` of them are left."""
    loose = np.flatnonzero(~row.fixed)
    return np.delete(row.prompt, loose[: max(0, len(loose) - room)])


def _count(encoded: Sequence[EncodedPair], rejections: Sequence[Rejection]) -> dict[str, int]:
    return {
        "records": len(encoded) + len(rejections),
        "usable": len(encoded),
        "rejected": len(rejections),
        "parts": sum(pair.parts for pair in encoded),
        "truncated_prompt": sum(pair.truncated_prompt for pair in encoded),
        "truncated_chosen": sum(pair.truncated_chosen for pair in encoded),
        "truncated_rejected": sum(pair.truncated_rejected for pair in encoded),
    }
