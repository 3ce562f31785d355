"""Prompt and responses are those of TRL, token for token: thinking, tools, markers that swallow blanks, merged ends.

The reference renders with transformers and splits as TRL's `DPOTrainer` does; where TRL is installed it is TRL itself.
What differs on purpose: nothing is trained behind the end of the turn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.data import EncodedGroup, encode_pairs, open_template, prompt_ids, read_pairs
from tisdpo_jax.testing.tokenizer import CHAT_TEMPLATE, tiny_tokenizer

ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# In the manner of Qwen3: the last answer has a think block, earlier ones have none.
THINKS = (
    "{% for m in messages %}{% set c = m.content %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% set r = m.reasoning_content or '' %}{% if '</think>' in c %}"
    "{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% endfor %}"
) + ASKS.replace(
    "{% endif %}", "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
CALLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for call in m.tool_calls %}"
    "{{ '\n<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
) + ASKS
# In the manner of Phi-3: markers that take the blanks behind them.
MARKER = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TOOL = [{"type": "function", "function": {"name": "trains", "parameters": {"type": "object", "properties": {}}}}]
CALL = [{"type": "function", "function": {"name": "trains", "arguments": {"city": "Graz"}}}]
FRUIT = "Name a fruit."


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def record(chosen: Any, rejected: Any, *prompt: Any, **fields: Any) -> dict[str, Any]:
    sides = [[answer(side) if isinstance(side, str) else side] for side in (chosen, rejected)]
    return {"prompt": list(prompt) or [user(FRUIT)], "chosen": sides[0], "rejected": sides[1], **fields}


THOUGHT, OTHER = "<think>\nIt grows.\n</think>\n\nA pear.", "<think>\nHm.\n</think>\n\nA stone."
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (THINKS, record("A pear.", "A stone.")),
    "both think": (THINKS, record(THOUGHT, OTHER)),
    "one thinks": (THINKS, record(THOUGHT, "A stone.")),
    "thought before": (THINKS, record("A pear.", "A stone.", user(FRUIT), answer(THOUGHT), user("More."))),
    "reasoning": (THINKS, record(answer("A pear.", reasoning_content="It grows."), "A stone.")),
    "asked not to think": (THINKS, record("A pear.", "A stone.", chat_template_kwargs={"enable_thinking": False})),
    "thinks although": (THINKS, record(THOUGHT, OTHER, chat_template_kwargs={"enable_thinking": False})),
    "think, plain template": (CHAT_TEMPLATE, record(THOUGHT, OTHER)),
    "tools": (CALLS, record("At nine.", "No idea.", tools=TOOL)),
    "tools as text": (CALLS, record("At nine.", "No idea.", tools=json.dumps(TOOL))),
    "calls": (CALLS, record(answer("Wait.", tool_calls=CALL), answer("", tool_calls=CALL), tools=TOOL)),
    "tool turns": (
        CALLS,
        record(
            "At nine.", "No idea.", user("When?"), answer("", tool_calls=CALL), {"role": "tool", "content": "09:00"}
        ),
    ),
    "marker": (MARKER, record("A pear.", "A stone.")),
    "marker, blanks": (MARKER, record(" A pear.", " A stone.")),
    "marker, one blank": (MARKER, record("\n A pear.", "A stone.")),
    "marker, blank of the template": (MARKER.replace("|>\n'", "|> '"), record("A pear.", "A stone.")),
    "line breaks merge": (CHAT_TEMPLATE, record("\nA pear.", "\nA stone.")),
    "one line break merges": (CHAT_TEMPLATE, record("\nA pear.", "A stone.")),
    "end takes blanks": (MARKER, record("A pear.  ", "A stone.\n")),
}
PARTS = {"thinks although", "line breaks merge", "one line break merges", "calls"}  # TRL warns of these


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import AddedToken

    made = tiny_tokenizer(adds_bos=False)
    markers = [AddedToken(f"<|{role}|>", normalized=False, rstrip=True) for role in ("user", "assistant", "system")]
    end = AddedToken("<|end|>", normalized=False, lstrip=True)
    made.add_special_tokens({"additional_special_tokens": [*markers, end]})
    made.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>", "\n\n"])
    return made


def common(first: list[int], second: list[int]) -> int:
    return next((n for n, two in enumerate(zip(first, second, strict=False)) if two[0] != two[1]), len(first))


def reference(made: Any, example: dict[str, Any]) -> tuple[list[int], list[int], list[int], bool]:
    """Prompt, chosen, rejected as `DPOTrainer` splits them, and whether the prompt is all that sampling begins from."""
    tools = example.get("tools")
    options = {"tools": json.loads(tools) if isinstance(tools, str) else tools, "return_dict": True}
    options |= example.get("chat_template_kwargs", {})

    def ids(messages: Any, **more: Any) -> list[int]:
        return list(made.apply_chat_template(messages, **options, **more)["input_ids"])

    prompt = ids(example["prompt"], add_generation_prompt=True)
    sides = [ids(example["prompt"] + example[side]) for side in ("chosen", "rejected")]
    length = min(common(prompt, side) for side in sides)
    return prompt[:length], sides[0][length:], sides[1][length:], length == len(prompt)


def ours(made: Any, example: dict[str, Any]) -> EncodedGroup:
    found = encode_pairs(read_pairs([example]), made, template="auto", max_length=4000, max_response=2000)
    assert not found.invalid, found.invalid
    return found.groups[0]


def check(made: Any, pair: EncodedGroup, expected: tuple[list[int], list[int], list[int], bool]) -> None:
    prompt, chosen, rejected, whole = expected
    assert pair.prompt.tolist() == prompt
    for side, ids in ((pair.chosen.tolist(), chosen), (pair.rejected.tolist(), rejected)):
        assert side == ids[: len(side)]
        assert not made.decode(ids[len(side) :]).strip()
    sampled = prompt_ids(pair.messages, made, open_template("auto", made), max_length=4000).tolist()
    assert (sampled == prompt) is whole is not pair.parts


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_trl(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template, example = CASES[name]
    expected = reference(tokenizer, example)
    check(tokenizer, ours(tokenizer, example), expected)
    assert expected[3] is (name not in PARTS)


def test_a_marker_is_never_the_first_token_of_a_response(tokenizer: Any) -> None:
    marker = tokenizer.convert_tokens_to_ids("<|assistant|>")
    for name in ("marker", "marker, blanks", "marker, one blank", "marker, blank of the template"):
        tokenizer.chat_template, example = CASES[name]
        pair = ours(tokenizer, example)
        assert pair.prompt[-1] == marker
        assert marker not in (pair.chosen[0], pair.rejected[0])


def test_the_same_by_trl_itself(tokenizer: Any) -> None:
    """TRL's own functions, and the templates of public models that it brings along."""
    pytest.importorskip("torch", reason="parity with TRL: install the extra `parity`")
    trl = pytest.importorskip("trl", reason="parity with TRL: install the extra `parity`")
    from trl.trainer import dpo_trainer

    for template, example in CASES.values():
        tokenizer.chat_template = template
        tools = example.get("tools")
        options = {"tools": json.loads(tools) if isinstance(tools, str) else tools}
        options |= example.get("chat_template_kwargs", {})
        prompt = dpo_trainer._tokenize(tokenizer, example["prompt"], add_generation_prompt=True, **options)["input_ids"]
        sides = [
            dpo_trainer._tokenize(tokenizer, example["prompt"] + example[side], **options)["input_ids"]
            for side in ("chosen", "rejected")
        ]
        length = min(dpo_trainer.common_prefix_length(prompt, side) for side in sides)
        whole = length == len(prompt)
        assert reference(tokenizer, example) == (prompt[:length], sides[0][length:], sides[1][length:], whole)

    thinking = [CASES[name][1] for name in ("plain", "both think", "one thinks", "thought before")]
    calling = [CASES[name][1] for name in ("tools", "tool turns")]
    asked = [CASES[name][1] for name in ("asked not to think", "thinks although", "reasoning")]
    folder = Path(trl.__file__).parent / "chat_templates"
    for name, examples in {
        "qwen3": [*thinking, *calling, *asked],
        "qwen3_5_think": [*thinking, *calling, *asked],
        "qwen2_5": [*thinking, *calling],
        "gemma": thinking,
    }.items():
        tokenizer.chat_template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        turn = {"gemma": ["<start_of_turn>", "<end_of_turn>"]}.get(name, [])
        tokenizer.add_special_tokens({"additional_special_tokens": turn}, replace_extra_special_tokens=False)
        for example in examples:
            check(tokenizer, ours(tokenizer, example), reference(tokenizer, example))
