"""Reward models out: a `...ForSequenceClassification` of one label, whose scores are those of training.

transformers reads the score at the last token that is not the padding token, so that must be one that no conversation
holds: where it is the end of turn, as in many tokenizers, every score would be read one token early. A template that
goes on behind the end of turn would move the place the other way.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from typing import Any

from tisdpo_jax.errors import UserError
from tisdpo_jax.interchange.save import save_huggingface
from tisdpo_jax.models import TransformerConfig
from tisdpo_jax.types import Params

REWARD = "tisdpo_reward.json"
_PADDING = "<|reward_padding|>"
_ODD = "\U0001f9ff \u0e5b \u4e8d \ue123"  # characters that few vocabularies have: what stands for them is in use


def with_padding(tokenizer: Any, size: int, *, held: Collection[int]) -> Any:
    """A copy of the tokenizer whose padding token no conversation holds.

    The first of these that is in no use: its padding token, the one for unknown text, its other special tokens, its
    EOS and BOS; else a new one, where the model has embeddings to spare.

    Args:
      size: of the model's vocabulary.
      held: tokens that conversations hold, or may hold.

    Raises: UserError where there is none.
    """
    added, used = tokenizer.added_tokens_decoder, {*held, *tokenizer(_ODD, add_special_tokens=False).input_ids}
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    special = sorted((token for token, what in added.items() if what.special), key=lambda token: (token in ends, token))
    first = [token for token in (tokenizer.pad_token_id, tokenizer.unk_token_id) if token not in ends]
    free = [token for token in (*first, *special) if token in added and token < size and token not in used]
    padded = copy.deepcopy(tokenizer)
    if free:
        padded.pad_token = added[free[0]].content
    elif len(tokenizer) < size:
        padded.add_special_tokens({"pad_token": _PADDING})
    else:
        raise UserError(
            "the tokenizer has no token to pad a reward model's rows with: conversations may hold all of its special "
            f"tokens ({', '.join(added[token].content for token in special)}), and the model has no embedding to "
            "spare; name a tokenizer with one more special token as model.tokenizer"
        )
    padded.padding_side = "right"
    return padded


def ended(source: str, written: str, wanted: str, eos: str, *, bos: bool = False) -> str:
    """A chat template that writes what training saw: behind the end of turn nothing, and an end of turn in any case.

    Args:
      source: the template, Jinja.
      written: what it writes of a plain conversation.
      wanted: the same conversation as it was trained.
      eos: the end of sequence of the tokenizer.
      bos: whether the tokenizer put BOS before it: who tokenizes what a template writes adds none.

    Raises: UserError where the two differ otherwise.
    """
    source = "{{ bos_token }}" * bos + source
    if written == wanted:
        return source
    endings = {written.rstrip(): "", written.rstrip() + eos: " + eos_token"}
    if wanted not in endings:
        raise UserError(f"the template writes {written!r}, but training saw {wanted!r}: no export would score alike")
    text = f"conversation if add_generation_prompt else conversation.rstrip(){endings[wanted]}"
    return f"{{% set conversation %}}{source}{{% endset %}}{{{{ {text} }}}}"


def save_reward_model(
    directory: str | os.PathLike[str],
    params: Params,
    config: TransformerConfig,
    *,
    tokenizer: Any,
    chat_template: str,
    about: Mapping[str, Any],
    base: str | os.PathLike[str] | None = None,
    dtype: Any = None,
) -> None:
    """Writes a reward model that `AutoModelForSequenceClassification` and `load_reward_model` read.

    Args:
      params: with `score/kernel`.
      tokenizer: from `with_padding`.
      chat_template: from `ended`.
      about: for people and programs, into tisdpo_reward.json.
      base, dtype: as for `save_huggingface`.

    Raises: CheckpointError as that does.
    """
    named: dict[str, Any] = {"tokenizer": tokenizer, "chat_template": chat_template, "base": base, "dtype": dtype}
    save_huggingface(directory, params, config, **named, beside={REWARD: dict(about)})
