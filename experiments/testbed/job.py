"""The testbed as a job: settings and cells, each computed once and kept, then the tables.

A result is kept under a digest of everything that it depends on, so a run that was stopped goes on where it was, and
one more row costs one more row. Tables are made of what is kept; before that, threads compute what is not there, for
one small model leaves most cores idle.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from experiments.testbed import tables
from experiments.testbed.bench import Bench, Outcome, Setting, cut_steps
from experiments.testbed.cells import Cell, Source, ablations, methods
from experiments.testbed.config import TABLES, Testbed, check, names, rates
from experiments.testbed.tables import Row, Table
from tisdpo_jax.artifacts import digest
from tisdpo_jax.config import resolved

log = logging.getLogger(__name__)

KEPT = 1  # version of what is kept: raised where the same configuration would give other numbers
SWEPT = ("DPO", "TIS-DPO (P)", "TIS-DPO (D)", "TIS-DPO (oracle)")


K = TypeVar("K")


class Locks(Generic[K]):
    """A lock for each key: what several threads want is made by one of them, and the others wait for it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[K, threading.Lock] = {}

    def of(self, key: K) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())


class Kept:
    """Results of a run, on disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._making: Locks[str] = Locks()

    def get(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What was kept under `key`, or what `make` returns (plain values), kept from now on."""
        name = digest(key)
        with self._making.of(name):
            return self._get(self.directory / f"{name}.json", key, make)

    def _get(self, path: Path, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))["value"]
        value = make()
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"key": key, "value": value}), encoding="utf-8")
        os.replace(temporary, path)
        return value


