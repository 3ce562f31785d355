"""Laws of reading and writing: what goes out comes back, on any mesh, and nothing more is read than is held."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from tiny_decoders import BASE, assert_trees_equal, random_params

from tisdpo_jax.interchange import load_params, read_config, save_huggingface
from tisdpo_jax.interchange._assemble import Index, TensorSource, assemble, halves_from_pairs, layout
from tisdpo_jax.interchange._safetensors import open_directory
from tisdpo_jax.interchange.peft import adapter_layout, projections
from tisdpo_jax.models import TransformerConfig, abstract_params, flatten, unflatten
from tisdpo_jax.partitioning import make_mesh, param_shardings

Checkpoint = Callable[..., tuple[Path, dict]]


def test_layout_covers_the_parameters_of_every_family(family: TransformerConfig) -> None:
    abstract = flatten(abstract_params(family))
    for naming in ("huggingface", "gguf"):
        leaves = layout(family, naming)
        assert leaves.keys() == abstract.keys()
        names = [name for leaf in leaves.values() for name in leaf.names]
        assert len(names) == len(set(names))
        for path, leaf in leaves.items():
            assert leaf.stacked == path.startswith("layers/") == (len(leaf.names) == family.num_layers)
            assert leaf.transposed == path.endswith("/kernel")


def test_adapter_layout_is_the_kernels_layout() -> None:
    leaves = adapter_layout(BASE, projections(), rank=3)
    assert {path.rpartition("/")[0] for path in leaves} == set(projections())
    assert leaves["layers/mlp/down/a"].tensor_shape == (3, 48) and leaves["layers/mlp/down/b"].tensor_shape == (32, 3)
    assert leaves["layers/mlp/down/b"].names[2] == "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"


def test_flatten_and_unflatten_are_inverse() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


@pytest.mark.parametrize(("dtype", "max_shard_bytes"), [("float32", 10**9), ("bfloat16", 20_000), ("float16", 20_000)])
def test_round_trip_is_bit_exact(checkpoint: Checkpoint, dtype: str, max_shard_bytes: int) -> None:
    directory, params = checkpoint(dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert (directory / "model.safetensors.index.json").exists() == (max_shard_bytes == 20_000)
    stored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(jnp.dtype(dtype))), params)
    assert_trees_equal(load_params(directory, read_config(directory), dtype=dtype), stored)


def test_round_trip_of_every_family(tmp_path: Path, family: TransformerConfig) -> None:
    params = random_params(family)
    save_huggingface(tmp_path / "model", params, family)
    assert read_config(tmp_path / "model") == family
    assert_trees_equal(load_params(tmp_path / "model", family, dtype="float32"), params)


def test_reading_rounds_as_jax_does(checkpoint: Checkpoint) -> None:
    directory, params = checkpoint()
    read = load_params(directory, BASE, dtype="bfloat16")
    assert_trees_equal(read, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_shards_hold_their_limit_and_each_tensor_once(checkpoint: Checkpoint) -> None:
    directory, _ = checkpoint(max_shard_bytes=20_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(directory.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    sizes = {}
    for file in files:
        with safe_open(file, framework="numpy") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (the handle is no mapping)
        assert sum(x.nbytes for x in tensors.values()) <= 20_000
        assert all(index["weight_map"][name] == file.name for name in tensors)
        assert not sizes.keys() & tensors.keys()
        sizes |= {name: x.nbytes for name, x in tensors.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert sizes.keys() == index["weight_map"].keys()


def test_a_tensor_above_the_limit_gets_its_own_shard(checkpoint: Checkpoint) -> None:
    directory, params = checkpoint(max_shard_bytes=1)
    assert len(list(directory.glob("*.safetensors"))) == len(open_directory(directory).shapes)
    assert_trees_equal(load_params(directory, BASE, dtype="float32"), params)


def test_non_contiguous_arrays_are_written_right(tmp_path: Path) -> None:
    """Given Fortran-ordered and strided arrays, safetensors alone would write wrong bytes in silence."""
    params = jax.tree.map(np.asarray, random_params(BASE))
    twisted = jax.tree.map(lambda x: np.repeat(np.asfortranarray(x), 2, axis=-1)[..., ::2], params)
    save_huggingface(tmp_path / "model", twisted, BASE)
    assert_trees_equal(jax.tree.map(np.asarray, load_params(tmp_path / "model", BASE, dtype="float32")), params)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)])
def test_any_mesh_reads_and_writes_the_same(tmp_path: Path, checkpoint: Checkpoint, sizes: tuple[int, ...]) -> None:
    directory, params = checkpoint()
    shardings = param_shardings(abstract_params(BASE), make_mesh(*sizes))
    sharded = load_params(directory, BASE, dtype="float32", shardings=shardings)
    assert_trees_equal(sharded, params)
    for x, sharding in zip(jax.tree.leaves(sharded), jax.tree.leaves(shardings), strict=True):
        assert x.sharding == sharding
    save_huggingface(tmp_path / "again", sharded, BASE)
    file = "model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (directory / file).read_bytes()


def counting(source: TensorSource) -> tuple[TensorSource, dict[str, list[Index]]]:
    reads: dict[str, list[Index]] = {}

    def read(name: str, index: Index) -> np.ndarray:
        reads.setdefault(name, []).append(index)
        return source.read(name, index)

    return dataclasses.replace(source, read=read), reads


def test_each_part_is_read_once_and_nothing_else(checkpoint: Checkpoint) -> None:
    """On 2x2x2 devices every part of a kernel lies on two devices, and is read for one of them."""
    directory, _ = checkpoint()
    source, reads = counting(open_directory(directory))
    assemble(layout(BASE), source, param_shardings(abstract_params(BASE), make_mesh(2, 2, 2)), "float32")
    assert reads.keys() == source.shapes.keys()
    for name, indices in reads.items():
        seen = np.zeros(source.shapes[name], int)
        for index in indices:
            seen[index] += 1
        assert (seen == 1).all(), name
    # q is [in, out] over (fsdp, tensor), so the file's [out, in] is asked for in quarters
    assert sorted(str(i) for i in reads["model.layers.1.self_attn.q_proj.weight"]) == sorted(
        str((slice(out, out + 16), slice(into, into + 16))) for out in (0, 16) for into in (0, 16)
    )


def test_one_device_of_many_reads_only_its_part(checkpoint: Checkpoint) -> None:
    """What one process of several does: asked for the parts of one device, no other byte range is touched."""
    directory, _ = checkpoint()
    source, reads = counting(open_directory(directory))
    mesh = make_mesh(1, 8, 1)
    abstract = abstract_params(BASE)
    shardings = flatten(param_shardings(abstract, mesh))
    mine = mesh.devices.flat[3]
    parts = {path: shardings[path].devices_indices_map(leaf.shape)[mine] for path, leaf in flatten(abstract).items()}

    class Mine:  # stands in for a sharding in a process that holds one device
        def __init__(self, path: str) -> None:
            self.path = path

    def from_callback(shape: tuple[int, ...], sharding: Mine, callback: Callable[[object], np.ndarray]) -> np.ndarray:
        return callback(parts[sharding.path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "make_array_from_callback", from_callback)
        held = assemble(layout(BASE), source, unflatten({path: Mine(path) for path in parts}), "float32")
    elements = sum(x.size for x in jax.tree.leaves(held))
    touched = sum(np.zeros(source.shapes[name])[index].size for name, indices in reads.items() for index in indices)
    assert touched == elements < sum(np.prod(shape) for shape in source.shapes.values()) / 4


def test_halves_from_pairs_undoes_llama_cpps_order() -> None:
    heads, dim = 3, 8
    rows = np.arange(heads * dim)
    # llama.cpp's converter: the two halves of each head's rows are interleaved
    paired = rows.reshape(heads, 2, dim // 2).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(paired[halves_from_pairs(heads * dim, heads)], rows)
