r"""The command line: flags and gin, nothing else.

  python -m raptr_jax.main --gin_file=experiments/quickstart_bert_raptr.gin \
    --gin.MODEL_DIR="'runs/x'" [--gin.NAME=VALUE ...] [--dry_run]

Flags are t5x's: `--gin_file` may be repeated, and later files override earlier
ones; `--gin.NAME=VALUE` overrides both, and strings need quotes of their own;
`--gin_search_paths` lists folders, separated by commas, to search for gin files
before the current folder and the package's. `--dry_run` trains nothing, and
prints what the run would do and cost; `--gin_file=runs/evaluate.gin`, after a
run's config.gin, evaluates the run. `--multihost` joins the processes of a job
on several hosts, each started with the same arguments.
"""

import argparse
import difflib
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin

DYNAMIC_REGISTRATION = "from __gin__ import dynamic_registration\n"
_BUILD_ERRORS = (ImportError, OSError, TypeError, ValueError)
_PARSE_ERRORS = (*_BUILD_ERRORS, AttributeError, NameError, SyntaxError)


class ConfigurationError(Exception):
  """The run cannot be built; the message says what to change."""


def gin_folder() -> Path:
  """This package's gin files: inside it if installed, beside it if not."""
  package = Path(__file__).resolve().parent
  installed = package / "gin"
  return installed if installed.is_dir() else package.parent / "gin"


def configure(argv: Sequence[str], description: str) -> argparse.Namespace:
  """Parses flags, and configures gin by them.

  Args:
    argv: arguments without the program's name.
    description: what the program does, for `--help`.

  Returns:
    The flags other than `--gin.NAME=VALUE`.

  Raises:
    ConfigurationError: a file, name or value is unknown or missing.
  """
  overrides = [a for a in argv if a.startswith("--gin.")]
  parser = _flag_parser(description)
  flags = parser.parse_args([a for a in argv if a not in overrides])

  gin.clear_config()
  # Gin's public API can only append search paths, and cannot remove its second
  # reader, which crashes where a folder named like the gin file's exists.
  del gin.config._FILE_READERS[1:]
  folders = [f for f in flags.gin_search_paths.split(",") if f]
  gin.config._LOCATION_PREFIXES[:] = [*folders, "", str(gin_folder())]
  includes = "".join(f"include '{file}'\n" for file in flags.gin_file)
  imports = _import_lines(
    _parse(DYNAMIC_REGISTRATION + includes, source="in the gin files")
  )
  for override in overrides:
    name, equals, value = override.removeprefix("--gin.").partition("=")
    if not equals:
      raise ConfigurationError(f"{override}: expected --gin.NAME=VALUE.")
    if "." not in name:
      _check_macro(name)
    _parse(
      f"{imports}{name} = {value}",
      source=override,
      hint="a string needs quotes of its own: --gin.MODEL_DIR=\"'runs/x'\"",
    )
  missing = _missing_macros()
  if missing:
    example = " ".join(f"--gin.{name}=..." for name in missing)
    raise ConfigurationError(f"{', '.join(missing)} must be set: add {example}")
  gin.finalize()
  return flags


def _flag_parser(description: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--gin_file", action="append", required=True)
  parser.add_argument("--gin_search_paths", default="")
  parser.add_argument("--dry_run", action="store_true")
  parser.add_argument("--multihost", action="store_true")
  return parser


def _parse(text: str, *, source: str, hint: str = "") -> set[str]:
  """Parses gin code; returns the modules that its included files import."""
  # Gin logs an error for each folder that lacks the file it looks for.
  logging.disable(logging.ERROR)
  try:
    includes, _ = gin.parse_config(text)
  except _PARSE_ERRORS as e:
    note = f" ({hint})" if hint else ""
    raise ConfigurationError(f"{source}: {_first_line(e)}{note}") from e
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


def _first_line(error: Exception) -> str:
  """An error's message, without what gin appends about its own calls."""
  message = error.msg if isinstance(error, SyntaxError) else str(error)
  return re.split(r"\n+\s*In (?:call|bindings|file)", message)[0].strip()


def _macros() -> dict[str, str]:
  """All macros of the parsed files by name, with values as gin prints them."""
  pattern = r"^(\w+) = (.*)$"
  return dict(re.findall(pattern, gin.config_str(), flags=re.MULTILINE))


def _missing_macros() -> list[str]:
  """Macros that are required or used, but not set."""
  macros = _macros()
  required = [n for n, value in macros.items() if value == "%gin.REQUIRED"]
  used = dict.fromkeys(re.findall(r"%([A-Z]\w+)", gin.config_str()))
  return [*required, *(name for name in used if name not in macros)]


def _check_macro(name: str) -> None:
  # A file sets the macro, or uses it and leaves it to the command line.
  used = re.findall(r"%(\w+)", gin.config_str())
  known = sorted({*_macros(), *used} - {"gin"})
  if name not in known:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {known}."
    raise ConfigurationError(
      f"--gin.{name}: no gin file has a macro of this name; {hint}"
    )


def main(argv: Sequence[str] | None = None) -> None:
  """Trains, evaluates or (with `--dry_run`) plans what gin files describe."""
  try:
    flags = configure(sys.argv[1:] if argv is None else argv, __doc__ or "")
    import jax

    from raptr_jax.training.dry_run import print_plan
    from raptr_jax.training.experiment import Experiment
    from raptr_jax.training.loop import train

    if flags.multihost:
      jax.distributed.initialize()
    run = gin.get_configurable(gin.query_parameter("%RUN").selector)()
    trains = isinstance(run, Experiment)
    if flags.dry_run:
      if not trains:
        raise ConfigurationError(
          "--dry_run only plans training: remove it, or runs/evaluate.gin."
        )
      print_plan(run)
      return
    run.open()
  except (ConfigurationError, *_BUILD_ERRORS) as error:
    sys.exit(f"error: {_first_line(error)}")
  try:
    if trains:
      train(run, gin.config_str())
    else:
      run.run()
  except (OSError, FloatingPointError) as error:
    sys.exit(f"error: {error}")
  except ValueError as error:
    if trains:  # Not a user error: re-raise.
      raise
    sys.exit(f"error: {error}")


def prepare_main(argv: Sequence[str] | None = None) -> None:
  """Prepares a task's records: python scripts/prepare.py --gin_file=...

  Takes the gin files and flags of `python -m raptr_jax.main`, and writes the
  rows that the run will read to --gin.DATA_DIR. After an interruption, the same
  command resumes.
  """
  from raptr_jax.tasks.prepared.prepare import prepare

  try:
    configure(
      sys.argv[1:] if argv is None else argv, prepare_main.__doc__ or ""
    )
    gin.get_configurable(prepare)()
  except (ConfigurationError, *_BUILD_ERRORS) as error:
    sys.exit(f"error: {_first_line(error)}")


if __name__ == "__main__":
  main()
