"""A plan is the training's own program: the same flops, traffic and memory, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tisdpo_jax.cli import main
from tisdpo_jax.config import Experiment, build, idle, nest, validate, without
from tisdpo_jax.errors import ConfigError, UserError
from tisdpo_jax.models import SIZES
from tisdpo_jax.planning.advice import advise, savings
from tisdpo_jax.planning.compiled import memory_asked
from tisdpo_jax.planning.program import Memory, Program, read_program
from tisdpo_jax.planning.report import StagePlan, plan_text, resident
from tisdpo_jax.planning.topology import CHIPS, open_topology, parse_topology
from tisdpo_jax.training import step as step_programs
from tisdpo_jax.verbs import abstract
from tisdpo_jax.verbs import plan as recipe

CPU = parse_topology("cpu:8")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def config_of(fields: dict[str, object]) -> Experiment:
    values = {name: str(value) for name, value in fields.items()}
    config = build(Experiment, nest(values, where="test"), where="test")
    return validate(without(config, {"contrast.training.batch_size"} & idle(config).keys()))


def session_of(fields: dict[str, object]) -> Any:
    config = config_of(fields)
    return abstract.abstract_session(config, abstract.read_transformer(config), open_topology(CPU))


def lowered(fields: dict[str, object]) -> recipe.Lowered:
    return _lowered(tuple(sorted((name, str(value)) for name, value in fields.items())))


@functools.lru_cache(maxsize=32)
def _lowered(fields: tuple[tuple[str, str], ...]) -> recipe.Lowered:
    session = session_of(dict(fields))
    (step,) = [step for step in recipe.trainings(session.config) if step.kind == "policy"]
    return recipe.lower_training(session, abstract.read_lengths(session.config, "").pairs, step)


JOBS: dict[str, dict[str, object]] = {
    "dpo": {"contrast.construction": "dpo", "data.eval_fraction": 0.2},
    "online on a mesh": {
        "contrast.construction": "sft",
        "scores": "online",
        "train.gradient_accumulation_steps": 2,
        "mesh.fsdp": 4,
        "mesh.tensor": 2,
        "model.remat": "full",
    },
    "states on disk": {"contrast.construction": "prompts", "reference_states": "cached"},
    "int8": {"contrast.construction": "prompts", "model.frozen_dtype": "int8", "scores": "online"},
    "adapters": {"lora.rank": 2, "sft.epochs": 0.5, "sft.batch_size": 8, "contrast.construction": "prompts"},
}

LONG = ("adapters", "int8", "states on disk", "online on a mesh")  # what is lowered is the same stage


@pytest.mark.parametrize("job", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in JOBS])
def test_the_plan_is_the_program_that_training_runs(
    job: str, tiny: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**tiny, **JOBS[job], "run_dir": tmp_path / "run"}
    if fields.get("contrast.construction") == "prompts":
        del fields["contrast.training.batch_size"]
    ran: list[Program] = []
    compile_step = step_programs.compile_step

    def spy(*given: Any) -> Any:
        step = compile_step(*given)
        lower = step.lower

        class Step:
            _cache_size = staticmethod(step._cache_size)
            known = False

            def __call__(self, *arguments: Any) -> Any:
                if not self.known:
                    ran.append(read_program(lower(*arguments).compile()))
                    self.known = True
                return step(*arguments)

        return Step()

    monkeypatch.setattr(step_programs, "compile_step", spy)
    monkeypatch.setattr(step_programs, "_programs", step_programs._programs.__wrapped__)  # each training its own
    assert main(["train", *(f"--{name}={value}" for name, value in fields.items())]) == 0
    planned = recipe.plan(config_of(fields), [CPU], lengths="data", stage="all")
    programs = [plan.program for plan in planned if plan.stage != "score"]
    assert len(programs) == len(ran)
    for found, expected in zip(programs, ran, strict=True):
        assert found is not None and found.memory is not None and expected.memory is not None
        assert found.memory.hbm == expected.memory.hbm
        assert found == expected


@pytest.mark.parametrize("fields", [{}, {"lora.rank": 2}, {"scores": "online", "mesh.tensor": 2, "mesh.fsdp": 4}])
def test_what_is_resident_is_what_the_program_is_given(tiny: dict[str, object], fields: dict[str, object]) -> None:
    step = lowered({**tiny, **fields})
    held = resident(step.state, step.frozen, step.batch, step.roles)
    memory = read_program(step.lowered.compile()).memory
    assert memory is not None
    # what a step does not read, the ends of responses and numbers of pairs, is dropped from its program
    ends = [view.ends for view in step.batch.views.values()]
    unread = sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in ends)
    assert unread <= sum(item.chip for item in held) - memory.arguments <= unread + 8


def test_roles_and_terms_are_named(tiny: dict[str, object]) -> None:
    online = {"scores": "online", "contrast.construction": "dpo"}
    for lora, names in (
        (0, {"trained parameters", "trained optimizer", "base parameters", "plus parameters", "minus parameters"}),
        (2, {"trained adapters", "trained optimizer", "base parameters", "plus adapters", "minus adapters"}),
    ):
        step = lowered({**tiny, **online, "lora.rank": lora})
        held = {f"{item.name} {item.term}": item for item in resident(step.state, step.frozen, step.batch, step.roles)}
        assert names | {"batch tokens"} == held.keys()
        readers = ("policy", "reference", "plus", "minus") if lora else ("reference",)
        assert held["base parameters"].used_by == readers
        assert held["base parameters"].chip < held["base parameters"].total
    alone = lowered({**tiny, "lora.rank": 2})  # pi+ and pi- were cached: nobody plays them
    (base,) = [item for item in resident(*alone[3:6], alone.roles) if item.name == "base"]
    assert base.used_by == ("policy", "reference")


def refused(fields: dict[str, object]) -> tuple[Experiment, StagePlan]:
    """A plan as it is when the compiler refuses a program, which asked for a little more than what is resident."""
    step = lowered(fields)
    held = resident(step.state, step.frozen, step.batch, step.roles)
    plan = StagePlan(
        spec=parse_topology("v5e:2x4"),
        stage="policy",
        mesh={"data": 1, "fsdp": 8, "tensor": 1},
        model="tiny",
        pairs=8,
        rows=(("main", 8, 64),),
        lengths="nowhere",
        resident=held,
        useful=step.useful,
        recomputed=step.recomputed,
        program=None,
        needed=sum(item.chip for item in held) + 10**6,
        compile_seconds=0.0,
    )
    return config_of(fields), plan


@pytest.mark.parametrize(
    ("now", "field", "value", "text"),
    [
        ({"train.optimizer.name": "adamw"}, "train.optimizer.name", "rmsprop", "train.optimizer.name rmsprop"),
        (
            # the tiny model's matrices are too small to be factored
            {"train.optimizer.name": "rmsprop", "model.path": "demo", "data.train": "tfds:none"},
            "train.optimizer.name",
            "adafactor",
            "train.optimizer.name adafactor",
        ),
        ({}, "model.param_dtype", "bfloat16", "model.param_dtype bfloat16"),
        (
            # with bfloat16 in place of a small part, the norms and the head
            {"model.path": "llama2_7b", "data.train": "tfds:none", "model.dtype": "bfloat16"},
            "model.frozen_dtype",
            "int8",
            "model.frozen_dtype int8",
        ),
        (
            {"model.path": "llama2_7b", "data.train": "tfds:none", "model.dtype": "bfloat16"},
            "reference_states",
            "cached",
            "reference_states cached",
        ),
        (
            {"scores": "online", "contrast.construction": "dpo"},
            "scores",
            "cached",
            "scores cached",
        ),
    ],
)
def test_what_a_change_is_said_to_save_it_saves(
    tiny: dict[str, object], now: dict[str, object], field: str, value: str, text: str
) -> None:
    def bytes_of(plan: StagePlan) -> int:
        return sum(item.chip for item in plan.resident if item.name != "batch")

    config, plan = refused({**tiny, **now})
    _, changed = refused({**tiny, **now, field: value})
    (found,) = [change for change in savings(config, plan) if change.text.startswith(text)]
    assert found.saves == pytest.approx(bytes_of(plan) - bytes_of(changed), rel=0.05)


def test_a_plan_that_fits_is_left_alone_and_one_that_does_not_is_helped(tiny: dict[str, object]) -> None:
    config, plan = refused({**tiny, "model.remat": "none"})
    assert plan.fits is False
    words = " ".join(change.text for change in savings(config, plan))
    for field in ("lora.rank", "model.remat full", "chips", "train.optimizer.name", "model.param_dtype"):
        assert field in words
    big = dataclasses.replace(plan, needed=CHIPS["v5e"].hbm + 2**30)
    assert advise(config, big)[0].startswith("1.00 GiB too much")
    assert "DOES NOT FIT" in plan_text([big])
    room = CHIPS["v5e"].hbm
    for spare, peak, reserved, fits in (
        *((0, 0, 0, True), (-1, 0, 0, False), (-1, room, 0, True), (-1, room + 1, 0, False)),
        *((-1, room + 1, room, True), (0, room, room + 1, False)),
    ):
        memory = Memory(room - spare - 5, 4, 3, 2, 0, peak, reserved)
        compiled = dataclasses.replace(plan, program=Program(1, 1, (), (), (), memory), needed=None)
        assert compiled.fits is fits
        assert bool(advise(config, compiled)) is not fits
    shown = Memory(2 * 2**30, 2**30, 0, 0, 0, 3 * 2**28, 5 * 2**28)
    text = plan_text([dataclasses.replace(plan, program=Program(1, 1, (), (), (), shown), needed=None)])
    assert "1.25 GiB of 15.75 GiB: fits (0.75 GiB in use at the peak; sum of the parts 3.00 GiB)" in text


def test_no_buffer_over_the_vocabulary_is_larger_than_a_block_of_the_head(tiny: dict[str, object]) -> None:
    """SmolLM2's shapes: 49,152 entries, an eighth of them on each device; a block holds 16 tokens of each device."""
    sizes, shards, chunk = SIZES["smollm2_135m"], 8, 16
    job = {"model.path": "demo", "data.train": "tfds:none", "data.max_length": 512, "data.max_response": 256}
    (plan,) = recipe.plan(config_of({**tiny, **job, "model.head_chunk": chunk, "model.remat": "full"}), [CPU])
    assert plan.program is not None and max(rows * tokens for _, rows, tokens in plan.rows) > 4 * shards * chunk
    entries = {sizes.vocab_size, sizes.vocab_size // shards}
    of_weights = {sizes.hidden_size, sizes.hidden_size // shards}
    over_vocabulary = [
        buffer
        for buffer in plan.program.buffers
        if buffer.dtype == "f32" and entries & set(buffer.shape) and not of_weights & set(buffer.shape)
    ]
    block = shards * chunk * sizes.vocab_size // shards * 4
    assert over_vocabulary and max(buffer.bytes for buffer in over_vocabulary) <= block


def test_padding_is_waste_and_what_remat_computes_again_is_told_apart_from_it(tiny: dict[str, object]) -> None:
    packed, padded, again = (
        recipe.plan(config_of({**tiny, **more}), [CPU])[0]
        for more in ({"model.remat": "none"}, {"model.remat": "none", "data.packing": "none"}, {"model.remat": "full"})
    )
    assert packed.useful == padded.useful
    assert packed.waste is not None and padded.waste is not None
    assert again.waste is not None and again.waste_beside_remat is not None
    assert 1 < packed.waste < min(padded.waste, again.waste)
    assert again.waste_beside_remat < again.waste and packed.waste_beside_remat == packed.waste


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("models/Llama-2-7b-hf", "llama2_7b"),
        ("Meta-Llama-3.1-8B-Instruct", "llama31_8b"),
        ("/nowhere/Llama-3.2-1B", "llama32_1b"),
        ("Mistral-7B-v0.1", "mistral_7b"),
        ("Qwen2.5-7B-Instruct", "qwen2_7b"),
        ("Qwen3-8B", "qwen3_8b"),
        ("llama2_13b", "llama2_13b"),
        ("demo", "smollm2_135m"),
    ],
)
def test_released_models_are_known_by_name(tiny: dict[str, object], name: str, key: str) -> None:
    assert abstract.read_transformer(config_of({**tiny, "model.path": name})) == SIZES[key]


