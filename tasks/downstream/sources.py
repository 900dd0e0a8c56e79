"""Where examples come from: original files in a folder, or TFDS."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raptr_jax.tasks import extras


def find_file(
  folder: str, names: Sequence[str], *, macros: str = "DOWNSTREAM"
) -> Path:
  """The first of these files that exists in a folder.

  Args:
    folder: where to look.
    names: of the files.
    macros: beginning of the macros that say where, for the message.

  Raises:
    FileNotFoundError: none exists.
  """
  paths = [Path(folder).expanduser() / name for name in names]
  for path in paths:
    if path.is_file():
      return path
  raise FileNotFoundError(
    f"none of {', '.join(map(str, paths))} exists: put the original file "
    f"there, or set --gin.{macros}_DIR to the folder that has it"
  )


def rows(path: Path) -> Iterator[Any]:
  """Yields each line of a `.jsonl`, or all of a `.json` at once.

  Raises:
    ValueError: the file is not JSON in UTF-8.
  """
  with path.open(encoding="utf-8") as file:
    if path.suffix == ".jsonl":
      yield from (json.loads(line) for line in file if line.strip())
    else:
      yield json.load(file)


def tfds_records(
  name: str,
  split: str,
  data_dir: str | None,
  *,
  macros: str = "DOWNSTREAM",
) -> Iterator[dict[str, Any]]:
  """The records of a split of a prepared TFDS set.

  Args:
    name: of the set, with its version.
    split: its name there.
    data_dir: folder of the prepared sets; None for TFDS's default.
    macros: beginning of the macros that say where, for the message.

  Raises:
    FileNotFoundError: the set is not prepared.
  """
  tfds = extras.require("tensorflow_datasets")
  try:
    builder = tfds.builder(name, data_dir=data_dir)
    prepared = split in builder.info.splits
  except tfds.core.DatasetNotFoundError:
    prepared = False
  if not prepared:
    where = f" --data_dir={data_dir}" if data_dir else ""
    raise FileNotFoundError(
      f"the TFDS set {name!r} is not prepared in "
      f"{data_dir or 'the default folder of TFDS'}: run "
      f"`tfds build {name}{where}`, correct --gin.{macros}_TFDS_DIR, or set "
      f"--gin.{macros}_DIR to a folder of original files"
    )
  dataset = builder.as_dataset(split=split, shuffle_files=False)
  return map(plain, tfds.as_numpy(dataset))


def plain(value: Any) -> Any:
  """A TFDS record as plain Python: strings, numbers, lists and dicts."""
  if isinstance(value, dict):
    return {key: plain(part) for key, part in value.items()}
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, "tolist"):  # A NumPy array or number.
    return plain(value.tolist())
  if isinstance(value, list):
    return [plain(part) for part in value]
  return value
