"""Hardware that is not there: `v5e:8x8`, `cpu:8` and the like, as devices to compile for and facts to judge by.

TPU programs are compiled by the real compiler, which comes with libtpu and needs no TPU. Programs for `cpu` and `gpu`
are compiled for virtual CPU devices: flops and traffic are those of the partitioned program, memory is a stand-in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from tisdpo_jax.errors import ConfigError, UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Facts of a TPU generation, per chip."""

    axes: int  # dimensions of its interconnect
    hbm: int  # bytes that a program may have
    flops: float  # bfloat16, a second
    clock: float  # Hz, of the cycles that the compiler estimates
    ici: float  # bytes a second that a chip sends, all links together
    options: tuple[tuple[str, str], ...] = ()  # that libtpu wants with the name


# Memory: the limit that libtpu 0.0.42 names when it refuses a program, a little off what is sold (32, 16, 95, 32).
# Flops: the TPU pages of the Google Cloud documentation. Links: "How to Scale Your Model" (one way: 45 GB/s for v4 and
# v5e, 90 GB/s for v5p and v6e; two links an axis). Clocks: with these, the cycles that the compiler estimates for a
# large matrix product take 1.1 times (v6e: 1.4 times) as long as its flops at the peak.
CHIPS = {
    "v4": Chip(3, int(30.75 * GIB), 275e12, 1.05e9, 6 * 45e9, (("chip_config_name", "megacore"),)),
    "v5e": Chip(2, int(15.75 * GIB), 197e12, 1.5e9, 4 * 45e9),
    "v5p": Chip(3, int(95.74 * GIB), 459e12, 1.75e9, 6 * 90e9),
    "v6e": Chip(2, int(31.25 * GIB), 918e12, 1.75e9, 4 * 90e9),
}
VIRTUAL = ("cpu", "gpu")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A topology as it is written, not yet opened."""

    name: str  # "v5e:8x8"
    kind: str  # "v5e", ..., "cpu", "gpu"
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip | None:
        return CHIPS.get(self.kind)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    spec: Spec
    devices: tuple[Any, ...]

    @property
    def platform(self) -> str:
        """What the program is compiled for: `tpu` or `cpu`."""
        return "tpu" if self.spec.chip else "cpu"

    @property
    def note(self) -> str:
        """What has to be said beside every number; empty for a TPU."""
        if self.spec.kind == "gpu":
            return "compiled for virtual CPU devices in place of GPUs: memory and traffic of a real GPU program differ"
        return "" if self.spec.chip else "compiled for virtual CPU devices: memory is that of the CPU program"


def parse_topology(text: str) -> Spec:
    """`v5e:8x8`, `v5p:4x4x4`, `cpu:8` -> Spec. Raises: ConfigError for an unknown chip or a malformed shape."""
    kind, _, shape = text.partition(":")
    axes = {name: chip.axes for name, chip in CHIPS.items()} | dict.fromkeys(VIRTUAL, 1)
    if kind not in axes:
        raise ConfigError(f"topology {text!r}: unknown chip {kind!r}; one of {', '.join(axes)}, as in v5e:8x8 or cpu:8")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") != axes[kind] - 1:
        what, example = {1: ("a number of devices", "8"), 2: ("two sizes", "4x4"), 3: ("three sizes", "4x4x4")}[
            axes[kind]
        ]
        raise ConfigError(f"topology {text!r}: {kind} wants {what} behind the colon, as in {kind}:{example}")
    return Spec(text, kind, tuple(int(size) for size in shape.split("x")))


def prepare_topology(specs: Sequence[Spec]) -> None:
    """Settings of the process that JAX reads once: to be called before its first use.

    The default back end becomes the CPU, so that a plan needs no accelerator and occupies none.
    """
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",  # do not ask a cloud machine what it is
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is used, so another process may have it
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    os.environ.update({name: value for name, value in settings.items() if name not in os.environ})
    jax.config.update("jax_platforms", "cpu")
    wanted = max((spec.count for spec in specs if spec.chip is None), default=1)
    if wanted > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is in use already: `open_topology` says so if that matters
            jax.config.update("jax_num_cpu_devices", wanted)


def open_topology(spec: Spec) -> Topology:
    """Devices of a topology. Raises: UserError when libtpu is missing or refuses it."""
    if spec.chip is None:
        devices = jax.devices("cpu")
        if len(devices) < spec.count:
            raise UserError(
                f"topology {spec.name}: only {len(devices)} virtual CPU devices; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={spec.count} before Python starts"
            )
        return Topology(spec, tuple(devices[: spec.count]))
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {spec.name}: the TPU compiler is not installed; "
            '`pip install "tisdpo_jax[tpu]"` brings it, and needs no TPU'
        )
    from jax.experimental import topologies

    options: dict[str, Any] = dict(spec.chip.options)
    if 1 in spec.shape[:2]:  # a host has 2x2 chips, unless the slice is narrower
        options["chips_per_host_bounds"] = [min(2, size) for size in spec.shape[:2]] + [1]
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=spec.name, **options)
    except Exception as error:  # libtpu raises bare runtime errors of several types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"topology {spec.name}: libtpu refuses it ({reason})") from None
    return Topology(spec, tuple(described.devices))