def test_a_model_that_is_there_is_read(tiny: dict[str, object]) -> None:
    assert abstract.read_transformer(config_of(tiny)).max_positions == 128


def test_an_unknown_model_says_what_is_known(tiny: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model.path models/Falcon: no such directory.*llama2_7b"):
        abstract.read_transformer(config_of({**tiny, "model.path": "models/Falcon"}))


def test_lengths_come_from_the_data_where_they_are_at_hand(tiny: dict[str, object]) -> None:
    config = config_of(tiny)
    assert abstract.read_lengths(config, "").source.startswith("40 pairs of ")
    away = config_of({**tiny, "data.train": "tfds:hh/harmless-base"})
    assert "HH" in abstract.read_lengths(away, "").source
    full = abstract.read_lengths(config, "full").pairs.train.groups[0]
    assert len(full.prompt) + len(full.chosen) == 48 and len(full.chosen) == 24


def test_what_the_compiler_says_of_memory_is_understood() -> None:
    gib = 2**30
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (84.00G) exceeds"
    )
    assert memory_asked(said, 3 * gib) == 87 * gib
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded"
    assert memory_asked(said, 3 * gib) == round(20.5 * gib)
    assert memory_asked("RESOURCE_EXHAUSTED: something else", 0) is None


def test_held_out_pairs_widen_the_responses_as_in_a_run(tiny: dict[str, object]) -> None:
    config = config_of(tiny)
    pairs = abstract.read_lengths(config, "").pairs
    longer = abstract.read_lengths(config_of({**tiny, "data.max_length": 200, "data.max_response": 100}), "full").pairs
    assert pairs.train.elements() < dataclasses.replace(pairs, eval=longer.train).elements == 104


