"""What the parsed gin files bind: parameters and macros."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import gin

REQUIRED = "gin.REQUIRED"  # Marks a value that has to be set.


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
  for (scope, selector), parameters in _config().items():
    if selector not in ("gin.macro", "gin.constant"):
      for parameter, value in parameters.items():
        yield Binding(
          scope=scope, selector=selector, parameter=parameter, value=value
        )


def macros() -> dict[str, Any]:
  """The values of all macros by name; references stay references."""
  return {
    scope: parameters["value"]
    for (scope, selector), parameters in _config().items()
    if selector == "gin.macro"
  }


def used_macros() -> set[str]:
  """The names of all macros that are referred to, whether set or not."""
  references = gin.config.iterate_references(_config())
  names = set(map(macro_of, references)) - {REQUIRED}
  return {name for name in names if name is not None}


def _config() -> Mapping[tuple[str, str], Mapping[str, Any]]:
  """Values by (scope, selector) and parameter; gin has no public way to them."""
  config: Mapping[tuple[str, str], Mapping[str, Any]] = gin.config._CONFIG
  return config


def macro_of(value: Any) -> str | None:
  """The name of the macro that a bound value refers to; None for others."""
  if not isinstance(value, gin.config.ConfigurableReference):
    return None
  name = repr(value)  # "%NAME", if it is one.
  return name[1:] if name.startswith("%") else None


def resolved(value: Any) -> Any:
  """A bound value; that of the macro, if it refers to one."""
  while (name := macro_of(value)) not in (None, REQUIRED):
    value = gin.query_parameter(f"%{name}")
  return value


def default(binding: Binding) -> Any:
  """The default of the bound parameter; `inspect.Parameter.empty` for none."""
  called = gin.get_configurable(binding.selector)
  # Gin's class of a class hides the signature of the call.
  function = called.__init__ if inspect.isclass(called) else called
  found = inspect.signature(function).parameters.get(binding.parameter)
  return found.default if found else inspect.Parameter.empty
