"""Laws of reading a compiled program: what runs n times counts n times, and known traffic counts exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from tisdpo_jax.planning import _hlo
from tisdpo_jax.planning._hlo import Shape, splash_flops
from tisdpo_jax.planning.program import Program, read_program, read_text, reserved

DEVICES = 8
ROWS, WIDTH = 64, 96
ONE_PRODUCT = 2 * ROWS * WIDTH * WIDTH


def compiled(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def read(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Program:
    program = read_program(compiled(function, *shapes))
    assert program.unknown_loops == ()
    return program


def layer(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


def test_flops_of_a_program_without_loops_are_those_of_cost_analysis() -> None:
    def loss(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        scores = jnp.einsum("btd,bsd->bts", x, x)
        return jnp.sum(jnp.square(jnp.einsum("bts,bsd->btd", scores, x) @ a @ b))

    program = compiled(jax.grad(loss, argnums=(0, 1, 2)), (8, 256, 512), (512, 1024), (1024, 512))
    expected = program.cost_analysis()["flops"]
    assert read_program(program).matmul_flops == pytest.approx(expected, rel=2e-3)


def test_gradients_of_a_scan_count_three_times_with_remat_four() -> None:
    def loss(x: jax.Array, w: jax.Array, *, remat: bool) -> jax.Array:
        body = jax.checkpoint(layer) if remat else layer
        return jax.lax.scan(lambda x, w: (body(x, w), None), x, w)[0].sum()

    for remat, products in ((False, 3), (True, 4)):
        grad = jax.grad(lambda x, w, remat=remat: loss(x, w, remat=remat), argnums=(0, 1))
        assert read(grad, (ROWS, WIDTH), (5, WIDTH, WIDTH)).matmul_flops == products * 5 * ONE_PRODUCT


def test_nested_scans_multiply() -> None:
    def nested(x: jax.Array, w: jax.Array) -> jax.Array:
        def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0], None

        return jax.lax.scan(outer, x, None, length=4)[0]

    assert read(nested, (ROWS, WIDTH), (3, WIDTH, WIDTH)).matmul_flops == 12 * ONE_PRODUCT


def test_a_loop_is_counted_from_its_condition_where_the_compiler_wrote_nothing_down() -> None:
    program = compiled(lambda x, w: jax.lax.fori_loop(2, 9, lambda _, x: layer(x, w), x), (ROWS, WIDTH), (WIDTH, WIDTH))
    text = program.as_text()
    assert "known_trip_count" in text
    stripped = read_text(text.replace("known_trip_count", "forgotten"))
    assert stripped.unknown_loops == ()
    assert stripped.matmul_flops == read_text(text).matmul_flops == 7 * ONE_PRODUCT


def test_a_loop_of_unknown_length_is_named() -> None:
    def until(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: layer(x, w), x)

    program = read_program(compiled(until, (ROWS, WIDTH), (WIDTH, WIDTH)))
    assert len(program.unknown_loops) == 1
    assert program.matmul_flops == ONE_PRODUCT


def test_a_loop_that_is_longer_in_each_round_of_another_is_of_unknown_length() -> None:
    def triangle(x: jax.Array, w: jax.Array) -> jax.Array:
        def row(i: jax.Array, x: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, i + 1, lambda _, x: layer(x, w), x)

        return jax.lax.fori_loop(0, 3, row, x)

    program = read_program(compiled(triangle, (ROWS, WIDTH), (WIDTH, WIDTH)))
    assert (len(program.unknown_loops), program.matmul_flops) == (1, 3 * ONE_PRODUCT)


def test_of_a_conditional_the_larger_branch_counts() -> None:
    def either(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda: layer(layer(x, w), w), lambda: layer(x, w))

    assert read(either, (ROWS, WIDTH), (WIDTH, WIDTH)).matmul_flops == 2 * ONE_PRODUCT


def test_a_convolution_is_what_the_compiler_says() -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 1), ((1, 2), (0, 1)), lhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    program = compiled(convolve, (2, 17, 13, 32), (3, 2, 32, 64))
    assert read_program(program).matmul_flops == pytest.approx(program.cost_analysis()["flops"], rel=2e-3)


SIZE = DEVICES * 16
SHARD = SIZE * WIDTH * 4 // DEVICES  # bytes
WHOLE = SIZE * WIDTH * 4
COLLECTIVES: dict[str, tuple[Callable[[jax.Array], jax.Array], int, int]] = {
    # kind -> function of a shard, bytes of the larger side, bytes that a device sends
    "all-gather": (lambda x: jax.lax.all_gather(x, "x", tiled=True), WHOLE, WHOLE * 7 // 8),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "x", tiled=True), SHARD, SHARD * 7 // 8),
    "all-reduce": (lambda x: jax.lax.psum(x, "x"), SHARD, SHARD * 14 // 8),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "x", 0, 0, tiled=True), SHARD, SHARD * 7 // 8),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "x", [(i, (i + 1) % DEVICES) for i in range(DEVICES)]),
        SHARD,
        SHARD,
    ),
}


def over_devices(function: Callable[[jax.Array], jax.Array], mesh_shape: tuple[int, ...] = (DEVICES,)) -> Any:
    mesh = Mesh(np.asarray(jax.devices()[:DEVICES]).reshape(mesh_shape), ("x", "y")[: len(mesh_shape)])
    spec = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_traffic_of_known_size_counts_exactly(kind: str) -> None:
    function, size, wire = COLLECTIVES[kind]
    times = 3

    def run(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda total, _: (total + function(x * total[0, 0]).sum(), None), x, None, length=times)[0]

    program = read(over_devices(run), (SIZE, WIDTH))
    (found,) = [collective for collective in program.collectives if collective.kind == kind]
    assert (found.count, found.bytes, found.wire_bytes) == (times, times * size, times * wire)
    assert program.collective_bytes == times * size and program.wire_bytes == times * wire


def test_a_collective_over_one_axis_of_the_mesh_goes_round_that_axis_only() -> None:
    program = read(over_devices(lambda x: jax.lax.psum(x, "y"), (2, 4)), (SIZE, WIDTH))
    (found,) = program.collectives
    assert (found.bytes, found.wire_bytes) == (SHARD, SHARD * 6 // 4)


def test_memory_is_the_compilers_and_a_donated_argument_counts_once() -> None:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((ROWS, WIDTH), (WIDTH, WIDTH))]
    program = jax.jit(layer, donate_argnums=0).lower(*shapes).compile()
    stats, memory = program.memory_analysis(), read_program(program).memory
    assert stats.alias_size_in_bytes == 4 * ROWS * WIDTH
    assert memory is not None
    assert memory.arguments == 4 * (ROWS * WIDTH + WIDTH * WIDTH)
    assert memory.peak == stats.peak_memory_in_bytes
    assert memory.hbm == (
        stats.argument_size_in_bytes + stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    )


def test_what_the_compiler_reserves_is_read_off_its_report(tmp_path: Path) -> None:
    assert reserved(tmp_path) == 0
    report = "Memory Space: default (color=0)\nTotal bytes: {} (x)\n\nMemory Space: vmem (color=1)\nTotal bytes: 9999\n"
    for module, size in (("step", 345), ("small", 12)):
        (tmp_path / f"{module}.after_optimizations-memory-usage-report.txt").write_text(report.format(size))
    (tmp_path / "other.txt").write_text(report.format(678))
    assert reserved(tmp_path) == 345


def test_a_large_buffer_is_found_and_one_inside_a_fusion_is_not() -> None:
    vocabulary = 4096

    def loss(x: jax.Array, head: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(x @ head, axis=-1).sum()

    program = read(loss, (ROWS, WIDTH), (WIDTH, vocabulary))
    largest = program.buffers[0]
    assert (largest.dtype, largest.shape, largest.bytes) == ("f32", (ROWS, vocabulary), 4 * ROWS * vocabulary)


TPU = """HloModule step, is_scheduled=true, num_partitions=4

