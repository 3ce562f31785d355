"""Several processes: every one lays out, and sends, its own rows of the same global batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from tisdpo_jax.data import Order, fit, make_batch
from tisdpo_jax.testing import random_encoded

LAUNCHER = Path(__file__).resolve().parents[2] / "launch" / "localhost_processes.py"

# What each process does, and this one as well. Each device's part of each array is noted with its place.
PROGRAM = """
import os, pickle, sys
from pathlib import Path
import jax
import numpy as np
from tisdpo_jax import distributed, partitioning
from tisdpo_jax.data import Batches, Order, batching, fit
from tisdpo_jax.testing import random_encoded
from tisdpo_jax.training.passes import on_devices

distributed.initialize()
whole, written = batching.lay_out, []
def lay_out(*arguments):
    view = whole(*arguments)
    written.append(len(view.rows.tokens))
    return view
batching.lay_out = lay_out
encoded = random_encoded(0, pairs=24, prompts={"plus": 5, "minus": 11})
order = Order(encoded.lengths(), 8, 0, 1.5)
layout = fit(encoded, order.batches(), elements=6, shards=4, parts=2, views=("main", "plus", "minus"), copies=True)
mesh = partitioning.make_mesh(2, 2, 1)
columns = {"margin": np.arange(24.0, dtype=np.float32)}
found = []
for step in (4, 0, 2):
    batch = on_devices(Batches(encoded, layout, columns), order.batch(step), mesh)
    for x in jax.tree.leaves(batch):
        parts = [(tuple((s.start, s.stop) for s in p.index), np.asarray(p.data)) for p in x.addressable_shards]
        found.append((x.shape, parts))
Path(sys.argv[1], str(jax.process_index())).write_bytes(pickle.dumps((jax.process_count(), written, found)))
"""


def test_processes_send_the_rows_of_one_global_batch(tmp_path: Path) -> None:
    command = [sys.executable, str(LAUNCHER), "--processes", "2", "--devices", "2", "--", sys.executable, "-c", PROGRAM]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    encoded = random_encoded(0, pairs=24, prompts={"plus": 5, "minus": 11})
    order = Order(encoded.lengths(), 8, 0, 1.5)
    views = ("main", "plus", "minus")
    layout = fit(encoded, order.batches(), elements=6, shards=4, parts=2, views=views, copies=True)
    columns = {"margin": np.arange(24.0, dtype=np.float32)}
    batches = [make_batch(encoded, order.batch(step), layout=layout, columns=columns) for step in (4, 0, 2)]
    expected = [x for batch in batches for x in jax.tree.leaves(batch)]
    reports = [read(tmp_path / str(process)) for process in range(2)]
    assert [count for count, *_ in reports] == [2, 2]
    half = [shape.rows // 2 for _, shape in layout.views] * 3
    assert all(written == half for _, written, _ in reports), "each lays out its own rows alone"
    for number, whole in enumerate(expected):
        sent = np.zeros(len(whole), int)
        for *_, found in reports:
            shape, parts = found[number]
            assert shape == whole.shape and len(parts) == 2
            for index, values in parts:
                rows = slice(*index[0])
                np.testing.assert_array_equal(values, whole[rows])
                sent[rows] += 1
        np.testing.assert_array_equal(sent, 1, err_msg="every row once, by the process that it belongs to")


def read(path: Path) -> tuple[int, list]:
    import pickle

    return pickle.loads(path.read_bytes())
