"""Suite `dense`: a whole training step of the full model, beside PyTorch's.

Ours with each way to rematerialise; Hugging Face's BERT and Llama with SDPA if
torch and transformers are installed, on a GPU also under `torch.compile`.
`torch_steps.py` says what a step of theirs is. For BERT, a check shows that both
compute the same loss with the same parameters.
"""

import dataclasses
import functools
import re
import statistics
from collections.abc import Callable, Iterator, Mapping

import jax

from benchmarks.programs import Trainer, Workload, device_gb, memory_mb
from benchmarks.results import Table, Value, missing
from benchmarks.timing import Seconds, ratio, take_turns
from raptr_jax.exchange.hugging_face import read_tensors
from raptr_jax.models import flops
from raptr_jax.models.bert import BertConfig
from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.models.remat import POLICIES
from raptr_jax.training.partitioning import Partitioner

PEER = "Hugging Face, SDPA"
# Largest difference of the losses of both BERTs, over the loss.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.01}


def workloads(size: str) -> list[Workload]:
  """The models of a size, with batches that fit the device."""
  if size == "tiny":
    decoder = DecoderConfig(32, 2, 16, 2, 32, attention="causal")
    bert = BertConfig(32, 2, 16, 2, dropout_rate=0.0)
    return [Workload("BERT", bert, 8, 16), Workload("decoder", decoder, 8, 16)]
  if size == "cpu":
    bert = BertConfig(4096, 12, 256, 4, dropout_rate=0.0)
    return [Workload("BERT", bert, batch, 128) for batch in (32, 8)]
  bert = BertConfig(30592, 24, 1024, 16, dropout_rate=0.0, dtype="bfloat16")
  decoder = DecoderConfig(
    32128, 24, 2048, 16, 7680, attention="causal", dtype="bfloat16"
  )
  # Our state and PyTorch's are on the device together.
  batch = 8 if device_gb() > 100 else 4
  return [
    Workload("BERT-Large", bert, 32, 512),
    Workload("the 1.6 B decoder", decoder, batch, 1024),
  ]


def run(size: str, rounds: int) -> Iterator[Table]:
  """The tables of a size, each as soon as it is measured."""
  has_peer = not missing(("torch", "transformers"))
  for workload in workloads(size):
    yield steps(workload, rounds, has_peer)
    if has_peer and isinstance(workload.config, BertConfig):
      yield same_loss(workload)


@dataclasses.dataclass(frozen=True)
class Program:
  """A step that takes part, and the memory that it needs, in MB."""

  step: Callable[[], None]
  memory: Mapping[str, float | None]


def steps(workload: Workload, rounds: int, has_peer: bool) -> Table:
  """Time, memory and utilisation of a step by program."""
  makers = _peers(workload) if has_peer else {}
  trainer = Trainer(workload)
  for remat in POLICIES:
    makers[f"ours, remat {remat}"] = functools.partial(_ours, trainer, remat)
  programs = {name: _fitting(make) for name, make in makers.items()}
  fitting = {
    name: program.step for name, program in programs.items() if program
  }
  seconds = take_turns(fitting, rounds=rounds)
  rows = [
    _row(workload, name, program, seconds.get(name), seconds.get(PEER))
    for name, program in programs.items()
  ]
  note = "" if has_peer else "Without torch and transformers: no peer."
  return Table(f"Dense: {workload}", rows, note)


def _ours(trainer: Trainer, remat: str) -> Program:
  variant = trainer.with_remat(remat)
  path = full_paths(variant.experiment.model.stacks)
  step = variant.step(path)
  try:
    step()
  except RuntimeError:
    trainer.renew()
    raise
  return Program(step, memory_mb(variant.compiled(path)))


def _peers(workload: Workload) -> dict[str, Callable[[], Program]]:
  """Hugging Face's model; on a GPU compiled, too."""
  from benchmarks import torch_steps

  trainer = functools.cache(lambda: torch_steps.TorchTrainer(workload))

  def peer(compiled: bool) -> Program:
    step = trainer().step(compiled=compiled)
    step()
    peak = {"temporary MB": None, "peak MB": torch_steps.peak_mb(step)}
    return Program(step, peak)

  names = {PEER: False}
  if jax.default_backend() == "gpu":
    names[f"{PEER}, torch.compile"] = True
  return {n: functools.partial(peer, compiled) for n, compiled in names.items()}


def _fitting(make: Callable[[], Program]) -> Program | None:
  """A program that has run; None if the device has too little memory."""
  try:
    return make()
  except RuntimeError as error:
    if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error)):
      raise
    return None


def _row(
  workload: Workload,
  name: str,
  program: Program | None,
  seconds: Seconds | None,
  base: Seconds | None,
) -> dict[str, Value]:
  median = statistics.median(seconds) if seconds else None
  spent = workload.flops(workload.config.num_layers)
  memory = program.memory if program else {}
  return {
    "program": name if program else f"{name}: out of memory",
    "ms": median and median * 1e3,
    f"over {PEER}": ratio(seconds, base) if seconds and base else None,
    "tokens/s": median and workload.tokens / median,
    "MFU": median and flops.utilisation(spent / median),
    "temporary MB": memory.get("temporary MB"),
    "peak MB": memory.get("peak MB"),
  }


def same_loss(workload: Workload) -> Table:
  """Whether both BERTs have the same loss with the same parameters."""
  from benchmarks.torch_steps import TorchTrainer, tensors_of

  theirs = TorchTrainer(workload)
  model = workload.model()
  params = jax.device_put(read_tensors(model, tensors_of(theirs.model)))
  _, metrics = Partitioner().jit(model.loss_fn)(
    params,
    workload.batch_of(0),
    full_paths(model.stacks),
    jax.random.key(0),
  )
  ours, expected = float(metrics["loss"] / metrics["weight"]), theirs.loss()
  apart, most = (
    abs(ours - expected) / expected,
    TOLERANCE[workload.config.dtype],
  )
  row: dict[str, Value] = {
    "check": "the same loss with the same parameters",
    "ours": ours,
    "Hugging Face": expected,
    "found": apart,
    "allowed": most,
    "holds": apart <= most,
  }
  return Table(f"Loss: {workload}", [row])
