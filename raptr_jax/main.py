r"""Pretrains transformers with some of their layers at a time, by gin files.

  raptr --gin_file=experiments/quickstart_bert_raptr.gin \
    --gin.MODEL_DIR="'runs/mine'" [--gin.NAME=VALUE ...] [--run_mode=MODE]

`raptr` and `python -m raptr_jax.main` are the same program. The same command
with the same MODEL_DIR resumes a run that was stopped. `raptr new --help` shows
how to begin a method, a model or a task of your own.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import gin

from raptr_jax.configuration import configure as configuration
from raptr_jax.configuration.bindings import macros, resolved
from raptr_jax.configuration.errors import (
  ConfigurationError,
  out_of_memory,
  sentence,
)
from raptr_jax.configuration.flags import (
  EXCHANGES,
  check_exchange,
  check_hosts,
  parser,
)
from raptr_jax.configuration.resolved import resolved_lines
from raptr_jax.tasks import files

EVALUATE = "runs/evaluate.gin"
VERIFY = "runs/verify.gin"
TARGET = "runs/target.gin"


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; raises SystemExit with the codes of `--help`."""
  as_program, since = argv is None, time.monotonic()
  argv = sys.argv[1:] if argv is None else list(argv)
  if "" not in sys.path and os.getcwd() not in sys.path:
    sys.path.insert(0, "")  # Gin files may import modules of this folder.
  if argv[:1] == ["new"]:
    from raptr_jax.scaffold.new import main as new

    new(argv[1:])
    return
  with _exit_codes(as_program, debug="--debug" in argv):
    flags = configure(argv, __doc__ or "")
    flags.since = since
    modes = {
      "prepare": _prepare,
      "plan": _plan,
      "verify": _verify,
      **dict.fromkeys(EXCHANGES, _exchange),
    }
    modes.get(flags.run_mode, _run)(flags)


def prepare_main(argv: Sequence[str] | None = None) -> None:
  """`main` with `--run_mode=prepare`."""
  argv = sys.argv[1:] if argv is None else argv
  main([*argv, "--run_mode=prepare"])


def configure(argv: Sequence[str], description: str = "") -> argparse.Namespace:
  """Parses flags, and configures gin by them.

  Args:
    argv: arguments without the program's name.
    description: what the program does, for `--help`.

  Returns:
    The flags; `overrides` has those of the form `--gin.NAME=VALUE`.

  Raises:
    ConfigurationError: a file, name or value is unknown or missing.
  """
  overrides = [a for a in argv if a.startswith("--gin.")]
  flags = parser(description).parse_args(
    [a for a in argv if a not in overrides]
  )
  flags.overrides = overrides
  check_hosts(flags)
  check_exchange(flags)
  if flags.run_mode in EXCHANGES:
    return flags
  flags.gin_file = flags.gin_file or [_config_of_run(overrides)]
  last = {"eval": EVALUATE, "verify": VERIFY}.get(flags.run_mode)
  if last and last not in flags.gin_file:
    flags.gin_file.append(last)
  if flags.profile_steps and flags.run_mode != "train":
    raise ConfigurationError(
      f"--profile_steps traces steps of training: leave out"
      f" --run_mode={flags.run_mode}."
    )
  if flags.workers is not None and flags.run_mode != "prepare":
    raise ConfigurationError(
      f"--workers={flags.workers} prepares data: add --run_mode=prepare."
    )
  if flags.target is not None:
    _aim(flags)
  configuration.parse(
    flags.gin_file, flags.overrides, search_paths=flags.gin_search_paths
  )
  return flags


def _aim(flags: argparse.Namespace) -> None:
  """Configures a plan for described devices; before JAX looks for real ones."""
  from raptr_jax.training.targets import stay_on_host

  if flags.run_mode != "plan":
    raise ConfigurationError(
      f"--target={flags.target} describes devices, which can be planned for,"
      " but not run on: add --run_mode=plan."
    )
  stay_on_host()
  flags.gin_file.append(TARGET)
  flags.overrides.append(f"--gin.TARGET={flags.target!r}")


def _config_of_run(overrides: Sequence[str]) -> str:
  """The configuration that a run left in the MODEL_DIR of the overrides."""
  begin = "--gin.MODEL_DIR="
  folders = [o.removeprefix(begin) for o in overrides if o.startswith(begin)]
  if not folders:
    raise ConfigurationError(
      "expected a configuration: set --gin_file=experiments/....gin, or"
      " --gin.MODEL_DIR to the folder of an earlier run."
    )
  with _mendable():
    folder = files.path("MODEL_DIR", folders[-1].strip("\"'"))
  path = folder / "config.gin"
  if not path.is_file():
    raise ConfigurationError(
      f"{path} does not exist: set --gin_file, or --gin.MODEL_DIR to the"
      " folder of an earlier run."
    )
  return str(files.local_copy(path))


