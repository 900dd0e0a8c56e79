"""The page of `compiled_programs.py`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raptr_jax.training.fitting import FSDP, MICROBATCHES, REMAT, TENSOR
from tables.pages import MISSING, markdown_table

# Short names of settings; the rest are shown as they are.
SETTINGS = {
  MICROBATCHES: "{} microbatches",
  FSDP: "FSDP = {}",
  TENSOR: "TENSOR = {}",
  REMAT: "REMAT = {}",
}
HEAD = (
  "path",
  "settings",
  "parameters",
  "optimizer",
  "batch",
  "temporary",
  "all",
  "to spare",
  "fused kernels",
  "collectives",
  "FLOPs, ms",
  "memory, ms",
  "compiled in, s",
)
INTRODUCTION = """\
What XLA makes of the training steps of the experiments at full size, compiled for accelerators that were not there (see
[GPUs, TPUs, several hosts](../docs/accelerators.md)). The programs are real, and none has run.

- Bytes are GiB on one device. *Temporary* are activations, gradients and all else at its peak; *to spare* is what is left of the
  memory of a device, negative if the step does not fit. Of programs that the compiler refused it says only how much they need.
- *Path* has the layers that a program runs, of each stack: the longest of a model first, as its experiment configures it, then
  with other settings until it fits, then shorter ones with these. `FSDP` and `TENSOR` are numbers of devices that split one copy of
  the parameters.
- *Collectives* are those of a step, in loops as often as these run, with the GiB of the arrays that they gather, reduce or
  scatter.
- *FLOPs* and *memory* are estimates, a roofline: the model's FLOPs at the peak of the devices, and the bytes moved to and from
  memory at its bandwidth. A step takes at least the longer one.
- *Compiled in* was measured beside other work: it is an upper bound.\
"""


def page(known: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """The sections of the page.

  Args:
    known: what is known of a model on a target, one after another; see
      `compiled_programs.py`.
  """
  yield "# The compiled steps of the experiments at full size"
  yield INTRODUCTION
  target = None
  for model in sorted(known, key=lambda model: str(model["target"])):
    if model["target"] != target:
      target = model["target"]
      yield f"## {model['num_devices']} x {model['kind']} (`{target}`)"
    yield f"{', '.join(f'`{leaf}`' for leaf in model['experiments'])}:"
    if not model["programs"]:
      yield "The compiler crashed on one of its programs."
      continue
    yield markdown_table(HEAD, map(_line, model["programs"]))
  made = sorted({_provenance(model["provenance"]) for model in known})
  yield "\n".join(["Made with:", "", *(f"- {line}" for line in made)])


def _line(record: Mapping[str, Any]) -> list[str]:
  memory, bound = record["memory"], record["roofline"]
  needed = sum(memory.values())
  spare = record["capacity"] and record["capacity"] - needed
  settings = (
    SETTINGS.get(name, f"{name} = {{}}").format(value)
    for name, value in record["bindings"].items()
  )
  refused = record["kernels"] is None
  return [
    record["path"].removeprefix("path of ").removesuffix(" layers"),
    ", ".join(settings) or "as configured",
    *(_gib(memory[part]) for part in ("params", "opt_state", "batch")),
    _gib(memory["temporary"]),
    _gib(needed),
    MISSING if spare is None else _gib(spare),
    MISSING if refused else _calls(record["kernels"]),
    MISSING if refused else _transfers(record["collectives"]),
    f"{bound['arithmetic'] * 1e3:,.0f}" if bound else MISSING,
    f"{bound['memory'] * 1e3:,.0f}" if bound else MISSING,
    f"{record['seconds']:.0f}",
  ]


def _calls(kernels: Mapping[str, int]) -> str:
  calls = (f"{count} x `{name}`" for name, count in kernels.items())
  return ", ".join(calls) or "none"


def _transfers(collectives: Mapping[str, Mapping[str, Any]]) -> str:
  sums = (
    f"{'' if found['is_known'] else 'at least '}{found['count']} x {kind},"
    f" {_gib(found['num_bytes'])}"
    for kind, found in collectives.items()
  )
  return "; ".join(sums) or "none"


def _gib(num_bytes: int) -> str:
  return f"{num_bytes / 2**30:,.2f}"


def _provenance(made: Mapping[str, Any]) -> str:
  versions = (f"{n} {version}" for n, version in made["versions"].items())
  return f"{made['date']}: {', '.join(versions)}, {made['hardware']}"
