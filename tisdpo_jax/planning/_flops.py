"""Flops of single instructions of a compiled program: products, convolutions, and kernels that are known by name."""

from __future__ import annotations

import math
import re

from tisdpo_jax.planning._hlo import Instruction, Shape, SourceFrame

# Matrix products of each splash attention kernel: q k', and p v; with the gradients' own behind.
_SPLASH = (("dkv_dq", 5), ("dkv", 4), ("dq", 3), ("fwd", 2))
_BLOCK = 128  # tokens of a block of splash attention, its default


def dot_flops(frame: SourceFrame, dot: Instruction) -> int:
    left = frame.computation.shapes(dot)[0]
    contracted = math.prod(left.dims[axis] for axis in dot.numbers("lhs_contracting_dims"))
    return 2 * dot.results[0].elements * contracted


def library_flops(frame: SourceFrame, call: Instruction) -> int:
    """A product that was handed to a library (cuBLAS): its dimension numbers stand in the backend configuration."""
    found = re.search(r'lhs_contracting_dimensions\\?"?:\[([^\]]*)\]', call.attributes)
    left = frame.computation.shapes(call)[0]
    axes = [int(axis) for axis in re.findall(r"\d+", found.group(1))] if found else [len(left.dims) - 1]
    return 2 * call.results[0].elements * math.prod(left.dims[axis] for axis in axes)


def convolution_flops(frame: SourceFrame, call: Instruction) -> int:
    """Multiplications with a real element of the input: padding and the holes of a dilation cost nothing.

    The TPU compiler writes matrix products as convolutions, batch dimensions as dilated windows.
    """
    left, right = frame.computation.shapes(call)[:2]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", call.attributes)
    if labels is None:
        return 0
    inputs, kernel, outputs = labels.groups()
    window = call.attribute("window") or ""
    spatial = sorted(label for label in outputs if label.isdigit())
    positions = 1
    for place, label in enumerate(spatial):
        positions *= _positions(
            size=left.dims[inputs.index(label)],
            kernel=right.dims[kernel.index(label)],
            output=call.results[0].dims[outputs.index(label)],
            stride=_window(window, "stride", place, 1),
            low=_window(window, "pad", place, 0),
            spread=_window(window, "lhs_dilate", place, 1),
            kernel_spread=_window(window, "rhs_dilate", place, 1),
        )
    features = right.dims[kernel.index("i")] * right.dims[kernel.index("o")]
    groups = call.attribute("batch_group_count")
    batch = left.dims[inputs.index("b")] // (int(groups) if groups else 1)
    return 2 * batch * features * positions


def _window(window: str, name: str, place: int, default: int) -> int:
    """Number `place` of a field of `window={size=1x4 pad=0_0x3_3 ...}`; the first of a pair of paddings."""
    found = re.search(rf"\b{name}=([\dx_\-]+)", window)
    return int(found.group(1).split("x")[place].split("_")[0]) if found else default


def _positions(*, size: int, kernel: int, output: int, stride: int, low: int, spread: int, kernel_spread: int) -> int:
    """Pairs of (output, kernel) positions of one dimension that meet an element of the input."""
    if kernel == 1 and low == 0 and spread == 1 and (output - 1) * stride < size:
        return output
    extent = (size - 1) * spread + 1
    return sum(
        1
        for out in range(output)
        for tap in range(kernel)
        if 0 <= (place := out * stride - low + tap * kernel_spread) < extent and place % spread == 0
    )


def splash_flops(name: str, operands: list[Shape]) -> int | None:
    """Flops of one call of a splash attention kernel under a causal mask, from the shapes of its operands.

    Blocks that no query sees are not visited: of n blocks a row, (n + 1) / 2. Segments hide, but skip nothing.
    None for another kernel.
    """
    products = next((count for part, count in _SPLASH if "splash" in name and part in name), None)
    arrays = [shape for shape in operands if len(shape.dims) >= 3 and shape.dtype in ("bf16", "f32", "f16")]
    if products is None or len(arrays) < 2:
        return None
    query, key = arrays[0].dims, arrays[1].dims  # [..., H, Tq, head_dim], [..., Hkv, Tk, head_dim]
    blocks = max(key[-2] // _BLOCK, 1)
    seen = (blocks + 1) / (2 * blocks)
    return round(2 * products * math.prod(query[:-1]) * key[-2] * query[-1] * seen)
