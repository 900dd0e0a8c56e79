"""Checks bound values against the annotations of their parameters."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin

from raptr_jax.configuration.bindings import (
  Binding,
  bindings,
  default,
  resolved,
)
from raptr_jax.configuration.errors import ConfigurationError

LITERALS = (bool, int, float, str, list, tuple, dict)


def check_types() -> None:
  """Compares literal values with simple annotations, such as `int | None`.

  Raises:
    ConfigurationError: a value does not fit; the message names its macro.
  """
  for binding in bindings():
    value, expected = resolved(binding.value), _annotation(binding)
    if value != default(binding) and not _fits(value, expected):
      is_class = isinstance(expected, type) and not typing.get_args(expected)
      shown = expected.__name__ if is_class else str(expected)
      shown = re.sub(r"\b(?:\w+\.)+(\w)", r"\1", shown)
      where = f" (for {binding.name})" if binding.macro else ""
      raise ConfigurationError(
        f"{binding.macro or binding.name} = {value!r}, expected"
        f" {shown}{where}: set --gin.{binding.macro or binding.name}."
      )


def accepts_text(name: str) -> bool:
  """Whether a string suits a macro or parameter; true if nothing reads it."""
  expected = [
    _annotation(binding)
    for binding in bindings()
    if name in (binding.macro, binding.name)
  ]
  return all(_fits("text", annotation) for annotation in expected)


def _annotation(binding: Binding) -> Any:
  """The annotation of the bound parameter; Any if there is none."""
  target: Any = gin.get_configurable(binding.selector)
  if inspect.isclass(target):
    target = target.__init__
  target = inspect.unwrap(target)
  try:
    hints = typing.get_type_hints(target)
  except (AttributeError, NameError, TypeError):  # Not made for evaluation.
    return Any
  return hints.get(binding.parameter, Any)


def _fits(value: Any, expected: Any) -> bool:
  """Whether a value has a type, as far as the type is a simple one."""
  if not (value is None or isinstance(value, LITERALS)):
    return True  # A reference, or what it made.
  origin, parts = typing.get_origin(expected), typing.get_args(expected)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, option) for option in parts)
  if origin is typing.Literal:
    return value in parts
  if expected in (None, types.NoneType):
    return value is None
  if expected is bool:
    return isinstance(value, bool)
  if expected is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if expected is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if expected is str:
    return isinstance(value, str)
  if origin in (tuple, list, Sequence, Iterable):
    of_one_type = parts and parts[1:] in ((), (...,))
    return isinstance(value, list | tuple) and (
      not of_one_type or all(_fits(item, parts[0]) for item in value)
    )
  if origin in (dict, Mapping):
    return isinstance(value, dict)
  if origin is Callable:
    return False
  if inspect.isclass(expected):
    try:
      return isinstance(value, expected)
    except TypeError:  # A protocol, which no literal satisfies.
      return False
  return True
