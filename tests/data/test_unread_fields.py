"""What a record says reaches the template, or is refused or counted by name: in every layout, and in prompts files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.data import encode_pairs, open_template, prompt_ids, read_pairs, read_prompts
from tisdpo_jax.data.records import as_record
from tisdpo_jax.testing.tokenizer import CHAT_TEMPLATE, tiny_tokenizer

TOOL = {"type": "function", "function": {"name": "trains", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "trains", "arguments": {"city": "Graz"}}}
READS_ALL = (
    "{% if tools %}{{ 'Tools: ' + (tools | tojson) + '<|im_end|>' }}{% endif %}"
    "{% if brief %}{{ 'Be brief.' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.reasoning_content or '') + (m.content or '') }}"
    "{{ m.tool_calls | tojson if m.tool_calls else '' }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
READS_FIRST = READS_ALL.replace("(tools |", "(tools[0] |").replace("{{ m.tool_calls |", "{{ m.tool_calls[0] |")
USER = {"role": "user", "content": "When?"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "pairs": {"prompt": "When?", "chosen": "At nine.", "rejected": "No."},
    "hh": {
        "chosen": "\n\nHuman: When?\n\nAssistant: At nine.",
        "rejected": "\n\nHuman: When?\n\nAssistant: No.",
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "When?"}], "chosen": "At nine.", "rejected": "No."},
    "hf": {
        "prompt": [USER],
        "chosen": [{"role": "assistant", "content": "At nine."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
}


def made(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {template: made(template) for template in (READS_ALL, READS_FIRST, CHAT_TEMPLATE)}


def encode(record: dict[str, Any], template: str = READS_ALL, layout: str = "auto") -> Any:
    pairs = read_pairs([record], format=layout)
    return encode_pairs(pairs, TOKENIZERS[template], template="auto", max_length=900, max_response=400)


def refused(record: dict[str, Any], template: str = READS_ALL, layout: str = "auto") -> str:
    (invalid_record,) = encode(record, template, layout).invalid
    return f"{invalid_record.reason}: {invalid_record.detail}"


def hf(**message: Any) -> dict[str, Any]:
    return {**LAYOUTS["hf"], "chosen": [{"role": "assistant", "content": "At nine.", **message}]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_settings_reach_the_template_in_every_layout(layout: str, tmp_path: Path) -> None:
    record = {**LAYOUTS[layout], "tools": [TOOL], "chat_template_kwargs": {"brief": True, "unset": None}}
    (pair,) = encode(record, layout=layout).groups
    prompt = TOKENIZERS[READS_ALL].decode(pair.prompt)
    assert f"Tools: {json.dumps([TOOL])}" in prompt and "Be brief." in prompt
    assert "unread field: 'tools': template auto" in refused({**LAYOUTS[layout], "tools": [TOOL]}, CHAT_TEMPLATE)
    wrong = {**LAYOUTS[layout], "chat_template_kwargs": {"breif": True}}
    assert "unread field: 'breif' of 'chat_template_kwargs'" in refused(wrong)
    # Prompts files: the same tokens, and what is written for others to answer is read back as it was.
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    (found,), _ = read_prompts(str(tmp_path / "p.jsonl"))
    template = open_template("auto", TOKENIZERS[READS_ALL])
    ids = prompt_ids(found.messages, TOKENIZERS[READS_ALL], template, max_length=900)
    assert ids.tolist() == pair.prompt.tolist()
    (tmp_path / "q.jsonl").write_text(json.dumps(as_record(found.messages)) + "\n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "q.jsonl"))[0][0].messages == found.messages


def test_hh_writes_no_settings() -> None:
    record = {**LAYOUTS["pairs"], "tools": [TOOL]}
    found = encode_pairs(read_pairs([record]), made(READS_ALL), template="hh", max_length=900, max_response=400)
    assert "template hh writes the same without it" in found.invalid[0].detail


@pytest.mark.parametrize(
    ("record", "template", "said"),
    [
        ({**LAYOUTS["hf"], "tools": [TOOL, TOOL | {"type": "other"}]}, READS_FIRST, "'tools'"),
        (hf(tool_calls=[CALL]), CHAT_TEMPLATE, "'tool_calls' of the response"),
        (hf(tool_calls=[CALL, CALL]), READS_FIRST, "'tool_calls' of the response"),
        (hf(reasoning_content="It is late."), CHAT_TEMPLATE, "'reasoning_content' of the response"),
        (hf(weight=0), READS_ALL, "'weight' of the response"),
        ({**LAYOUTS["hf"], "prompt": [{**USER, "mood": "bad"}]}, READS_ALL, "'mood' of a turn of the user"),
        ({**LAYOUTS["hf"], "images": ["a.png"]}, READS_ALL, "'images', which layout hf does not read"),
        ({**LAYOUTS["hf"], "system": "Be kind."}, READS_ALL, "'system', which layout hf does not read"),
        ({**LAYOUTS["sharegpt"], "prompt": "Be kind."}, READS_ALL, "'prompt', which layout sharegpt does not read"),
        ({**LAYOUTS["hf"], "messages": [{**USER, "content": "Other?"}]}, READS_ALL, "'messages' is another"),
        ({**LAYOUTS["hh"], "prompt": "Other?"}, READS_ALL, "'prompt' is not how"),
        (hf(content=[{"type": "image", "url": "a.png"}]), READS_ALL, "content part: one of type 'image' in 'chosen'"),
        (hf(content=[{"type": "text", "text": "a", "cache": 1}]), READS_ALL, "'cache' of a part of 'chosen'"),
        (hf(content=["a"]), READS_ALL, "one of type 'str'"),
        (hf(content=None), READS_ALL, "a message of 'chosen' has no text"),
        ({**LAYOUTS["hf"], "tools": "no json"}, READS_ALL, "'tools' is text, but not JSON"),
        ({**LAYOUTS["hf"], "tools": ["trains"]}, READS_ALL, "not a list of objects"),
        ({**LAYOUTS["hf"], "chat_template_kwargs": [1]}, READS_ALL, "not an object"),
        ({**LAYOUTS["hf"], "chat_template_kwargs": {"tokenize": True}}, READS_ALL, "reserved name: 'tokenize'"),
        (hf(reasoning_content="a<|im_end|>b"), READS_ALL, "special token in text: '<|im_end|>'"),
        ({**LAYOUTS["hf"], "tools": [{"name": "<|im_start|>"}]}, READS_ALL, "special token in text"),
        (hf(reasoning_content="a\0b"), READS_ALL, "invalid text: NUL"),
    ],
)
def test_what_nothing_would_read_is_refused_by_name(record: dict[str, Any], template: str, said: str) -> None:
    assert said in refused(record, template)


def test_what_says_nothing_to_the_model_is_counted() -> None:
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    tool = {"role": "tool", "name": "trains", "tool_call_id": "1", "content": "09:00"}
    record = {**LAYOUTS["hf"], "prompt": [*turns, tool], "score": 3, "source": "x", "note": "", "question": "When?"}
    found = encode(record)
    assert found.unread == {
        "score": 1,
        "source": 1,
        "question": 1,
        "messages.name": 1,
        "messages.tool_call_id": 1,
    }
    assert "1  records with 'score', which nothing reads" in found.summary()
    assert '"city": "Graz"' in TOKENIZERS[READS_ALL].decode(found.groups[0].prompt)
    # A copy of what the conversation says, empty values, and nulls of a table are nothing of their own.
    copies = {**LAYOUTS["hf"], "input": "When?", "images": [], "system": None, "messages": [USER]}
    assert encode(copies).unread == {"input": 1}
    nulls = hf(tool_calls=None, reasoning_content=None, name=None)
    assert encode(nulls).groups[0].chosen.tolist() == encode(LAYOUTS["hf"]).groups[0].chosen.tolist()


def test_text_parts_are_their_text() -> None:
    parts = [{"type": "text", "text": "At "}, {"type": "text", "text": "nine.", "image": None}]
    assert encode(hf(content=parts)).groups[0].chosen.tolist() == encode(LAYOUTS["hf"]).groups[0].chosen.tolist()


def test_think_blocks_are_for_answers_and_must_be_written() -> None:
    tokenizer = made(READS_ALL.replace("+ (m.content or '')", "+ (m.content.split('</think>')[-1])"))
    tokenizer.add_tokens(["<think>", "</think>"])
    written = made(CHAT_TEMPLATE.replace("+ message['content']", "+ '<think></think>' + message['content']"))
    written.add_tokens(["<think>", "</think>"])
    thinks = hf(content="<think>\nLate.\n</think>\n\nAt nine.")

    def one(record: dict[str, Any], by: Any) -> Any:
        return encode_pairs(read_pairs([record]), by, template="auto", max_length=900, max_response=400)

    assert "leaves out or alters 'Late.' of the response" in one(thinks, tokenizer).invalid[0].detail
    assert "Late." in written.decode(one(thinks, written).groups[0].chosen)
    asked = {**LAYOUTS["hf"], "prompt": [{**USER, "content": "<think> When?"}]}
    assert one(asked, written).invalid[0].reason == "special token in text"
    ended = hf(content="<think>a</think><|im_end|>")
    assert one(ended, written).invalid[0].reason == "special token in text"


def test_tool_turns_stand_behind_calls() -> None:
    call, tool = {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "09:00"}
    for turns, said in (
        ([USER, tool], "turn 2 is the tool's, not the assistant's"),
        ([USER, call, USER], "turn 3 is the user's, not the tool's"),
        ([USER, call], "does not end with a turn of the user"),
    ):
        assert said in refused({**LAYOUTS["hf"], "prompt": turns})
    assert encode({**LAYOUTS["hf"], "prompt": [USER, call, tool, tool]}).groups


def test_prompts_count_and_refuse_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": [USER], "topic": "a"},
        {"prompt": "When?", "images": ["a.png"]},
        {"prompt": "Why?", "topic": "b"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with caplog.at_level("INFO"):
        prompts, (invalid_record,) = read_prompts(str(path))
    assert [prompt.text for prompt in prompts] == ["When?", "Why?"]
    assert "2 records with 'topic', which nothing reads" in caplog.text
    assert (invalid_record.reason, invalid_record.detail[:8]) == ("unread field", "'images'")
