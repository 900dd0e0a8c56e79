"""What a user reads when a configuration does not work."""

import re

from raptr_jax.configuration.bindings import bindings, resolved

BUILDING = re.compile(r"In call to configurable '([\w.]+)'")
DOTTED = re.compile(r"(?:\w+/)?(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*")
OWN_WORDS = (AttributeError, IndexError, KeyError, NameError, TypeError)


class ConfigurationError(Exception):
  """The run cannot be built; the message says what to change."""


def sentence(error: Exception) -> str:
  """An error's message, in one line that names the macros to change.

  Gin appends its own calls to messages; they are left out, but show which
  macros the failed call had read.
  """
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  message = re.split(r"\n+\s*In (?:call|bindings|file)", text)[0].strip()
  message = " ".join(message.split())
  called = BUILDING.search(text)
  if isinstance(error, OWN_WORDS) and called:
    return f"{message}: {_reads(called.group(1))}"
  return _name_macros(message)


def _reads(name: str) -> str:
  """What a configurable reads, to search for the value that it cannot take."""
  values = [
    f"{binding.macro or binding.name} = {resolved(binding.value)!r}"
    for binding in bindings()
    if f".{binding.selector}".endswith(f".{name}")
  ]
  return f"{name} was called with {', '.join(values) or 'no bindings'}"


def _name_macros(message: str) -> str:
  """Adds the macro to each parameter that a message names and that has one."""
  found = {
    binding.name: binding.macro for binding in bindings() if binding.macro
  }

  def with_macro(match: re.Match[str]) -> str:
    """The matched parameter, with its macro unless the message has it."""
    named = match.group()
    macros = {
      macro
      for name, macro in found.items()
      if name == named or name.endswith((f".{named}", f"/{named}"))
    }
    if len(macros) != 1 or (macro := macros.pop()) in message:
      return named
    return f"{named} ({macro})"

  return DOTTED.sub(with_macro, message)
