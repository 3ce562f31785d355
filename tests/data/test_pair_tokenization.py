"""Text to token ids: one tokenisation of the whole, masks by lengths, BOS and EOS right, safe cutting."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tisdpo_jax.data import (
    EncodedGroup,
    EncodedSet,
    Message,
    Pair,
    PairSet,
    Prompt,
    apply_policy,
    encode_groups,
    encode_pairs,
)
from tisdpo_jax.errors import ConfigError, DataError
from tisdpo_jax.testing import batch_of
from tisdpo_jax.testing.tokenizer import CHAT_TEMPLATE, tiny_tokenizer

CONTRAST = ("You are a harmless assistant. You will refuse.", "You are harmful.")
AROUND = ("USER: {prompt}\nASSISTANT(law-abiding):", "USER: {prompt}\nASSISTANT(toxic):")
WRITES_BOS = "{{ bos_token }}" + CHAT_TEMPLATE
TOKENIZERS = {adds_bos: tiny_tokenizer(adds_bos=adds_bos) for adds_bos in (True, False)}
TOKENIZER = TOKENIZERS[True]


def tokenizer(template: str | None = CHAT_TEMPLATE, **options: Any) -> Any:
    made = tiny_tokenizer(**options)
    made.chat_template = template
    return made


def pair(chosen: str, rejected: str, *prompt: str, system: str = "", **fields: Any) -> Pair:
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], content) for i, content in enumerate(prompt or ("tell me about the moon",))]
    if system:
        messages.insert(0, Message("system", system))
    return Pair("id", tuple(messages), chosen, rejected, "f.jsonl:1", **fields)


def encode(*pairs: Pair, made: Any = TOKENIZER, template: str = "auto", **options: Any) -> EncodedSet:
    options = {"max_length": 500, "max_response": 200, **options}
    return encode_pairs(PairSet(pairs, (), "f.jsonl"), made, template=template, **options)


def one(*pairs: Pair, **options: Any) -> EncodedGroup:
    found = encode(*pairs, **options)
    assert not found.invalid, found.invalid
    return found.groups[0]


def ids(text: str, made: Any = TOKENIZER) -> list[int]:
    return list(made(text, add_special_tokens=False).input_ids)


# One tokenisation of the whole conversation


@pytest.mark.parametrize("contrast", [None, CONTRAST, AROUND])
@settings(max_examples=40)
@given(
    data=st.data(),
    chosen=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30),
    prompt=st.text("ab \nAé😀.", min_size=1, max_size=30),
)
def test_ids_are_those_of_the_whole_text(data: Any, contrast: Any, chosen: str, prompt: str) -> None:
    assume(chosen.strip() and prompt.strip())
    shared = chosen[: data.draw(st.integers(0, len(chosen)))]
    example = pair(chosen, shared + "other", prompt)
    found = encode(example, contrast=contrast)
    if found.invalid:
        # Only white space at the seam can be one token with the template's line break, and in one view alone.
        assert {invalid_record.reason for invalid_record in found.invalid} == {"response tokens differ"}
        assert chosen[:1].isspace() or (shared + "o")[0].isspace()
        return
    (got,) = found.groups
    whole = f"<s><|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    for response, text in ((got.chosen, chosen), (got.rejected, shared + "other")):
        assert [*got.prompt, *response] == ids(whole + text + "<|im_end|>")
    for view, text in zip(("plus", "minus"), contrast or (), strict=False):
        if "{prompt}" in text:
            behind = f"<s><|im_start|>user\n{text.replace('{prompt}', prompt)}<|im_end|>\n<|im_start|>assistant\n"
        else:
            behind = f"<s><|im_start|>system\n{text}<|im_end|>\n" + whole.removeprefix("<s>")
        assert [*got.prompts[view], *got.chosen] == ids(behind + chosen + "<|im_end|>")


def test_token_across_the_seam_belongs_to_the_response() -> None:
    made = tokenizer("{% for m in messages %}{{ m.role + ' hel' + m.content + '</s>' }}{% endfor %}")
    assert ids(" help", made) == [made.convert_tokens_to_ids("Ġhelp")]
    got = one(pair("p you", "p me"), made=made)
    assert made.decode(got.prompt) == "<s>user heltell me about the moon</s>assistant"
    assert made.decode(got.chosen) == " help you</s>"
    # On one side alone the other response begins with what is the prompt's there, as in TRL; and it is said.
    found = encode(pair("p you", "zzz"), made=made)
    (merged,) = found.groups
    np.testing.assert_array_equal(merged.prompt, got.prompt)
    np.testing.assert_array_equal(merged.chosen, got.chosen)
    assert made.decode(merged.rejected) == " helzzz</s>"
    assert "1  pairs whose prompt ends before what sampling begins from" in found.summary()


def test_template_is_applied_once_to_every_turn() -> None:
    got = one(pair("a", "b", "x", "y", "z", system="s"))
    start, end = (TOKENIZER.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert list(got.prompt).count(start) == 5
    assert list(got.prompt).count(end) == 4


# BOS, EOS, padding


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WRITES_BOS, None])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_once_and_eos_in_the_response(template: str | None, adds_bos: bool) -> None:
    made = tokenizer(template, adds_bos=adds_bos)
    got = one(pair("yes", "no", "x", "y", "z"), made=made, template="auto" if template else "hh", contrast=CONTRAST)
    wants_bos = adds_bos or template == WRITES_BOS
    end = made.convert_tokens_to_ids("<|im_end|>" if template else "</s>")
    for prompt in got.prompts.values():
        assert list(prompt).count(made.bos_token_id) == int(wants_bos)
        assert not wants_bos or prompt[0] == made.bos_token_id
    for response in (got.chosen, got.rejected):
        assert list(response).count(end) == 1
        assert response[-1] == end
        assert made.bos_token_id not in response


def test_masks_do_not_depend_on_the_padding_token() -> None:
    made = tokenizer(CHAT_TEMPLATE.replace("<|im_end|>", "</s>"))
    example = pair("yes", "no, not today, and not ever", "x")
    plain = encode(example, made=made)
    for pad in ("</s>", "<s>", "<|im_start|>"):
        made.pad_token = pad
        padded = encode(example, made=made)
        assert padded.fingerprint() == plain.fingerprint()
        batch = batch_of(padded)
        assert batch.mask[0].sum(-1).tolist() == [len(padded.groups[0].chosen), len(padded.groups[0].rejected)]
        view = batch.views["main"]
        last = view.place[0, 0, int(batch.mask[0, 0].sum()) - 1]
        assert view.slots.targets.ravel()[last] == made.eos_token_id


# Contrastive views


@pytest.mark.parametrize("contrast", [CONTRAST, AROUND])
def test_views_share_responses_and_differ_in_the_prompt(contrast: tuple[str, str]) -> None:
    example = pair("yes", "no", "x", "y", "z z", system="Own system.")
    got = one(example, contrast=contrast)
    plain = one(example)
    assert list(got.prompts) == ["main", "plus", "minus"]
    assert list(plain.prompts) == ["main"]
    np.testing.assert_array_equal(got.prompt, plain.prompt)
    np.testing.assert_array_equal(got.chosen, plain.chosen)
    plus, minus = (TOKENIZER.decode(got.prompts[name]) for name in ("plus", "minus"))
    if contrast is CONTRAST:
        assert f"system\n{CONTRAST[0]}\n\nOwn system.<|im_end|>" in plus
        assert f"system\n{CONTRAST[1]}\n\nOwn system.<|im_end|>" in minus
    else:
        assert plus.endswith("user\nUSER: z z\nASSISTANT(law-abiding):<|im_end|>\n<|im_start|>assistant\n")
        assert minus.endswith("user\nUSER: z z\nASSISTANT(toxic):<|im_end|>\n<|im_start|>assistant\n")
        assert "system\nOwn system.<|im_end|>" in plus


def test_default_system_is_for_conversations_without_one() -> None:
    assert "system\nBe kind.<" in TOKENIZER.decode(one(pair("a", "b"), system="Be kind.").prompt)
    own = TOKENIZER.decode(one(pair("a", "b", system="Own."), system="Be kind.").prompt)
    assert "system\nOwn.<" in own
    assert "Be kind." not in own
    contrast = one(pair("a", "b"), system="Be kind.", contrast=CONTRAST)
    assert f"{CONTRAST[0]}\n\nBe kind.<" in TOKENIZER.decode(contrast.prompts["plus"])


def test_an_empty_contrast_is_the_plain_prompt() -> None:
    got = one(pair("a", "b"), contrast=("", CONTRAST[1]))
    np.testing.assert_array_equal(got.prompts["plus"], got.prompt)


def test_template_without_system_needs_the_slot() -> None:
    drops = tokenizer("{% for m in messages if m.role != 'system' %}{{ m.role + m.content + '</s>' }}{% endfor %}")
    raises = tokenizer(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role + m.content + '</s>' }}{% endfor %}"
    )
    for made in (drops, raises):
        with pytest.raises(ConfigError, match=r"contrast\.positive_prompt: .*no place for a system text.*\{prompt\}"):
            encode(pair("a", "b"), made=made, contrast=CONTRAST)
        with pytest.raises(ConfigError, match=r"data\.system: .*no place for a system text"):
            encode(pair("a", "b"), made=made, system="Be kind.")
        assert one(pair("a", "b"), made=made, contrast=AROUND).prompts["plus"] is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast": ("{prompt}{prompt}", "x")}, r"contrast\.positive_prompt: holds \{prompt\} more than once"),
        ({"contrast": ("x", "a<|im_end|>")}, r"contrast\.negative_prompt: special token in text"),
        ({"system": "a</s>"}, "special token in text: '</s>' at character 1 of data.system"),
        ({"max_length": 200}, r"data\.max_length 200 must be above data\.max_response 200"),
        ({"max_response": 0}, r"data\.max_response is 0"),
    ],
)
def test_settings_that_suit_no_pair(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode(pair("a", "b"), **options)


def test_view_that_changes_the_response_tokens_is_a_rejection() -> None:
    # With a system turn, this template writes the answer behind letters that merge with it.
    merging = tokenizer(
        "{% for m in messages %}{{ m.role + (' hel' if messages[0].role == 'system' and loop.last else ' ')"
        " + m.content + '</s>' }}{% endfor %}"
    )
    (invalid_record,) = encode(pair("p you", "p me"), made=merging, contrast=CONTRAST).invalid
    assert invalid_record.reason == "response tokens differ"
    assert "in the plus view" in invalid_record.detail


# Cutting


LONG = "How can I bake bread at home with flour and salt and yeast and water, and what should I do then? "


@pytest.mark.parametrize("contrast", [None, CONTRAST, AROUND])
@pytest.mark.parametrize("adds_bos", [True, False])
@settings(max_examples=25)
@given(
    max_response=st.integers(1, 40),
    more=st.integers(1, 80),
    turns=st.sampled_from([1, 3]),
    words=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_cutting(contrast: Any, adds_bos: bool, max_response: int, more: int, turns: int, words: Any) -> None:
    made = TOKENIZERS[adds_bos]
    chosen, rejected = (" ".join([first] * count) for first, count in zip(("air", "no"), words, strict=True))
    example = pair(chosen, rejected, *[LONG] * turns)
    whole = one(example, made=made, contrast=contrast, max_length=10_000, max_response=5_000)
    found = encode(example, made=made, contrast=contrast, max_length=max_response + more, max_response=max_response)
    longest = min(max_response, max(len(whole.chosen), len(whole.rejected)))
    room = max_response + more - longest
    if found.invalid:
        assert found.invalid[0].reason == "no room for the prompt"
        assert room < 1 + adds_bos
        return
    (got,) = found.groups
    # Responses lose their end.
    for response, full in ((got.chosen, whole.chosen), (got.rejected, whole.rejected)):
        np.testing.assert_array_equal(response, full[:max_response])
        assert len(response)
    # The prompt loses its beginning, only as much as it must, and not its BOS.
    tail = got.prompt[int(adds_bos) :]
    assert len(tail)
    assert len(got.prompt) == min(len(whole.prompt), room)
    np.testing.assert_array_equal(tail, whole.prompt[len(whole.prompt) - len(tail) :])
    assert not adds_bos or got.prompt[0] == made.bos_token_id
    # The other views keep the contrastive text, and as much of the conversation.
    for view, text in zip(("plus", "minus"), contrast or (), strict=False):
        cut, full = got.prompts[view], whole.prompts[view]
        decoded = made.decode(cut)
        for part in text.split("{prompt}"):
            assert part in decoded
        removed = len(full) - len(cut)
        if not got.truncated_prompt:
            assert removed == 0
        elif contrast is CONTRAST:
            assert removed == len(whole.prompt) - len(got.prompt)
            assert f"system\n{text}<|im_end|>\n" in decoded
            assert cut[-len(tail) :].tolist() == tail.tolist()
        else:  # what stands around the user's text may merge with it
            assert abs(len(whole.prompt) - len(got.prompt) - removed) <= 2
    flags = (got.truncated_prompt, *got.truncated)
    assert flags == (
        len(got.prompt) < len(whole.prompt),
        len(got.chosen) < len(whole.chosen),
        len(got.rejected) < len(whole.rejected),
    )
    names = ("truncated_prompt", "truncated_chosen", "truncated_rejected")
    assert tuple(found.counts()[name] for name in names) == tuple(map(int, flags))


def test_views_are_not_cut_where_the_main_one_is_not() -> None:
    # The letter before it breaks up the one token that the prompt is in the main view.
    example, contrast = pair("yes", "no", "ssistant"), ("i{prompt}", "s{prompt}")
    assert len(ids("ssistant")) == 1
    assert len(ids("issistant")) > 2
    whole = one(example, contrast=contrast)
    exact = len(whole.prompt) + max(len(whole.chosen), len(whole.rejected))
    got = one(example, contrast=contrast, max_length=exact, max_response=len(whole.chosen))
    for view, prompt in got.prompts.items():
        np.testing.assert_array_equal(prompt, whole.prompts[view])


def test_responses_equal_after_cutting_are_rejected() -> None:
    (invalid_record,) = encode(pair("air air air one", "air air air two"), max_response=3).invalid
    assert invalid_record.reason == "responses equal"
    assert "first 3 tokens" in invalid_record.detail


# Text that must not steer


@pytest.mark.parametrize("mark", ["<|im_start|>", "<|im_end|>", "<s>", "</s>"])
@pytest.mark.parametrize("place", ["prompt", "history", "system", "chosen", "rejected"])
def test_special_tokens_in_text_are_rejected_and_counted(mark: str, place: str) -> None:
    text = {"prompt": "x", "history": "y", "system": "s", "chosen": "a", "rejected": "b"}
    text[place] += f" {mark} system"
    bad = pair(text["chosen"], text["rejected"], "x", text["history"], text["prompt"], system=text["system"])
    found = encode(bad, pair("fine", "not"))
    assert len(found.groups) == 1
    (invalid_record,) = found.invalid
    assert invalid_record.reason == "special token in text"
    assert repr(mark) in invalid_record.detail


# Columns of the records


def test_weights_must_fit_the_tokens_and_are_cut_with_them() -> None:
    good = pair(
        "yes", "no", chosen_weights=(1.0,) * (len(ids("yes")) + 1), rejected_weights=(0.5,) * (len(ids("no")) + 1)
    )
    got = one(good)
    assert got.weights is not None
    assert got.weights[0].dtype == np.float32
    assert [len(weights) for weights in got.weights] == [len(ids) for ids in got.responses]
    short = one(good, max_response=1)
    assert short.weights is not None
    assert [len(weights) for weights in short.weights] == [1, 1]
    bad = dataclasses.replace(good, rejected_weights=(0.5,))
    (invalid_record,) = encode(bad).invalid
    assert invalid_record.reason == "weights do not fit"
    assert "rejected_weights holds 1 numbers" in invalid_record.detail


# The set


def test_nothing_is_lost_on_the_way() -> None:
    pairs = [pair(f"yes {i}", "no") for i in range(300)]  # more than one chunk
    pairs[260] = pair("yes <s>", "no")
    found = encode(*pairs)
    assert len(found.groups) == 299
    assert found.counts()["records"] == 300
    assert found.counts()["usable"] == 299
    assert [TOKENIZER.decode(got.chosen) for got in found.groups[258:262]] == [
        f"yes {i}<|im_end|>" for i in (258, 259, 261, 262)
    ]
    assert "300 records, 299 usable, 1 invalid" in found.summary()
    with pytest.raises(DataError, match="1 of 300 records invalid"):
        apply_policy(found, "fail", 1.0)
    assert not encode().groups


def test_lengths_and_widths_say_what_a_layout_has_to_hold() -> None:
    pairs = [pair("a", "b"), pair("a b c " * 10, "b"), pair("a", "c", LONG)]
    plain, behind = encode(*pairs), encode(*pairs, contrast=CONTRAST)
    for found in (plain, behind):
        longest = max(len(response) for got in found.groups for response in (got.chosen, got.rejected))
        assert found.elements() % 8 == 0 and 0 <= found.elements() - longest < 8
        assert found.elements(multiple=1) == longest
        for view in found.groups[0].prompts:
            both = [len(got.prompts[view]) + len(got.chosen) + len(got.rejected) for got in found.groups]
            assert found.lengths(view).tolist() == both
            rejected = [len(got.prompts[view]) + len(got.rejected) for got in found.groups]
            assert found.lengths(view, sides=(1,)).tolist() == rejected
        mask = found.mask(longest)
        assert mask.sum(-1).tolist() == [[len(got.chosen), len(got.rejected)] for got in found.groups]
        assert (np.diff(mask, axis=-1) <= 0).all()
    assert (behind.lengths("plus") > behind.lengths("main")).all()


def test_fingerprint_sees_every_token_and_every_boundary() -> None:
    base = encode(pair("yes", "no"))
    others = [
        encode(pair("yes", "not")),
        encode(pair("yes", "no", "other")),
        encode(pair("yes", "no"), contrast=CONTRAST),
        encode(pair("yes", "no"), contrast=CONTRAST[::-1]),
        encode(pair("yes", "no"), pair("yes", "no")),
        encode(pair("yes", "no"), template="hh"),
        encode(pair("yes", "no"), max_response=1),
    ]
    got = base.groups[0]
    moved = dataclasses.replace(
        got, prompts={"main": np.append(got.prompt, got.chosen[:1])}, responses=(got.chosen[1:], got.rejected)
    )
    others.append(dataclasses.replace(base, groups=(moved,)))
    prints = [base.fingerprint(), *(other.fingerprint() for other in others)]
    assert len(set(prints)) == len(prints)
    assert encode(pair("yes", "no")).fingerprint() == base.fingerprint()


# Groups of any number of responses


@pytest.mark.parametrize("contrast", [None, CONTRAST, AROUND])
def test_groups_of_two_are_pairs(contrast: Any) -> None:
    pairs = [pair("yes, it is", "no"), pair("a" * 80, "b"), pair("a", "c", LONG)]
    prompts = [Prompt(one.id, one.messages, one.origin) for one in pairs]
    options: dict[str, Any] = {"template": "auto", "max_length": 64, "max_response": 24, "contrast": contrast}
    found = encode_groups(
        prompts, [(one.chosen, one.rejected) for one in pairs], TOKENIZER, source="f.jsonl", **options
    )
    expected = encode_pairs(PairSet(tuple(pairs), (), "f.jsonl"), TOKENIZER, **options)
    assert found.fingerprint() == expected.fingerprint() and found.summary() == expected.summary()


def test_groups_of_one_and_of_many() -> None:
    prompts = [Prompt(f"p{i}", (Message("user", f"question {i}"),), f"p:{i}") for i in range(3)]
    texts = [[f"answer {i} {k}" + " more" * k for k in range(4)] for i in range(3)]
    options: dict[str, Any] = {"template": "auto", "max_length": 64, "max_response": 24}
    many = encode_groups(prompts, texts, TOKENIZER, **options)
    assert many.size == 4 and many.mask(many.elements()).shape[:2] == (3, 4)
    for k in range(4):
        alone = encode_groups(prompts, [row[k : k + 1] for row in texts], TOKENIZER, **options)
        assert alone.size == 1
        for one, group in zip(alone.groups, many.groups, strict=True):
            np.testing.assert_array_equal(one.prompt, group.prompt)
            np.testing.assert_array_equal(one.responses[0], group.responses[k])
            assert TOKENIZER.decode(one.responses[0]) == f"{texts[int(one.id[1:])][k]}<|im_end|>"
    with pytest.raises(ValueError, match="p:2: 1 responses in a group, where others have 2"):
        encode_groups(prompts, [*(row[:2] for row in texts[:2]), texts[2][:1]], TOKENIZER, **options)
