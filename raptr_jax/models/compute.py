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


def check_choices(config: object, **choices: tuple[str | None, ...]) -> None:
  """Raises ValueError if a field has a value that is not among its choices."""
  module = type(config).__module__.rpartition(".")[2]
  for name, allowed in choices.items():
    if getattr(config, name) not in allowed:
      raise ValueError(
        f"{module}.{type(config).__name__}.{name} = {getattr(config, name)!r},"
        f" expected one of {allowed}."
      )
