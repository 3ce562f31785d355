"""The tokenizer that a GGUF file's metadata describe, as a `transformers` fast tokenizer, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tisdpo_jax.errors import CheckpointError
from tisdpo_jax.interchange.gguf.model import metadata, open_reader

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # of tokenizer.ggml.token_type
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a blank so

_SPLIT = (  # of Llama 3 and Qwen 2, which differ in how many digits stay together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut before byte-level BPE, by tokenizer.ggml.pre. A file without that field is old, or made
# with an unknown tokenizer; it gets GPT-2's cut, as in transformers.
_CUTS = {
    **dict.fromkeys(("", "default", "gpt-2"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder", "refact"), "smollm"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), "llama3"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), "qwen2"),
}
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(path: Path) -> Any:
    """`transformers.PreTrainedTokenizerFast` for byte-level ("gpt2") and SentencePiece-BPE ("llama") vocabularies.

    Special tokens, BOS and EOS flags and the chat template are those of the file. Where the file says
    nothing, BOS is added as llama.cpp does: for "llama" vocabularies and for Llama 3.

    Raises: CheckpointError for a kind of vocabulary or of pre-tokenizer that is not known, naming it.
    """
    from transformers import PreTrainedTokenizerFast

    reader = open_reader(path)
    values = metadata(reader)
    kind, cut = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "")
    tokens, types, scores, merges = (_array(reader, name) for name in ("tokens", "token_type", "scores", "merges"))
    if not tokens:
        raise CheckpointError(f"{path}: holds no tokenizer; name a directory with one as model.tokenizer")
    types = types or [NORMAL] * len(tokens)
    ids = {name: values.get(f"tokenizer.ggml.{word}_token_id", -1) for name, word in _NAMED.items()}
    named = {name: tokens[index] for name, index in ids.items() if 0 <= index < len(tokens)}
    if kind == "gpt2":
        tokenizer = _byte_level(path, tokens, merges, cut)
    elif kind == "llama":
        prefix = values.get("tokenizer.ggml.add_space_prefix", True)
        tokenizer = _sentencepiece(path, tokens, types, scores, named.get("unk_token"), prefix=prefix)
    else:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.model is {kind!r}; known: gpt2, llama. Name a directory with the tokenizer's "
            f"Hugging Face files as model.tokenizer"
        )
    control = [token for token, of in zip(tokens, types, strict=True) if of == CONTROL or token in named.values()]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    whole = [token for token, of in zip(tokens, types, strict=True) if of == USER_DEFINED and token not in control]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in whole])

    adds_bos = kind == "llama" or _CUTS.get(cut) == "llama3"
    add_bos = values.get("tokenizer.ggml.add_bos_token", adds_bos) and "bos_token" in named
    add_eos = values.get("tokenizer.ggml.add_eos_token", False) and "eos_token" in named
    before, after = [named["bos_token"]] if add_bos else [], [named["eos_token"]] if add_eos else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
    )
    architecture = values.get("general.architecture")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        add_bos_token=bool(add_bos),
        add_eos_token=bool(add_eos),
        chat_template=values.get("tokenizer.chat_template"),
        model_max_length=values.get(f"{architecture}.context_length", int(1e30)),
        clean_up_tokenization_spaces=False,
    )


def _byte_level(path: Path, tokens: list[str], merges: list[str], cut: str) -> Tokenizer:
    """BPE over bytes spelled as printable characters, as in GPT-2, Llama 3, Qwen and SmolLM."""
    if not merges:
        raise CheckpointError(f"{path}: no tokenizer.ggml.merges, which a gpt2 vocabulary needs; fetch the file again")
    if (like := _CUTS.get(cut)) is None:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.pre is {cut!r}; known: {', '.join(filter(None, _CUTS))}. Name a directory with "
            f"the tokenizer's Hugging Face files as model.tokenizer"
        )
    first: list[Any] = []
    if like == "smollm":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif like in ("llama3", "qwen2"):
        split = _SPLIT.format(digits="{1,3}" if like == "llama3" else "")
        first = [pre_tokenizers.Split(Regex(split), behavior="isolated")]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(tokens), merges=pairs, ignore_merges=like == "llama3"))
    if like == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=like in ("gpt2", "smollm"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(
    path: Path, tokens: list[str], types: list[int], scores: list[float], unknown: str | None, *, prefix: bool
) -> Tokenizer:
    """SentencePiece's BPE with byte fallback, as in Llama 2 and Mistral.

    There the pair whose union scores highest is merged first. The same comes of ranked merges: every way to
    cut a normal token in two tokens, by falling score of the whole.
    """
    if len(scores) != len(tokens):
        raise CheckpointError(
            f"{path}: {len(scores)} tokenizer.ggml.scores for {len(tokens)} tokens; fetch the file again"
        )
    vocabulary = _vocabulary(tokens)
    ranked = []
    for index, (token, of) in enumerate(zip(tokens, types, strict=True)):
        if of in (NORMAL, USER_DEFINED):
            for cut in range(1, len(token)):
                if token[:cut] in vocabulary and token[cut:] in vocabulary:
                    ranked.append((-scores[index], index, -cut, token[:cut], token[cut:]))
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=unknown is not None, byte_fallback=True)
    )
    blanks: list[Any] = [normalizers.Replace(" ", _SPACE)]
    ends: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        blanks.insert(0, normalizers.Prepend(_SPACE))
        ends.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(blanks)
    tokenizer.decoder = decoders.Sequence(ends)
    return tokenizer


def _array(reader: Any, name: str) -> list[Any]:
    field = reader.get_field(f"tokenizer.ggml.{name}")
    return [] if field is None else list(field.contents())


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Token -> id; of equal tokens the first counts, as in llama.cpp."""
    return {token: index for index, token in reversed([*enumerate(tokens)])}
