"""Judges that give scores: what is kept is not scored again; a reward model scores as it does in transformers."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tisdpo_jax import interchange, judging
from tisdpo_jax.data import Message, Prompt, open_template
from tisdpo_jax.errors import CheckpointError, ConfigError, MissingKeyError, ShapeMismatchError, UserError
from tisdpo_jax.generation import Lines
from tisdpo_jax.judging import RewardModel, ScoringJudge, load_function, sentiment_score
from tisdpo_jax.judging.scorers import score_rows
from tisdpo_jax.models import Model
from tisdpo_jax.testing import write_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny Llama whose head is one row."""
    return make(tmp_path_factory.mktemp("reward") / "model")


def make(path, *, labels: int = 1, name: str = "score.weight", architecture: str = "LlamaForSequenceClassification"):
    write_tiny_model(path, seed=3, max_positions=128)
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("lm_head.weight", None)
    width = tensors["model.norm.weight"].shape[0]
    tensors[name] = np.random.default_rng(0).normal(size=(labels, width)).astype(np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": [architecture], "num_labels": labels, "pad_token_id": 0, "tie_word_embeddings": False}
    (path / "config.json").write_text(json.dumps(config))
    return path


def opened(directory) -> RewardModel:
    config, params, head = interchange.load_reward_model(directory, dtype="float32")
    tokenizer = interchange.load_tokenizer(directory)
    return RewardModel(Model(config), params, head, tokenizer, open_template("auto", tokenizer))


def test_scores_are_those_of_transformers(directory) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaForSequenceClassification

    theirs = LlamaForSequenceClassification.from_pretrained(directory).eval()
    judge = opened(directory)
    random = np.random.default_rng(1)
    lengths = np.array([5, 17, 1, 32])
    tokens = np.where(np.arange(32) < lengths[:, None], random.integers(5, 300, (4, 32)), 0)
    with torch.no_grad():
        attention = torch.tensor(np.arange(32) < lengths[:, None])
        expected = theirs(input_ids=torch.tensor(tokens), attention_mask=attention.long()).logits[:, 0].numpy()
    found = score_rows(judge.model, judge.params, judge.head, jnp.asarray(tokens), jnp.asarray(lengths))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.1  # else any constant would do


def test_a_score_does_not_depend_on_the_batch_and_what_cannot_be_written_has_none(directory) -> None:
    judge = opened(directory)
    talk, letter, special = (
        Prompt(text, (Message("user", text),), "test") for text in ("tell me about the cat", "a", "<|im_start|>")
    )
    several = [(talk, "the cat sleeps"), (talk, "no"), (letter, "b " * 60), (talk, "x<|im_end|>y"), (special, "b")]
    options = {"max_length": 96}
    together = dict(judging.by_reward_model(judge, several, batch_size=3, **options))
    alone = [dict(judging.by_reward_model(judge, [one], batch_size=1, **options))[0] for one in several]
    assert sorted(together) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([together[n] for n in range(5)], alone, rtol=1e-5, atol=1e-5)
    assert len(set(np.round(alone[:3], 4))) == 3


def test_what_is_no_reward_model_is_refused_by_name(directory, tmp_path) -> None:
    plain = write_tiny_model(tmp_path / "plain")
    assert not interchange.is_reward_model(plain) and interchange.is_reward_model(directory)
    with pytest.raises(CheckpointError, match="LlamaForCausalLM; a reward model is"):
        interchange.load_reward_model(plain, dtype="float32")
    with pytest.raises(ShapeMismatchError, match=r"one label, \[1, 32\]"):
        interchange.load_reward_model(make(tmp_path / "two", labels=2), dtype="float32")
    with pytest.raises(MissingKeyError, match=r"score\.weight"):
        interchange.load_reward_model(make(tmp_path / "none", name="classifier.weight"), dtype="float32")


def test_what_is_kept_is_not_scored_again_and_another_judge_scores_for_itself(tmp_path) -> None:
    prompts = [Prompt(f"p{n}", (Message("user", f"say {n}"),), "t") for n in range(4)]
    calls: list[str] = []

    def score(prompt: str, answer: str) -> float:
        calls.append(answer)
        return math.nan if answer == "odd" else float(len(answer))

    texts = ["早上好 \ud800", None, "odd", "xx"]
    for _ in range(2):
        kept = Lines(tmp_path / "judgements.jsonl", "key")
        scores = ScoringJudge("length", ["length", 1], judging.by_rule(score))(kept, "a", prompts, texts)
        np.testing.assert_array_equal(scores, [5.0, np.nan, np.nan, 2.0])
        assert calls == [texts[0], "odd", "xx"]
    ScoringJudge("length", ["length", 2], judging.by_rule(score))(kept, "a", prompts, texts)
    assert len(calls) == 6 and len(kept.rows) == 6


def test_a_stop_keeps_what_was_scored(tmp_path) -> None:
    prompts = [Prompt(f"p{n}", (Message("user", f"say {n}"),), "t") for n in range(4)]
    polls = iter(range(9))

    def poll() -> None:
        if next(polls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge = ScoringJudge("j", "j", judging.by_rule(lambda prompt, answer: 1.0))
        judge(Lines(tmp_path / "x.jsonl", "key"), "a", prompts, list("abcd"), poll)
    assert len(Lines(tmp_path / "x.jsonl", "key").rows) == 2


def test_functions_are_found_and_what_they_return_is_checked(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_scores_x.py").write_text(
        "def length(prompt, response): return len(response)\ndef words(prompt, response): return 'good'\nVALUE = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    function, source = load_function("my_scores_x:length")
    assert function("p", "four") == 4.0 and "return 'good'" in source
    with pytest.raises(UserError, match="returned 'good'"):
        load_function("my_scores_x:words")[0]("p", "r")
    for name, told in (("my_scores_x:nothing", "no function"), ("my_scores_x:VALUE", "no function")):
        with pytest.raises(ConfigError, match=told):
            load_function(name)
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_function("no_such_module_x:f")


def test_sentiment_knows_good_from_bad() -> None:
    pytest.importorskip("vaderSentiment")
    good, bad, nothing = (sentiment_score("", text) for text in ("What a lovely day!", "I hate this.", "1 2 3"))
    assert -1 <= bad < nothing == 0 < good <= 1
