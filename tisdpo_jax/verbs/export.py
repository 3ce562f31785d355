"""The policy in forms that others load: a Hugging Face model, and its adapter for peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tisdpo_jax import interchange
from tisdpo_jax.data import open_template
from tisdpo_jax.generation import end_tokens
from tisdpo_jax.stages import Base, Session, models
from tisdpo_jax.types import Params


def export(session: Session, base: Base, trained: Params) -> list[Path]:
    """Writes export/ and, with LoRA, adapter/; returns their paths.

    Each has what others need to talk to it as it was trained: the tokenizer with the template of `data.template`, and
    every token that ends an answer.

    Where the adapter does not stand on the pretrained model (after SFT, after a round of DLMA), what it stands on is
    written to base/.
    """
    config, written = session.config, [session.run_dir / "export"]
    template = config.data.template
    companions: dict[str, Any] = {
        "tokenizer": session.tokenizer,
        "chat_template": open_template(template, session.tokenizer).source,
        "stops": end_tokens(session.tokenizer, template, session.model_path),
    }
    whole = models.fold_in(session, base, trained)
    interchange.save_huggingface(written[0], whole, session.model.config, base=session.model_path, **companions)
    if session.lora:
        under = session.model_path
        if not base.pretrained:
            under = session.run_dir / "base"
            full = base.full()
            interchange.save_huggingface(under, full, session.model.config, base=session.model_path, **companions)
            written.append(under)
        written.append(session.run_dir / "adapter")
        interchange.save_peft(
            written[-1],
            trained,
            session.model.config,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            base_model=str(under),
            **companions,
        )
    return written
