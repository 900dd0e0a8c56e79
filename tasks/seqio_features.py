"""Seqio's feature converters for our models.

They make batches, as the layouts of our objectives describe them, of tasks in
seqio's standard form: those of `seqio_tasks.register_unpacked`, and those of
others that end `inputs` and `targets` alike. Seqio packs the texts.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from raptr_jax.tasks import extras
from raptr_jax.tasks.objectives.layouts import (
  CausalLayout,
  DecoderLayout,
  EncoderDecoderLayout,
)
from raptr_jax.tasks.objectives.masked_lm import MaskedLM

seqio = extras.require("seqio")
tf = extras.require("tensorflow")

Tensors = dict[str, Any]
TOKENS = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)


class BatchConverter(seqio.FeatureConverter):
  """What the converters for our models have in common.

  A text becomes features that seqio packs, or pads; none of their values is 0,
  since seqio takes 0 for padding. Of these follow the features of a batch, which
  are the same without packing.
  """

  TASK_FEATURES: ClassVar[Mapping[str, Any]] = {
    "inputs": TOKENS,
    "targets": TOKENS,
  }
  PACKING_FEATURE_DTYPES: ClassVar[Mapping[str, Any]] = {}

  @abc.abstractmethod
  def features(
    self, task_feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """Length and type of each feature of a batch."""

  @abc.abstractmethod
  def lay_out(self, text: Tensors) -> Tensors:
    """int32[n] each: what is packed of a text."""

  @abc.abstractmethod
  def complete(self, packed: Tensors, segment_ids: Any, places: Any) -> Tensors:
    """The features of a batch.

    Args:
      packed: what `lay_out` gave of several texts, one after another.
      segment_ids: int32[T], number of the text in `targets`, counted from 1.
      places: int32[T], position within the text.
    """

  def packed_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """The length of each feature that is packed."""
    return task_feature_lengths

  @property
  def MODEL_FEATURES(self) -> Mapping[str, Any]:
    features = self.features(dict.fromkeys(self.TASK_FEATURES, 1))
    return {
      name: seqio.FeatureConverter.FeatureSpec(dtype=tf.as_dtype(dtype))
      for name, (_, dtype) in features.items()
    }

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    features = self.features(task_feature_lengths)
    return {name: length for name, (length, _) in features.items()}

  def _convert_features(
    self, ds: Any, task_feature_lengths: Mapping[str, int]
  ) -> Any:
    features = self.features(task_feature_lengths)

    def batch(packed: Tensors) -> Tensors:
      made = self.complete(packed, *_segments(packed, "targets"))
      return {
        name: tf.ensure_shape(tf.cast(made[name], dtype), [length])
        for name, (length, dtype) in features.items()
      }

    packed = self._pack_or_pad(
      ds.map(self.lay_out), self.packed_lengths(task_feature_lengths)
    )
    return packed.map(batch)


def _segments(packed: Tensors, name: str) -> tuple[Any, Any]:
  """Numbers of the texts, and positions in them; one text if nothing packs."""
  if f"{name}_segment_ids" in packed:
    return packed[f"{name}_segment_ids"], packed[f"{name}_positions"]
  used = tf.cast(packed[name] != 0, tf.int32)
  return used, used * tf.range(tf.size(used))


class EncoderDecoderConverter(BatchConverter):
  """Batches of `EncoderDecoderLayout`, of `inputs` that have an end token."""

  def features(self, task_feature_lengths):
    return EncoderDecoderLayout().features(task_feature_lengths)

  def lay_out(self, text):
    return {name: text[name] for name in self.TASK_FEATURES}

  def complete(self, packed, segment_ids, places):
    targets = packed["targets"]
    return {
      "encoder_tokens": packed["inputs"],
      "encoder_segment_ids": _segments(packed, "inputs")[0],
      "tokens": _shifted(targets, segment_ids, self.bos_id),
      "targets": targets,
      "target_weights": segment_ids > 0,
      "segment_ids": segment_ids,
    }


class DecoderConverter(BatchConverter):
  """Batches of `DecoderLayout`: `inputs` are the prefix of `targets`.

  The feature "tokens" is as long as both together.
  """

  def features(self, task_feature_lengths):
    return DecoderLayout().features({"tokens": _both(task_feature_lengths)})

  def packed_lengths(self, task_feature_lengths):
    names = ("tokens", "targets", "prefix")
    return dict.fromkeys(names, _both(task_feature_lengths))

  def lay_out(self, text):
    whole = tf.concat([text["inputs"], text["targets"]], 0)
    prefix = tf.fill([tf.size(whole) - 1], tf.size(text["inputs"]))
    return {"tokens": whole[:-1], "targets": whole[1:], "prefix": prefix}

  def complete(self, packed, segment_ids, places):
    predicted = places >= packed["prefix"] - 1
    return {
      "tokens": packed["tokens"],
      "targets": packed["targets"],
      "target_weights": predicted & (segment_ids > 0),
      "segment_ids": segment_ids,
      "positions": places,
      "in_prefix": places < packed["prefix"],
    }


class CausalConverter(BatchConverter):
  """Batches of `CausalLayout`, of `targets`; texts begin with `bos_id`.

  Our models are trained with the id of [CLS] as `bos_id`.
  """

  TASK_FEATURES: ClassVar[Mapping[str, Any]] = {"targets": TOKENS}

  def features(self, task_feature_lengths):
    return CausalLayout().features({"tokens": task_feature_lengths["targets"]})

  def lay_out(self, text):
    return {"targets": text["targets"]}

  def complete(self, packed, segment_ids, places):
    targets = packed["targets"]
    return {
      "tokens": _shifted(targets, segment_ids, self.bos_id),
      "targets": targets,
      "target_weights": segment_ids > 0,
      "segment_ids": segment_ids,
      "positions": places,
    }


class MaskedLMConverter(BatchConverter):
  """Batches of `MaskedLM`, of `targets` that are aligned with `inputs`.

  Positive targets are to be predicted. Of those of a row, the first P are, for
  which there is room; there are rarely more.
  """

  def __init__(self, mask_rate: float = 0.15, **arguments: Any):
    """Takes the arguments of seqio's converters as well.

    Args:
      mask_rate: that of `MaskedLM`, which decides P.
      **arguments: those of `seqio.FeatureConverter`.
    """
    self._objective = MaskedLM(mask_rate)
    super().__init__(**arguments)

  def features(self, task_feature_lengths):
    return self._objective.features({"inputs": task_feature_lengths["inputs"]})

  def lay_out(self, text):
    return {name: text[name] for name in self.TASK_FEATURES}

  def complete(self, packed, segment_ids, places):
    targets = packed["targets"]
    size = self._objective.num_targets({"inputs": targets.shape[0]})
    chosen = tf.where(targets > 0)[:size, 0]

    def padded(values):
      return tf.pad(values, [[0, size - tf.size(values)]])

    return {
      "tokens": packed["inputs"],
      "segment_ids": segment_ids,
      "positions": places,
      "target_positions": padded(chosen),
      "targets": padded(tf.gather(targets, chosen)),
      "target_weights": padded(tf.ones_like(chosen)),
    }


def _both(lengths: Mapping[str, int]) -> int:
  return lengths["inputs"] + lengths["targets"]


def _shifted(targets: Any, segment_ids: Any, begin: int) -> Any:
  """The targets before, `begin` at the beginning of a text; then padding."""
  shifted = seqio.autoregressive_inputs(
    targets, sequence_id=segment_ids, bos_id=begin
  )
  return tf.where(segment_ids > 0, shifted, 0)
