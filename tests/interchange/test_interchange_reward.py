"""Reward models out and in: a padding token that no conversation holds, and the same scores in transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tisdpo_jax import interchange
from tisdpo_jax.errors import UserError
from tisdpo_jax.judging.scorers import score_rows
from tisdpo_jax.models import Model, abstract_params
from tisdpo_jax.testing import FAMILIES, random_params, tiny_config, tiny_tokenizer
from tisdpo_jax.testing.tokenizer import CHAT_TEMPLATE, END, EOS


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"smollm2"}))  # transformers has no heads of such a width
def test_every_family_scores_as_in_transformers(family: str, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    config = FAMILIES[family].scoring
    params, tokenizer = random_params(3, config), tiny_tokenizer()
    tokenizer.pad_token = EOS  # the id that pads below
    named = {"tokenizer": tokenizer, "chat_template": CHAT_TEMPLATE, "about": {"temperature": 2.0}}
    interchange.save_reward_model(tmp_path / "out", params, config, **named)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["architectures"] == [type(model).__name__]
    lengths, pad = np.array([5, 17, 2, 24]), tokenizer.pad_token_id
    draw = np.random.default_rng(1).integers(5, 60, (4, 24))
    tokens = np.where(np.arange(24) < lengths[:, None], draw, pad)
    with torch.no_grad():
        attention = torch.tensor((tokens != pad).astype(int))
        theirs = model(input_ids=torch.tensor(tokens), attention_mask=attention).logits[:, 0].numpy()
    read, loaded, head = interchange.load_reward_model(tmp_path / "out", dtype="float32")
    assert read == FAMILIES[family].scoring.__class__(**{**vars(config), "score_head": False})
    np.testing.assert_allclose(score_rows(Model(read), loaded, head, tokens, lengths), theirs, rtol=1e-4, atol=1e-4)
    assert np.std(theirs) > 0.1 and json.loads((tmp_path / "out" / interchange.REWARD).read_text()) == {
        "temperature": 2.0
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_begins_as_a_decoder_or_as_another_reward_model(tied: bool, tmp_path) -> None:
    config = tiny_config(tied_head=tied)
    decoder = random_params(0, config)
    interchange.save_huggingface(tmp_path / "decoder", decoder, config)
    new = interchange.load_params(tmp_path / "decoder", config.scoring, dtype="float32")
    assert set(new) == set(abstract_params(config.scoring)) and not np.asarray(new["score"]["kernel"]).any()
    np.testing.assert_array_equal(new["embed"]["embedding"], decoder["embed"]["embedding"])
    trained = random_params(1, config.scoring)
    interchange.save_huggingface(tmp_path / "reward", trained, config.scoring)
    again = interchange.load_params(tmp_path / "reward", config.scoring, dtype="float32")
    np.testing.assert_array_equal(again["score"]["kernel"], trained["score"]["kernel"])


def ids(tokenizer, *texts: str) -> set[int]:
    return {tokenizer.convert_tokens_to_ids(text) for text in texts}


def test_padding_is_a_token_that_no_conversation_holds() -> None:
    tokenizer = tiny_tokenizer()
    spoken = ids(tokenizer, "<s>", "<|im_start|>", END)
    tokenizer.pad_token = tokenizer.eos_token = END  # as in many chat models: its padding ends every turn
    padded = interchange.with_padding(tokenizer, 400, held=spoken)
    assert padded.pad_token == EOS and padded.pad_token_id not in spoken and padded.padding_side == "right"
    assert tokenizer.pad_token == END  # that of the run is as it was
    tokenizer.unk_token = EOS
    tokenizer.add_special_tokens({"pad_token": "<|free|>"})
    assert interchange.with_padding(tokenizer, 500, held=spoken).pad_token == "<|free|>"
    assert interchange.with_padding(tokenizer, len(tokenizer) - 1, held=spoken).pad_token == EOS  # beyond the model
    everything = set(tokenizer.added_tokens_decoder)
    grown = interchange.with_padding(tokenizer, len(tokenizer) + 1, held=everything)
    assert grown.pad_token_id == len(tokenizer)
    with pytest.raises(UserError, match=r"no token to pad .*<\|im_start\|>.*as model\.tokenizer"):
        interchange.with_padding(tokenizer, len(tokenizer), held=everything)


def test_what_stands_for_unknown_text_is_no_padding() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "<free>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", additional_special_tokens=["<free>"]
    )
    assert interchange.with_padding(tokenizer, 3, held=[1]).pad_token == "<free>"


def test_a_template_ends_where_training_did() -> None:
    tokenizer, talk = tiny_tokenizer(), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

    def write(source: str, **options) -> str:
        return tokenizer.apply_chat_template(talk, chat_template=source, tokenize=False, **options)

    written = write(CHAT_TEMPLATE)
    assert written.endswith(f"{END}\n") and interchange.ended(CHAT_TEMPLATE, written, written, EOS) == CHAT_TEMPLATE
    stripped = interchange.ended(CHAT_TEMPLATE, written, written.rstrip(), EOS)
    assert write(stripped) == written.rstrip()
    assert write(stripped, add_generation_prompt=True) == write(CHAT_TEMPLATE, add_generation_prompt=True)
    plain = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
    assert write(interchange.ended(plain, "a\nb\n", f"a\nb{EOS}", EOS)) == f"a\nb{EOS}"
    assert write(interchange.ended(plain, "a\nb\n", "a\nb", EOS, bos=True)) == "<s>a\nb"
    with pytest.raises(UserError, match="no export would score alike"):
        interchange.ended(CHAT_TEMPLATE, written, "another text", EOS)
