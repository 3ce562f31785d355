"""A conversation written into one turn is refused, in every style and place; text that mentions a mark is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.data import read_pairs, read_prompts
from tisdpo_jax.data.checks import transcript_mark

TRANSCRIPTS = (
    "\n\nHuman: Is tea hot?\n\nAssistant: Yes.\n\nHuman: How hot?\n\nAssistant:",
    "\n\nHuman: Is tea hot?",
    "Human: Is tea hot?\nAssistant:",
    "User: hi\nAI: hello\nUser: tea?",
    "A chat between a user and an assistant. USER: Is tea hot? ASSISTANT:",
    "Below is an instruction.\n\n### Instruction:\nBoil water.\n\n### Response:\n",
    "### Human: Is tea hot?### Assistant:",
    "<|im_start|>user\nIs tea hot?<|im_end|>\n<|im_start|>assistant\n",
    "<|user|>\nIs tea hot?<|end|>\n<|assistant|>\n",
    "<|start_header_id|>user<|end_header_id|>\n\ntea<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<start_of_turn>user\ntea<end_of_turn>\n<start_of_turn>model\n",
    "[INST] Is tea hot? [/INST]",
)
ORDINARY = (
    "What does 'Human:' mean in a prompt?",
    "Human: a creature. Write more about it.",
    "Why does a page say\nUser: admin\nwhen I log in?",
    "Write a play in which\nUser: hi\nAssistant: hello\nis said, and go on from there.",
    "Which assistant is best: a human or a bot?",
    "What is the [INST] tag?",
    "### Instruction: is a heading; why?",
    "Translate: 'The user asked the assistant: where?'",
)


@pytest.mark.parametrize("text", TRANSCRIPTS)
def test_transcripts_are_refused_wherever_they_stand(text: str, tmp_path: Path) -> None:
    turn = [{"role": "user", "content": text}]
    records: list[Any] = [
        {"prompt": text, "chosen": "a", "rejected": "b"},
        {"messages": turn, "chosen": "a", "rejected": "b"},
        {"conversations": [{"from": "human", "value": text}], "chosen": "a", "rejected": "b"},
        {"prompt": turn, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"},
        {"prompt": "tea?", "chosen": text, "rejected": "b"},
    ]
    for record in records:
        (invalid_record,) = read_pairs([record]).invalid
        assert invalid_record.reason == "transcript in text"
    path = tmp_path / "prompts.jsonl"
    rows = [text, *records[:4]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [invalid_record.reason for invalid_record in read_prompts(str(path))[1]] == ["transcript in text"] * len(
        rows
    )


@pytest.mark.parametrize("text", ORDINARY)
def test_text_that_mentions_a_mark_is_a_turn(text: str) -> None:
    assert not transcript_mark(text)


def test_whole_transcripts_are_the_layout_hh_with_a_prompt_beside_them_too() -> None:
    prompt = TRANSCRIPTS[0]
    record = {"prompt": prompt, "chosen": f"{prompt} Boiling.", "rejected": f"{prompt} Cold."}
    (pair,) = read_pairs([record]).pairs
    assert [message.content for message in pair.messages] == ["Is tea hot?", "Yes.", "How hot?"]
    assert (pair.chosen, pair.rejected) == ("Boiling.", "Cold.")
