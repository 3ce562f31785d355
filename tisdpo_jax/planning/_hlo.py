"""The text of a compiled program as data: computations, instructions, shapes, and how often a loop runs.

Only what `program.py` asks for is read. Computations call one another with arguments, so a value is looked up along
the calls that led to it: a `Frame`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=\s]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
# What hands on its first operand, as far as an integer is concerned.
_SAME = {"copy", "convert", "bitcast", "reshape", "copy-start", "copy-done", "optimization-barrier", "broadcast"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type and dimensions, padding of the layout not counted."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return -(-self.elements * bits(self.dtype) // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def bits(dtype: str) -> int:
    """Bits of an element: `bf16` 16, `f8e4m3fn` 8, `pred` 8."""
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found.group(1)) if found else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = result opcode(%operands), attributes`; `inner` is the text between the parentheses."""

    name: str
    opcode: str
    results: tuple[Shape, ...]  # those of a tuple, flattened
    operands: tuple[str, ...]
    inner: str
    attributes: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`: a name without its %, or what stands between braces."""
        found = re.search(rf"\b{name}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.attributes)
        return None if found is None else found.group(1) or found.group(2) or ""

    def names(self, attribute: str) -> tuple[str, ...]:
        """Computations that an attribute names, one or several."""
        value = self.attribute(attribute)
        return () if not value else tuple(part.strip().lstrip("%") for part in value.split(","))

    def numbers(self, attribute: str) -> tuple[int, ...]:
        value = self.attribute(attribute)
        return () if not value else tuple(int(part) for part in value.split(","))

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.results)


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def shapes(self, instruction: Instruction) -> list[Shape]:
        """First result of each operand."""
        found = [self.instructions[name] for name in instruction.operands if name in self.instructions]
        return [operand.results[0] for operand in found if operand.results]


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str
    devices: int  # that run the program together

    def frame(self) -> SourceFrame:
        return SourceFrame(self, self.computations[self.entry], None, None)


@dataclasses.dataclass(frozen=True)
class SourceFrame:
    """A computation as it is run: by which instruction of which frame."""

    module: Module
    computation: Computation
    caller: Instruction | None
    parent: SourceFrame | None

    def enter(self, caller: Instruction, name: str) -> SourceFrame:
        return SourceFrame(self.module, self.module.computations[name], caller, self)

    def number(self, name: str) -> int | None:
        """The integer that `name` holds when the frame is entered; None where it cannot be known."""
        instruction = self.computation.instructions.get(name)
        if instruction is None:
            return None
        if instruction.opcode == "constant":
            found = re.fullmatch(r"-?\d+", instruction.inner.strip())
            return int(found.group()) if found else None
        if instruction.opcode in _SAME:
            return self.number(instruction.operands[0])
        if instruction.opcode == "get-tuple-element":
            return self._element(instruction.operands[0], instruction.numbers("index")[0])
        if instruction.opcode == "parameter" and self.parent is not None and self.caller is not None:
            if self.caller.opcode == "while":
                return None
            return self.parent.number(self.caller.operands[int(instruction.inner)])
        if instruction.opcode == "fusion":
            inner = self.enter(instruction, instruction.names("calls")[0])
            return inner.number(inner.computation.root)
        if instruction.opcode in ("add", "subtract", "multiply", "minimum", "maximum"):
            left, right = (self.number(operand) for operand in instruction.operands)
            return None if left is None or right is None else _compute(instruction.opcode, left, right)
        return None

    def _element(self, name: str, index: int) -> int | None:
        """Element `index` of the tuple `name`."""
        instruction = self.computation.instructions.get(name)
        if instruction is None:
            return None
        if instruction.opcode == "tuple":
            return self.number(instruction.operands[index])
        if instruction.opcode in _SAME:
            return self._element(instruction.operands[0], index)
        if instruction.opcode == "while":  # behind a loop stands what stood before it, if the loop hands it on
            body = self.module.computations[instruction.names("body")[0]]
            return self._element(instruction.operands[0], index) if _handed_on(body, index) else None
        if instruction.opcode == "parameter" and self.parent is not None and self.caller is not None:
            operand = 0 if self.caller.opcode == "while" else int(instruction.inner)
            return self.parent._element(self.caller.operands[operand], index)
        return None

    def trips(self, loop: Instruction) -> int | None:
        """How often the body of a `while` runs: as the compiler wrote it down, or from its condition."""
        written = re.search(r'known_trip_count\\?"?:\{\\?"?n\\?"?:\\?"?(\d+)', loop.attributes)
        if written:
            return int(written.group(1))
        condition, body = (self.enter(loop, loop.names(name)[0]) for name in ("condition", "body"))
        test = _comparison(condition, condition.computation.root)
        if test is None:
            return None
        frame, compare = test
        direction = compare.attribute("direction") or ""
        for counter, bound in (compare.operands, compare.operands[::-1]):
            index = _counter(frame, counter)
            if index is not None:
                start, step = self._element(loop.operands[0], index), _step(body, index)
                end = frame.number(bound)
                if start is not None and end is not None and step:
                    sign = {"LT": 0, "GT": 0, "NE": 0, "LE": 1, "GE": 1}.get(direction)
                    if sign is None:
                        return None
                    distance = (end - start) * (1 if step > 0 else -1) + sign
                    return max(-(-distance // abs(step)), 0)
        return None


def _compute(opcode: str, left: int, right: int) -> int:
    if opcode == "add":
        return left + right
    if opcode == "subtract":
        return left - right
    if opcode == "multiply":
        return left * right
    return min(left, right) if opcode == "minimum" else max(left, right)


def _comparison(frame: SourceFrame, name: str) -> tuple[SourceFrame, Instruction] | None:
    instruction = frame.computation.instructions[name]
    if instruction.opcode == "compare":
        return frame, instruction
    if instruction.opcode in ("fusion", "call"):
        inner = frame.enter(instruction, (instruction.names("calls") or instruction.names("to_apply"))[0])
        return _comparison(inner, inner.computation.root)
    return _comparison(frame, instruction.operands[0]) if instruction.opcode in _SAME else None


def _counter(frame: SourceFrame, name: str) -> int | None:
    """The element of the loop's tuple that changes and that `name` is; None for anything else."""
    instruction = frame.computation.instructions[name]
    if instruction.opcode in _SAME:
        return _counter(frame, instruction.operands[0])
    if frame.caller is None or frame.parent is None:
        return None
    if instruction.opcode == "parameter" and frame.caller.opcode != "while":
        return _counter(frame.parent, frame.caller.operands[int(instruction.inner)])
    if instruction.opcode != "get-tuple-element" or frame.caller.opcode != "while":
        return None
    index = instruction.numbers("index")[0]
    body = frame.module.computations[frame.caller.names("body")[0]]
    return None if _handed_on(body, index) else index


def _handed_on(body: Computation, index: int) -> bool:
    """Whether a loop leaves element `index` of its tuple as it is."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return False
    name = root.operands[index]
    while body.instructions[name].opcode in _SAME:
        name = body.instructions[name].operands[0]
    value = body.instructions[name]
    return value.opcode == "get-tuple-element" and value.numbers("index") == (index,)


def _step(body: SourceFrame, index: int) -> int | None:
    """What a round of the loop adds to element `index`."""
    root = body.computation.instructions[body.computation.root]
    if root.opcode != "tuple":
        return None
    frame, name = body, root.operands[index]
    for _ in range(8):
        value = frame.computation.instructions[name]
        if value.opcode == "fusion":
            frame = frame.enter(value, value.names("calls")[0])
            name = frame.computation.root
        elif value.opcode in _SAME:
            name = value.operands[0]
        elif value.opcode in ("add", "subtract"):
            numbers = [frame.number(operand) for operand in value.operands]
            counters = [_leads_to(frame, operand, index) for operand in value.operands]
            for counter, number in zip(counters, numbers[::-1], strict=True):
                if counter and number is not None:
                    return number if value.opcode == "add" else -number
            return None
        else:
            return None
    return None


def _leads_to(frame: SourceFrame, name: str, index: int) -> bool:
    value = frame.computation.instructions[name]
    if value.opcode in _SAME:
        return _leads_to(frame, value.operands[0], index)
    if value.opcode == "parameter" and frame.parent is not None and frame.caller is not None:
        return frame.caller.opcode != "while" and _leads_to(
            frame.parent, frame.caller.operands[int(value.inner)], index
        )
    return value.opcode == "get-tuple-element" and value.numbers("index") == (index,)


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`. Raises: ValueError for a text that holds no program."""
    computations: dict[str, Computation] = {}
    entry, name, root = "", "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line.startswith("}"):
            computations[name] = Computation(name, instructions, root or next(reversed(instructions), ""))
        elif line[:1] not in ("", " ") and not line.startswith("HloModule"):
            header = _HEADER.match(line)
            if header:
                name, instructions, root = header.group(2), {}, ""
                entry = name if header.group(1) else entry
        else:
            found = _INSTRUCTION.match(line)
            if found:
                instruction = _instruction(found.group(2), line[found.end() :])
                instructions[instruction.name] = instruction
                root = instruction.name if found.group(1) else root
    if entry not in computations:
        raise ValueError("the text of the compiled program has no ENTRY computation; is it `compiled.as_text()`?")
    head = text[: text.find("\n")]
    counts = [int(count) for count in re.findall(r"(?:num_partitions|replica_count)=(\d+)", head)]
    return Module(computations, entry, math.prod(counts))


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    results = tuple(
        Shape(dtype, tuple(int(size.strip().removeprefix("<=")) for size in dims.split(",") if size.strip()))
        for dtype, dims in _ARRAY.findall(text[:end])
    )
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inner = text[opening + 1 : closing]
    opcode = text[end:opening].strip()
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inner))
    return Instruction(name, opcode, results, operands, inner, text[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes; those within quotes do not count."""
    depth, quoted = 0, False
    for place in range(opening, len(text)):
        character = text[place]
        if character == '"' and text[place - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return place
    raise ValueError(f"the text of the compiled program is cut: {text[:80]!r}")