def command(tiny: dict[str, object], *options: str) -> list[str]:
    return ["plan", *(f"--{name}={value}" for name, value in tiny.items()), *options]


def test_the_command_prints_a_table_and_json(tiny: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tiny, "--topology", "cpu:8")) == 0
    text = capsys.readouterr().out
    for word in (
        "cpu:8  stage policy",
        "HBM a chip",
        "trained optimizer",
        "waste",
        "collectives",
        "virtual CPU devices",
    ):
        assert word in text
    assert main(command(tiny, "--json", "--topology=cpu:8", "--stage", "score")) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["stage"] == "score" and found["chips"] == 8 and found["hbm"] > 0
    assert found["program"]["memory"]["arguments"] > 0
    assert found["blind_spots"] and found["waste"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"name a topology: --topology v5e:8x8"),
        (("--topology",), r"--topology needs a value"),
        (("--topology", "v9:8"), r"unknown chip 'v9'"),
        (("--topology", "cpu:8", "--lengths", "long"), r"--lengths is 'long'; it must be one of data, hh, full"),
        (("--topology", "cpu:8", "--stage", "sft"), r"--stage sft: this configuration has plus, minus, policy, score"),
        (
            ("--topology", "cpu:8", "--train.batch_size", "12", "--train.gradient_accumulation_steps", "4"),
            r"leaves 3 pairs .* to 1",
        ),
        (("--topology", "cpu:8", "--mesh.compiler_options", "{xla_no: 1}"), r"mesh.compiler_options: .*xla_no"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    tiny: dict[str, object], options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert main(command(tiny, *options)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error), error


def test_one_topology_that_cannot_be_leaves_the_others(
    tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_only_cpu(spec: Any) -> Any:
        if spec.chip is not None:
            raise UserError(f"{spec.name}: not today")
        return open_topology(spec)

    monkeypatch.setattr(recipe, "open_topology", open_only_cpu)
    config = config_of(tiny)
    found = recipe.plan(config, [parse_topology("v5e:8x8"), CPU])
    assert [plan.spec.name for plan in found] == ["cpu:8"]
    with pytest.raises(UserError, match="not today"):
        recipe.plan(config, [parse_topology("v5e:8x8")])
