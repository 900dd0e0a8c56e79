"""Writes the pages that follow from the code, so that they cannot go stale.

`conf.py` calls this before each build. Into docs/generated/ go: a page of each
package with the docstrings of its modules, the tables of macros with their
defaults in gin/, and the help texts of the programs.
"""

import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import raptr_jax

DOCS = Path(__file__).resolve().parent
GIN = DOCS.parent / "gin"
# Where defaults are; what lies in experiments/ and tables/ are choices.
GIN_FOLDERS = ("runs", "data", "models", "methods")
PLACEHOLDERS = GIN / "runs" / "trial.gin"
MEANINGS = DOCS / "macros.toml"
PROGRAMS = {
  "raptr": ("-m", "raptr_jax.main", "--help"),
  "raptr_new": ("-m", "raptr_jax.main", "new", "--help"),
  "reproduce": ("scripts/reproduce.py", "--help"),
  "benchmark": ("scripts/benchmark.py", "--help"),
}


def write_pages(folder: Path) -> None:
  """Writes all pages; leaves those alone that have not changed."""
  pages = {f"{name}.rst": text for name, text in package_pages()}
  pages |= {f"macros_{name}.md": text for name, text in macro_tables()}
  pages |= {f"{name}.txt": help_text(words) for name, words in PROGRAMS.items()}
  folder.mkdir(exist_ok=True)
  for path in folder.iterdir():
    if path.name not in pages:
      path.unlink()
  for name, text in pages.items():
    path = folder / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
      path.write_text(text, encoding="utf-8")


def package_pages() -> Iterator[tuple[str, str]]:
  """The name and the page of each package of raptr_jax, in reST."""
  modules: dict[str, list[str]] = {raptr_jax.__name__: []}
  found = pkgutil.walk_packages(raptr_jax.__path__, f"{raptr_jax.__name__}.")
  for module in found:
    if module.ispkg:
      modules[module.name] = []
    else:
      modules[module.name.rpartition(".")[0]].append(module.name)
  for package, names in modules.items():
    parts = [_heading(package, "="), f".. automodule:: {package}\n"]
    parts += [_exported(package)] if package == raptr_jax.__name__ else []
    for name in names:
      parts.append(_heading(name.removeprefix(f"{package}."), "-"))
      parts.append(f".. automodule:: {name}\n   :members:\n")
    yield package, "\n".join(parts)


def _exported(package: str) -> str:
  """The names to import from a package itself, each with a link."""
  links = []
  for name in raptr_jax.__all__:
    thing = getattr(raptr_jax, name)
    if inspect.ismodule(thing):
      links.append(f":py:mod:`~{thing.__name__}`")
    else:
      links.append(f":py:obj:`~{thing.__module__}.{thing.__qualname__}`")
  return f"Names to import from `{package}` itself: {', '.join(links)}.\n"


def _heading(text: str, line: str) -> str:
  text = text.replace("_", r"\_")
  return f"{text}\n{line * len(text)}\n"


def macro_meanings() -> dict[str, dict[str, str]]:
  """What each macro means, by the name of its table."""
  return tomllib.loads(MEANINGS.read_text(encoding="utf-8"))


def macro_tables() -> Iterator[tuple[str, str]]:
  """The name and the rows of each table of macros, in Markdown."""
  defaults = macro_defaults()
  for name, meanings in macro_meanings().items():
    lines = ["| Macro | Meaning | Default |", "|---|---|---|"]
    for macro, meaning in meanings.items():
      default = _default(defaults.get(macro, {}))
      lines.append(f"| `{macro}` | {meaning} | {default} |")
    yield name, "\n".join(lines) + "\n"


def macro_defaults() -> dict[str, dict[str, list[str]]]:
  """The values of each macro in gin/, and the files that set them.

  A macro that files only read has no value.
  """
  found: dict[str, dict[str, list[str]]] = {}
  for path in _gin_files():
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\s*#.*", "", text)
    for macro in re.findall(r"%([A-Z]\w+)", text):
      found.setdefault(macro, {})
    for macro, value in re.findall(r"^([A-Z]\w+) = (.+)$", text, re.MULTILINE):
      name = str(path.relative_to(GIN))
      found.setdefault(macro, {}).setdefault(value, []).append(name)
  return found


def _gin_files() -> Iterable[Path]:
  folders = (sorted((GIN / name).glob("*.gin")) for name in GIN_FOLDERS)
  return [path for folder in folders for path in folder if path != PLACEHOLDERS]


def _default(values: dict[str, list[str]]) -> str:
  """The default of a macro; with files, if they set different ones."""
  required = "%gin.REQUIRED"
  if not set(values) - {required}:
    return "to be set"
  if len(values) == 1:
    return f"`{next(iter(values))}`"
  return "<br>".join(
    f"{'to be set' if value == required else f'`{value}`'}"
    f" ({', '.join(name.removesuffix('.gin') for name in names)})"
    for value, names in values.items()
  )


def help_text(words: Sequence[str]) -> str:
  """What a program prints when it is asked for help."""
  return subprocess.run(
    [sys.executable, *words],
    cwd=DOCS.parent,
    env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout
