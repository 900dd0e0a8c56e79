"""Sphinx builds the documentation from these pages and the docstrings.

  python -m sphinx -W --keep-going -b html docs build/docs

`generate.py` writes the pages in docs/generated/ first.
"""

import re
import sys
from pathlib import Path

import raptr_jax

DOCS = Path(__file__).resolve().parent

project = "raptr_jax"
author = "The raptr_jax authors"
copyright = f"2026, {author}"
release = version = raptr_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"raptr_jax {release}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["style.css"]
exclude_patterns = ["generated/macros_*.md"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

add_module_names = False
autodoc_member_order = "bysource"
autodoc_mock_imports = ["lm_eval", "clu", "t5x"]  # Extras, or on no index.
autodoc_typehints_format = "short"
default_role = "code"
napoleon_use_ivar = True
napoleon_use_rtype = False
# Several classes have an attribute `tokens`; a type that names it is no link.
suppress_warnings = ["ref.python"]

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
LIST_ITEM = re.compile(r"(-|\d+\.) ")
LONG_NAMES = re.compile(
  r"\b(collections\.abc|typing|jaxtyping|jaxlib\._jax|jax)\."
)


def house_style(app, what, name, obj, options, lines):
  """Makes reST of a docstring whose set-in blocks are to be shown as typed."""
  size = next((i for i, x in enumerate(lines) if SECTION.match(x)), len(lines))
  rest: list[str] = []
  before, in_block = "", False
  for line in lines[:size]:
    is_set_in = line.startswith("  ")
    if is_set_in and not in_block and not LIST_ITEM.match(before):
      rest += ["", ".. code-block:: text", ""]
      in_block = True
    elif line and not is_set_in:
      rest += [""] if in_block else []
      in_block = False
      before = line
    rest.append(line if in_block else escaped(line))
  lines[:] = rest + [escaped(line) for line in lines[size:]]


def escaped(line: str) -> str:
  """Bars and a lone letter mean themselves; so do plurals, as `LayerDraw`s."""
  line = re.sub(r": ([A-Z])\.$", r": \\\1.", line)
  parts = line.split("`")
  parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
  return re.sub(r"(?<=`\S)([^`]*)`(?=\w)", r"\1`\\ ", "`".join(parts))


def is_noise(app, what, name, obj, skip, options):
  """True for what named tuples and flax add to every class."""
  text = getattr(obj, "__doc__", None) or ""
  noise = ("Alias for field number", "Returns a new object replacing")
  return True if text.strip('"').startswith(noise) else None


def short_types(app, what, name, obj, options, lines):
  """Types of attributes as they are written in the code."""
  for number, line in enumerate(lines):
    if line.startswith(":vartype "):
      line = LONG_NAMES.sub("", line).replace("*", r"\*")
      lines[number] = re.sub(r"\braptr_jax\.", "~raptr_jax.", line)


def short_signature(app, what, name, obj, options, signature, returned):
  """Types of a signature as they are written in the code."""
  return tuple(
    text and LONG_NAMES.sub("", text) for text in (signature, returned)
  )


def setup(app):
  """Called by Sphinx."""
  sys.path.append(str(DOCS))
  import generate

  generate.write_pages(DOCS / "generated")
  app.connect("autodoc-process-docstring", house_style, priority=400)
  app.connect("autodoc-process-docstring", short_types, priority=600)
  app.connect("autodoc-skip-member", is_noise)
  app.connect("autodoc-process-signature", short_signature)
