"""What the parsed gin files bind: parameters and macros."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import gin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
  """A value for a parameter.

  Attributes:
    scope: where it holds; "" for everywhere.
    selector: full name of the function or class, such as
      `raptr_jax.training.optim.adamw`.
    parameter: its parameter.
    value: a literal, or a reference to a configurable or a macro.
  """

  scope: str
  selector: str
  parameter: str
  value: Any

  @property
  def name(self) -> str:
    """As gin files write it: `optim.adamw.b2`, `eval/....split`."""
    short = ".".join([*self.selector.split(".")[-2:], self.parameter])
    return f"{self.scope}/{short}" if self.scope else short

  @property
  def macro(self) -> str | None:
    """The macro that the value refers to; None for any other value."""
    return macro_of(self.value)


def bindings() -> Iterator[Binding]:
  """All bindings of parameters, in the order in which they were parsed."""
  # Gin has no public way to list them.
  for (scope, selector), parameters in gin.config._CONFIG.items():
    if selector in ("gin.macro", "gin.constant"):
      continue
    for parameter, value in parameters.items():
      yield Binding(
        scope=scope, selector=selector, parameter=parameter, value=value
      )


def macro_texts() -> dict[str, str]:
  """All macros by name, with their values as gin writes them."""
  pattern = r"^(\w+) = (.*(?:\n .*)*)$"
  found = re.findall(pattern, gin.config_str(), flags=re.MULTILINE)
  return {name: re.sub(r"(\\\n)?\s+", " ", value) for name, value in found}


def macro_of(value: Any) -> str | None:
  """The name of the macro that a bound value refers to; None for others."""
  if not isinstance(value, gin.config.ConfigurableReference):
    return None
  name = repr(value)  # "%NAME", if it is one.
  return name[1:] if name.startswith("%") else None


def resolved(value: Any) -> Any:
  """A bound value; that of the macro, if it refers to one."""
  while (name := macro_of(value)) is not None:
    value = gin.query_parameter(f"%{name}")
  return value
