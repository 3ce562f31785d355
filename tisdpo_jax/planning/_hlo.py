"""The text of a compiled program as data: computations, instructions, shapes; how often a loop runs; flops of products.

Only what `program.py` asks for is read. Computations call one another with arguments, so an integer is looked up along
the calls that led to it: a `SourceFrame`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=\s]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_MARKS = re.compile(r'"(?:\\.|[^"\\])*"|[()]')
# What hands on its first operand, as far as an integer is concerned.
_SAME = {"copy", "convert", "bitcast", "reshape", "copy-start", "copy-done", "optimization-barrier", "broadcast"}
_CALLS = ("fusion", "call", "async-start")
_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    **{"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "minimum": min, "maximum": max},
    **{
        "LT": operator.lt,
        "LE": operator.le,
        "GT": operator.gt,
        "GE": operator.ge,
        "NE": operator.ne,
        "EQ": operator.eq,
    },
}
_ROUNDS = 1 << 16  # of a loop whose length is not written down, before it counts as unknown
# Matrix products of each splash attention kernel: q k', and p v; with the gradients' own behind.
_SPLASH = (("dkv_dq", 5), ("dkv", 4), ("dq", 3), ("fwd", 2))
_BLOCK = 128  # tokens of a block of splash attention, its default


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type (`bf16`, `f8e4m3fn`, `pred`) and dimensions, padding of the layout not counted."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def is_integer(self) -> bool:
        return self.elements == 1 and self.dtype[0] in "sup"  # s32, u32, pred

    @property
    def bytes(self) -> int:
        digits = re.match(r"[a-z]+(\d+)", self.dtype)  # a token has none, and no bytes
        bits = 8 if self.dtype == "pred" else int(digits[1]) if digits else 0
        return -(-self.elements * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = result opcode(%operands), attributes`; `inner` is the text between the parentheses."""

    name: str
    opcode: str
    results: tuple[Shape, ...]  # those of a tuple, flattened
    operands: tuple[str, ...]
    inner: str
    attributes: str

    def attribute(self, name: str) -> str:
        """The value of `name=value`: a name without its %, or what stands between braces; "" where there is none."""
        value = re.search(rf"\b{name}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.attributes)
        return (value[1] or value[2] or "") if value else ""

    def names(self, *attributes: str) -> list[str]:
        """Computations that the first of some attributes names, one or several."""
        return re.findall(r"[\w.\-]+", next(filter(None, map(self.attribute, attributes)), ""))

    def numbers(self, attribute: str) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", self.attribute(attribute))]


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    def shapes(self, instruction: Instruction) -> list[Shape]:
        """First result of each operand."""
        return [operand.results[0] for operand in self.operands(instruction) if operand.results]


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str
    devices: int  # that run the program together


@dataclasses.dataclass(frozen=True)
class SourceFrame:
    """A computation as it is run: by which instruction of which frame."""

    module: Module
    computation: Computation
    caller: Instruction | None = None
    parent: SourceFrame | None = None
    carried: Mapping[int, int] | None = None  # integers of a loop's tuple in one of its rounds

    def enter(self, caller: Instruction, name: str, carried: Mapping[int, int] | None = None) -> SourceFrame:
        return SourceFrame(self.module, self.module.computations[name], caller, self, carried)

    def number(self, name: str = "", index: int | None = None) -> int | None:
        """The integer that `name` (else the root) holds, or element `index` of the tuple; None where it is not known.

        That of a comparison is 0 or 1.
        """
        value = self.computation.instructions.get(name or self.computation.root)
        if value is None or (index is None and not (value.results and value.results[0].is_integer)):
            return None
        if value.opcode in _SAME:
            return self.number(value.operands[0], index)
        if value.opcode in _CALLS:
            return self.enter(value, value.names("calls", "to_apply")[0]).number(index=index)
        if value.opcode == "parameter" and self.caller and self.parent:
            if self.caller.opcode in _CALLS:
                return self.parent.number(self.caller.operands[int(value.inner)], index)
            if self.caller.opcode != "while" or index is None:
                return None
            return self.parent._kept(self.caller, index) if self.carried is None else self.carried.get(index)
        if index is not None:
            if value.opcode == "tuple":
                return self.number(value.operands[index])
            return self._kept(value, index) if value.opcode == "while" else None
        if value.opcode == "constant":
            return int(value.inner) if re.fullmatch(r"\s*-?\d+\s*", value.inner) else None
        if value.opcode == "get-tuple-element":
            return self.number(value.operands[0], value.numbers("index")[0])
        compute = _ARITHMETIC.get(value.attribute("direction") if value.opcode == "compare" else value.opcode)
        if compute is None:
            return None
        left, right = (self.number(operand) for operand in value.operands)
        return None if left is None or right is None else int(compute(left, right))

    def _kept(self, loop: Instruction, index: int) -> int | None:
        """An element of a loop's tuple in any of its rounds, and behind it: what stood before, if a round keeps it."""
        before = self.number(loop.operands[0], index)
        if before is None:
            return None
        after = self.enter(loop, loop.names("body")[0], {index: before}).number(index=index)
        return before if after == before else None

    def trips(self, loop: Instruction) -> int | None:
        """How often the body of a `while` runs: as the compiler wrote it down, or by going through its rounds."""
        written = re.search(r'known_trip_count\\?"?:\{\\?"?n\\?"?:\\?"?(\d+)', loop.attributes)
        if written:
            return int(written[1])
        body, condition = loop.names("body")[0], loop.names("condition")[0]
        computation = self.module.computations[body]
        elements = range(len(computation.instructions[computation.root].operands))
        integers = {index: self.number(loop.operands[0], index) for index in elements}
        for trips in range(_ROUNDS):
            known = {index: number for index, number in integers.items() if number is not None}
            goes_on = self.enter(loop, condition, known).number()
            if not goes_on:
                return None if goes_on is None else trips
            integers = {index: self.enter(loop, body, known).number(index=index) for index in known}
        return None


def dot_flops(frame: SourceFrame, dot: Instruction) -> int:
    left = frame.computation.shapes(dot)[0]
    contracted = math.prod(left.dims[axis] for axis in dot.numbers("lhs_contracting_dims"))
    return 2 * dot.results[0].elements * contracted


def convolution_flops(frame: SourceFrame, call: Instruction) -> int:
    """Multiplications with a real element of the input: padding and the holes of a dilation cost nothing.

    The TPU compiler writes matrix products as convolutions, batch dimensions as dilated windows.
    """
    left, right = frame.computation.shapes(call)[:2]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", call.attributes)
    if labels is None:
        return 0
    inputs, kernel, outputs = labels.groups()
    window = call.attribute("window")

    def of_window(name: str, place: int, default: int) -> int:
        """Number `place` of a field of `window={size=1x4 pad=0_0x3_3 ...}`; the first of a pair of paddings."""
        values = re.search(rf"\b{name}=([\dx_\-]+)", window)
        return int(values[1].split("x")[place].split("_")[0]) if values else default

    positions = 1
    for place, label in enumerate(sorted(label for label in outputs if label.isdigit())):
        positions *= _positions(
            size=left.dims[inputs.index(label)],
            kernel=right.dims[kernel.index(label)],
            output=call.results[0].dims[outputs.index(label)],
            stride=of_window("stride", place, 1),
            low=of_window("pad", place, 0),
            spread=of_window("lhs_dilate", place, 1),
            kernel_spread=of_window("rhs_dilate", place, 1),
        )
    features = right.dims[kernel.index("i")] * right.dims[kernel.index("o")]
    batch = left.dims[inputs.index("b")] // int(call.attribute("batch_group_count") or 1)
    return 2 * batch * features * positions


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
    return round(2 * products * math.prod(query[:-1]) * key[-2] * query[-1] * (blocks + 1) / (2 * blocks))


def parse(text: str) -> SourceFrame:
    """Reads `compiled.as_text()`: its entry. Raises: ValueError for a text that holds no program."""
    computations: dict[str, Computation] = {}
    entry, name, root = "", "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line.startswith("}"):
            computations[name] = Computation(name, instructions, root or next(reversed(instructions), ""))
        elif line[:1] not in ("", " ") and not line.startswith("HloModule"):
            if header := _HEADER.match(line):
                name, instructions, root = header[2], {}, ""
                entry = name if header[1] else entry
        elif begin := _INSTRUCTION.match(line):
            instructions[begin[2]] = _instruction(begin[2], line[begin.end() :])
            root = begin[2] if begin[1] else root
    if entry not in computations:
        raise ValueError("the text of the compiled program has no ENTRY computation; is it `compiled.as_text()`?")
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text[: text.find("\n")])
    return SourceFrame(Module(computations, entry, math.prod(map(int, counts))), computations[entry])


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    results = tuple(
        Shape(dtype, tuple(map(int, re.findall(r"\d+", dims)))) for dtype, dims in _ARRAY.findall(text[:end])
    )
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inner, opcode = text[opening + 1 : closing], text[end:opening].strip()
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inner))
    return Instruction(name, opcode, results, operands, inner, text[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes; those within quotes do not count."""
    depth = 0
    for mark in _MARKS.finditer(text, opening):
        depth += {"(": 1, ")": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.start()
    raise ValueError(f"the text of the compiled program is cut: {text[:80]!r}")
