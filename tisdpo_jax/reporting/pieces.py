"""The text of each token, such that the pieces joined are the text of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

_INCOMPLETE = "\ufffd"


class Decoder(Protocol):
    """What is asked of a tokenizer; those of `transformers` have it."""

    def decode(self, token_ids: Any, /, **options: Any) -> str: ...


def decode_pieces(tokenizer: Decoder, ids: Sequence[int]) -> list[str]:
    """One piece of text a token, special tokens included: `"".join(pieces)` is the decoded text of whole characters.

    A token that ends inside a character gets an empty piece, and the one that completes the character gets it
    whole; a character that is never completed shows as replacement signs on the last token. Decoding a token
    alone would not do: byte-level tokens are no text, and SentencePiece drops a leading space.
    """
    pieces: list[str] = []
    done = 0  # characters given out so far
    waiting = 0  # the first token after the last one that gave some out
    text = ""
    for end in range(1, len(ids) + 1):
        text = _decode(tokenizer, ids[:end])
        settled = len(text.rstrip(_INCOMPLETE))
        pieces.append(text[done:settled])
        if settled > done:
            done, waiting = settled, end
    if pieces:
        # A byte-fallback decoder turns whole characters before an incomplete one into replacement signs too:
        # then the rest is what the tokens that wait say without them.
        given = "".join(pieces)
        pieces[-1] += text[done:] if text.startswith(given) else _decode(tokenizer, ids[waiting:])
    return pieces


def _decode(tokenizer: Decoder, ids: Sequence[int]) -> str:
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