%start (p: bf16[128,512]) -> (bf16[128,512], bf16[512,512]) {
  %p = bf16[128,512]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[512,512]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  ROOT %begin = (bf16[128,512], bf16[512,512]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (p: bf16[128,512], x: bf16[256,512], w: bf16[512,512]) -> bf16[256,512] {
  %p = bf16[128,512]{1,0} parameter(0)
  %gather.2 = bf16[512,512]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  %x = bf16[256,512]{1,0} parameter(1)
  %w = bf16[512,512]{1,0} parameter(2)
  %again = bf16[512,512]{1,0} copy(%w), backend_config={"estimated_cycles":"900"}
  ROOT %product = bf16[256,512]{1,0} convolution(%x, %again), window={size=1}, dim_labels=bf_io->bf
}

%end (p: bf16[128,512]) -> bf16[512,512] {
  %p = bf16[128,512]{1,0} parameter(0)
  %gather.3 = bf16[512,512]{1,0} all-gather(%p), channel_id=4, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  ROOT %finish = bf16[512,512]{1,0} custom-call(%p, %gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.7 (g: f32[512,512]) -> f32[128,512] {
  %g = f32[512,512]{1,0} parameter(0)
  %sum = f32[512,512]{1,0} all-reduce(%g), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  ROOT %slice = f32[128,512]{1,0} dynamic-slice(%sum, %id, %id), dynamic_slice_sizes={128,512}
}

%test (state: (s32[], bf16[256,512], s32[])) -> pred[] {
  %state = (s32[]{:T(128)}, bf16[256,512]{1,0}, s32[]{:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] get-tuple-element(%state), index=2
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (state: (s32[], bf16[256,512], s32[])) -> (s32[], bf16[256,512], s32[]) {
  %state = (s32[]{:T(128)}, bf16[256,512]{1,0}, s32[]{:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[256,512]{1,0} get-tuple-element(%state), index=1
  %n = s32[] get-tuple-element(%state), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %shard = bf16[128,512]{1,0} constant({...})
  %f.1 = (bf16[128,512], bf16[512,512]) fusion(%shard), calls=%start, backend_config={"estimated_cycles":"100"}
  %w = bf16[512,512]{1,0} get-tuple-element(%f.1), index=1
  %f.2 = bf16[256,512]{1,0} fusion(%shard, %x, %w), calls=%middle, backend_config={"estimated_cycles":"5000"}
  %f.3 = bf16[512,512]{1,0} fusion(%shard), kind=kCustom, calls=%end
  ROOT %out = (s32[], bf16[256,512]{1,0}, s32[]) tuple(%next, %f.2, %n)
}

ENTRY %main (x: bf16[256,512], g: f32[512,512]) -> (bf16[256,512], f32[128,512], f32[128,512]) {
  %x = bf16[256,512]{1,0} parameter(0)
  %g = f32[512,512]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %six = s32[] constant(6)
  %copied = s32[] copy(%six), backend_config={"estimated_cycles":"7"}
  %init = (s32[], bf16[256,512]{1,0}, s32[]) tuple(%zero, %x, %copied)
  %loop = (s32[], bf16[256,512]{1,0}, s32[]) while(%init), condition=%test, body=%body
  %y = bf16[256,512]{1,0} get-tuple-element(%loop), index=1
  %g.1 = f32[128,512]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7
  %g.2 = f32[128,512]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7
  ROOT %result = (bf16[256,512]{1,0}, f32[128,512]{1,0}, f32[128,512]{1,0}) tuple(%y, %g.1, %g.2)
}
"""
"""What the TPU compiler writes: a gather dealt out over three fusions, a scattered reduction, a bound from outside."""


def test_an_asynchronous_collective_counts_once_a_round() -> None:
    program = read_text(TPU)
    assert program.unknown_loops == ()
    kinds = {collective.kind: collective for collective in program.collectives}
    gathered, scattered = 512 * 512 * 2, 512 * 512 * 4
    assert kinds.keys() == {"all-gather", "reduce-scatter"}
    assert (kinds["all-gather"].count, kinds["all-gather"].bytes) == (6, 6 * gathered)
    assert kinds["all-gather"].wire_bytes == 6 * gathered * 3 // 4
    assert (kinds["reduce-scatter"].count, kinds["reduce-scatter"].bytes) == (2, 2 * scattered)


def test_cycles_of_a_loop_count_once_a_round() -> None:
    program = read_text(TPU)
    assert program.cycles == 6 * 5100 + 7
    assert program.matmul_flops == 6 * 2 * 256 * 512 * 512


@pytest.mark.parametrize(
    ("start", "step", "direction", "trips"), [(0, 1, "LT", 6), (2, 1, "LT", 4), (0, 4, "LT", 2), (1, 1, "LE", 6)]
)
def test_trips_follow_start_step_and_condition(start: int, step: int, direction: str, trips: int) -> None:
    text = TPU.replace("%zero = s32[] constant(0)", f"%zero = s32[] constant({start})")
    text = text.replace("%one = s32[] constant(1)", f"%one = s32[] constant({step})")
    program = read_text(text.replace("direction=LT", f"direction={direction}"))
    assert program.cycles == trips * 5100 + 7


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("%one = s32[] constant(1)", "%one = s32[] constant(0)"),  # it never ends
        ("%six = s32[] constant(6)", "%six = s32[] partition-id()"),  # nobody knows the bound
    ],
)
def test_a_loop_that_cannot_be_followed_counts_once(line: str, instead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hlo, "_ROUNDS", 64)
    assert line in TPU
    program = read_text(TPU.replace(line, instead))
    assert (program.cycles, program.unknown_loops) == (5100 + 7, ("loop",))


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['a'=2,'b'=4] {'a'}", 2),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("{}", 8),
    ],
)
def test_groups_of_devices_in_every_notation(groups: str, size: int) -> None:
    text = f"""HloModule step, num_partitions=8

ENTRY %main (x: f32[1024]) -> f32[1024] {{
  %x = f32[1024]{{0}} parameter(0)
  ROOT %sum = f32[1024]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    assert read_text(text).wire_bytes == 2 * 4096 * (size - 1) // size


def test_a_collective_in_two_halves_counts_once() -> None:
    text = """HloModule step, num_partitions=8

ENTRY %main (x: f32[1024]) -> f32[8192] {
  %x = f32[1024]{0} parameter(0)
  %begin = (f32[1024]{0}, f32[8192]{0}) all-gather-start(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %end = f32[8192]{0} all-gather-done(%begin)
}
"""
    (found,) = read_text(text).collectives
    assert (found.kind, found.count, found.bytes) == ("all-gather", 1, 4 * 8192)


def test_a_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read_text("nothing of the kind")


def test_splash_visits_the_blocks_below_the_diagonal() -> None:
    shapes = [Shape("s8", (1, 2, 2)), Shape("bf16", (2, 4, 256, 128)), Shape("bf16", (2, 4, 256, 128))]
    dense = 2 * (2 * 4) * 256 * 256 * 128
    assert splash_flops("splash_mha_fwd_segmented_residuals.1", shapes) == 2 * dense * 3 // 4
    assert splash_flops("splash_mha_dq_segmented.1", shapes) == 3 * dense * 3 // 4
    assert splash_flops("splash_mha_dkv_segmented.1", shapes) == 4 * dense * 3 // 4
    assert splash_flops("another_kernel", shapes) is None
