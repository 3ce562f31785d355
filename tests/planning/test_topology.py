"""Names of topologies: what is read, what is refused, and what the compiler then says of them."""

from __future__ import annotations

import importlib.util

import jax
import pytest

from tisdpo_jax.errors import ConfigError, UserError
from tisdpo_jax.planning import topology
from tisdpo_jax.planning.topology import open_topology, parse_topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra `tpu`)")


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("v5e:8x8", "v5e", (8, 8)),
        ("v6e:2x4", "v6e", (2, 4)),
        ("v5p:4x4x4", "v5p", (4, 4, 4)),
        ("v4:2x2x1", "v4", (2, 2, 1)),
        ("cpu:8", "cpu", (8,)),
        ("gpu:16", "gpu", (16,)),
    ],
)
def test_a_topology_is_read(name: str, kind: str, shape: tuple[int, ...]) -> None:
    spec = parse_topology(name)
    assert (spec.name, spec.kind, spec.shape) == (name, kind, shape)
    assert (spec.chip is None) == (kind in ("cpu", "gpu"))


@pytest.mark.parametrize("name", ["v3:8x8", "tpu:8", "v5:4x4", "", "h100:8"])
def test_an_unknown_chip_names_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown chip .*v4, v5e, v5p, v6e, cpu, gpu"):
        parse_topology(name)


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:", "v5e:8", "v5e:8x8x8", "v5p:4x4", "v5e:0x8", "v5e:8*8", "cpu:2x2", "cpu:x", "cpu:-1"]
)
def test_a_malformed_shape_shows_a_right_one(name: str) -> None:
    with pytest.raises(ConfigError, match=r"wants .* behind the colon, as in"):
        parse_topology(name)


def test_virtual_devices_are_those_that_are_there() -> None:
    opened = open_topology(parse_topology("cpu:4"))
    assert list(opened.devices) == jax.devices("cpu")[:4]
    assert opened.platform == "cpu"
    assert "in place of GPUs" in open_topology(parse_topology("gpu:2")).note


def test_too_few_virtual_devices_say_what_to_set() -> None:
    with pytest.raises(UserError, match=r"XLA_FLAGS=--xla_force_host_platform_device_count=4096"):
        open_topology(parse_topology("cpu:4096"))


def test_without_libtpu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "tisdpo_jax\[tpu\]"'):
        open_topology(parse_topology("v5e:8x8"))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("v5e:8x8", 64), ("v5p:4x4x4", 64), ("v4:4x4x4", 64), ("v6e:8x8", 64), ("v5e:1x1", 1)]
)
def test_libtpu_knows_the_topologies_one_device_a_chip(name: str, count: int) -> None:
    topology.prepare_topology([])
    opened = open_topology(parse_topology(name))
    assert len(opened.devices) == count
    assert opened.platform == opened.devices[0].platform == "tpu"


@needs_libtpu
@pytest.mark.slow
def test_what_libtpu_refuses_is_one_line() -> None:
    topology.prepare_topology([])
    with pytest.raises(UserError, match=r"topology v5e:3x3: libtpu refuses it"):
        open_topology(parse_topology("v5e:3x3"))
