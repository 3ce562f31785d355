"""Models out: a directory that `transformers` 4 and 5 load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tisdpo_jax.interchange import _export
from tisdpo_jax.interchange._assemble import layout
from tisdpo_jax.interchange._safetensors import write_sharded
from tisdpo_jax.interchange.generation import GENERATION, exported_generation, special_ids
from tisdpo_jax.interchange.huggingface import CONFIG, huggingface_config
from tisdpo_jax.models import TransformerConfig
from tisdpo_jax.types import Params


def save_huggingface(
    directory: str | os.PathLike[str],
    params: Params,
    config: TransformerConfig,
    *,
    tokenizer: Any = None,
    chat_template: str | None = None,
    base: str | os.PathLike[str] | None = None,
    stops: Sequence[int] = (),
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes weights, config.json and, with a tokenizer, its files and chat_template.jinja; see `write_companions`.

    The directory appears whole or not at all; an earlier export in it is replaced. Of several processes,
    all must call this, and process 0 writes.

    Args:
      params: arrays, sharded over any mesh; with LoRA, merge first (`models.merge`).
      chat_template: that conversations were trained in, as Jinja source; None keeps the tokenizer's.
      base: the model that the parameters come from: special ids of its config.json stay.
      stops: tokens that end an answer; generation_config.json is the base's, with these among its ends.
      dtype: of the written tensors; None keeps that of the embedding.
      max_shard_bytes: more is split into shards with an index.

    Raises: CheckpointError when the directory holds something else, or no family of transformers fits.
    """
    leaves = layout(config)
    _export.check_tree(leaves, params, "params")
    stored = np.dtype(jnp.dtype(dtype or params["embed"]["embedding"].dtype))
    config_json = huggingface_config(config, dtype=stored.name, special=special_ids(base, tokenizer))
    sizes = _export.tensor_bytes(leaves, params, stored)

    def write(target: Path) -> None:
        write_sharded(target, _export.host_tensors(leaves, params, stored), sizes, max_shard_bytes)
        write_json(target / CONFIG, config_json)
        generation = exported_generation(base, config_json, stops)
        write_companions(target, tokenizer, chat_template, generation)

    def attend() -> None:
        _export.drain(_export.host_tensors(leaves, params, stored))

    on_first_process(Path(directory).expanduser(), write, attend)


def on_first_process(directory: Path, write: Callable[[Path], None], attend: Callable[[], None]) -> None:
    """Process 0 writes the directory, the others attend the gathering of the same arrays; then all go on."""
    if jax.process_index() == 0:
        with _export.whole_directory(directory) as target:
            write(target)
    else:
        attend()
    _export.finish_together(f"export {directory.name}")


def write_companions(
    target: Path, tokenizer: Any, chat_template: str | None, generation: dict[str, Any] | None
) -> None:
    """What others need beside the weights to talk to the model as it was trained.

    Args:
      tokenizer: whose files are written; None for none.
      chat_template: Jinja source of the template that conversations were written with; None keeps the tokenizer's.
      generation: content of generation_config.json, where there is to be one.
    """
    if tokenizer is not None:
        _save_tokenizer(target, tokenizer)
        if chat_template is not None and chat_template != _own_template(tokenizer):
            _replace_template(target, chat_template)
    if generation is not None:
        write_json(target / GENERATION, generation)


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _own_template(tokenizer: Any) -> str | None:
    """The tokenizer's own template for plain conversations."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        return None


def _replace_template(target: Path, source: str) -> None:
    """The one template of the tokenizer in `target`; those that it had for tools and the like were not trained."""
    (target / "chat_template.jinja").write_text(source, encoding="utf-8", newline="")
    shutil.rmtree(target / "additional_chat_templates", ignore_errors=True)
    file = target / "tokenizer_config.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    if raw.pop("chat_template", None) is not None:  # another place for it, of transformers 4
        write_json(file, raw)


def _save_tokenizer(target: Path, tokenizer: Any) -> None:
    """`save_pretrained`, in a form that transformers 4 reads too: it does not know 5's names."""
    tokenizer.save_pretrained(target)
    file = target / "tokenizer_config.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    if raw.get("tokenizer_class") == "TokenizersBackend":
        raw["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(raw.get("extra_special_tokens"), list):  # 4 wants a mapping; tokenizer.json marks them as special
        del raw["extra_special_tokens"]
    write_json(file, raw)
