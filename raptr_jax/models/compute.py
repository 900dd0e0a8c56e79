"""How a model computes: what the families of models have in common."""

import dataclasses

from raptr_jax.models.attention import KERNELS
from raptr_jax.models.remat import POLICIES

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
  """Choices that change a model's cost, or its noise, but not what it computes.

  Attributes:
    dropout_rate: of embeddings, attention weights, MLP and residual branches,
      where the family has it.
    attention_dropout_rate: of attention weights; `dropout_rate` if None. Fused
      kernels have none: 0 makes them usable.
    attention_kernel: one of `attention.KERNELS`.
    dtype: compute dtype; parameters, norms and softmax are float32.
    residual_dtype: of the sum that each layer adds to; `dtype` if None. float32
      loses nothing of many small changes, for twice the memory between layers.
    remat: one of `remat.POLICIES`: what is kept for the backward pass.
  """

  dropout_rate: float = 0.0
  attention_dropout_rate: float | None = None
  attention_kernel: str = "auto"
  dtype: str = "float32"
  residual_dtype: str | None = None
  remat: str = "full"

  def __post_init__(self) -> None:
    _check_sizes(self)
    _check_rates(self)
    check_choices(
      self,
      attention_kernel=KERNELS,
      dtype=DTYPES,
      residual_dtype=(None, *DTYPES),
      remat=tuple(POLICIES),
    )

  @property
  def stream_dtype(self) -> str:
    """The dtype of what travels from layer to layer."""
    return self.residual_dtype or self.dtype

  @property
  def attention_dropout(self) -> float:
    """The rate of dropout of attention weights."""
    if self.attention_dropout_rate is None:
      return self.dropout_rate
    return self.attention_dropout_rate

  @property
  def has_dropout(self) -> bool:
    """Whether anything is dropped in training."""
    return self.dropout_rate > 0 or self.attention_dropout > 0


def _check_sizes(config: ComputeConfig) -> None:
  """Raises ValueError if one of the integers, which are all sizes, is below 1."""
  for field in dataclasses.fields(config):
    size = getattr(config, field.name)
    if field.type in (int, int | None) and size is not None and size < 1:
      raise ValueError(
        f"{_binding(config, field.name)} = {size}, expected at least 1."
      )


def _check_rates(config: ComputeConfig) -> None:
  """Raises ValueError if a rate of dropout is no probability below 1."""
  for name in ("dropout_rate", "attention_dropout_rate"):
    rate = getattr(config, name)
    if rate is not None and not 0 <= rate < 1:
      raise ValueError(
        f"{_binding(config, name)} = {rate}, expected at least 0 and below 1."
      )


def check_choices(config: object, **choices: tuple[str | None, ...]) -> None:
  """Raises ValueError if a field has a value that is not among its choices."""
  for name, allowed in choices.items():
    if getattr(config, name) not in allowed:
      raise ValueError(
        f"{_binding(config, name)} = {getattr(config, name)!r}, expected one of"
        f" {allowed}."
      )


def _binding(config: object, name: str) -> str:
  """What sets a field, as gin files write it."""
  module = type(config).__module__.rpartition(".")[2]
  return f"{module}.{type(config).__name__}.{name}"
