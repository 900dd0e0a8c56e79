"""`raptr new method|model|task NAME`: scaffolds a new module.

Writes a small one that works at once, its gin file and its test, to be changed
from there. No part of the package has to know of them.
"""

import argparse
import builtins
import importlib.util
import io
import keyword
import pkgutil
import re
import string
import sys
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path

import raptr_jax

TEMPLATES = Path(__file__).parent / "templates"
ENDINGS = (".py", ".gin", "_test.py")
EXPERIMENT = "experiments/quickstart_bert_raptr.gin"
KINDS = {
  "method": "which layers run in each step",
  "model": "an architecture, all of its layers droppable",
  "task": "what a model learns from text",
}


def main(argv: Sequence[str]) -> None:
  """Writes the files that `argv` asks for, and prints what to do next.

  Args:
    argv: arguments after `raptr new`.

  Raises:
    SystemExit: 2, after a message, if the name or the folder is invalid.
  """
  parser = _parser()
  args = parser.parse_args(argv)
  try:
    _check_absent(args.name, args.folder)
    files = render(args.kind, args.name)
    args.folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
      (args.folder / file).write_text(text, encoding="utf-8")
  except (OSError, ValueError) as error:
    parser.exit(2, f"error: {error}\n")
  print(next_steps(args.name, files, args.folder))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="raptr new",
    description="Writes NAME.py, NAME.gin and NAME_test.py: a small method,\n"
    "model or task that trains as it is, for you to change.\n\n"
    + "\n".join(f"  {kind:8}{meaning}" for kind, meaning in KINDS.items()),
    formatter_class=argparse.RawTextHelpFormatter,
  )
  parser.add_argument("kind", choices=KINDS, metavar="method|model|task")
  parser.add_argument(
    "name", metavar="NAME", help="of the module, in snake_case: my_method"
  )
  parser.add_argument(
    "--folder",
    metavar="DIR",
    type=Path,
    default=Path(),
    help="where to write; the current folder if left out",
  )
  return parser


def _check_absent(name: str, folder: Path) -> None:
  """Raises FileExistsError if one of the new files exists."""
  for path in (folder / f"{name}{ending}" for ending in ENDINGS):
    if path.exists():
      raise FileExistsError(
        f"{path} exists, and is left as it is: choose another name or --folder."
      )


def render(kind: str, name: str) -> dict[str, str]:
  """The texts of a new module, its gin file and its test, by file name.

  Args:
    kind: one of `KINDS`.
    name: of the module; its classes have the same name in CamelCase.

  Raises:
    ValueError: if the module cannot have this name.
  """
  templates = {
    f"{name}{ending}": (TEMPLATES / f"{kind}{ending}.txt").read_text("utf-8")
    for ending in ENDINGS
  }
  class_name = string.capwords(name, "_").replace("_", "")
  _check_name(name, class_name, templates)
  names = {"name": name, "class_name": class_name}
  return {
    file: string.Template(text).substitute(names)
    for file, text in templates.items()
  }


def _check_name(
  name: str, class_name: str, templates: Mapping[str, str]
) -> None:
  """Raises ValueError if a module of this name could not be imported."""
  if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
    raise ValueError(
      f"the name {name!r} is not a module's: expected lower-case words joined"
      " by underscores, such as my_method."
    )
  of_package = {
    module.name.rpartition(".")[2]
    for module in pkgutil.walk_packages(raptr_jax.__path__, "raptr_jax.")
  }
  used = {
    word
    for file, text in templates.items()
    if file.endswith(".py")
    for word in _identifiers(text)
  }
  if name in of_package:
    owner = "raptr_jax has a module of this name, which gin files import"
  elif (
    name in sys.stdlib_module_names
    or keyword.iskeyword(name)
    or hasattr(builtins, name)
  ):
    owner = "it is Python's own"
  elif used & {name, class_name}:
    owner = "the new files use it for something else"
  elif (spec := importlib.util.find_spec(name)) and spec.origin:
    # A folder without __init__.py has no origin, and gives way to a module.
    owner = f"Python would import {spec.origin}"
  else:
    return
  raise ValueError(f"the name {name!r} is taken: {owner}; choose another one.")


def _identifiers(text: str) -> set[str]:
  """All names and keywords in a template; `$name` is no name."""
  code = re.sub(r"\$\w+", "0", text)
  tokens = tokenize.generate_tokens(io.StringIO(code).readline)
  return {token.string for token in tokens if token.type == tokenize.NAME}


def next_steps(name: str, files: Mapping[str, str], folder: Path) -> str:
  """What was written, and the commands that test it and train with it."""
  module, gin_file, test = files
  lines = [f"Wrote {module}, {gin_file} and {test}. Test it and train with it:"]
  if folder != Path():
    lines.append(f"  cd {folder}")
  lines += [
    f"  python -m pytest {test}",
    f"  raptr --gin_file={EXPERIMENT} --gin_file={gin_file}"
    f" --gin.MODEL_DIR=\"'runs/{name}'\"",
  ]
  return "\n".join(lines)
