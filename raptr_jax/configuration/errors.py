"""What a user reads when a configuration does not work."""

import os
import re

from raptr_jax.configuration.bindings import bindings, macros, resolved

# What gin appends to the message of an error in a file.
IN_FILE = re.compile(r'In file "(.+)", line (\d+)')
INCLUDED = re.compile(r"In bindings string line \d+\s+include '(.+)'")
# What Python says of a statement that the end of a file cuts off.
UNFINISHED = re.compile(r"\('(.+)', \((\d+), \d+\)\)")
# What the system says of a file; gin hides the attributes of the error.
REFUSED = re.compile(r"\[Errno \d+\] .*: '(.+?)'")
# What XLA says, on accelerators and on CPUs.
EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|Out of memory")
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
  text = str(error)
  if isinstance(error, SyntaxError):
    text = error.msg
  elif found := UNFINISHED.match(text):
    text = found[1]
  message = re.split(r"\n+\s*In (?:call|bindings|file)", text)[0].strip()
  message = " ".join(message.split())
  called = BUILDING.search(text)
  if isinstance(error, OWN_WORDS) and called:
    return f"{message}: {_reads(called.group(1))}"
  if refused := REFUSED.search(message):
    message += _folder_hint(message, refused[1])
  return _name_macros(message)


def out_of_memory(error: Exception) -> str | None:
  """What to read if memory ran out, in one line; None for other errors."""
  if not isinstance(error, MemoryError) and not EXHAUSTED.search(str(error)):
    return None
  first_line = str(error).partition("\n")[0][:200].rstrip(". ")
  sizes = ", ".join(
    f"{binding.macro or binding.name} = {size}"
    for binding in bindings()
    if binding.selector.startswith("raptr_jax.models.")
    and isinstance(size := resolved(binding.value), int)
  )
  return (
    f"out of memory ({first_line or 'of this machine'}): set a smaller"
    f" {_setting('BATCH_SIZE')}, a larger {_setting('NUM_MICROBATCHES')}, REMAT"
    f" = 'full' in place of {_setting('REMAT')}, {_setting('FSDP')} to as many"
    f" devices as there are, or a smaller model ({sizes}); --run_mode=plan"
    " searches for settings that fit."
  )


def _setting(name: str) -> str:
  """A macro and its value; its name alone if it is not set."""
  value = resolved(macros().get(name))
  return name if value is None else f"{name} = {value!r}"


def _folder_hint(message: str, file: str) -> str:
  """The macro of the folder around a file that the system refuses."""
  folders = {
    name: os.path.expanduser(value)
    for name, value in macros().items()
    if isinstance(value, str) and value
  }
  around = [
    name
    for name, folder in folders.items()
    if name not in message
    and f"{file}/".startswith(f"{os.path.abspath(folder).rstrip('/')}/")
  ]
  if not around:
    return ""
  nearest = max(around, key=lambda name: len(folders[name]))
  return f": set another --gin.{nearest}, which is {folders[nearest]!r}"


def place(error: Exception) -> str | None:
  """The gin file and line of an error while files were parsed.

  Returns:
    As in `mine.gin, line 3`, or the flag of a file that cannot be read at all;
    None if the error is not in a file.
  """
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}, line {error.lineno}"
  included = INCLUDED.search(str(error))
  if found := IN_FILE.search(str(error)):
    return f"{found[1]}, line {found[2]}"
  if included and (found := UNFINISHED.match(str(error))):
    return f"{included[1]}, line {found[2]}"
  return f"--gin_file={included[1]}" if included else None


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
