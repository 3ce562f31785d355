"""Meshes over several TPU slices: which axis lies over the slower network between them."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax
import numpy as np
import pytest

from tisdpo_jax.errors import ConfigError
from tisdpo_jax.partitioning import make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    """What the layout of a mesh reads of a device."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    local_hardware_id: int = 0

    @property
    def process_index(self) -> int:
        return self.id // 4

    @property
    def coords(self) -> tuple[int, int, int]:
        place = self.id % 4
        return (place % 2, place // 2, 0)

    @property
    def client(self) -> Any:
        return jax.devices()[0].client


def fakes(slices: int, each: int = 4, **more: Any) -> list[Device]:
    """Devices as jax.devices() may give them: not sorted by slice."""
    return [Device(at * each + n, at, **more) for n in range(each) for at in range(slices)]


def slices_of(*sizes: int, devices: list[Device], slices: str = "auto") -> np.ndarray:
    mesh = make_mesh(*sizes, devices=devices, slices=slices)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in devices)
    return np.vectorize(lambda device: device.slice_index)(mesh.devices)


@pytest.mark.parametrize(
    ("sizes", "axis", "over"),
    [
        ((2, -1, 1), "auto", 0),
        ((4, -1, 2), "auto", 0),
        ((-1, 1, 4), "auto", 0),
        ((1, -1, 1), "auto", 1),  # data cannot be divided
        ((2, 4, 1), "fsdp", 1),
        ((1, 4, 2), "tensor", 2),
    ],
)
def test_one_axis_lies_over_the_slices_and_the_others_within(sizes, axis, over) -> None:
    found = slices_of(*sizes, devices=fakes(2), slices=axis)
    for other in range(3):
        same = np.ptp(found, axis=other)
        assert (same == (1 if other == over else 0)).all(), found
    # whole slices, one after the other, along the axis
    assert (np.diff(found, axis=over) >= 0).all()


def test_other_devices_than_tpus_lie_as_they_come_where_nothing_divides() -> None:
    gpus = fakes(2, 3, platform="gpu", device_kind="H100")
    assert slices_of(3, 1, 2, devices=gpus).shape == (3, 1, 2)
    assert (slices_of(2, 3, 1, devices=gpus)[:, 0, 0] == [0, 1]).all()


@pytest.mark.parametrize(
    ("sizes", "axis", "devices", "told"),
    [
        ((3, 1, 4), "auto", fakes(6, 2), "there are 6 slices, and mesh.data and mesh.fsdp cannot"),
        ((1, 8, 1), "data", fakes(2), "mesh.data cannot be divided by that; set mesh.data to a multiple of 2"),
        ((1, 7, 1), "auto", fakes(2)[:-1], r"have \[3, 4\] devices"),
    ],
)
def test_what_does_not_fit_the_slices_is_named(sizes, axis, devices, told) -> None:
    with pytest.raises(ConfigError, match=told):
        make_mesh(*sizes, devices=devices, slices=axis)


def test_one_slice_is_laid_out_as_ever() -> None:
    devices = [dataclasses.replace(device, platform="cpu") for device in fakes(1, 8)]
    mesh = make_mesh(2, 2, 2, devices=devices)
    assert [device.id for device in mesh.devices.flat] == list(range(8))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra `tpu`)")
def test_a_step_compiles_for_two_slices() -> None:
    from jax.experimental import topologies

    found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)
    mesh = make_mesh(2, -1, 1, devices=found.devices)
    assert [device.slice_index for device in mesh.devices[:, 0, 0]] == [0, 1]
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((64, 128), np.float32, sharding=rows)
    text = (
        jax.jit(lambda x: (x @ x.T).sum(0), out_shardings=jax.NamedSharding(mesh, jax.P())).lower(x).compile().as_text()
    )
    assert "all-reduce" in text or "all-gather" in text
