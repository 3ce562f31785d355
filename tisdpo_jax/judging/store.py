"""What judges said, kept as jsonl: appended line by line, found again by key, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from tisdpo_jax.errors import DataError

log = logging.getLogger(__name__)


def key_of(*parts: object) -> str:
    """A short name for plain values: equal parts, equal names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


class Store:
    """A file of records that each have a `key`. Threads may add; one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> dict[str, Any] | None:
        return self._records.get(key)

    def add(self, key: str, **values: Any) -> None:
        """Written and flushed before this returns. Of two records with one key the first counts."""
        record = {"key": key, **values}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with self._lock:
            if key in self._records:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # a lone surrogate, which an answer may hold, is no UTF-8
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)
            self._records[key] = record

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, newline, torn = content.rpartition(b"\n")
        if torn:  # the process was killed in writing it
            log.warning("%s: the last line was not written to its end and is dropped", self.path)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_bytes(whole + newline)
            os.replace(temporary, self.path)
        for number, line in enumerate(whole.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                self._records.setdefault(record["key"], record)
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self.path}:{number}: not a record of this file; remove the line") from None
