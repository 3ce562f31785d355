"""`python -m experiments.testbed`: tables, what is kept, mistakes; slowly, the main effects."""

from __future__ import annotations

import functools
import json
import threading

import numpy as np
import pytest

from experiments.testbed import Setting, job, replicas
from experiments.testbed.__main__ import main
from experiments.testbed.bench import Bench, Outcome
from experiments.testbed.cells import ablations, columns, methods
from experiments.testbed.config import Testbed, TestbedTraining, TinyModelSection, WorldSection, check
from experiments.testbed.world import draw_pairs, make_world

TINY = {
    "seeds": 2,
    "tuning_seeds": 1,
    "prompts": 8,
    "cuts": 2,
    "tables": "methods",
    "methods": "TIS-DPO (P)",
    "world.topics": 2,
    "world.words": 8,
    "world.shortest": 2,
    "world.longest": 3,
    "world.context": 1,
    "model.width": 8,
    "model.layers": 1,
    "model.heads": 2,
    "model.corpus": 32,
    "model.steps": 2,
    "model.batch_size": 16,
    "training.pairs": 8,
    "training.batch_size": 4,
    "training.rates": "1e-2",
}


def command(run_dir, **fields) -> int:
    """Exit code of the command with the tiny fields, and others over them."""
    values = {**TINY, **{name.replace("__", "."): value for name, value in fields.items()}, "run_dir": run_dir}
    return main([part for name, value in values.items() for part in (f"--{name}", str(value))])


class Untrained(Bench):
    """A bench that trains nothing: policies are numbers drawn, log-ratios the true rewards and noise."""

    def __init__(self, config, setting, *, whole=True, log=None):
        self.config, self.setting = config, setting
        self.seeds = range(config.tuning_seeds + config.seeds)
        world = make_world(0, topics=2, words=8, shortest=2, longest=3, context=1)
        self.pairs = self.fresh = [draw_pairs(world, seed, setting.pairs) for seed in self.seeds]

    def baseline(self):
        return Outcome(*np.zeros((3, 1, len(self.seeds), 1)))

    def train(self, cell, ratios=None):
        return Outcome(*np.random.default_rng(0).random((3, self.config.cuts, len(self.seeds), 1)))

    def ratios(self, source, rate=0, *, fresh=False):
        return [pairs.rewards + np.random.default_rng(1).normal(size=pairs.rewards.shape) for pairs in self.pairs]


