"""Reads the text of a compiled program: instructions, and how often they run.

XLA prints a program as computations, lists of lines such as

  %sum.3 = f32[8,128]{1,0} add(%x, %y), metadata={...}

of which the computation ENTRY calls the others. XLA's own counts take the body
of a loop once; here it counts as often as the loop runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

NAME = re.compile(r"%([\w.-]+)")
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
BITS = {"pred": 8}  # The names of other types end with theirs.


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation.

  Attributes:
    name: unique in the program.
    shape: of its result, such as `f32[8,128]{1,0}`, or a tuple of shapes.
    opcode: what it does.
    arguments: the text between its parentheses.
    attributes: the text after them.
    is_root: whether its result is that of its computation.
  """

  name: str
  shape: str
  opcode: str
  arguments: str
  attributes: str
  is_root: bool

  @property
  def operands(self) -> list[str]:
    """Names of the instructions whose results it takes."""
    return NAME.findall(self.arguments)

  def attribute(self, pattern: str) -> str | None:
    """What the group of a pattern finds in the attributes."""
    found = re.search(pattern, self.attributes)
    return found.group(1) if found else None

  def computations(self, attribute: str) -> list[str]:
    """The computations that attributes of a name, a pattern, list."""
    pattern = rf"\b(?:{attribute})=(\{{[^}}]*\}}|%[\w.-]+)"
    found = re.findall(pattern, self.attributes)
    return [name for value in found for name in NAME.findall(value)]

  @property
  def called(self) -> list[str]:
    """The computations that it runs; not those applied to single elements."""
    attributes = {
      "call": "to_apply",
      "while": "condition|body",
      "conditional": r"\w+_computations?",
    }
    return self.computations(attributes.get(self.opcode, "calls"))


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an instruction is, and what that means.

  Attributes:
    computation: its name.
    times: how often a run of the program executes it. Of the branches of a
      conditional one runs; here each does.
    loops: the number of loops around it.
    is_optional: whether it is in a branch of a conditional.
    is_fused: whether it is in a fusion, whose inner results need no memory.
    is_known: whether the program states how often the loops around it run;
      others count once.
  """

  computation: str
  times: int = 1
  loops: int = 0
  is_optional: bool = False
  is_fused: bool = False
  is_known: bool = True


@dataclasses.dataclass(frozen=True)
class Program:
  """The instructions by computation and name, and the computation that calls.

  Attributes:
    computations: name -> name -> instruction, in the order of the text.
    entry: name of the first computation to run.
  """

  computations: Mapping[str, Mapping[str, Instruction]]
  entry: str

  def executed(self) -> Iterator[tuple[Instruction, Place]]:
    """All instructions that run, once for each place that calls them."""
    yield from self._executed(Place(self.entry))

  def _executed(self, place: Place) -> Iterator[tuple[Instruction, Place]]:
    for instruction in self.computations[place.computation].values():
      yield instruction, place
      inside = self._inside(instruction, place)
      for called in instruction.called:
        yield from self._executed(
          dataclasses.replace(inside, computation=called)
        )

  def _inside(self, caller: Instruction, place: Place) -> Place:
    """The place of what an instruction calls."""
    if caller.opcode == "conditional":
      return dataclasses.replace(place, is_optional=True)
    if caller.opcode == "fusion":
      return dataclasses.replace(place, is_fused=True)
    if caller.opcode != "while":
      return place
    count = self.trip_count(caller)
    return dataclasses.replace(
      place,
      times=place.times * (1 if count is None else count),
      loops=place.loops + 1,
      is_known=place.is_known and count is not None,
    )

  def trip_count(self, loop: Instruction) -> int | None:
    """How often the body of a loop runs; None if the program does not say."""
    if stated := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
      return int(stated)
    # Programs for TPUs do not state it; the loop of a scan counts from 0.
    (condition,) = loop.computations("condition")
    instructions = self.computations[condition]
    (root,) = (i for i in instructions.values() if i.is_root)
    if root.opcode != "compare" or "direction=LT" not in root.attributes:
      return None
    limit = instructions[root.operands[1]]
    return int(limit.arguments) if limit.opcode == "constant" else None


def parse(text: str) -> Program:
  """Parses the text of a program, as of `jax.stages.Compiled.as_text`."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", ""
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
    if head:
      current = head.group(2)
      computations[current] = {}
      entry = current if head.group(1) else entry
    elif found := re.match(r"\s+(ROOT )?%?([\w.-]+) = (.*)", line):
      is_root, name, rest = found.groups()
      computations[current][name] = _instruction(name, rest, bool(is_root))
  return Program(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
  """An instruction from the text after its name: shape opcode(arguments)..."""
  end = _closing(text, 0) if text[0] == "(" else text.index(" ")
  shape, text = text[:end], text[end:].lstrip()
  opening = text.index("(")
  end = _closing(text, opening)
  return Instruction(
    name=name,
    shape=shape,
    opcode=text[:opening],
    arguments=text[opening + 1 : end - 1],
    attributes=text[end:],
    is_root=is_root,
  )


def _closing(text: str, opening: int) -> int:
  """The index after the parenthesis that closes the one at `opening`."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, opening):
    depth += 1 if match.group() == "(" else -1
    if depth == 0:
      return match.end()
  raise ValueError(f"Expected a closing parenthesis: {text[:80]}")


def parts(shape: str) -> list[str]:
  """The shapes in a tuple; a shape that is no tuple is its own only part."""
  if not shape.startswith("("):
    return [shape]
  found, depth, start = [], 0, 1
  for match in re.compile(r"[(){}\[\],]").finditer(shape, 1):
    if match.group() in "({[":
      depth += 1
    elif depth and match.group() in ")}]":
      depth -= 1
    elif depth == 0:
      found.append(re.sub(r"/\*.*?\*/", "", shape[start : match.start()]))
      start = match.end()
  return [part.strip() for part in found]


def num_bytes(shape: str, *, main_memory: bool = False) -> int:
  """Bytes of all arrays in a shape.

  Args:
    shape: of an array, or a tuple.
    main_memory: leaves out what lies elsewhere, such as in a TPU's VMEM.
  """
  bits = 0
  for dtype, sizes, layout in SHAPE.findall(shape):
    if main_memory and "S(" in layout:
      continue
    digits = re.search(r"\d+", dtype)
    width = int(digits.group()) if digits else BITS.get(dtype, 0)
    bits += width * math.prod(int(size) for size in sizes.split(",") if size)
  return bits // 8


def axes(shape: str) -> tuple[int, ...]:
  """The sizes of an array."""
  found = SHAPE.match(shape)
  sizes = found.group(2).split(",") if found else []
  return tuple(int(size) for size in sizes if size)
