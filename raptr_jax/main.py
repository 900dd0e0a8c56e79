r"""The program: flags and gin, and nothing else.

  python -m raptr_jax.main --gin_file=experiments/quickstart_bert_raptr.gin \
    --gin.MODEL_DIR="'runs/x'" [--gin.NAME=VALUE ...] [--dry_run]

Flags are t5x's: `--gin_file` may be given several times, later files override
earlier ones; `--gin.NAME=VALUE` overrides both, strings in quotes of their own;
`--gin_search_paths` are folders to look for gin files in, separated by commas,
before the current one and the package's. `--dry_run` trains nothing and prints
what the run would do and cost; `--gin_file=runs/evaluate.gin`, after the
config.gin of a run, evaluates it. `--multihost` joins the processes of a job on
several hosts, each started with the same arguments.
"""

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import gin

# What overrides on the command line can name: `--gin.optim.adamw.b2=0.98`.
PREAMBLE = """
from __gin__ import dynamic_registration
from raptr_jax import checkpoint
from raptr_jax import data
from raptr_jax import downstream
from raptr_jax import experiment
from raptr_jax import flops
from raptr_jax import growth
from raptr_jax import infill
from raptr_jax import optim
from raptr_jax import partitioning
from raptr_jax import policies
from raptr_jax import schedule
from raptr_jax.models import bert
from raptr_jax.models import decoder
from raptr_jax.models import encoder_decoder
from tasks import prepare
import tasks.bert
import tasks.denoising
import tasks.mixture
import tasks.sources
import tasks.task
import tasks.tfds_source
import tasks.ul2
"""
_BUILD_ERRORS = (ImportError, OSError, TypeError, ValueError)
_PARSE_ERRORS = (*_BUILD_ERRORS, AttributeError, NameError, SyntaxError)


class ConfigurationError(Exception):
  """A run that cannot be put together; the message says what to change."""


def gin_folder() -> Path:
  """The gin files of this package: in it if installed, beside it if not."""
  package = Path(__file__).resolve().parent
  installed = package / "gin"
  return installed if installed.is_dir() else package.parent / "gin"


def configure(argv: Sequence[str], description: str) -> argparse.Namespace:
  """Reads flags, and leaves gin with what they say.

  Args:
    argv: arguments without the program's name.
    description: of the program, for `--help`.

  Returns:
    The flags that are not gin's.

  Raises:
    ConfigurationError: if a file, a name or a value is not known or missing.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--gin_file", action="append", required=True)
  parser.add_argument("--gin_search_paths", default="")
  parser.add_argument("--dry_run", action="store_true")
  parser.add_argument("--multihost", action="store_true")
  overrides = [a for a in argv if a.startswith("--gin.")]
  flags = parser.parse_args([a for a in argv if a not in overrides])

  gin.clear_config()
  # Gin's second reader takes `runs/pretrain.gin` for a file in a package `runs`,
  # and fails where there is a folder of that name, such as a run's.
  del gin.config._FILE_READERS[1:]
  folders = [f for f in flags.gin_search_paths.split(",") if f]
  gin.config._LOCATION_PREFIXES[:] = [*folders, "", str(gin_folder())]
  includes = "".join(f"include '{file}'\n" for file in flags.gin_file)
  _parse(PREAMBLE + includes, " of the gin files")
  for override in overrides:
    name, equals, value = override.removeprefix("--gin.").partition("=")
    if not equals:
      raise ConfigurationError(f"{override}: expected --gin.NAME=VALUE.")
    if "." not in name:
      _check_macro(name)
    _parse(
      f"{PREAMBLE}{name} = {value}",
      f" in --gin.{name}={value}: a string needs quotes of its own, as in"
      " --gin.MODEL_DIR=\"'runs/x'\"",
    )
  missing = _missing_macros()
  if missing:
    example = " ".join(f"--gin.{name}=..." for name in missing)
    raise ConfigurationError(
      f"{', '.join(missing)} must be set, and no gin file does: add {example}"
    )
  gin.finalize()
  return flags


def _parse(text: str, where: str) -> None:
  # Gin logs an error for each folder that it looks into in vain.
  logging.disable(logging.ERROR)
  try:
    gin.parse_config(text)
  except _PARSE_ERRORS as e:
    raise ConfigurationError(f"{_first_line(e)}{where}") from e
  finally:
    logging.disable(logging.NOTSET)


def _first_line(error: Exception) -> str:
  """The message of an error, without what gin adds about its own calls."""
  message = error.msg if isinstance(error, SyntaxError) else str(error)
  return re.split(r"\n+\s*In (?:call|bindings|file)", message)[0].strip()


def _macros() -> dict[str, str]:
  """All macros of the parsed files, by name, as gin prints their values."""
  pattern = r"^(\w+) = (.*)$"
  return dict(re.findall(pattern, gin.config_str(), flags=re.MULTILINE))


def _missing_macros() -> list[str]:
  """Macros that are required, or used, and that nothing sets."""
  macros = _macros()
  required = [n for n, value in macros.items() if value == "%gin.REQUIRED"]
  used = dict.fromkeys(re.findall(r"%([A-Z]\w+)", gin.config_str()))
  return [*required, *(name for name in used if name not in macros)]


def _check_macro(name: str) -> None:
  # Set by a file, or used in one and left to the command line.
  used = re.findall(r"%(\w+)", gin.config_str())
  known = sorted({*_macros(), *used} - {"gin"})
  if name not in known:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {known}."
    raise ConfigurationError(
      f"--gin.{name}: no gin file has a macro of this name; {hint}"
    )


def main(argv: Sequence[str] | None = None) -> None:
  """Trains, evaluates, or with `--dry_run` plans what the gin files describe."""
  try:
    flags = configure(sys.argv[1:] if argv is None else argv, __doc__ or "")
    import jax

    from raptr_jax import downstream, dry_run
    from raptr_jax import train as training

    if flags.multihost:
      jax.distributed.initialize()
    run = gin.get_configurable(gin.query_parameter("%RUN").selector)()
    evaluates = isinstance(run, downstream.Evaluation)
    if flags.dry_run:
      if evaluates:
        raise ConfigurationError(
          "--dry_run is for training: leave it out, or runs/evaluate.gin."
        )
      dry_run.print_plan(run)
      return
    run.open()
  except (ConfigurationError, *_BUILD_ERRORS) as error:
    sys.exit(f"error: {_first_line(error)}")
  try:
    if evaluates:
      run.run()
    else:
      training.train(run, gin.config_str())
  except (OSError, FloatingPointError) as error:
    sys.exit(f"error: {error}")
  except ValueError as error:
    if not evaluates:  # Nothing that a user gives fails so late in training.
      raise
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
