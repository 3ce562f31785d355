"""Conversation to text: where the response stands, how it ends, and which templates are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.data.records import Message, Unusable
from tisdpo_jax.data.rendering import frame, render
from tisdpo_jax.data.template import PLACEHOLDER, check_marks, open_template, takes_system
from tisdpo_jax.errors import ConfigError
from tisdpo_jax.testing.tokenizer import CHAT_TEMPLATE, tiny_tokenizer

TURNS = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "tell me"))
SYSTEM = Message("system", "Be kind.")

LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
)
NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
TWO_ENDS = "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>\n' }}{% endfor %}{{ eos_token }}"
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content + '</s>' }}{% endfor %}"
RAISES_ON_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + NO_END


def tokenizer(template: str | None = CHAT_TEMPLATE) -> Any:
    made = tiny_tokenizer()
    made.chat_template = template
    return made


def written(template: str, response: str, messages: Sequence[Message] = TURNS) -> tuple[str, str]:
    """(prompt text, response text)"""
    opened = open_template("auto", tokenizer(template))
    text, start, _ = render(opened, frame(opened, messages), messages, response)
    return text[:start], text[start:]


def test_chat_template_of_the_tokenizer() -> None:
    prompt, response = written(CHAT_TEMPLATE, "all of it")
    assert prompt == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes?<|im_end|>\n"
        "<|im_start|>user\ntell me<|im_end|>\n<|im_start|>assistant\n"
    )
    assert response == "all of it<|im_end|>"


@pytest.mark.parametrize(
    ("template", "prompt_end", "response"),
    [
        (LLAMA2, "tell me [/INST]", " sure </s>"),  # the blank is the model's to write: "_sure" is one token
        (THINKING, "assistant\n<think>\n\n</think>\n\n", "sure<|im_end|>"),  # what the template adds is prompt
        (NO_END, "tell me\nassistant:", " sure</s>"),  # no end of turn: EOS of the tokenizer
        (TWO_ENDS, "<|im_end|>\nassistant:", "sure<|im_end|>"),  # nothing after the first end of turn
        (NO_SYSTEM, "</s>assistant:", "sure</s>"),  # the template's EOS is not doubled
    ],
)
def test_span_of_the_response(template: str, prompt_end: str, response: str) -> None:
    prompt, found = written(template, "sure")
    assert prompt.endswith(prompt_end)
    assert found == response


def test_builtin_hh() -> None:
    opened = open_template("hh", tokenizer(None))
    messages = (SYSTEM, *TURNS)
    text, start, _ = render(opened, frame(opened, messages), messages, "sure")
    assert text[:start] == "Be kind.\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: tell me\n\nAssistant:"
    assert text[start:] == " sure</s>"
    assert takes_system(opened)


def test_jinja_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(NO_END, encoding="utf-8")
    opened = open_template(str(path), tokenizer(None))
    assert render(opened, frame(opened, TURNS), TURNS, "sure").text.endswith("assistant: sure</s>")
    path.write_text("{% for m in messages %", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.jinja: fails on a plain conversation"):
        open_template(str(path), tokenizer(None))
    with pytest.raises(ConfigError, match=r"data\.template hhh: no such file; it must be auto, hh or"):
        open_template("hhh", tokenizer(None))


def test_no_chat_template_names_tokenizer_and_remedy() -> None:
    made = tokenizer(None)
    made.name_or_path = "some/model"
    with pytest.raises(ConfigError, match=r"some/model: has no chat template; set data\.template to hh or to a jinja"):
        open_template("auto", made)


@pytest.mark.parametrize(
    ("template", "times"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "0 times"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "2 times"),
    ],
)
def test_template_without_one_response_is_refused_at_the_start(template: str, times: str) -> None:
    """Fault 17: a template with which nothing would be trained on."""
    with pytest.raises(ConfigError, match=times):
        open_template("auto", tokenizer(template))


def test_no_way_to_end_a_response_is_refused() -> None:
    made = tokenizer(NO_END)
    made.eos_token = None
    with pytest.raises(ConfigError, match="has no eos_token"):
        open_template("auto", made)
    made.chat_template = CHAT_TEMPLATE
    assert open_template("auto", made).eos == ""


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        name_or_path = "slow/one"
        is_fast = False

    with pytest.raises(ConfigError, match="slow/one: is not a fast tokenizer"):
        open_template("hh", Slow())


@pytest.mark.parametrize(
    ("template", "response", "complaint"),
    [
        (
            CHAT_TEMPLATE.replace("message['content']", "message['content'] | replace('hi', 'ho')"),
            "sure",
            "leaves out or alters",
        ),
        ("{% for m in messages %}{{ m.content[:40] }}{% endfor %}", "x" * 60, "alters the response"),
        ("{% for m in messages %}{{ m.content + ('!' if 'x' in m.content else '?') }}{% endfor %}", "x", "alters"),
    ],
)
def test_template_that_changes_what_was_said(template: str, response: str, complaint: str) -> None:
    # A placeholder survives these templates: only the record itself shows what they do.
    with pytest.raises(Unusable) as caught:
        written(template, response)
    assert caught.value.reason == "template breaks the record"
    assert complaint in caught.value.detail


def test_template_may_trim() -> None:
    assert written(LLAMA2, "  sure\n")[1] == " sure </s>"
    assert written(CHAT_TEMPLATE, "  sure\n")[1] == "  sure\n<|im_end|>"


def test_record_that_the_template_refuses() -> None:
    with pytest.raises(Unusable, match="no system role"):
        written(RAISES_ON_SYSTEM, "sure", (SYSTEM, *TURNS))
    with pytest.raises(Unusable, match="turn of the system"):
        written(NO_SYSTEM, "sure", (SYSTEM, *TURNS))
    with pytest.raises(Unusable, match="exactly once"):
        written(CHAT_TEMPLATE, "sure", (Message("user", PLACEHOLDER),))


@pytest.mark.parametrize(
    ("template", "expected"),
    [(CHAT_TEMPLATE, True), (LLAMA2, True), (NO_SYSTEM, False), (RAISES_ON_SYSTEM, False)],
)
def test_takes_system(template: str, expected: bool) -> None:
    assert takes_system(open_template("auto", tokenizer(template))) is expected


@pytest.mark.parametrize("mark", ["<|im_start|>", "<|im_end|>", "<s>", "</s>"])
def test_special_tokens_in_text_are_found(mark: str) -> None:
    opened = open_template("auto", tokenizer())
    check_marks(opened, "Human: a < b > c <|im", "chosen")
    with pytest.raises(Unusable) as caught:
        check_marks(opened, f"ab{mark}c", "chosen")
    assert caught.value.reason == "special token in text"
    assert caught.value.detail == f"{mark!r} at character 2 of chosen"


def test_marks_that_are_no_special_tokens() -> None:
    made = tokenizer(THINKING)
    made.add_tokens(["<think>", "\n\n", "word"])
    opened = open_template("auto", made)
    with pytest.raises(Unusable):
        check_marks(opened, "<think> first", "chosen")  # the template writes it: it steers the model
    check_marks(opened, "a word\n\nand more", "chosen")  # added tokens that are just text
    hh = open_template("hh", made)
    check_marks(hh, "<think> first. Human: yes", "chosen")
    with pytest.raises(Unusable):
        check_marks(hh, "a\n\nHuman: b", "chosen")


def test_today_is_the_same_day_in_every_run() -> None:
    template = "{{ date_string }}" + CHAT_TEMPLATE
    assert written(template, "sure")[0].startswith("26 Jul 2024<|im_start|>")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("strftime_now('%d %B %Y')", "26 July 2024"),
        ("strftime_now('%Y-%m-%d')", "2024-07-26"),
        ("strftime_now('%A, %-d %b; %H:%M 100%%d')", "Friday, 26 Jul; 00:00 100%d"),
        ("(strftime_now('%Y') | int - 1) | string", "2023"),
        ("date_string if date_string is defined else strftime_now('%F')", "26 Jul 2024"),
        ("strftime_now('%F') if strftime_now is defined else 'never'", "2024-07-26"),
    ],
)
def test_the_clock_of_templates_stands_still(call: str, expected: str) -> None:
    for head, found in (
        ("{{ " + call + " }}", expected),
        ("\n  {% set day = " + call + " %}\n{{ day }}", f"\n{expected}"),
        ("{% macro day() %}{{ " + call + " }}{% endmacro %}{{ day() }}", expected),
    ):
        opened = open_template("auto", tokenizer(head + CHAT_TEMPLATE))
        for generation in (False, True):  # sampling sees the same day
            assert opened.write([Message("user", "hi")], generation).startswith(f"{found}<|im_start|>")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("strftime_now('%Q')", "no such directive in %Q"),
        ("['a', 'b'] | random", "uses 'random', and so writes other text every time"),
        ("lipsum()", "uses 'lipsum'"),
        ("now()", "'now' is undefined"),
    ],
)
def test_a_template_that_writes_other_text_every_time_is_refused(call: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_template("auto", tokenizer("{{ " + call + " }}" + CHAT_TEMPLATE))


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(ConfigError, match=r"bad\.jinja: cannot be read as UTF-8 text"):
        open_template(str(tmp_path / "bad.jinja"), tokenizer())


def test_a_turn_that_ends_with_two_tokens_keeps_both() -> None:
    assert written(CHAT_TEMPLATE.replace("<|im_end|>", "<|im_end|></s>"), "sure")[1] == "sure<|im_end|></s>"


def test_what_an_earlier_answer_said_must_be_written() -> None:
    drops = (
        "{% for m in messages %}{% if m.content == 'yes?' %}{% continue %}{% endif %}"
        "{{ m.role + m.content + '</s>' }}{% endfor %}"
    )
    with pytest.raises(Unusable, match="leaves out or alters a turn of the assistant"):
        written(drops, "sure")
