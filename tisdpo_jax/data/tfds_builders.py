"""TFDS builders for the public preference data sets, written as array_record and so without TensorFlow.

    read_pairs("tfds:hh/harmless-base:train")

downloads and prepares a source on first use. Records that hold no usable preference are left out by the
builder, but not forgotten: they stand with line and reason in the metadata of the prepared data set, and
`read_pairs` counts them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tisdpo_jax.data.files import read_file
from tisdpo_jax.data.records import Unusable
from tisdpo_jax.data.tfds_convert import Converter, convert_hh, convert_safe_rlhf, convert_tldr, convert_ultrafeedback
from tisdpo_jax.errors import DataError

HUB = "https://huggingface.co/datasets"
SUMMARIES = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/comparisons"

Files = Mapping[str, tuple[str, ...]]  # split -> URLs, or paths of local copies


@dataclasses.dataclass(frozen=True)
class Config:
    """One variant of a source."""

    files: Files
    convert: Converter


@dataclasses.dataclass(frozen=True)
class Source:
    """A public data set: where its files are, and how one of their records becomes ours."""

    name: str
    homepage: str
    description: str
    kind: str  # of all its files: one of `files.SUFFIXES`
    configs: Mapping[str, Config]  # the first is the default
    in_split: Callable[[Any, str], bool] = lambda record, split: True  # where one file holds several splits
    has_margin: bool = False


def _tldr_split(record: Any, split: str) -> bool:
    told = str(record.get("split", "")) if isinstance(record, Mapping) else ""
    return (split == "train") == (not told.startswith("valid"))


def _safe_rlhf_files() -> Files:
    models = ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")
    home = f"{HUB}/PKU-Alignment/PKU-SafeRLHF/resolve/main/data"
    return {split: tuple(f"{home}/{model}/{split}.jsonl" for model in models) for split in ("train", "test")}


def _hh_config(part: str) -> Config:
    home = f"{HUB}/Anthropic/hh-rlhf/resolve/main"
    return Config({split: (f"{home}/{part}/{split}.jsonl.gz",) for split in ("train", "test")}, convert_hh)


def _sources() -> Iterator[Source]:
    yield Source(
        name="hh",
        homepage=f"{HUB}/Anthropic/hh-rlhf",
        description="Anthropic HH: human preferences between two continuations of a dialogue.",
        kind=".jsonl.gz",
        configs={
            part: _hh_config(part)
            for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
        },
    )
    yield Source(
        name="safe_rlhf",
        homepage=f"{HUB}/PKU-Alignment/PKU-SafeRLHF",
        description="PKU-SafeRLHF: which of two answers is safer, and which is more helpful.",
        kind=".jsonl",
        configs={
            "safer": Config(_safe_rlhf_files(), functools.partial(convert_safe_rlhf, by="safer_response_id")),
            "better": Config(_safe_rlhf_files(), functools.partial(convert_safe_rlhf, by="better_response_id")),
        },
    )
    parts = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
    yield Source(
        name="ultrafeedback",
        homepage=f"{HUB}/openbmb/UltraFeedback",
        description="UltraFeedback: four answers to an instruction, scored by GPT-4; the best against the worst.",
        kind=".jsonl",
        configs={
            "best-worst": Config(
                {"train": tuple(f"{HUB}/openbmb/UltraFeedback/resolve/main/{part}.jsonl" for part in parts)},
                convert_ultrafeedback,
            )
        },
        has_margin=True,
    )
    batches = tuple(f"{SUMMARIES}/batch{number}.json" for number in (*range(3, 21), 22))
    yield Source(
        name="tldr",
        homepage="https://github.com/openai/summarize-from-feedback",
        description="TL;DR: human preferences between two summaries of a Reddit post.",
        kind=".jsonl",  # one record a line, whatever their names say
        configs={"comparisons": Config({"train": batches, "validation": batches}, convert_tldr)},
        in_split=_tldr_split,
    )


SOURCES: Mapping[str, Source] = {source.name: source for source in _sources()}


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
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise DataError(f"tfds:{source.name}: needs the package `tensorflow-datasets`") from None
    config = config or next(iter(source.configs))
    if config not in source.configs:
        raise DataError(f"tfds:{source.name}/{config}: no such variant; there are {', '.join(source.configs)}")
    chosen = source.configs[config]

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Pairs in the `pairs` layout."""

        name = source.name
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in source.configs]  # noqa: RUF012

        def _info(self) -> Any:
            text = tfds.features.Text()
            features: dict[str, Any] = {
                "id": text,
                "messages": tfds.features.Sequence({"role": text, "content": text}),
                "chosen": text,
                "rejected": text,
            }
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
            urls = {split: list(paths) for split, paths in chosen.files.items()}
            local = {split: list(paths) for split, paths in files.items()} if files else dl_manager.download(urls)
            return {split: self._generate_examples(split, local[split]) for split in local}

        def _generate_examples(self, split: str, paths: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
            rejected: list[list[str]] = []
            for number, path in enumerate(paths):
                for row in read_file(Path(path), str(path), kind=source.kind):
                    if not source.in_split(row.value, split):
                        continue
                    key = f"{split}-{number}-{row.place}"
                    try:
                        if isinstance(row.value, Unusable):
                            raise row.value
                        if not isinstance(row.value, Mapping):
                            raise Unusable("not an object", f"a {type(row.value).__name__}")
                        yield key, chosen.convert(row.value, key)
                    except Unusable as problem:
                        rejected.append([key, problem.reason, problem.detail])
            self.info.metadata["invalid"][split] = rejected

    return Builder(data_dir=data_dir, config=config, file_format="array_record")
