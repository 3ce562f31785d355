"""Preference pairs and prompts from wherever they are: files, TFDS, Hugging Face datasets, the demo, or memory."""

from __future__ import annotations

import difflib
import importlib.resources
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tisdpo_jax.data.files import Row, read_file
from tisdpo_jax.data.layouts import READERS, detect_layout, read_prompt, read_record
from tisdpo_jax.data.records import InvalidRecord, Pair, PairSet, Prompt, Unusable
from tisdpo_jax.errors import DataError

log = logging.getLogger(__name__)
DEMO_SPLITS = ("train", "eval")
Item = TypeVar("Item", Pair, Prompt)


def read_pairs(
    source: Any, *, format: str = "auto", limit: int = 0, data_dir: str | None = None, group_field: str = ""
) -> PairSet:
    """All pairs of a source, and every record that is not one with its line and reason.

    Args:
        source: a path to .jsonl, .jsonl.gz, .json or .json.gz; `tfds:NAME[:VERSION][:SPLIT]`;
            `hf:NAME[:SPLIT]`; `demo:train` or `demo:eval`; a `datasets.Dataset`; or any sequence of dicts.
        format: layout of the records (`layouts.READERS`); "auto" goes by the first record that has
            the fields of one.
        limit: look at no more than this many records, good or bad; 0 looks at all.
        data_dir: where TFDS keeps prepared data sets; None leaves that to TFDS.
        group_field: a field that names the subset of each record, kept as `Pair.group`.

    Raises:
        DataError: a source that is missing, empty or damaged as a whole. Bad records are not
            raised but returned as `invalid`: see `apply_policy`.
    """
    if format != "auto" and format not in READERS:
        raise DataError(f"data.format {format!r} is none of auto, {', '.join(READERS)}")
    name, rows, noted = _open(source, limit, data_dir)
    layout = _detect(name, rows) if format == "auto" else format
    read: Callable[[Any, str, str], Pair] = lambda record, origin, default_id: read_record(  # noqa: E731
        record, layout, origin=origin, default_id=default_id, group_field=group_field
    )
    pairs, invalid = _read_each(name, rows, read)
    return PairSet(pairs, (*noted, *invalid), name)


def read_prompts(path: str, *, limit: int = 0) -> tuple[tuple[Prompt, ...], tuple[InvalidRecord, ...]]:
    """Prompts of a .jsonl, .jsonl.gz or .json file, and every record that holds none.

    A record is text, `{"prompt": text or messages}` or `{"messages": [{"role", "content"}, ...]}`, each with an
    optional "id", "tools" and "chat_template_kwargs", or a pair in any layout; its answers are not looked at.
    Columns that say nothing to a model are counted in the log; one that would, and that nothing reads, is refused.

    Raises: DataError for a file that is missing, empty or damaged as a whole.
    """
    unread: dict[str, tuple[str, ...]] = {}

    def read(record: Any, origin: str, default_id: str) -> Prompt:
        prompt, unread[origin] = read_prompt(record, origin=origin, default_id=default_id)
        return prompt

    prompts, invalid = _read_each(path, read_file(Path(path).expanduser(), path, limit), read)
    counts = Counter(field for prompt in prompts for field in unread[prompt.origin])
    for field, count in sorted(counts.items()):
        log.info("%s: %d records with %r, which nothing reads", path, count, field)
    return prompts, invalid


def _read_each(
    name: str, rows: Sequence[Row], read: Callable[[Any, str, str], Item]
) -> tuple[tuple[Item, ...], tuple[InvalidRecord, ...]]:
    """What `read(record, origin, default id)` makes of each row, no id twice, and what is left out."""
    items: list[Item] = []
    invalid: list[InvalidRecord] = []
    first_with: dict[str, str] = {}
    for row in rows:
        origin = f"{name}:{row.place}"
        try:
            if isinstance(row.value, Unusable):
                raise row.value
            item = read(row.value, origin, row.place.replace(" ", "-") if " " in row.place else f"line-{row.place}")
            if item.id in first_with:
                raise Unusable("duplicate id", f"{item.id!r}, as at {first_with[item.id]}")
        except Unusable as problem:
            invalid.append(problem.at(origin))
            continue
        first_with[item.id] = origin
        items.append(item)
    return tuple(items), tuple(invalid)


