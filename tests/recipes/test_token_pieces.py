"""Pieces of text a token: joined they are the text, whatever the tokenizer cuts through."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tisdpo_jax.verbs.pictures import decode_pieces


class ByteLevel:
    """As in GPT-2 and Llama 3: tokens are byte strings, decoded together; bad UTF-8 becomes replacement signs."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def decode(self, ids, /, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not skip_special_tokens and not clean_up_tokenization_spaces
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", errors="replace")


class ByteFallback:
    """As in Llama 2: tokens are text, or single bytes; a run of bytes that is not UTF-8 is all replacement signs.

    A leading space of the whole is dropped.
    """

    def __init__(self, tokens: list[str | int]) -> None:
        self.tokens = tokens

    def decode(self, ids, /, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        text, run = "", b""
        for token in [*(self.tokens[i] for i in ids), ""]:
            if isinstance(token, int):
                run += bytes([token])
                continue
            try:
                text += run.decode("utf-8")
            except UnicodeDecodeError:
                text += "\ufffd" * len(run)
            text, run = text + token, b""
        return text.removeprefix(" ")


def cut(text: str, places: list[int]) -> list[bytes]:
    raw = text.encode()
    ends = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[a:b] for a, b in itertools.pairwise(ends)]


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(words, st.lists(st.integers(0, 200), max_size=20))
def test_pieces_of_bytes_join_to_the_text_however_it_was_cut(text: str, places: list[int]) -> None:
    tokens = cut(text, places)
    pieces = decode_pieces(ByteLevel(tokens), range(len(tokens)))
    assert len(pieces) == len(tokens) and "".join(pieces) == text


@given(words, st.lists(st.booleans(), min_size=20, max_size=20))
def test_pieces_of_a_byte_fallback_vocabulary_join_to_the_text(text: str, known: list[bool]) -> None:
    tokens: list[str | int] = []
    for character, whole in zip(text, known, strict=False):
        tokens += [character] if whole else list(character.encode())
    pieces = decode_pieces(ByteFallback(tokens), range(len(tokens)))
    assert len(pieces) == len(tokens) and "".join(pieces) == text.removeprefix(" ")


@given(st.lists(st.sampled_from(["a", " the", "é", "早", "\n", "<|im_end|>"]), max_size=12))
def test_a_token_of_whole_characters_is_its_own_piece(tokens: list[str]) -> None:
    assert decode_pieces(ByteLevel([token.encode() for token in tokens]), range(len(tokens))) == tokens


def test_a_character_goes_to_the_token_that_completes_it() -> None:
    raw = "早".encode()
    assert decode_pieces(ByteLevel([b"a", raw[:1], raw[1:], b"b"]), range(4)) == ["a", "", "早", "b"]
    assert decode_pieces(ByteFallback(["a", *raw, "b"]), range(5)) == ["a", "", "", "早", "b"]


def test_a_character_that_is_never_completed_shows_as_replacement_signs() -> None:
    raw = "早".encode()
    assert decode_pieces(ByteLevel([b"a", raw[:1], raw[1:2]]), range(3)) == ["a", "", "\ufffd"]
    assert decode_pieces(ByteFallback(["a", *raw, raw[0]]), range(5)) == ["a", "", "", "早", "\ufffd"]
    pieces = decode_pieces(ByteFallback(["a", *raw, *raw[:2]]), range(6))
    assert pieces == ["a", "", "", "早", "", "\ufffd\ufffd"]
    assert decode_pieces(ByteLevel([b"\xff", b"a"]), range(2)) == ["", "\ufffda"]
    assert decode_pieces(ByteLevel([]), []) == []
