"""Where metrics go: metrics.jsonl always; a progress bar, TensorBoard and W&B by choice. Process 0 only."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import jax

from tisdpo_jax.artifacts import append_jsonl, read_jsonl, write_jsonl, write_text
from tisdpo_jax.config import LoggingSection
from tisdpo_jax.errors import ConfigError, UserError
from tisdpo_jax.training.interrupt import Interrupted

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)
_QUIET_SECONDS = 15.0  # between two lines of progress where there is no terminal to redraw
_NOTE = "wandb.json"  # in the run directory: project and id of the W&B run, which a resumed run goes on with


class MetricsLog:
    """Appends one JSON object a line: stage, step, split, and the metrics. NaN and infinity become null.

    To be closed at every exit, best as a context; closing it twice does no harm.
    """

    def __init__(self, run_dir: Path, section: LoggingSection, *, config: Mapping[str, Any] | None = None) -> None:
        self._path, self._prefix, self._shows = run_dir / "metrics.jsonl", "", section.progress
        self._bar: Progress | None = None
        self._owner = True  # of the writers
        self._writers = _Writers(run_dir, section, config or {}) if jax.process_index() == 0 else None

    def within(self, folder: Path, prefix: str) -> MetricsLog:
        """A log of its own in `folder`, of a part of the run: TensorBoard and W&B are those of this one, where its
        stages are called PREFIX/STAGE. They stay open when it is closed."""
        part = copy.copy(self)
        part._path, part._prefix = folder / self._path.name, f"{prefix}/" if prefix else ""
        part._bar, part._owner = None, False
        return part

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def begin(self, stage: str, *, done: int, total: int) -> None:
        """Opens the progress bar of a stage, and drops lines of steps that are about to be done again."""
        if self._writers is not None:
            if self._path.exists():
                rows = [row for _, row in read_jsonl(self._path, mend=True)]
                write_jsonl(self._path, (row for row in rows if row["stage"] != stage or row["step"] <= done))
            self._writers.open()
            self._bar = Progress(stage, total, done=done, enabled=self._shows)

    def write(self, stage: str, step: int, split: str, values: Mapping[str, float]) -> None:
        if self._writers is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            append_jsonl(self._path, [{"stage": stage, "step": step, "split": split, **finite}], flush=False)
            self._writers.write(self._prefix + stage, step, split, values)

    def advance(self, shown: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.advance(shown)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Called while an error is on its way, it marks the W&B run as failed; a run that was asked to stop is none."""
        self.end()
        if self._owner and self._writers is not None:
            error = sys.exc_info()[1]
            self._writers.close(failed=error is not None and not isinstance(error, Interrupted))


class _Writers:
    """TensorBoard and W&B of a run directory: opened when the first training begins, one of each for the whole run."""

    def __init__(self, run_dir: Path, section: LoggingSection, config: Mapping[str, Any]) -> None:
        self._run_dir, self._project, self._config = run_dir, section.wandb or "", dict(config)
        self._opened: dict[str, Any] = {}
        # what is not installed is said now, not after the weights are read
        wanted = {"tensorboard": ("tensorboardX", section.tensorboard), "wandb": ("wandb", section.wandb)}
        self._clients = {extra: _load(module, extra) for extra, (module, use) in wanted.items() if use}

    def open(self) -> None:
        for name, client in self._clients.items():
            if name in self._opened:
                continue
            if name == "tensorboard":
                self._opened[name] = client.SummaryWriter(str(self._run_dir / name))
                continue
            try:
                self._opened[name] = client.init(
                    project=self._project,
                    id=_wandb_id(self._run_dir / _NOTE, self._project),
                    resume="allow",
                    dir=str(self._run_dir),
                    name=self._run_dir.resolve().name,
                    config=self._config,
                    allow_val_change=True,
                )
            except Exception as error:  # no key, no network, no such project: of several types
                why = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise UserError(
                    f"logging.wandb {self._project}: W&B opens no run: {why}; `wandb login`, set WANDB_MODE=offline, "
                    "or leave logging.wandb null"
                ) from None

    def write(self, stage: str, step: int, split: str, values: Mapping[str, float]) -> None:
        self.open()
        named = {f"{stage}/{split}/{name}": value for name, value in values.items()}
        if "tensorboard" in self._opened:
            for name, value in named.items():
                self._opened["tensorboard"].add_scalar(name, value, step)
        if "wandb" in self._opened:
            self._opened["wandb"].log(named | {f"{stage}/step": step})

    def close(self, *, failed: bool) -> None:
        """Closes what is open; what goes wrong in that is said, and hides no other error."""
        opened, self._opened = self._opened, {}
        for name, writer in opened.items():
            try:
                if name == "tensorboard":
                    writer.close()
                else:
                    writer.finish(**({"exit_code": 1} if failed else {}))
            except Exception as error:
                log.warning("logging.%s: not closed: %s", name, error)


def _wandb_id(file: Path, project: str) -> str:
    """The id under which this run directory is known to W&B: noted before it is used, so that a kill costs nothing."""
    try:
        noted = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"project": None}
        if noted["project"] == project and isinstance(noted["id"], str):
            return noted["id"]
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s: cannot be read; W&B gets a new run", file)
    new = secrets.token_hex(4)
    write_text(file, json.dumps({"project": project, "id": new}) + "\n")
    return new


def _load(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"logging.{extra} needs the package {module}: pip install 'tisdpo_jax[{extra}]'") from None


class Sequenced(Sized, Iterable[Item], Protocol[Item]):
    """Something with a length to go over."""


class Progress:
    """Counts units of a job of known size."""

    def __init__(self, label: str, total: int, *, done: int = 0, unit: str = "step", enabled: bool = True) -> None:
        self._label, self._total, self._done, self._unit = label, total, done, unit
        self._enabled = enabled and jax.process_index() == 0
        self._began = self._spoke = time.monotonic()
        self._first = done
        self._bar: Any = None
        if self._enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=label, unit=unit, file=sys.stderr, dynamic_ncols=True)

    def advance(self, shown: Mapping[str, float] | None = None) -> None:
        """One unit is done; `shown` stands behind the count."""
        self._done += 1
        values = {name: f"{value:.4g}" for name, value in (shown or {}).items()}
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            self._bar.update(1)
            return
        now = time.monotonic()
        if self._enabled and (self._done == self._total or now - self._spoke >= _QUIET_SECONDS):
            self._spoke = now
            left = (now - self._began) / (self._done - self._first) * (self._total - self._done)
            words = "".join(f", {name} {value}" for name, value in values.items())
            count = f"{self._unit} {self._done} of {self._total}"
            log.info("%s: %s%s, about %.0f s left", self._label, count, words, left)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def progress(items: Sequenced[T], label: str, *, unit: str = "batch", enabled: bool = True) -> Iterator[T]:
    """The items, with their progress shown."""
    bar = Progress(label, len(items), unit=unit, enabled=enabled)
    try:
        for item in items:
            yield item
            bar.advance()
    finally:
        bar.close()
