"""Two processes that share a mesh: each reads its own byte ranges, and together they write what one would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tiny_decoders import BASE, random_adapter

from tisdpo_jax.interchange import save_peft

PROGRAM = """
import sys
from pathlib import Path
import jax, numpy as np
port, rank, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from tisdpo_jax import interchange
from tisdpo_jax.interchange import _assemble, _safetensors
from tisdpo_jax.models import abstract_params
from tisdpo_jax.partitioning import make_mesh, param_shardings

config = interchange.read_config(directory / "model")
abstract = abstract_params(config)
shardings = param_shardings(abstract, make_mesh(1, 4, 2))
source = _safetensors.open_directory(directory / "model")
read = {}
def counting(name, index):
    read.setdefault(name, []).append(index)
    return source.read(name, index)
counted = _assemble.TensorSource(source.path, source.files, source.shapes, counting)
params = _assemble.assemble(_assemble.layout(config), counted, shardings, "float32")
held = sum(np.zeros(source.shapes[name])[index].size for name, many in read.items() for index in many)
print("READ", held, sum(int(np.prod(shape)) for shape in source.shapes.values()))
interchange.save_huggingface(directory / "out", params, config, max_shard_bytes=20_000)
assert (directory / "out" / "config.json").is_file()  # also for the process that did not write
lora, *_ = interchange.load_peft(directory / "adapter", config)
kernels = jax.tree.map(lambda x: jax.NamedSharding(make_mesh(1, 4, 2), jax.P()), lora)
lora, *_ = interchange.load_peft(directory / "adapter", config, shardings=kernels)
interchange.save_peft(directory / "adapter2", lora, config, rank=3, alpha=6.0, base_model="base")
"""


def test_two_processes_read_their_parts_and_write_as_one(tmp_path: Path, checkpoint: Callable[..., object]) -> None:
    checkpoint(max_shard_bytes=20_000)
    save_peft(tmp_path / "adapter", random_adapter(), BASE, rank=3, alpha=6.0, base_model="base")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, port, str(rank), str(tmp_path)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [program.communicate(timeout=240) for program in programs]
    finally:
        for program in programs:
            program.kill()
    for program, (_, errors) in zip(programs, outputs, strict=True):
        assert program.returncode == 0, errors[-3000:]
    for text, _ in outputs:
        line = next(line for line in text.splitlines() if line.startswith("READ"))
        read, whole = map(int, line.split()[1:])
        assert read < 0.6 * whole  # half of what is sharded, all of the small norms
    for original, copy in (("model", "out"), ("adapter", "adapter2")):
        names = sorted(file.name for file in (tmp_path / original).iterdir())
        assert names == sorted(file.name for file in (tmp_path / copy).iterdir())
        for name in names:
            assert (tmp_path / original / name).read_bytes() == (tmp_path / copy / name).read_bytes(), name
    assert not list(tmp_path.glob(".*"))
