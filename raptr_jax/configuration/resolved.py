"""The resolved configuration: each value, and where it was set."""

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import gin
from gin import config_parser

from raptr_jax.configuration.bindings import bindings, default, macros

WIDTH = 80


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a value was set: a line of a gin file, or the command line."""

  file: str
  line: int | None = None


COMMAND_LINE = Origin("command line")
UNKNOWN = Origin("elsewhere")


def resolved_lines(
  files: Sequence[str], overrides: Sequence[str]
) -> Iterator[str]:
  """The parsed configuration, in lines for people.

  All macros come first, then parameters that are bound to other values than
  their defaults; each below the file that set it last, after the line number.

  Args:
    files: those that were parsed.
    overrides: likewise.
  """
  origins = _origins(files, overrides)
  yield "MACROS, by the file that sets them"
  yield from _by_file(
    (origins.get(name, UNKNOWN), name, repr(value))
    for name, value in macros().items()
  )
  yield ""
  yield "PARAMETERS that differ from their defaults, likewise"
  yield from _by_file(
    (_origin_of(binding.name, origins), binding.name, repr(binding.value))
    for binding in bindings()
    if not binding.macro and default(binding) != binding.value
  )


def _by_file(settings: Iterable[tuple[Origin, str, str]]) -> Iterator[str]:
  """Lines of settings, each an origin, a name and a value."""
  files: dict[str, list[tuple[Origin, str, str]]] = {COMMAND_LINE.file: []}
  width = 0
  for setting in settings:
    files.setdefault(setting[0].file, []).append(setting)
    width = max(width, min(len(setting[1]), WIDTH // 2))
  for file, group in files.items():
    if group:
      yield f"  {file}"
    for origin, name, value in sorted(group, key=lambda s: s[0].line or 0):
      yield textwrap.fill(
        f"{origin.line or '':>6}  {name:<{width}}  {value}",
        WIDTH,
        subsequent_indent=" " * (width + 10),
        drop_whitespace=False,
        break_on_hyphens=False,
      )


def _origin_of(parameter: str, origins: dict[str, Origin]) -> Origin:
  """Where a parameter was set last; a file may name its module in full."""
  scope, _, name = parameter.rpartition("/")
  for known, origin in reversed(origins.items()):
    known_scope, _, known_name = known.rpartition("/")
    full = f".{known_name}".endswith(f".{name}")
    if full and known_scope == scope:
      return origin
  return UNKNOWN


def _origins(
  files: Sequence[str], overrides: Sequence[str]
) -> dict[str, Origin]:
  """Where each macro and parameter was set last, by its name."""
  settings = [setting for file in files for setting in _assignments(file)]
  for override in overrides:
    name = override.removeprefix("--gin.").partition("=")[0]
    settings.append((name, COMMAND_LINE))
  found: dict[str, Origin] = {}
  for name, origin in settings:
    found.pop(name, None)  # So that the last assignment comes last.
    found[name] = origin
  return found


def _assignments(file: str) -> Iterator[tuple[str, Origin]]:
  """What a file and its includes set, and where, in their order."""
  prefixes = map(Path, gin.config._LOCATION_PREFIXES)
  path = next(p / file for p in prefixes if (p / file).is_file())
  parser = config_parser.ConfigParser(
    path.read_text(encoding="utf-8"), _Unevaluated()
  )
  for statement in parser:
    if isinstance(statement, config_parser.IncludeStatement):
      yield from _assignments(statement.filename)
    elif isinstance(statement, config_parser.BindingStatement):
      parts = (statement.selector, statement.arg_name)
      name = ".".join(part for part in parts if part)
      scope = f"{statement.scope}/" if statement.scope else ""
      yield f"{scope}{name}", Origin(file, statement.location.line_num)


class _Unevaluated(config_parser.ParserDelegate):
  """Reads references without looking up what they refer to."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return scoped_configurable_name

  def macro(self, macro_name):
    return macro_name
