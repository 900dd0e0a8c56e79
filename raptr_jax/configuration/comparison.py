"""In what two configurations differ."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from gin import config_parser

from raptr_jax.configuration.bindings import Binding, default

UNSET = "(not set)"  # And no default is known.


@dataclasses.dataclass(frozen=True)
class Change:
  """A setting that has changed.

  Attributes:
    name: of its macro, or of the parameter if that is bound to none.
    parameters: all that it sets, such as `optim.adamw.b2`; none for a macro
      that only the program reads.
    old: its value before, as gin files write it.
    new: its value now.
  """

  name: str
  parameters: tuple[str, ...]
  old: str
  new: str


def changes(old: str, new: str) -> list[Change]:
  """Settings that have changed between two texts of `config_text`.

  Args:
    old: text of a configuration, which is not evaluated.
    new: text of the one that gin has now. A parameter that only one of them
      sets has its default in the other; one without a default belongs to
    something that the other does not build, and is left out.
  """
  before, after = _Settings(old), _Settings(new)
  parameters: dict[tuple[str, str, str], list[str]] = {}
  for name in sorted(before.bindings.keys() | after.bindings.keys()):
    macro = after.macro_of(name) or before.macro_of(name)
    default = _default(name)
    values = before.value(name, default), after.value(name, default)
    parameters.setdefault((macro or name, *values), []).append(name)
  for name in sorted(before.macros.keys() & after.macros.keys()):
    if not (before.is_read(name) or after.is_read(name)):
      parameters[name, before.macros[name], after.macros[name]] = []
  return [
    Change(name, tuple(found), value, now)
    for (name, value, now), found in parameters.items()
    if value != now and UNSET not in (value, now)
  ]


class _Settings:
  """A configuration as text.

  Attributes:
    macros: values by name.
    bindings: values of parameters, by `scope/module.function.parameter`.
  """

  def __init__(self, text: str):
    self.macros: dict[str, str] = {}
    self.bindings: dict[str, str] = {}
    for scope, selector, parameter, value in _statements(text):
      if parameter:
        self.bindings[f"{scope}{selector}.{parameter}"] = value
      else:
        self.macros[selector] = value
    self._read = {*self.bindings.values(), *self.macros.values()}

  def macro_of(self, name: str) -> str | None:
    """The macro that a parameter is bound to."""
    value = self.bindings.get(name, "")
    return value[1:] if value[1:] in self.macros else None

  def value(self, name: str, default: str) -> str:
    """The value of a parameter, with macros replaced."""
    value = self.bindings.get(name, default)
    while value.startswith("%") and value[1:] in self.macros:
      value = self.macros[value[1:]]
    return value

  def is_read(self, macro: str) -> bool:
    """Whether something is bound to a macro."""
    return f"%{macro}" in self._read


def _statements(text: str) -> Iterator[tuple[str, str, str, str]]:
  """Scope (with its /), selector, parameter and value of all bindings."""
  for statement in config_parser.ConfigParser(text, _Written()):
    if isinstance(statement, config_parser.BindingStatement):
      scope = f"{statement.scope}/" if statement.scope else ""
      value = repr(statement.value)
      yield scope, statement.selector, statement.arg_name, value


def _default(name: str) -> str:
  """The default of a parameter, as its value would be written."""
  selector, _, parameter = name.rpartition("/")[2].rpartition(".")
  binding = Binding(scope="", selector=selector, parameter=parameter, value="")
  try:
    found = default(binding)
  except ValueError:  # No longer, or not yet, imported.
    return UNSET
  return UNSET if found is inspect.Parameter.empty else repr(found)


class _Text(str):
  """A reference, which is written without quotes."""

  def __repr__(self) -> str:
    return str(self)


class _Written(config_parser.ParserDelegate):
  """Reads references as they are written, without looking them up."""

  def configurable_reference(self, name: str, evaluate: bool) -> Any:
    return _Text(f"@{name}()" if evaluate else f"@{name}")

  def macro(self, name: str) -> Any:
    return _Text(f"%{name}")
