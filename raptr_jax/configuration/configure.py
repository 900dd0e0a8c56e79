"""Configures gin by files and overrides, and builds what they describe.

A file is searched for in the folders of `search_paths`, in the current folder,
and among the package's gin files. Later files override earlier ones, and an
override `--gin.NAME=VALUE` overrides them all.
"""

import ast
import copy
import difflib
import logging
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin

from raptr_jax.configuration.bindings import (
  REQUIRED,
  macro_of,
  macros,
  used_macros,
)
from raptr_jax.configuration.errors import (
  ConfigurationError,
  place,
  sentence,
)
from raptr_jax.configuration.value_types import accepts_text, check_types

DYNAMIC_REGISTRATION = "from __gin__ import dynamic_registration\n"
PARSE_ERRORS = (
  AttributeError,
  ImportError,
  NameError,
  OSError,
  SyntaxError,
  TypeError,
  ValueError,
  tokenize.TokenError,
)


def gin_folder() -> Path:
  """This package's gin files: inside it if installed, beside it if not."""
  package = Path(__file__).resolve().parent.parent
  installed = package / "gin"
  return installed if installed.is_dir() else package.parent / "gin"


def parse(
  files: Sequence[str],
  overrides: Sequence[str] = (),
  *,
  search_paths: Sequence[str] = (),
) -> None:
  """Configures gin anew.

  Args:
    files: names of gin files; later ones override earlier ones.
    overrides: as on the command line, `--gin.NAME=VALUE`.
    search_paths: folders to search first.

  Raises:
    ConfigurationError: a file, name or value is unknown or missing.
  """
  includes = "".join(f"include {file!r}\n" for file in files)
  parse_text(
    DYNAMIC_REGISTRATION + includes, overrides, search_paths=search_paths
  )


def parse_text(
  text: str, overrides: Sequence[str] = (), *, search_paths: Sequence[str] = ()
) -> None:
  """Configures gin anew by the text of a gin file, such as `config_text()`.

  Args:
    text: of the file; overrides can set its macros, and all parameters of the
      files that it includes.
    overrides: see `parse`.
    search_paths: see `parse`.

  Raises:
    ConfigurationError: a file, name or value is unknown or missing.
  """
  gin.clear_config()
  # Gin's public API can only append search paths, and cannot remove its second
  # reader, which crashes where a folder named like the gin file's exists.
  del gin.config._FILE_READERS[1:]
  gin.config._LOCATION_PREFIXES[:] = [*search_paths, "", str(gin_folder())]
  imports = _import_lines(_parse(text, source="in the gin files"))
  for override in overrides:
    _parse_override(override, imports)
  missing = _missing_macros()
  if missing:
    example = " ".join(
      f"--gin.{name}=" + ("\"'...'\"" if accepts_text(name) else "...")
      for name in missing
    )
    raise ConfigurationError(f"{', '.join(missing)} must be set: add {example}")
  try:
    gin.finalize()
    check_types()
  except PARSE_ERRORS as error:
    raise ConfigurationError(sentence(error)) from error


def build(macro: str) -> Any:
  """What the value of a macro describes, such as that of RUN or TASK."""
  # Gin evaluates a reference when it is copied.
  return copy.deepcopy(gin.query_parameter(f"%{macro}"))


def config_text() -> str:
  """All bindings as the text of one gin file."""
  return str(gin.config_str())


def _parse_override(override: str, imports: str) -> None:
  """Parses `--gin.NAME=VALUE`, where `imports` lets NAME be a parameter."""
  name, equals, value = override.removeprefix("--gin.").partition("=")
  if not equals:
    raise ConfigurationError(f"{override}: expected --gin.NAME=VALUE.")
  if "." not in name:
    _check_macro(name)
  _check_literal(name, value)
  _parse(f"{imports}{name} = {value}", source=override)


def _check_literal(name: str, value: str) -> None:
  """Raises ConfigurationError for a value that is no literal nor reference."""
  if set(value) & set("@%"):
    return
  try:
    if isinstance(ast.literal_eval(value.strip()), tuple) and value[0] != "(":
      raise ConfigurationError(
        f'--gin.{name}={value}: expected parentheses: --gin.{name}="({value})".'
      )
  except (SyntaxError, ValueError) as error:
    if not set(value) & set("'\"()[]{}") and accepts_text(name):
      expected = (
        f"quotes of their own around a string: --gin.{name}=\"'{value}'\""
      )
    else:
      expected = (
        "a literal, such as 3, (3, 4) or 'text', a reference"
        " @module.function() or a macro %NAME"
      )
    raise ConfigurationError(
      f"--gin.{name}={value}: expected {expected}."
    ) from error


def _missing_macros() -> list[str]:
  """Macros that are required or used, but not set."""
  known = macros()
  required = [n for n, value in known.items() if macro_of(value) == REQUIRED]
  return sorted([*required, *(used_macros() - known.keys())])


def _check_macro(name: str) -> None:
  """Raises ConfigurationError unless the files set or use a macro."""
  # A file may use it and leave its value to the command line.
  known = sorted(macros().keys() | used_macros())
  if name not in known:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {known}."
    raise ConfigurationError(
      f"--gin.{name}: no gin file has a macro of this name; {hint}"
    )


def _parse(text: str, *, source: str) -> set[str]:
  """Parses gin code; returns the modules that its included files import."""
  # Gin logs an error for each folder that lacks the file it looks for.
  logging.disable(logging.ERROR)
  try:
    includes, _ = gin.parse_config(text)
  except PARSE_ERRORS as error:
    where = place(error) or source
    raise ConfigurationError(f"{where}: {sentence(error)}") from error
  finally:
    logging.disable(logging.NOTSET)
  return {module for file in includes for module in _imported_modules(file)}


def _imported_modules(file: Any) -> Iterator[str]:
  """Modules that a parsed file imports, or any file that it includes."""
  yield from file.imports
  for include in file.includes:
    yield from _imported_modules(include)


def _import_lines(modules: Iterable[str]) -> str:
  """Imports that let overrides name parameters, as `--gin.optim.adamw.b2=0.98`.

  A module goes by its last name, or by its full name if others share the last.
  """
  modules = sorted(m for m in modules if not m.startswith("__gin__."))
  names = Counter(module.rpartition(".")[2] for module in modules)
  lines = [DYNAMIC_REGISTRATION]
  for module in modules:
    package, _, name = module.rpartition(".")
    short = package and names[name] == 1
    lines.append(
      f"from {package} import {name}\n" if short else f"import {module}\n"
    )
  return "".join(lines)
