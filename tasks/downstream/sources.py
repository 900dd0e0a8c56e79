"""Where examples come from: original files in a folder, or TFDS."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks import extras


def find_file(folder: str, names: Sequence[str]) -> Path:
  """The first file of these names in a folder.

  Raises:
    FileNotFoundError: there is none.
  """
  paths = [Path(folder).expanduser() / name for name in names]
  for path in paths:
    if path.is_file():
      return path
  raise FileNotFoundError(
    f"none of {', '.join(map(str, paths))} exists: put the original file "
    "there, or set --gin.DOWNSTREAM_DIR to the folder that has it"
  )


def rows(path: Path) -> Iterator[Any]:
  """What a file holds: each line of a `.jsonl`, all at once of a `.json`.

  Raises:
    ValueError: it is not JSON in UTF-8.
  """
  with path.open(encoding="utf-8") as file:
    if path.suffix == ".jsonl":
      yield from (json.loads(line) for line in file if line.strip())
    else:
      yield json.load(file)


def tfds_records(
  name: str, split: str, data_dir: str | None
) -> Iterator[dict[str, Any]]:
  """The records of a split of a TFDS set that is already prepared.

  Raises:
    FileNotFoundError: it is not.
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
      f"{data_dir or 'the default folder of TFDS'}: prepare it with "
      f"`tfds build {name}{where}`, correct --gin.TFDS_DATA_DIR, or set "
      "--gin.DOWNSTREAM_DIR to a folder of original files"
    )
  dataset = builder.as_dataset(split=split, shuffle_files=False)
  return map(plain, tfds.as_numpy(dataset))


def plain(value: Any) -> Any:
  """A record of TFDS as plain Python: texts, numbers, lists and dicts."""
  if isinstance(value, dict):
    return {key: plain(part) for key, part in value.items()}
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, "tolist"):  # An array, or a number of NumPy's.
    return plain(value.tolist())
  if isinstance(value, list):
    return [plain(part) for part in value]
  return value
