"""The endpoint judge: what it is asked, what its replies come to, and what is asked again. How patiently endpoints are
asked at all is tested in tests/generation."""

from __future__ import annotations

import shutil

import pytest
from chat_stub import mocked, reply_of

from tisdpo_jax.data import Message, Prompt
from tisdpo_jax.generation import Endpoint, EndpointFailed, Lines
from tisdpo_jax.judging import ask_judge

ENDPOINT = Endpoint("http://host/v1", "some-model", retries=3, first_wait=0.0)
PROMPTS = [Prompt(f"p{n}", (Message("user", f"prompt {n} {{braces}}"),), "t") for n in range(4)]
TEXTS = {"a": ["x", "xxx", "same", None], "b": ["xx", "x", "same", "y"]}  # two prompts are asked about


def compared(path, endpoint=ENDPOINT, criterion="Which is longer?", texts=TEXTS):
    """Outcomes of a over b, how many questions have no verdict, and the records by who was shown first, and prompt."""
    kept = Lines(path / "judgements.jsonl", "key")
    outcomes, undecided = ask_judge(endpoint, criterion, kept, [("a", "b")], PROMPTS, texts)
    records = {(record["first"], record["prompt"]): record for _, record in kept.rows.values()}
    return outcomes["a", "b"], undecided, records


def longer(n: int, body: dict) -> str:
    text = body["messages"][-1]["content"]
    first, second = (text.split(f"[{side} answer]\n")[1].split("\n[end of")[0] for side in ("first", "second"))
    return f"Because.\nverdict: {'first' if len(first) > len(second) else 'second'}"


def test_both_orders_are_asked_once_and_what_nobody_need_say_is_not(tmp_path, monkeypatch) -> None:
    tries = mocked(monkeypatch, longer)
    outcomes, undecided, records = compared(tmp_path)
    assert outcomes.values[:3].tolist() == [0.0, 1.0, 0.5] and outcomes.values[3] != outcomes.values[3]  # nan
    assert not any(outcomes.inconsistent) and set(undecided.values()) == {0} and len(tries) == len(records) == 4
    text = next(text for text in tries if "prompt 0" in text and "[first answer]\nx\n" in text)
    places = [text.index(part) for part in ("Which is longer?", "prompt 0 {braces}", "\nx\n", "\nxx\n")]
    assert places == sorted(places) and tries[text][0]["temperature"] == 0
    record = records["a", "p0"]
    assert (record["second"], record["verdict"], record["tries"]) == ("b", "second", 1)
    again = compared(tmp_path)
    assert again[0].values[:3].tolist() == [0.0, 1.0, 0.5] and all(len(bodies) == 1 for bodies in tries.values())
    compared(tmp_path, criterion="Other?")  # is another judge
    assert len(tries) == 8


def test_what_was_said_until_an_endpoint_died_is_not_asked_again(tmp_path, monkeypatch) -> None:
    endpoint = Endpoint(ENDPOINT.url, "m", retries=0, concurrency=1, first_wait=0.0)
    count = iter(range(100))
    mocked(monkeypatch, lambda n, body: longer(n, body) if next(count) < 3 else (503, {}, b""))
    with pytest.raises(EndpointFailed, match=r"no answer in 1 tries.*kept"):
        compared(tmp_path, endpoint)
    # one that was answered before shows that the endpoint works: the last question is at fault itself
    copy = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    rows = Lines(tmp_path / "judgements.jsonl", "key").rows.values()
    old = {record["prompt"] + record["first"] for _, record in rows}
    (left,) = {f"p{n}{one}" for n in (0, 1) for one in "ab"} - old
    shown = f"[first answer]\n{TEXTS[left[2]][int(left[1])]}\n[end"

    def broken(n: int, body: dict) -> object:
        text = body["messages"][-1]["content"]
        return (500, {}, b"") if f"prompt {left[1]} " in text and shown in text else longer(n, body)

    mocked(monkeypatch, broken)
    assert compared(copy, endpoint)[1]["failed"] == 1
    tries = mocked(monkeypatch, longer)
    outcomes, _, records = compared(tmp_path, endpoint)
    assert len(tries) == 1 and len(records) == 4 and outcomes.values[:3].tolist() == [0.0, 1.0, 0.5]


THOUGHT = "<think>The first is shorter. verdict: first? No.</think>\nThe second explains more.\n**Verdict: Second**"
UNDECIDED = {
    "filtered": (reply_of(None, "content_filter"), "filtered", "content_filter", 1),
    "refused": (reply_of(None, "stop", refusal="no"), "filtered", "refusal: no", 1),
    "cut off": (reply_of("verdict: first, or is it", "length"), "unparsable", "unfinished", 4),
    "cut off in thinking": (reply_of(None, "length", reasoning="hm"), "unparsable", "ran out in thinking", 4),
    "thoughts alone": (reply_of("<think>verdict: first"), "unparsable", "", 4),
    "no verdict": (reply_of("I like both."), "unparsable", "", 4),
    "empty": (reply_of(""), "unparsable", "", 4),
    "an error": ((200, {}, b'{"error": {"message": "odd"}}'), "failed", "odd", 1),
    "a refused request": ((400, {}, b'{"error": {"message": "odd"}}'), "failed", "status 400: odd", 1),
}


@pytest.mark.parametrize("what", UNDECIDED)
def test_one_comparison_without_a_verdict_is_counted_and_ends_nothing(what: str, tmp_path, monkeypatch) -> None:
    odd, verdict, reason, asked = UNDECIDED[what]

    def behave(n: int, body: dict) -> object:
        text = body["messages"][-1]["content"]
        return odd if "prompt 1 " in text and "[first answer]\nxxx\n" in text else THOUGHT

    tries = mocked(monkeypatch, behave)
    outcomes, undecided, records = compared(tmp_path)
    assert {place: record["verdict"] for place, record in records.items()} == {
        **dict.fromkeys([("a", "p0"), ("b", "p0"), ("b", "p1")], "second"),
        ("a", "p1"): verdict,
    }
    assert undecided == {kind: int(kind == verdict) for kind in ("unparsable", "filtered", "failed")}
    assert outcomes.values[1] != outcomes.values[1] and reason in records["a", "p1"].get("reason", "")
    (odd_tries,) = (
        len(bodies) for text, bodies in tries.items() if "prompt 1 " in text and "answer]\nxxx\n[end of f" in text
    )
    assert odd_tries == asked


def test_an_unclear_reply_is_kept_where_errors_come_between(tmp_path, monkeypatch) -> None:
    mocked(monkeypatch, lambda n, body: "I like both." if n != 2 else (500, {}, b""))
    _, undecided, records = compared(tmp_path)
    assert undecided["unparsable"] == 4 and records["a", "p0"]["reply"] == "I like both."
    assert records["a", "p0"]["tries"] == 4
    mocked(monkeypatch, lambda n, body: "verdict: tie" if n == 3 else "Hm.")
    _, undecided, records = compared(tmp_path, criterion="Again?")
    assert undecided["unparsable"] == 0 and {record["tries"] for record in records.values()} == {3}