@contextlib.contextmanager
def _exit_codes(as_program: bool, *, debug: bool) -> Iterator[None]:
  """Turns what a user can mend into one line and exit code 2."""
  try:
    yield
  except (ConfigurationError, FloatingPointError, OSError) as error:
    _show(error, sentence(error), debug)
    raise SystemExit(2) from None
  except (MemoryError, RuntimeError) as error:
    if (line := out_of_memory(error)) is None:
      raise
    _show(error, line, debug)
    raise SystemExit(2) from None
  except KeyboardInterrupt:
    print("interrupted; the same command resumes", file=sys.stderr, flush=True)
    if as_program:  # Without waiting for what other threads still compile.
      sys.stdout.flush()
      os._exit(130)
    raise SystemExit(130) from None


def _show(error: Exception, line: str, debug: bool) -> None:
  """Prints the line of an error, after its traceback if that is wanted."""
  if debug:
    traceback.print_exception(error)
  print(f"error: {line}", file=sys.stderr)


@contextlib.contextmanager
def _mendable() -> Iterator[None]:
  """Errors while objects are built and data is opened are the user's."""
  try:
    yield
  except (*configuration.PARSE_ERRORS, KeyError) as error:
    raise ConfigurationError(sentence(error)) from error


def _prepare(flags: argparse.Namespace) -> None:
  from raptr_jax.tasks.prepared.prepare import prepare

  with _mendable():
    gin.get_configurable(prepare)(workers=flags.workers or 1)


def _plan(flags: argparse.Namespace) -> None:
  from raptr_jax.training.dry_run import print_plan

  run = _experiment("planned")
  print(*resolved_lines(flags.gin_file, flags.overrides), "", sep="\n")
  with _mendable():
    print_plan(run, every_program=flags.target is not None)


def _verify(flags: argparse.Namespace) -> None:
  from raptr_jax.training.targets import stay_on_host
  from raptr_jax.training.verification import verify

  stay_on_host()  # The accelerators may be in use, or another host's.
  with _mendable():
    verify(_experiment("verified"), configuration.config_text())


def _exchange(flags: argparse.Namespace) -> None:
  from raptr_jax.exchange.command import exchange

  with _mendable():
    print(exchange(flags.run_mode, flags.hf_dir, flags.overrides))


def _experiment(done: str) -> Any:
  """The run, which must be one of training to be `done`."""
  from raptr_jax.training.experiment import Experiment

  with _mendable():
    run = configuration.build("RUN")
  if not isinstance(run, Experiment):
    raise ConfigurationError(
      f"only training can be {done}, and RUN is {type(run).__name__}: leave out"
      " the file of runs/ that sets it."
    )
  return run


def _run(flags: argparse.Namespace) -> None:
  """Trains or evaluates."""
  from raptr_jax.training.device_memory import check_memory
  from raptr_jax.training.experiment import Experiment
  from raptr_jax.training.host_memory import keep_freed_memory
  from raptr_jax.training.hosts import agree, join
  from raptr_jax.training.kept_programs import keep_programs
  from raptr_jax.training.loop import train
  from raptr_jax.training.signals import Stopped

  if flags.multihost:
    join(
      flags.coordinator,
      flags.num_processes,
      flags.process_id,
      timeout=flags.join_timeout,
    )
    agree(configuration.config_text())
  keep_freed_memory()
  keep_programs(_programs_folder())
  run = _opened(flags.profile_steps)
  try:
    if isinstance(run, Experiment):
      check_memory(run)
      train(
        run,
        configuration.config_text(),
        accept_changes=flags.accept_changes,
        since=flags.since,
      )
    else:
      with _mendable():
        run.run()
  except Stopped as stopped:
    print(stopped, flush=True)
    raise SystemExit(128 + stopped.signal_number) from None


def _programs_folder() -> str | None:
  """Where compiled programs are kept; older configurations do not say."""
  folder = resolved(macros().get("COMPILATION_CACHE_DIR"))
  if not isinstance(folder, str | None):
    raise ConfigurationError(
      f"COMPILATION_CACHE_DIR = {folder!r}, expected a folder, or None."
    )
  return folder


def _opened(profile_steps: tuple[int, int] | None) -> Any:
  """The run with its data, which is prepared if that is quick."""
  from raptr_jax.tasks.prepared.prepare import prepare
  from raptr_jax.tasks.task import NotPreparedError

  with _mendable():
    run = _built(profile_steps)
    try:
      run.open()
    except NotPreparedError:
      if not _may_prepare(run):
        raise
      gin.get_configurable(prepare)()
      # Built again, since sizes may depend on the text.
      run = _built(profile_steps)
      run.open()
  return run


def _built(profile_steps: tuple[int, int] | None) -> Any:
  """The run, with the steps of `--profile_steps`."""
  from raptr_jax.training.experiment import Experiment

  run = configuration.build("RUN")
  if profile_steps and isinstance(run, Experiment):
    run = dataclasses.replace(run, profile_steps=profile_steps)
  return run


def _may_prepare(run: Any) -> bool:
  """Whether to prepare a run's data unasked."""
  import jax

  from raptr_jax.tasks.prepared.prepare import is_quick
  from raptr_jax.training.checkpoint import has_checkpoint
  from raptr_jax.training.experiment import Experiment

  # A trained model might find other tokens behind its ids, and several hosts
  # would write to the same folder.
  is_new = isinstance(run, Experiment) and not has_checkpoint(run.model_dir)
  return (
    is_new
    and jax.process_count() == 1
    and is_quick(configuration.build("TASK"))
  )


if __name__ == "__main__":
  main()
