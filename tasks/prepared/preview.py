"""What preparation shows of its work: sizes, and examples as a model sees them.

Looking at examples is the quickest way to notice text that went wrong.
"""

from collections.abc import Mapping

import numpy as np
from rich.text import Text

from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabulary import Vocabulary

WIDTH = 80
NUM_EXAMPLES = 3


def print_table(metadata: records.Metadata) -> None:
  """Prints the sizes of all splits."""
  print(
    f"{'':12}{'documents':>12}{'rows':>12}{'tokens':>16}{'chars/token':>13}"
  )
  for split, sizes in metadata.splits.items():
    shown = "n/a"
    if sizes.characters is not None:
      # Tokens include those that frame pieces of text.
      shown = f"{sizes.characters / max(sizes.tokens, 1):.2f}"
    print(
      f"{split:12}{sizes.documents:>12,}{sizes.rows:>12,}{sizes.tokens:>16,}"
      f"{shown:>13}"
    )


def print_examples(
  task: TextTask,
  vocabulary: Vocabulary,
  feature_lengths: Mapping[str, int],
  folder: AnyPath,
) -> None:
  """Prints examples from the beginning and further on in the train split."""
  metadata = records.load_metadata(folder)
  paths = records.shard_paths(folder, "train", metadata)
  num_rows = metadata.splits["train"].rows
  corrupt = task.objective.corruption(vocabulary, feature_lengths)
  print("Examples from the train split, corrupted as in training:")
  count = min(NUM_EXAMPLES, num_rows)
  for index in (number * num_rows // count for number in range(count)):
    row = records.read_row(paths, index)
    example = corrupt(row, np.random.default_rng([0, 0, index]))
    for name, text in _texts(example, vocabulary).items():
      print(_line(name, text))


def _texts(
  example: Mapping[str, np.ndarray], vocabulary: Vocabulary
) -> dict[str, str]:
  """What a model reads, and what it has to predict, by name of the feature."""
  texts = {}
  read = "encoder_tokens" if "encoder_tokens" in example else "tokens"
  if read in example:
    tokens = example[read][example[read] != vocabulary.pad_id]
    texts[read] = vocabulary.spell(tokens.tolist())
  if "targets" in example and "target_weights" in example:
    targets = example["targets"][example["target_weights"] > 0].tolist()
    texts["targets"] = vocabulary.spell(targets)
    if "target_positions" in example:  # Not a text, but single tokens.
      texts["targets"] = " ".join(vocabulary.spell([i]) for i in targets)
  return texts


def _line(name: str, text: str) -> str:
  """A feature's text as one line, at most `WIDTH` columns wide."""
  text = text.replace("\n", "\\n").replace("\t", "\\t")
  line = Text(f"  {name:15}{text}")
  line.truncate(WIDTH, overflow="ellipsis")
  return line.plain
