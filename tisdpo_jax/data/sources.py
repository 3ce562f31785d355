"""Preference pairs from wherever they are: files, TFDS, Hugging Face datasets, the demo, or memory."""

from __future__ import annotations

import difflib
import importlib.resources
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tisdpo_jax.data.files import Row, read_file
from tisdpo_jax.data.layouts import READERS, detect_layout, read_record
from tisdpo_jax.data.records import InvalidRecord, Pair, PairSet, Unusable
from tisdpo_jax.errors import DataError

DEMO_SPLITS = ("train", "eval")


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
    return _convert(name, rows, layout, noted, group_field)


def _open(source: Any, limit: int, data_dir: str | None) -> tuple[str, list[Row], list[InvalidRecord]]:
    """Name of the source, its raw records, and invalid noted when it was prepared."""
    if not isinstance(source, str | Path):
        return "memory", _take(source, "memory", limit), []
    text = str(source)
    kind, _, rest = text.partition(":")
    if kind == "demo" and "/" not in text:
        return text, read_file(_demo_file(text, rest), text, limit), []
    if kind == "hf" and rest:
        return text, _take(_open_hf(rest, text), text, limit), []
    if kind == "tfds" and rest:
        from tisdpo_jax.data.tfds_source import open_tfds

        records, noted = open_tfds(rest, text, data_dir)
        return text, _take(records, text, limit), [] if limit else noted
    return text, read_file(Path(text), text, limit), []


def _demo_file(name: str, split: str) -> Path:
    if split not in DEMO_SPLITS:
        # A bare `demo` for both fields of the configuration would evaluate on the training pairs.
        raise DataError(f"{name}: the demo has two parts; write {' or '.join(f'demo:{part}' for part in DEMO_SPLITS)}")
    return Path(str(importlib.resources.files("tisdpo_jax.data") / "demo" / f"{split}.jsonl"))


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


def _take(records: Any, name: str, limit: int) -> list[Row]:
    """Rows of any sequence of dicts; a record that cannot be fetched is an invalid record."""
    if hasattr(records, "keys"):
        raise DataError(f"{name}: holds the splits {', '.join(records.keys())}; choose one")
    try:
        count = len(records)
    except TypeError:
        raise DataError(f"{name}: a {type(records).__name__} is no sequence of records") from None
    if not count:
        raise DataError(f"{name}: holds no records")
    numbers: Iterable[int] = range(min(count, limit) if limit else count)
    return [Row(f"record {number + 1}", _fetch(records.__getitem__, number)) for number in numbers]


def _fetch(get: Callable[[int], Any], number: int) -> Any:
    try:
        return get(number)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        return Unusable("cannot be read", _first_line(error))


def _detect(name: str, rows: Sequence[Row]) -> str:
    for row in rows:
        layout = detect_layout(row.value)
        if layout is not None:
            return layout
    first = next((row for row in rows if isinstance(row.value, dict)), None)
    if first is None:
        why = next((row.value for row in rows if isinstance(row.value, Unusable)), None)
        told = f"{why.reason} ({why.detail})" if why else "they are bare values"
        raise DataError(f"{name}:{rows[0].place}: no record from here on is an object with fields: {told}")
    fields = [str(field) for field in first.value]
    wanted = ("prompt", "chosen", "rejected", "messages", "conversations")
    hints = [
        f"{f!r} for {n[0]!r}" for f in fields if f not in wanted and (n := difflib.get_close_matches(f, wanted, 1))
    ]
    raise DataError(
        f"{name}:{first.place}: the fields {', '.join(map(repr, fields)) or '(none)'} fit no layout"
        + (f" (a slip: {', '.join(hints)}?)" if hints else "")
        + "; pairs need 'prompt' or 'messages', 'chosen', 'rejected' (data.format names the others)"
    )


def _convert(name: str, rows: Sequence[Row], layout: str, noted: Sequence[InvalidRecord], group_field: str) -> PairSet:
    pairs: list[Pair] = []
    invalid = list(noted)
    first_with: dict[str, str] = {}
    for row in rows:
        origin = f"{name}:{row.place}"
        try:
            if isinstance(row.value, Unusable):
                raise row.value
            default_id = row.place.replace(" ", "-") if " " in row.place else f"line-{row.place}"
            pair = read_record(row.value, layout, origin=origin, default_id=default_id, group_field=group_field)
            if pair.id in first_with:
                raise Unusable("duplicate id", f"{pair.id!r}, as at {first_with[pair.id]}")
        except Unusable as problem:
            invalid.append(InvalidRecord(origin, problem.reason, problem.detail))
            continue
        first_with[pair.id] = origin
        pairs.append(pair)
    return PairSet(tuple(pairs), tuple(invalid), name)


def _first_line(error: Exception) -> str:
    return next(itertools.chain(str(error).splitlines(), [""])) or type(error).__name__
