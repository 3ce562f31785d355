"""Tunix's own DPO step, compiled ahead of time for a TPU topology: what `aot.py --tunix` compares with.

    python benchmarks/tunix_step.py --model llama2_7b --topology v5e:8x8 --length 512 --pairs 64 --out DIR

Runs in an environment of its own (`benchmarks/tunix-requirements.txt`) and imports nothing of tisdpo_jax. Compiled are
the two programs that `DPOTrainer` runs for each batch: `compute_logps` of the reference, then the training step
(`PeftTrainer._train_step` with `dpo_loss_fn`), on its Llama 3 model with the sharding rules and the donation that it
has. Everything is bfloat16, Adam's moments too; remat of whole decoder layers, which Tunix has off, is on.

Two things are not as in a run. Tunix's `shard()` does nothing when the host's own devices are CPUs, and here they are:
it is replaced by one that constrains. Arrays are shapes only, so trainer objects, which allocate, are stood in for.

Writes NAME.json (seconds, memory) and NAME.train.hlo.gz, NAME.reference.hlo.gz (the compiled programs as text).
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import importlib.metadata
import json
import os
import time
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental import topologies
from jax.interpreters import pxla
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tunix.models.llama3 import model as llama3
from tunix.sft import peft_trainer
from tunix.sft.dpo import dpo_trainer

LEARNING_RATE = 1e-6
SHAPES: dict[str, dict[str, Any]] = {
    "llama2_7b": {
        "num_layers": 32,
        "vocab_size": 32_000,
        "embed_dim": 4096,
        "hidden_dim": 11_008,
        "num_heads": 32,
        "head_dim": 128,
        "num_kv_heads": 32,
        "rope_theta": 10_000,
        "norm_eps": 1e-5,
    },
    "llama31_8b": {
        "num_layers": 32,
        "vocab_size": 128_256,
        "embed_dim": 4096,
        "hidden_dim": 14_336,
        "num_heads": 32,
        "head_dim": 128,
        "num_kv_heads": 8,
        "rope_theta": 500_000,
        "norm_eps": 1e-5,
    },
}


def constrain(x: Any, spec: tuple[str | None, ...]) -> Any:
    """What `llama3.shard` does on an accelerator."""
    mesh = pxla.thread_resources.env.physical_mesh
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def abstract(make: Any, mesh: Mesh) -> Any:
    """The module that `make` makes, as bfloat16 shapes that lie where its own annotations say."""
    module = nnx.eval_shape(make)
    graph, state = nnx.split(module)
    specs = nnx.get_partition_spec(state)

    def place(x: Any, spec: Any) -> Any:
        dtype = jnp.bfloat16 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
        spec = spec if isinstance(spec, PartitionSpec) and x.ndim else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=NamedSharding(mesh, spec))

    leaves, tree = jax.tree.flatten(state)
    places = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    if len(leaves) != len(places):
        raise ValueError(f"{len(leaves)} arrays, but {len(places)} partition specs")
    return nnx.merge(graph, jax.tree.unflatten(tree, [place(x, s) for x, s in zip(leaves, places, strict=True)]))


def batch_of(mesh: Mesh, pairs: int, length: int, response: int, *, scored: bool) -> Any:
    """A `TrainExample` of shapes: chosen rows, then rejected rows, split over the mesh as Tunix splits its input."""
    whole = NamedSharding(mesh, PartitionSpec("fsdp"))

    def array(*shape: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    logps = array(pairs, dtype=jnp.float32) if scored else None
    return dpo_trainer.TrainExample(
        input_ids=array(2 * pairs, length, dtype=jnp.int32),
        positions=array(2 * pairs, length, dtype=jnp.int32),
        attention_mask=array(2 * pairs, length, length, dtype=jnp.bool_),
        ref_chosen_logps=logps,
        ref_rejected_logps=logps,
        completion_mask=array(2 * pairs, response, dtype=jnp.int32),
        logits_to_keep=response,
    )


def lower_reference(model: Any, batch: Any) -> Any:
    return dpo_trainer.compute_logps.lower(
        *(model, batch.input_ids, batch.positions, batch.attention_mask, batch.logits_to_keep, batch.completion_mask)
    )


def lower_train(model: Any, optimizer: Any, batch: Any, donated: tuple[str, ...]) -> Any:
    stub = types.SimpleNamespace(
        gen_model_input_fn=lambda x: {"train_example": x, "algorithm": "dpo", "beta": 0.1, "label_smoothing": 0.0},
        loss_fn=dpo_trainer.dpo_loss_fn,
        _lora_enabled=False,
        _has_aux=True,
    )

    def train_step(model: Any, optimizer: Any, inputs: Any) -> Any:
        return peft_trainer.PeftTrainer._train_step(stub, model, optimizer, inputs)

    return nnx.jit(train_step, donate_argnames=donated).lower(model, optimizer, batch)


def memory(compiled: Any) -> dict[str, int]:
    found = compiled.memory_analysis()
    names = ("argument", "output", "temp", "alias")
    sizes = {name: int(getattr(found, f"{name}_size_in_bytes")) for name in names}
    whole = sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"]
    return sizes | {"hbm": whole, "peak": int(found.peak_memory_in_bytes)}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compile Tunix's DPO step ahead of time.")
    parser.add_argument("--model", choices=sorted(SHAPES), default="llama2_7b")
    parser.add_argument("--layers", type=int, help="fewer layers, to try things out")
    parser.add_argument("--topology", default="v5e:8x8")
    parser.add_argument("--length", type=int, default=512, help="tokens of a padded row")
    parser.add_argument("--response", type=int, help="tokens of the response region (half of --length)")
    parser.add_argument("--pairs", type=int, default=64, help="pairs of a global batch")
    parser.add_argument("--donate-model", action="store_true", help="the parameters too, which Tunix does not do")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    return parser.parse_args()


def main() -> None:
    options = read_arguments()
    response = options.response or options.length // 2
    shape = dict(SHAPES[options.model])
    shape["num_layers"] = options.layers or shape["num_layers"]
    config = llama3.ModelConfig(**shape, remat_config=llama3.RematConfig.DECODER)
    llama3.shard = constrain
    topology = topologies.get_topology_desc(platform="tpu", topology_name=options.topology)
    mesh = topologies.make_mesh(topology, (len(topology.devices), 1), ("fsdp", "tp"))
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * 2)
    name = f"tunix-{options.model}-{options.topology.replace(':', '_')}-S{options.length}-P{options.pairs}"
    name += "-donated" if options.donate_model else ""
    options.out.mkdir(parents=True, exist_ok=True)

    def make() -> Any:
        return llama3.Llama3(config, rngs=nnx.Rngs(0))

    donated = ("model", "optimizer") if options.donate_model else ("optimizer",)
    with mesh:
        model = abstract(make, mesh)
        optimizer = abstract(lambda: nnx.Optimizer(make(), optax.adamw(LEARNING_RATE), wrt=nnx.Param), mesh)
        programs: dict[str, Any] = {}
        for part in ("reference", "train"):
            batch = batch_of(mesh, options.pairs, options.length, response, scored=part == "train")
            began = time.perf_counter()
            if part == "reference":
                lowered = lower_reference(model, batch)
            else:
                lowered = lower_train(model, optimizer, batch, donated)
            traced = time.perf_counter()
            compiled = lowered.compile()
            ended = time.perf_counter()
            with gzip.open(options.out / f"{name}.{part}.hlo.gz", "wt") as file:
                file.write(compiled.as_text())
            programs[part] = {
                "hlo": f"{name}.{part}.hlo.gz",
                "trace_seconds": traced - began,
                "compile_seconds": ended - traced,
                "memory": memory(compiled),
            }
            print(f"{part}: traced in {traced - began:.0f} s, compiled in {ended - traced:.0f} s, {memory(compiled)}")
    packages = ("google-tunix", "jax", "jaxlib", "libtpu", "flax", "qwix", "optax")
    report = {
        "name": "Tunix, plain DPO",
        "model": options.model,
        "config": {key: value for key, value in dataclasses.asdict(config).items() if isinstance(value, int | float)},
        "topology": options.topology,
        "chips": len(topology.devices),
        "length": options.length,
        "response": response,
        "pairs": options.pairs,
        "donated": donated,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "programs": programs,
        "cpu_seconds": time.process_time(),  # of the whole process
    }
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {name}.json")


if __name__ == "__main__":
    main()
