"""What identifies a tokenizer: what it does with text, not what it is called."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def tokenizer_identity(tokenizer: Any) -> str:
    """Hex digest of a fast tokenizer's vocabulary, merges, added and special tokens, normaliser and chat template.

    Equal for equal content under whatever name or path. Settings of a call that tokenizers keep (padding,
    truncation) are left out.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    told = json.dumps([content, special, template], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()