def _open(source: Any, limit: int, data_dir: str | None) -> tuple[str, list[Row], list[InvalidRecord]]:
    """Name of the source, its raw records, and invalid ones noted when it was prepared."""
    if not isinstance(source, str | Path):
        return "memory", _take(source, "memory", limit), []
    text = str(source)
    kind, _, rest = text.partition(":")
    if kind == "demo" and "/" not in text:
        if rest not in DEMO_SPLITS:
            # A bare `demo` for both fields of the configuration would evaluate on the training pairs.
            parts = " or ".join(f"demo:{part}" for part in DEMO_SPLITS)
            raise DataError(f"{text}: the demo has two parts; write {parts}")
        demo = importlib.resources.files("tisdpo_jax.data") / "demo" / f"{rest}.jsonl"
        return text, read_file(Path(str(demo)), text, limit), []
    if kind == "hf" and rest:
        return text, _take(_open_hf(rest, text), text, limit), []
    if kind == "tfds" and rest:
        from tisdpo_jax.data.tfds import open_tfds, plain_record

        records, noted = open_tfds(rest, text, data_dir)
        return text, _take(records, text, limit, plain_record), [] if limit else noted
    return text, read_file(Path(text), text, limit), []


def _open_hf(spec: str, name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name}: needs the package `datasets`; install the extra hf-data") from None
    path, _, split = spec.partition(":")
    split = split or "train"
    try:
        if any((Path(path) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(path)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(path, split=split)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{name}: cannot be loaded: {_first_line(error)}") from None


def _take(records: Any, name: str, limit: int, plain: Callable[[Any], Any] | None = None) -> list[Row]:
    """Rows of any sequence of dicts; a record that cannot be fetched is an invalid record."""
    if hasattr(records, "keys"):
        raise DataError(f"{name}: holds the splits {', '.join(records.keys())}; choose one")
    try:
        count = len(records)
    except TypeError:
        raise DataError(f"{name}: a {type(records).__name__} is no sequence of records") from None
    if not count:
        raise DataError(f"{name}: holds no records")
    rows = []
    for number in range(min(count, limit) if limit else count):
        try:
            value = records[number]
            value = plain(value) if plain else value
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            value = Unusable("cannot be read", _first_line(error))
        rows.append(Row(f"record {number + 1}", value))
    return rows


def _detect(name: str, rows: Sequence[Row]) -> str:
    if layout := next(filter(None, (detect_layout(row.value) for row in rows)), None):
        return layout
    first = next((row for row in rows if isinstance(row.value, dict)), None)
    if first is None:
        why = next((row.value for row in rows if isinstance(row.value, Unusable)), None)
        reason = f"{why.reason} ({why.detail})" if why else "they are bare values"
        raise DataError(f"{name}:{rows[0].place}: no record from here on is an object with fields: {reason}")
    names = [str(field) for field in first.value]
    wanted = ("prompt", "chosen", "rejected", "messages", "conversations")
    near = {field: difflib.get_close_matches(field, wanted, 1) for field in names if field not in wanted}
    hints = ", ".join(f"{field!r} for {match[0]!r}" for field, match in near.items() if match)
    raise DataError(
        f"{name}:{first.place}: the fields {', '.join(map(repr, names)) or '(none)'} fit no layout"
        + (f" (a slip: {hints}?)" if hints else "")
        + "; pairs need 'prompt' or 'messages', 'chosen', 'rejected' (data.format names the others)"
    )


def _first_line(error: Exception) -> str:
    return next(itertools.chain(str(error).splitlines(), [""])) or type(error).__name__
