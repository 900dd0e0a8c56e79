"""Our tasks and mixtures in seqio, for t5x and other programs that read it.

Rows of packed documents are made and corrupted as our datasets do it. In seqio
they have two forms. For `register` an example is a row, with the features that
our models read. For `register_unpacked` it is one text of a row, in seqio's
standard form of "inputs" and "targets": seqio's feature converters pack it for
t5x's models, and those of `seqio_features.py` for ours.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from raptr_jax.tasks import extras
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.causal_lm import CausalLM
from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.objectives.objective import Objective
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.objectives.randomness import part_seed, row_generator
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sources import Source
from raptr_jax.tasks.text.vocabulary import Vocabulary

seqio = extras.require("seqio")
tf = extras.require("tensorflow")

NOT_PREDICTED = -1  # Not 0, which seqio takes for padding.
Features = Mapping[str, np.ndarray]


def register(
  task: TextTask | Mixture, data_dir: str, feature_lengths: Mapping[str, int]
) -> str:
  """Registers packed rows under the task's name; replaces an earlier one.

  An example has the features of `objective.features`, padded, and nothing is
  left to convert: use `seqio.PassThroughFeatureConverter`. Unshuffled and in one
  shard, epochs with a seed have the examples, one by one, of our dataset with
  this seed and `shuffle=False`. Of a mixture this holds for each of its tasks;
  seqio draws from these at random, by their rates.

  Args:
    task: a task, or a mixture, whose tasks are registered as well.
    data_dir: folder of all prepared tasks, with the vocabulary if none is given.
    feature_lengths: lengths of the features of a batch; get the dataset with
      the same as `sequence_length`.

  Returns:
    The name.

  Raises:
    NotPreparedError: the vocabulary does not exist.
    ValueError: the objective has other features.
  """

  def checked(sequence_length: Mapping[str, int]) -> Mapping[str, int]:
    if sequence_length != feature_lengths:
      raise ValueError(
        f"sequence_length={sequence_length}, but {task.name} has rows for "
        f"{dict(feature_lengths)}: set these lengths, or others in "
        "--gin.seqio_tasks.register.feature_lengths"
      )
    return feature_lengths

  form = _Form(
    objective=task.objective,
    features=task.objective.features(feature_lengths),
    row_features=checked,
    examples=lambda row: [row],
  )
  return _register(task, data_dir, form)


def register_unpacked(task: TextTask | Mixture, data_dir: str) -> str:
  """Registers single texts as `<name>_unpacked`; replaces an earlier one.

  They are the texts that the rows of `register` have, with the same corruption,
  if the same features have the same lengths. By objective, their features are:

  - UL2 for an encoder-decoder: `inputs`, with an end token, and `targets`, for
    `seqio.EncDecFeatureConverter`.
  - UL2 for a decoder: the same without that end token, of other texts than
    rows have, for `seqio.PrefixLMFeatureConverter`.
  - Causal language modelling: `targets`, for `seqio.LMFeatureConverter`, whose
    `bos_id` is in the place of [CLS].
  - Masked language modelling: `inputs`, and `targets` aligned with them, which
    are `NOT_PREDICTED` where nothing is predicted.

  With `seqio.EncoderFeatureConverter`, models learn from [MASK] only, and not
  from the tokens that are predicted though they are seen.

  Arguments and result are those of `register`.

  Raises:
    NotPreparedError: the vocabulary does not exist.
    TypeError: the objective is another one.
    ValueError: the vocabulary has padding at another id than 0.
  """
  vocabulary = task.vocabulary(data_dir)
  if vocabulary.pad_id != 0:
    raise ValueError(
      f"the vocabulary {vocabulary.path} has padding at id "
      f"{vocabulary.pad_id}, expected 0, with which seqio pads: set another "
      "--gin.VOCABULARY_PATH, or None to train one"
    )
  return _register(task, data_dir, _unpacked(task.objective), "_unpacked")


@dataclasses.dataclass(frozen=True)
class _Form:
  """How the rows of a task become examples in seqio.

  Attributes:
    objective: makes rows, and corrupts them.
    features: length and type of an example's features; None: of any length.
    row_features: seqio's sequence lengths -> the objective's feature lengths.
    examples: a corrupted row -> examples.
  """

  objective: Objective
  features: Mapping[str, tuple[int | None, type]]
  row_features: Callable[[Mapping[str, int]], Mapping[str, int]]
  examples: Callable[[Features], Iterable[Features]]


def _unpacked(objective: Objective) -> _Form:
  """The form in which each text of a row is an example."""
  tokens = (None, np.int32)
  both = {"inputs": tokens, "targets": tokens}
  if isinstance(objective, UL2):
    pairs = dataclasses.replace(objective, layout="encoder_decoder")
    with_end = objective.layout == "encoder_decoder"
    return _Form(pairs, both, dict, functools.partial(_pairs, with_end))
  if isinstance(objective, MaskedLM):
    row = functools.partial(_row_feature, "inputs", names=tuple(both))
    return _Form(objective, both, row, _aligned)
  if isinstance(objective, CausalLM):
    row = functools.partial(_row_feature, "tokens", names=("targets",))
    return _Form(objective, {"targets": tokens}, row, _targets)
  raise TypeError(
    f"objective={objective}, expected UL2, MaskedLM or CausalLM: use "
    "seqio_tasks.register"
  )


def _row_feature(
  feature: str, lengths: Mapping[str, int], *, names: tuple[str, ...]
) -> Mapping[str, int]:
  """The only feature of rows, as long as all of `names`."""
  if set(lengths) != set(names) or len(set(lengths.values())) > 1:
    raise ValueError(
      f"sequence_length={dict(lengths)}, expected one length for {names}: set "
      f'--gin.TASK_FEATURE_LENGTHS="{dict.fromkeys(names, 512)}"'
    )
  return {feature: lengths[names[0]]}


def _pairs(with_end: bool, row: Features) -> Iterator[Features]:
  """The pairs of a row that has the `EncoderDecoderLayout`."""
  for inputs, targets in zip(
    _by_segment(row["encoder_tokens"], row["encoder_segment_ids"]),
    _by_segment(row["targets"], row["segment_ids"]),
    strict=True,
  ):
    yield {"inputs": inputs if with_end else inputs[:-1], "targets": targets}


def _targets(row: Features) -> Iterator[Features]:
  """The texts of a row that has the `CausalLayout`, without [CLS]."""
  for targets in _by_segment(row["targets"], row["segment_ids"]):
    yield {"targets": targets}


def _aligned(row: Features) -> Iterator[Features]:
  """The texts of a row of masked language modelling."""
  targets = np.full_like(row["tokens"], NOT_PREDICTED)
  used = row["target_weights"] > 0
  targets[row["target_positions"][used]] = row["targets"][used]
  for text in zip(
    _by_segment(row["tokens"], row["segment_ids"]),
    _by_segment(targets, row["segment_ids"]),
  ):
    yield dict(zip(("inputs", "targets"), text))


def _by_segment(values: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
  return [values[ids == i] for i in range(1, ids.max() + 1)]


def _register(
  task: TextTask | Mixture, data_dir: str, form: _Form, suffix: str = ""
) -> str:
  """Registers a task, or a mixture with its tasks; returns the name."""
  vocabulary = task.vocabulary(data_dir)
  in_seqio = vocabulary.to_seqio()
  for number, part in enumerate(task.parts):
    if part.limits:
      raise ValueError(f"{part.limits[0]}, expected all text in seqio")
    seed = functools.partial(part_seed, number=number, parts=len(task.parts))
    _add(
      seqio.TaskRegistry,
      part.name + suffix,
      source=Documents(part.source, seed),
      preprocessors=[
        functools.partial(
          pack_and_corrupt,
          task=dataclasses.replace(part, objective=form.objective),
          vocabulary=vocabulary,
          form=form,
        )
      ],
      output_features={  # Seqio asks for a vocabulary of each.
        name: seqio.Feature(in_seqio, add_eos=False, dtype=tf.as_dtype(dtype))
        for name, (_, dtype) in form.features.items()
      },
    )
  name = task.name + suffix
  if isinstance(task, Mixture):
    parts = [part.name + suffix for part in task.parts]
    _add(seqio.MixtureRegistry, name, tasks=list(zip(parts, task.rates)))
  return name


def _add(registry: Any, name: str, **arguments: Any) -> None:
  if name in registry.names():
    registry.remove(name)
  registry.add(name, **arguments)


class Documents(seqio.DataSource):
  """The documents of a source, in order, with what decides their corruption.

  An example has `text`, `part`, its `number` in the epoch, and `seed`. Shards
  consist of parts of the source, or of every n-th document if the source has
  fewer parts. Shuffling permutes parts.
  """

  def __init__(self, source: Source, own_seed: Callable[[int], int]):
    """Stores the arguments.

    Args:
      source: gives the documents.
      own_seed: seed of a dataset -> seed of this source.
    """
    super().__init__(splits=source.splits, caching_permitted=False)
    self._source = source
    self._own_seed = own_seed

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> list[str]:
    return [f"{split}-{part}" for part in range(self._source.num_parts())]

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: Any = None,
  ) -> Any:
    """A tf.data.Dataset; a new seed is drawn if there is none."""
    if seed is None:
      seed = int(np.random.SeedSequence().generate_state(1)[0])
    shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
    own_seed = self._own_seed(int(seed))
    parts = np.arange(self._source.num_parts())
    if shuffle:
      parts = np.random.default_rng(own_seed).permutation(parts)
    shard_seed = part_seed(own_seed, shard.index, shard.num_shards)
    every = slice(shard.index, None, shard.num_shards)
    by_part = len(parts) >= shard.num_shards

    def documents():
      texts = (
        {"text": text, "part": part, "seed": shard_seed}
        for part in (parts[every] if by_part else parts)
        for text in self._source.documents(split, int(part))
      )
      if not by_part:
        texts = itertools.islice(texts, every.start, None, every.step)
      for number, document in enumerate(texts):
        yield {**document, "number": number}

    number = tf.TensorSpec((), tf.int64)
    return tf.data.Dataset.from_generator(
      documents,
      output_signature={
        "text": tf.TensorSpec((), tf.string),
        **dict.fromkeys(("part", "seed", "number"), number),
      },
    )


def pack_and_corrupt(
  documents: Any,
  sequence_length: Mapping[str, int] | None,
  *,
  task: TextTask,
  vocabulary: Vocabulary,
  form: _Form,
) -> Any:
  """A preprocessor: a tf.data.Dataset of documents -> of examples."""
  lengths = form.row_features(sequence_length or {})
  corrupt = task.objective.corruption(vocabulary, lengths)
  return tf.data.Dataset.from_generator(
    lambda: itertools.chain.from_iterable(
      form.examples(corrupt(row, rng))
      for row, rng in _rows(documents, task, vocabulary, lengths)
    ),
    output_signature={
      name: tf.TensorSpec((length,), dtype)
      for name, (length, dtype) in form.features.items()
    },
  )


def _rows(
  documents: Any,
  task: TextTask,
  vocabulary: Vocabulary,
  feature_lengths: Mapping[str, int],
) -> Iterator[tuple[Row, np.random.Generator]]:
  """Rows of all epochs, each with the generator that corrupts it."""
  for (seed, epoch), of_epoch in itertools.groupby(
    _with_epoch(documents.as_numpy_iterator()),
    key=lambda document: (int(document["seed"]), document["epoch"]),
  ):
    index = itertools.count()
    for _, part in itertools.groupby(of_epoch, key=lambda x: x["part"]):
      texts = (document["text"].decode() for document in part)
      for row in task.rows(texts, vocabulary, feature_lengths):
        yield row, row_generator(seed, epoch, next(index))


def _with_epoch(documents: Iterable[Any]) -> Iterator[dict[str, Any]]:
  """Adds the number of the epoch: their own numbers begin anew in each."""
  epoch, previous = 0, -1
  for document in documents:
    epoch += int(document["number"] <= previous)
    previous = document["number"]
    yield {**document, "epoch": epoch}
