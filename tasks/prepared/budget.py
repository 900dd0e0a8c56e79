"""Preparing only so many tokens of a text.

The parts of the text come in random order, see `TextTask.documents`, until they
have enough tokens; the last one is cut. How many parts that takes is not known
before they are written, so a first one says how many more to write.
"""

import itertools
import math
from collections.abc import Mapping

from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.prepared import parts, records
from raptr_jax.tasks.task import TextTask


def write(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  folder: AnyPath,
  run: parts.Run,
) -> int:
  """Writes parts until they have `max_tokens`; returns their number.

  Args:
    task: its vocabulary is in the folder.
    feature_lengths: lengths of the features of a batch.
    folder: the task's folder.
    run: such as `parts.in_processes`.

  Raises:
    ValueError: the text has fewer tokens.
  """
  budget, available = task.max_tokens, task.source.num_parts()
  row_length = task.objective.row_length(feature_lengths)
  assert budget is not None
  if budget < row_length:
    raise ValueError(
      f"MAX_TOKENS={budget}, expected at least one row of {row_length} tokens: "
      "set more in --gin.MAX_TOKENS"
    )
  # Rows are not cut, so that the last part may lack less than a row.
  enough = budget - row_length + 1
  wanted = 1
  while True:
    parts.write_parts(task, feature_lengths, folder, wanted, run)
    ends = [0, *itertools.accumulate(_tokens(task, folder, wanted))]
    used = next((n for n, end in enumerate(ends) if end >= enough), None)
    if used is not None:
      break
    if wanted == available:
      raise ValueError(
        f"MAX_TOKENS={budget:,}, but the train split of {task.name} has only "
        f"{ends[-1]:,} tokens: set fewer in --gin.MAX_TOKENS, or None for all"
      )
    more = math.ceil(budget * wanted / max(ends[-1], 1))
    wanted = min(max(more, wanted + 1), available)
  if ends[used] > budget:
    left = budget - ends[used - 1]
    parts.write_part(task, feature_lengths, folder, used - 1, most_tokens=left)
  for part in range(used, wanted):
    for split in task.source.splits:
      records.shard_path(folder, split, part).unlink()
    parts.tally_path(folder, part).unlink()
  return used


def write_again(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  folder: AnyPath,
  run: parts.Run,
) -> int:
  """Writes shards that a complete folder has lost; returns their number.

  The last part is cut where it was: it has what the others lack of the tokens
  in the metadata.
  """
  train = records.load_metadata(folder).splits["train"]
  last = train.shards - 1
  parts.write_parts(task, feature_lengths, folder, last, run)
  if not parts.is_there(task, folder, last):
    left = train.tokens - sum(
      len(row.tokens)
      for part in range(last)
      for row in records.read_shard(records.shard_path(folder, "train", part))
    )
    parts.write_part(task, feature_lengths, folder, last, most_tokens=left)
  return train.shards


def _tokens(task: TextTask, folder: AnyPath, count: int) -> list[int]:
  """Tokens of the train split in each of the first parts."""
  train = task.source.splits.index("train")
  tokens = parts.SIZES.index("tokens")
  tallies = (parts.load_tally(folder, part) for part in range(count))
  return [int(tally.sizes[train, tokens]) for tally in tallies]
