"""What is known of a family of models at Hugging Face."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from raptr_jax.contracts import Model
from raptr_jax.exchange.tensor_map import Entry, ExchangeError

Fields: TypeAlias = Mapping[str, Any]  # Of a config.json.
ACTIVATIONS = {  # Ours by theirs.
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "silu": "silu",
  "swish": "silu",
}


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of models, in both directions.

  Attributes:
    architectures: what `architectures` in a config.json may name.
    kind: our class of models.
    depths: the field of its configuration that is the depth of each stack.
    model: our model of the sizes in a config.json.
    fields: the config.json of a model of ours.
    entries: of a model of ours, one for each tensor.
    ignored: names of tensors, as patterns, that have no part in our models, or
      repeat another one.
    tied: a tensor that another one stands for where it is missing, by its name.
  """

  architectures: tuple[str, ...]
  kind: type[Any]
  depths: Mapping[str, str]
  model: Callable[[Fields], Model]
  fields: Callable[[Any], dict[str, Any]]
  entries: Callable[[Any], Iterator[Entry]]
  ignored: tuple[str, ...] = ()
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)


def size(fields: Fields, name: str, default: int | None = None) -> int:
  """A size in a config.json.

  Raises:
    ExchangeError: it is missing, or no whole number above 0.
  """
  found = fields.get(name)
  found = default if found is None else found
  if not isinstance(found, int) or isinstance(found, bool) or found < 1:
    raise ExchangeError(
      f"config.json has {name} = {found!r}, expected a whole number of at least"
      " 1"
    )
  return found


def number(fields: Fields, name: str, default: float) -> float:
  """A number in a config.json.

  Raises:
    ExchangeError: it is no number.
  """
  found = fields.get(name, default)
  if not isinstance(found, int | float) or isinstance(found, bool):
    raise ExchangeError(
      f"config.json has {name} = {found!r}, expected a number"
    )
  return float(found)


def expect(fields: Fields, **values: Any) -> None:
  """Raises ExchangeError if a field is there, and has another value."""
  for name, value in values.items():
    if fields.get(name, value) != value:
      raise ExchangeError(
        f"config.json has {name} = {fields[name]!r}; this package has only"
        f" models with {value!r}"
      )


def activation(fields: Fields, name: str, default: str) -> str:
  """Our name of an activation.

  Raises:
    ExchangeError: this package does not have it.
  """
  found = fields.get(name, default)
  if found not in ACTIVATIONS:
    raise ExchangeError(
      f"config.json has {name} = {found!r}, expected one of"
      f" {sorted(ACTIVATIONS)}"
    )
  return ACTIVATIONS[found]


def activation_name(ours: str) -> str:
  """Their name of an activation."""
  return next(name for name, known in ACTIVATIONS.items() if known == ours)
