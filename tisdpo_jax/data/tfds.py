"""TFDS data sets as records, and builders of the public preference data sets: array_record, without TensorFlow.

    read_pairs("tfds:hh/harmless-base:train")

downloads and prepares a source on first use. Records that hold no usable preference are left out by the
builder, but not forgotten: they stand with line and reason in the metadata of the prepared data set, and
`read_pairs` counts them.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax.data.files import read_file
from tisdpo_jax.data.layouts import read_record
from tisdpo_jax.data.records import SETTINGS, InvalidRecord, Unusable
from tisdpo_jax.errors import DataError

Files = Mapping[str, Sequence[str]]  # split -> URLs, or paths of local copies


@dataclasses.dataclass(frozen=True)
class Source:
    """A public data set: where its files are, and how one of their records becomes ours."""

    name: str
    homepage: str
    description: str
    kind: str  # of all its files: one of `files.SUFFIXES`
    configs: Mapping[str, Files]  # by variant; the first is the default
    convert: Callable[[Mapping[str, Any], str], Mapping[str, Any]]  # a record, by the variant, to one of `layout`
    layout: str = "pairs"
    in_split: Callable[[Any, str], bool] = lambda record, split: True  # where one file holds several splits
    has_margin: bool = False


def convert_safe_rlhf(record: Mapping[str, Any], config: str) -> dict[str, Any]:
    """PKU-SafeRLHF: "prompt", "response_0", "response_1", and which is safer and which is better (more helpful)."""
    choice = _choice(record, f"{config}_response_id")
    chosen, rejected = (record.get(f"response_{number}") for number in (choice, 1 - choice))
    return {"prompt": record.get("prompt"), "chosen": chosen, "rejected": rejected}


def convert_ultrafeedback(record: Mapping[str, Any], config: str) -> dict[str, Any]:
    """UltraFeedback: an "instruction" and several scored "completions"; the best is preferred to the worst.

    The published binarised version draws the rejected one at random among the rest; here nothing is drawn.
    The difference of the two scores is kept as "margin".
    """
    completions = [item for item in record.get("completions") or [] if isinstance(item, Mapping)]
    scores: list[float] = []
    for item in completions:
        score = item.get("overall_score")
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise Unusable("no preference", f"'overall_score' of a completion is {score!r}")
        scores.append(float(score))
    if len(completions) < 2:
        raise Unusable("no preference", "fewer than two completions")
    best, worst = max(scores), min(scores)
    if best == worst:
        raise Unusable("no preference", f"all completions have score {best:g}")
    chosen, rejected = (completions[scores.index(score)].get("response") for score in (best, worst))
    return {"prompt": record.get("instruction"), "chosen": chosen, "rejected": rejected, "margin": best - worst}


def convert_tldr(record: Mapping[str, Any], config: str) -> dict[str, Any]:
    """TL;DR comparisons: a post in "info", two "summaries", and the index of the better one in "choice"."""
    choice = _choice(record, "choice")
    info, summaries = record.get("info"), record.get("summaries")
    if not isinstance(info, Mapping) or not isinstance(summaries, list) or len(summaries) != 2:
        raise Unusable("missing field", "'info' and two 'summaries'")
    if info.get("post") is None:
        raise Unusable("not a post", "a news article, not a Reddit post")
    lines = [f"SUBREDDIT: r/{info.get('subreddit')}", f"TITLE: {info.get('title')}", f"POST: {info['post']}", "TL;DR:"]
    texts = [item.get("text") if isinstance(item, Mapping) else None for item in summaries]
    return {"prompt": "\n\n".join(lines), "chosen": texts[choice], "rejected": texts[1 - choice]}


def _tldr_split(record: Any, split: str) -> bool:
    said = str(record.get("split", "")) if isinstance(record, Mapping) else ""
    return (split == "train") == (not said.startswith("valid"))


def _choice(record: Mapping[str, Any], field: str) -> int:
    choice = record.get(field)
    if isinstance(choice, bool) or choice not in (0, 1):
        raise Unusable("no preference", f"'{field}' is {choice!r}")
    return int(choice)


HUB = "https://huggingface.co/datasets"
_SUMMARIES = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/comparisons"
_TLDR = tuple(f"{_SUMMARIES}/batch{number}.json" for number in (*range(3, 21), 22))
_HH = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
_HH_URL = HUB + "/Anthropic/hh-rlhf/resolve/main/{}/{}.jsonl.gz"
_SAFE_URL = HUB + "/PKU-Alignment/PKU-SafeRLHF/resolve/main/data/Alpaca{}/{}.jsonl"
_SAFE = {
    split: tuple(_SAFE_URL.format(model, split) for model in ("-7B", "2-7B", "3-8B")) for split in ("train", "test")
}
_ULTRA = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
SOURCES: Mapping[str, Source] = {
    "hh": Source(
        "hh",
        f"{HUB}/Anthropic/hh-rlhf",
        "Anthropic HH: human preferences between two continuations of a dialogue.",
        ".jsonl.gz",
        {part: {split: (_HH_URL.format(part, split),) for split in ("train", "test")} for part in _HH},
        lambda record, config: record,
        layout="hh",
    ),
    "safe_rlhf": Source(
        "safe_rlhf",
        f"{HUB}/PKU-Alignment/PKU-SafeRLHF",
        "PKU-SafeRLHF: which of two answers is safer, and which is more helpful.",
        ".jsonl",
        {"safer": _SAFE, "better": _SAFE},
        convert_safe_rlhf,
    ),
    "ultrafeedback": Source(
        "ultrafeedback",
        f"{HUB}/openbmb/UltraFeedback",
        "UltraFeedback: four answers to an instruction, scored by GPT-4; the best against the worst.",
        ".jsonl",
        {"best-worst": {"train": tuple(f"{HUB}/openbmb/UltraFeedback/resolve/main/{part}.jsonl" for part in _ULTRA)}},
        convert_ultrafeedback,
        has_margin=True,
    ),
    "tldr": Source(
        "tldr",
        "https://github.com/openai/summarize-from-feedback",
        "TL;DR: human preferences between two summaries of a Reddit post.",
        ".jsonl",  # one record a line, whatever their names say
        {"comparisons": {"train": _TLDR, "validation": _TLDR}},
        convert_tldr,
        in_split=_tldr_split,
    ),
}


def convert_record(source: Source, config: str, record: Any, key: str) -> dict[str, Any]:
    """The record in the `pairs` layout, after the checks of any pair; `Unusable` where it holds no preference."""
    if not isinstance(record, Mapping):
        raise Unusable("not an object", f"a {type(record).__name__}")
    pair = read_record(source.convert(record, config), source.layout, origin=key, default_id=key)
    if any(message.extra or message.role in SETTINGS for message in pair.messages):
        no_place = "tools or settings of the template, which the prepared data set has no place for"
        raise Unusable("unread field", no_place)
    messages = [{"role": message.role, "content": message.content} for message in pair.messages]
    converted = {"id": key, "messages": messages, "chosen": pair.chosen, "rejected": pair.rejected}
    return converted if pair.margin is None else {**converted, "margin": pair.margin}


def _tfds(name: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError:
        raise DataError(f"{name}: needs the package `tensorflow-datasets`") from None
    return tensorflow_datasets


def make_builder(
    source: Source, config: str = "", *, data_dir: str | Path | None = None, files: Files | None = None
) -> Any:
    """The `GeneratorBasedBuilder` of a source, ready for `download_and_prepare` and `as_data_source`.

    Args:
        source: one of `SOURCES`, or your own.
        config: name of the variant; "" takes the first.
        data_dir: where TFDS keeps prepared data; None leaves that to TFDS.
        files: local copies to read in place of downloads, by split.
    """
    tfds = _tfds(f"tfds:{source.name}")
    config = config or next(iter(source.configs))
    if config not in source.configs:
        raise DataError(f"tfds:{source.name}/{config}: no such variant; there are {', '.join(source.configs)}")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[name-defined, call-arg]
        """Pairs in the `pairs` layout."""

        name = source.name
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in source.configs]  # noqa: RUF012

        def _info(self) -> Any:
            text = tfds.features.Text()
            messages = tfds.features.Sequence({"role": text, "content": text})
            features: dict[str, Any] = {"id": text, "messages": messages, "chosen": text, "rejected": text}
            if source.has_margin:
                features["margin"] = tfds.features.Scalar(dtype=np.float32)
            return tfds.core.DatasetInfo(
                builder=self,
                description=source.description,
                homepage=source.homepage,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(invalid={}),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            urls = {split: list(paths) for split, paths in source.configs[config].items()}
            local = {split: list(paths) for split, paths in files.items()} if files else dl_manager.download(urls)
            return {split: self._generate_examples(split, local[split]) for split in local}

        def _generate_examples(self, split: str, paths: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
            invalid: list[list[str]] = []
            for number, path in enumerate(paths):
                for row in read_file(Path(path), str(path), kind=source.kind):
                    if not source.in_split(row.value, split):
                        continue
                    key = f"{split}-{number}-{row.place}"
                    try:
                        if isinstance(row.value, Unusable):
                            raise row.value
                        yield key, convert_record(source, config, row.value, key)
                    except Unusable as problem:
                        invalid.append([key, problem.reason, problem.detail])
            self.info.metadata["invalid"][split] = invalid

    return Builder(data_dir=data_dir, config=config, file_format="array_record")


def open_tfds(spec: str, name: str, data_dir: str | None) -> tuple[Any, list[InvalidRecord]]:
    """The records that `NAME[/CONFIG][:VERSION][:SPLIT]` stands for, as TFDS has them, and those that were left out.

    NAME is one of `SOURCES`, a data set that TFDS knows, or the directory of a prepared one. What its builder left
    out is told of whole splits ("train", "train+test"), not of slices ("train[:10%]").
    """
    tfds = _tfds(name)
    data_set, _, tail = spec.partition(":")
    version, _, split = tail.partition(":") if re.match(r"\d+\.\d+\.\d+", tail) else ("", "", tail)
    split = split or "train"
    try:
        builder = _builder(tfds, data_set, version, data_dir)
        builder.download_and_prepare()
        if split not in builder.info.splits and re.fullmatch(r"\w+", split):
            raise DataError(f"{name}: no split {split!r}; there are {', '.join(builder.info.splits)}")
        records = builder.as_data_source(split=split)
    except DataError:
        raise
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(data_set.split("/")[0], SOURCES, n=1)
        hint = f"did you mean tfds:{near[0]}?" if near else f"those of this package are {', '.join(SOURCES)}"
        raise DataError(f"{name}: TFDS has no data set {data_set!r}; {hint}") from None
    except NotImplementedError:
        raise DataError(f"{name}: is not stored as array_record; prepare it with file_format='array_record'") from None
    except (OSError, ValueError, AssertionError, RuntimeError, tfds.download.DownloadError) as error:
        raise DataError(f"{name}: cannot be prepared or read: {error}") from None
    noted = (builder.info.metadata or {}).get("invalid", {})
    parts = [entries for part, entries in noted.items() if part in split.split("+")]
    return records, [InvalidRecord(f"{name}:{key}", *why) for entries in parts for key, *why in entries]


def _builder(tfds: Any, data_set: str, version: str, data_dir: str | None) -> Any:
    if (Path(data_set) / "dataset_info.json").is_file():
        return tfds.builder_from_directory(data_set)
    base, _, config = data_set.partition("/")
    if base in SOURCES and not version:
        return make_builder(SOURCES[base], config, data_dir=data_dir)
    full = f"{data_set}:{version}" if version else data_set
    return tfds.builder(full, data_dir=data_dir, file_format="array_record")


def plain_record(value: Any) -> Any:
    """bytes -> str, arrays -> lists, a sequence of messages that TFDS stores by field -> a list of dicts."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        fields = {str(name): plain_record(item) for name, item in value.items()}
        columns = list(fields.values())
        if columns and all(isinstance(column, list) for column in columns):
            return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
        return fields
    if hasattr(value, "tolist"):
        value = value.tolist()
        return plain_record(value) if isinstance(value, bytes | list) else value
    return [plain_record(item) for item in value] if isinstance(value, list | tuple) else value
