"""The flags of the program, and what `--help` says of them."""

import argparse
from typing import NoReturn

from raptr_jax.configuration.errors import ConfigurationError

EXCHANGES = ("import", "export")  # Modes that read no gin files.
RUN_MODES = ("train", "prepare", "plan", "eval", "verify", *EXCHANGES)
EXIT_CODES = """\
run modes:
  train    trains, from the latest checkpoint in MODEL_DIR; prepares the text
           first if that takes less than a minute
  prepare  writes the text as token rows to DATA_DIR; resumes if interrupted
  plan     prints the configuration, and what the run would do and cost; with
           --target also for devices that are not here
  eval     evaluates the trained model in MODEL_DIR, by the code in its
           config.gin
  verify   checks the run in MODEL_DIR and its data, writes nothing, and says
           from which step it can be resumed; 2 if something is wrong
  import   makes a model of Hugging Face, in the folder --hf_dir, a run in
           MODEL_DIR
  export   writes the trained model in MODEL_DIR to the folder --hf_dir, which
           transformers loads

exit codes:
  0    done
  1    a failure inside the program, shown with its traceback
  2    something to mend, said in one line: a flag, a value, data, a folder
  130  stopped by Ctrl-C (SIGINT); while it trains, after the step that runs and
       with a checkpoint saved. A second Ctrl-C ends at once
  143  stopped likewise by SIGTERM
"""


class Parser(argparse.ArgumentParser):
  """A parser whose errors are told like all others, in one line."""

  def error(self, message: str) -> NoReturn:
    raise ConfigurationError(f"{message}: see {self.prog} --help.")


def parser(description: str) -> argparse.ArgumentParser:
  """The parser of the flags of `raptr`; of --gin.NAME it only has the help.

  Args:
    description: what the program does, for `--help`.
  """
  found = Parser(
    prog="raptr",
    description=description,
    epilog=EXIT_CODES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  _add_gin(found)
  modes = found.add_mutually_exclusive_group()
  modes.add_argument(
    "--run_mode",
    choices=RUN_MODES,
    metavar="MODE",
    default="train",
    help="what to do, see below (default: %(default)s)",
  )
  modes.add_argument(
    "--dry_run",
    action="store_const",
    const="plan",
    dest="run_mode",
    help="short for --run_mode=plan",
  )
  found.add_argument(
    "--target",
    metavar="NAME",
    help="with --run_mode=plan: compiles the run's programs for devices that"
    " need not be here: h200:1, h100:8, a100:8, v4:2x2x1, v5e:4x4, v5p:2x2x2,"
    " v6e:4x4 or cpu",
  )
  found.add_argument(
    "--debug",
    action="store_true",
    help="show the traceback of an error that is otherwise one line",
  )
  found.add_argument(
    "--workers",
    type=int,
    metavar="N",
    help="with --run_mode=prepare: processes that tokenise (default: 1). The"
    " files are the same for any number",
  )
  found.add_argument(
    "--hf_dir",
    metavar="FOLDER",
    help="with --run_mode=import or export: a local folder of Hugging Face, with"
    " config.json, safetensors and tokenizer",
  )
  found.add_argument(
    "--accept_changes",
    action="store_true",
    help="go on with the run in MODEL_DIR although its method, model, data,"
    " seed or schedule has changed; the summary tells of each part",
  )
  found.add_argument(
    "--profile_steps",
    type=_first_and_end,
    metavar="FIRST:END",
    help="trace these steps, counted from 0 and without END, to"
    " MODEL_DIR/profile, for XProf",
  )
  _add_hosts(found)
  return found


def check_exchange(flags: argparse.Namespace) -> None:
  """Raises ConfigurationError unless --hf_dir goes with the mode."""
  if (flags.hf_dir is not None) != (flags.run_mode in EXCHANGES):
    raise ConfigurationError(
      "--hf_dir=FOLDER goes with --run_mode=import or --run_mode=export: set"
      " both, or neither."
    )
  if flags.run_mode in EXCHANGES and flags.gin_file:
    raise ConfigurationError(
      f"--run_mode={flags.run_mode} takes no --gin_file: sizes are in the"
      " folders."
    )


def _first_and_end(text: str) -> tuple[int, int]:
  """The steps of `--profile_steps`."""
  try:
    first, end = map(int, text.split(":"))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r}, expected FIRST:END, such as 100:105"
    ) from None
  return first, end


def _add_gin(found: argparse.ArgumentParser) -> None:
  """Adds the flags that say which configuration to read."""
  found.add_argument(
    "--gin_file",
    action="append",
    metavar="FILE",
    help="a configuration; may be repeated, and later files override earlier"
    " ones. Without it, MODEL_DIR/config.gin is read. A gin file is code: it"
    " can import and call anything, so read those of others before you run"
    " them",
  )
  found.add_argument(
    "--gin.NAME",
    metavar="VALUE",
    help="overrides a macro (--gin.TRAIN_STEPS=100) or a parameter"
    " (--gin.optim.adamw.b2=0.98) of all files; strings need quotes of their"
    " own (--gin.MODEL_DIR=\"'runs/mine'\")",
  )
  found.add_argument(
    "--gin_search_paths",
    type=lambda text: [folder for folder in text.split(",") if folder],
    default=[],
    metavar="FOLDERS",
    help="folders, separated by commas, to search for gin files before the"
    " current one and the package's",
  )


def _add_hosts(found: argparse.ArgumentParser) -> None:
  """Adds the flags of runs on several hosts."""
  found.add_argument(
    "--multihost",
    action="store_true",
    help="join the processes of a job on several hosts, each started with the"
    " same arguments, as JAX finds them on TPUs, SLURM, Open MPI, Kubernetes",
  )
  found.add_argument(
    "--coordinator",
    type=_address,
    metavar="HOST:PORT",
    help="where no such cluster is found: an address of process 0, at a free"
    " port; implies --multihost",
  )
  found.add_argument(
    "--num_processes",
    type=int,
    metavar="N",
    help="with --coordinator: the number of processes",
  )
  found.add_argument(
    "--process_id",
    type=int,
    metavar="I",
    help="with --coordinator: the number of this process, 0 to N - 1",
  )
  found.add_argument(
    "--join_timeout",
    type=int,
    default=300,
    metavar="SECONDS",
    help="how long to wait for the other processes (default: %(default)s)",
  )


def check_hosts(flags: argparse.Namespace) -> None:
  """Checks the flags of several hosts; those of one process set `multihost`.

  Raises:
    ConfigurationError: if some are missing, or out of range.
  """
  names = ("coordinator", "num_processes", "process_id")
  missing = [name for name in names if getattr(flags, name) is None]
  if 0 < len(missing) < len(names):
    given = ", ".join(f"--{name}" for name in names if name not in missing)
    lacking = " and ".join(f"--{name}" for name in missing)
    raise ConfigurationError(
      f"{given} without {lacking}: set all three, or none where JAX finds the"
      " cluster."
    )
  if flags.join_timeout < 1:
    raise ConfigurationError(
      f"--join_timeout={flags.join_timeout}, expected at least 1 second."
    )
  if missing:
    return
  if not 0 <= flags.process_id < flags.num_processes:
    raise ConfigurationError(
      f"--process_id={flags.process_id}, expected 0 to N - 1, where"
      f" --num_processes={flags.num_processes} is N."
    )
  flags.multihost = True


def _address(text: str) -> str:
  """The address of `--coordinator`."""
  host, _, port = text.rpartition(":")
  if not host or not port.isdecimal():
    raise argparse.ArgumentTypeError(
      f"{text!r}, expected HOST:PORT, such as node1:29400"
    )
  return text