def run(config: Testbed) -> list[Table]:
    """Computes what is not there yet, prints the tables, and writes `testbed.md` and `testbed.json`."""
    check(config)
    directory = Path(config.run_dir).expanduser()
    lab = Lab(config, Kept(directory / "results"))
    wanted = names(config.tables, TABLES, "tables")
    found: list[Table] = []
    makers: dict[str, Callable[[], list[Table]]] = {
        "methods": lambda: methods_tables(lab),
        "ablations": lambda: [ablations_table(lab)],
        **{name: (lambda name=name: [sweep_table(lab, name)]) for name in sweeps(config)},  # type: ignore[misc]  # a default binds the name
    }
    for name in wanted:
        found += makers[name]()
        print("\n\n".join(tables.text(table) for table in found[-2 if name == "methods" else -1 :]), flush=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "testbed.md").write_text("\n\n".join(map(tables.markdown, found)) + "\n", encoding="utf-8")
    content = {"config": resolved(config), "tables": [dataclasses.asdict(table) for table in found]}
    (directory / "testbed.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"tables   {directory / 'testbed.md'}\nnumbers  {directory / 'testbed.json'}", flush=True)
    return found


class Lab:
    """Cells of any setting, from disk or computed; a setting is opened when the first of its cells has to be."""

    def __init__(self, config: Testbed, kept: Kept) -> None:
        self.config, self.kept = config, kept
        self.main = Setting(config.world, config.training.pairs)
        self._open: dict[Setting, Bench] = {}
        self._opening: Locks[Setting] = Locks()

    def bench(self, setting: Setting) -> Bench:
        with self._opening.of(setting):
            if setting not in self._open:
                log.info("setting: %s", setting)
                whole = setting == self.main
                bench = Bench(self.config, setting, whole=whole, log=lambda text: log.info("  %s", text))
                self._open[setting] = bench
            return self._open[setting]

    def close(self, setting: Setting) -> None:
        """Gives up what the cells of a setting share."""
        self._open.pop(setting, None)

    def ahead(self, work: Iterable[Callable[[], Any]]) -> None:
        """Does all of it, `workers` at a time, so that what it comes to is kept. Raises what the first of it raises."""
        pool = ThreadPoolExecutor(self.config.workers)
        try:
            for future in [pool.submit(part) for part in work]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _key(self, setting: Setting, **more: Any) -> dict[str, Any]:
        config = resolved(self.config)
        for name in ("run_dir", "tables", "methods", "world", "workers"):
            config.pop(name)
        config["training"].pop("pairs")
        return {"kept": KEPT, "config": config, "setting": dataclasses.asdict(setting), **more}

    def baseline(self, setting: Setting) -> Outcome:
        make = lambda: _plain(self.bench(setting).baseline())  # noqa: E731 (one line says it)
        return _outcome(self.kept.get(self._key(setting, cell="baseline"), make))

    def outcome(self, setting: Setting, name: str, cell: Cell, rate: int = 0) -> Outcome:
        """A cell at one learning rate of pi+ and pi-, if it has them."""

        def make() -> Any:
            log.info("  training: %s%s", name, f", contrast at rate {rate}" if cell.trained_contrast else "")
            bench = self.bench(setting)
            return _plain(bench.train(cell, bench.ratios(cell.source, rate) if cell.source else None))

        return _outcome(self.kept.get(self._key(setting, cell=dataclasses.asdict(cell), rate=rate), make))

    def estimates(self, setting: Setting, source: Source, rate: int = 0, *, fresh: bool = False) -> np.ndarray:
        """`[S, 3]`: areas under the curve of good and of bad tokens, Spearman's correlation."""

        def make() -> Any:
            bench = self.bench(setting)
            return np.asarray(bench.estimates(bench.ratios(source, rate, fresh=fresh), fresh=fresh)).tolist()

        key = self._key(setting, estimates=source, rate=rate, fresh=fresh)
        return np.asarray(self.kept.get(key, make))

    def controls(self, setting: Setting) -> dict[str, np.ndarray]:
        """The same of scores that know nothing of rewards, `[S, 3]` each."""

        def make() -> Any:
            bench = self.bench(setting)
            random = np.random.default_rng(0)
            masks = [pairs.mask for pairs in bench.pairs]
            scores = {
                "random": [random.random(mask.shape) for mask in masks],
                "uniform": [np.zeros(mask.shape) for mask in masks],
                "position": [-np.broadcast_to(np.arange(mask.shape[-1]), mask.shape).astype(float) for mask in masks],
            }
            return {name: np.asarray(bench.estimates(score)).tolist() for name, score in scores.items()}

        found = self.kept.get(self._key(setting, estimates="controls"), make)
        return {name: np.asarray(values) for name, values in found.items()}

    def best(self, setting: Setting, name: str, cell: Cell, contrast: int | None = None) -> Row:
        """The cell at the learning rates that the tuning seeds like best.

        The rate of pi+ and pi- is that with the largest true reward on average over the rates of the policy: a mean
        of few seeds is noisy, and the largest of a whole grid of pairs of rates would be chance. Then the policy's.

        Args:
          contrast: number of the rate of pi+ and pi-; None tries all.
        """
        grid = rates(self.config.training.rates)
        tried = range(len(grid)) if cell.trained_contrast and contrast is None else [contrast or 0]
        outcomes = {rate: self.outcome(setting, name, cell, rate) for rate in tried}
        tuned = self.config.tuning_seeds
        means = {rate: outcome.reward[-1, :tuned].mean(0) for rate, outcome in outcomes.items()}
        rate = max(tried, key=lambda rate: float(means[rate].mean()))
        at = int(np.argmax(means[rate]))
        whole, start = outcomes[rate], self.baseline(setting)
        return Row(
            name,
            rate=grid[at],
            contrast_rate=grid[rate] if cell.trained_contrast else None,
            contrast=rate,
            reward=whole.reward[:, tuned:, at],
            kl=whole.kl[-1, tuned:, at],
            length=whole.length[-1, tuned:, at],
            grid_reward=np.concatenate([start.reward[0, tuned:], whole.reward[-1, tuned:]], 1),
            grid_kl=np.concatenate([np.zeros_like(start.kl[0, tuned:]), whole.kl[-1, tuned:]], 1),
        )


def methods_tables(lab: Lab) -> list[Table]:
    """How well the constructions find key tokens, and every method against DPO."""
    cells = methods(lab.config.training.beta)
    setting = lab.main
    taken = {"DPO", "TIS-DPO (D)", *names(lab.config.methods, tuple(cells), "methods")}
    own = [name for name in cells if not cells[name].trained_contrast or name in ("TIS-DPO (S)", "TIS-DPO (D)")]

    def best(name: str) -> Row:
        """Controls and transforms take the log-ratios of (D), at the rate that is best for it."""
        of = None if name in own else best("TIS-DPO (D)").contrast
        return lab.best(setting, name, cells[name], of)

    longest_first = sorted(taken.intersection(own), key=lambda name: not cells[name].trained_contrast)
    lab.ahead(functools.partial(best, name) for name in longest_first)
    lab.ahead(functools.partial(best, name) for name in sorted(taken.difference(own)))
    asked = [name for name in names(lab.config.methods, tuple(cells), "methods") if name != "DPO"]
    rows = [best(name) for name in ("DPO", *sorted(asked, key=list(cells).index))]
    start = lab.baseline(setting).reward[0, lab.config.tuning_seeds :, 0]
    return [estimates_table(lab), tables.rewards("Methods", rows, start, steps=_pairs_seen(lab.config))]


def estimates_table(lab: Lab) -> Table:
    """Areas under the curve of key tokens."""
    grid, tuned, setting = rates(lab.config.training.rates), lab.config.tuning_seeds, lab.main
    sources: tuple[tuple[str, Source], ...] = (("(S)", "sft"), ("(D)", "dpo"))

    def of(source: Source) -> list[np.ndarray]:
        return [
            lab.estimates(setting, source, rate, fresh=fresh) for rate in range(len(grid)) for fresh in (False, True)
        ]

    lab.ahead(functools.partial(of, source) for _, source in sources)
    found = {name: values[tuned:] for name, values in lab.controls(setting).items()}
    found["(P)"] = lab.estimates(setting, "prompts")[tuned:]
    for name, source in sources:
        for rate, value in enumerate(grid):
            found[f"{name} at {value:g}"] = lab.estimates(setting, source, rate)[tuned:]
            found[f"{name} at {value:g}, unseen pairs"] = lab.estimates(setting, source, rate, fresh=True)[tuned:]
    return tables.estimates(found)


def ablations_table(lab: Lab) -> Table:
    """Variants of (D), at the contrastive models that are best for it."""
    beta = lab.config.training.beta
    whole = lab.best(lab.main, "TIS-DPO (D)", methods(beta)["TIS-DPO (D)"])
    work = [functools.partial(lab.best, lab.main, name, cell, whole.contrast) for name, cell in ablations(beta).items()]
    lab.ahead(work)
    dpo = lab.best(lab.main, "DPO", methods(beta)["DPO"])
    start = lab.baseline(lab.main).reward[0, lab.config.tuning_seeds :, 0]
    return tables.rewards("Ablations", [dpo, *(best() for best in work)], start, steps=_pairs_seen(lab.config))


def sweeps(config: Testbed) -> dict[str, tuple[str, dict[str, Setting]]]:
    """Settings by table: title, and label -> setting."""
    world, pairs = config.world, config.training.pairs

    def of(**fields: Any) -> Setting:
        return Setting(dataclasses.replace(world, **fields), pairs)

    few = max(pairs // 4, config.training.batch_size)
    return {
        "noise": (
            "Labels turned round",
            {f"{share:.0%}": of(label_noise=share) for share in (0.0, 0.1, 0.2, 0.3)},
        ),
        "spread": (
            "Persistence: 0 mixes good and bad tokens, towards 1 whole responses are either",
            {f"{value:g}": of(persistence=value) for value in (0.0, 0.5, 0.9)},
        ),
        "likelihood": (
            "Correlation of likelihood and reward (log odds)",
            {f"{value:+g}": of(correlation=value) for value in (-1.0, 0.0, 1.0)},
        ),
        "data": (
            "Pairs of the policy; pairs of pi+ and pi-",
            {
                f"{few}; the same": Setting(world, few),
                f"{pairs}; the same": Setting(world, pairs),
                f"{few}; {4 * pairs} others": Setting(world, few, 4 * pairs),
                f"{pairs}; {4 * pairs} others": Setting(world, pairs, 4 * pairs),
            },
        ),
    }


def sweep_table(lab: Lab, name: str) -> Table:
    """DPO, (P), (S), (D) and the true rewards in several settings, with the rates of pi+ and pi- of the main one."""
    cells = methods(lab.config.training.beta)
    title, settings = sweeps(lab.config)[name]
    contrasts = {
        method: lab.best(lab.main, method, cells[method]).contrast if cells[method].trained_contrast else None
        for method in SWEPT
    }

    def rows(setting: Setting) -> list[Row]:
        found = [lab.best(setting, method, cells[method], contrasts[method]) for method in SWEPT]
        if setting != lab.main:
            lab.close(setting)
        return found

    lab.ahead(functools.partial(rows, setting) for setting in settings.values())
    return tables.sweep(title, {label: rows(setting) for label, setting in settings.items()})


def _pairs_seen(config: Testbed) -> list[int]:
    """Pairs seen at each cut of the learning curve."""
    training = config.training
    seen = round(training.pairs * training.epochs)
    steps = -(-seen // training.batch_size)
    return [min(step * training.batch_size, seen) for step in cut_steps(steps, config.cuts)]


def _plain(outcome: Outcome) -> list[Any]:
    return [np.asarray(part).tolist() for part in outcome]


def _outcome(plain: Any) -> Outcome:
    return Outcome(*(np.asarray(part) for part in plain))