def test_a_run_prints_and_writes_its_tables_and_keeps_what_it_computed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "Bench", Untrained)
    assert command(tmp_path) == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "testbed.md").read_text()
    content = json.loads((tmp_path / "testbed.json").read_text())
    assert [table["title"] for table in content["tables"]] == ["Finding key tokens", "Methods"]
    for table in content["tables"]:
        assert f"## {table['title']}" in written and table["title"] in printed
        for row in table["rows"]:
            assert len(row) == len(table["columns"]) and f"| {' | '.join(row)} |" in written
    estimates, compared = content["tables"]
    assert [row[0] for row in compared["rows"]] == ["DPO", "TIS-DPO (P)"]
    assert {"random", "uniform", "position", "(P)", "(S) at 0.01", "(D) at 0.01, unseen pairs"} <= {
        row[0] for row in estimates["rows"]
    }
    assert content["config"]["world"]["words"] == 8

    def nothing(*_, **__):
        raise AssertionError("what is there is computed again")

    monkeypatch.setattr(job, "Bench", nothing)
    assert command(tmp_path) == 0
    assert capsys.readouterr().out == printed
    for changed in ({"world__reward": 2.0}, {"training__pairs": 9}, {"training__beta": 0.2}, {"seeds": 3}):
        with pytest.raises(AssertionError, match="computed again"):
            command(tmp_path, **changed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tables": "method"}, "tables: unknown 'method'; did you mean methods?"),
        ({"methods": "DPPO"}, "methods: unknown 'DPPO'; did you mean DPO?"),
        ({"training__rates": "a"}, "training.rates is 'a'"),
        ({"training__rates": "0,1"}, "it needs numbers above 0"),
        ({"seeds": 1}, "seeds is 1; it must be at least 2"),
        ({"world__longest": 1}, "world.longest is 1; it must be at least 2"),
        ({"world__persistence": 1}, "world.persistence is 1.0; it must be between 0 and 0.999"),
        ({"model__width": 6}, "model.width 6 must be a multiple of twice model.heads 2"),
        ({"world__word": 6}, "unknown field world.word; did you mean world.words?"),
        ({"lora__rank": 6}, "unknown field lora"),
        ({"run_dir": "s3://x"}, "run_dir is s3://x"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(tmp_path, capsys, fields, message):
    assert command(**({"run_dir": tmp_path} | fields)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_sweeps_are_settings_of_one_thing_each():
    config = check(Testbed())
    for name, (_, settings) in job.sweeps(config).items():
        assert len(set(settings.values())) == len(settings) > 2, name
        assert job.Lab(config, job.Kept(None)).main in settings.values(), name  # type: ignore[arg-type]  # nothing is kept


def test_work_is_done_ahead_and_its_mistakes_are_raised():
    lab = job.Lab(Testbed(workers=2), job.Kept(None))  # type: ignore[arg-type]  # nothing is kept
    done = []
    lab.ahead(functools.partial(done.append, number) for number in range(5))
    assert sorted(done) == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        lab.ahead([lambda: None, lambda: 1 / 0, lambda: None])


def test_what_several_threads_want_is_made_once(tmp_path):
    lab = job.Lab(Testbed(workers=8), job.Kept(tmp_path))
    together = threading.Barrier(8)
    counted = []

    def ask():
        together.wait(10)
        assert lab.kept.get({"a": 1}, lambda: counted.append(1) or 7) == 7

    lab.ahead([ask] * 8)
    assert counted == [1]


def test_rates_are_chosen_on_the_tuning_seeds_and_reported_on_the_others(tmp_path, monkeypatch):
    """Tuning seeds like the first rate of the policy and the second of the contrast, the reported ones the others."""
    config = Testbed(seeds=3, tuning_seeds=2, cuts=1, training=TestbedTraining(rates="1e-3,1e-2"))
    lab = job.Lab(config, job.Kept(tmp_path))

    def outcome(setting, name, cell, rate=0):
        tuned, reported = np.asarray([[2.0, 1.0]]) + rate, np.asarray([[1.0, 9.0]]) - rate
        reward = np.concatenate([np.repeat(tuned, 2, 0), np.repeat(reported, 3, 0)])[None]
        return Outcome(reward, 0 * reward, 0 * reward)

    monkeypatch.setattr(lab, "outcome", outcome)
    monkeypatch.setattr(lab, "baseline", lambda setting: Outcome(*[np.zeros((1, 5, 1))] * 3))
    row = lab.best(lab.main, "TIS-DPO (D)", methods(0.1)["TIS-DPO (D)"])
    assert (row.rate, row.contrast_rate, row.contrast) == (1e-3, 1e-2, 1)
    np.testing.assert_array_equal(row.reward, np.zeros((1, 3)))  # 1 - rate: of the reported seeds, at what was chosen


@pytest.mark.slow
def test_log_ratios_are_those_of_the_better_model_over_the_worse_one():
    small = {
        "world": WorldSection(topics=2, words=8, shortest=2, longest=3, context=1),
        "model": TinyModelSection(width=8, layers=1, heads=2, corpus=32, steps=2, batch_size=16),
        "training": TestbedTraining(pairs=8, batch_size=4, rates="1e-2", epochs=4),
    }
    config = Testbed(seeds=2, tuning_seeds=1, prompts=4, cuts=1, **small)
    bench = Bench(config, Setting(config.world, 8))
    for source in ("sft", "dpo"):
        for ratio, drawn in zip(bench.ratios(source), bench.pairs, strict=True):
            chosen, rejected = (ratio * drawn.mask).sum((0, 2))
            assert chosen > rejected, source
    plus, minus = (replicas.scores(bench.model, bench.base, bench._whole(False), view) for view in ("plus", "minus"))
    np.testing.assert_allclose(np.stack(bench.ratios("prompts")), np.asarray(plus - minus), atol=1e-6)


def test_weights_of_cells_are_what_they_say():
    pairs = [draw_pairs(make_world(seed), seed, 6) for seed in (0, 1)]
    cells = methods(0.1) | ablations(0.1)

    def made(name):
        ratios = [drawn.rewards for drawn in pairs]
        return [found["token_weights"] for found in columns(cells[name], pairs, ratios, [0, 1])]

    for drawn, uniform, true, doubled, wide in zip(
        pairs, *map(made, ("weights: uniform", "TIS-DPO (oracle)", "(D) k = 2", "(D) L, U = -3, 3")), strict=True
    ):
        np.testing.assert_array_equal(uniform, drawn.mask)
        sign = np.asarray([1.0, -1.0])[:, None]
        np.testing.assert_allclose(true, drawn.mask * np.exp(sign * np.clip(drawn.rewards, -0.5, 1.5)), rtol=1e-5)
        np.testing.assert_allclose(doubled, 2 * true, rtol=1e-5)
        np.testing.assert_allclose(wide, drawn.mask * np.exp(sign * drawn.rewards), rtol=1e-5)
    one, other = made("weights: log-uniform")
    assert (one[:, :, :4] != other[:, :, :4]).all()  # of each seed its own draws


@pytest.mark.slow
def test_the_main_effects_have_their_direction(tmp_path):
    """A reduced version, two seeds: what docs/experiments.md rests on."""
    config = Testbed(seeds=2, tuning_seeds=1, cuts=1, training=TestbedTraining(rates="3e-4,3e-3"))
    lab, setting = job.Lab(config, job.Kept(tmp_path)), Setting(config.world, config.training.pairs)
    controls = lab.controls(setting)
    keys = {name: values[:, :2].mean(1) for name, values in controls.items()}
    for source in ("prompts", "dpo", "sft"):
        found = lab.estimates(setting, source)[:, :2].mean(1)
        assert (found > 0.6).all() and all((found > known + 0.1).all() for known in keys.values()), source
    cells = methods(config.training.beta)
    rows = {name: lab.best(setting, name, cells[name]) for name in ("DPO", "TIS-DPO (P)", "TIS-DPO (oracle)")}
    start = lab.baseline(setting).reward[0, 1:, 0]
    assert (rows["DPO"].reward[-1] > start + 0.3).all()
    assert (rows["TIS-DPO (oracle)"].reward[-1] > rows["DPO"].reward[-1] + 0.3).all()
    assert rows["TIS-DPO (P)"].reward[-1].mean() > rows["DPO"].reward[-1].mean()
