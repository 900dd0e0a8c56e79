"""Feature layouts: how pairs of inputs and targets become an example."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np

from raptr_jax.tasks.objectives.packing import pad, positions, segment_ids

Count = TypeVar("Count", int, np.ndarray)


class Pair(NamedTuple):
  """What a model reads, and what it should write.

  Attributes:
    inputs: int32[...], without an end token.
    targets: int32[...], with an end token.
  """

  inputs: np.ndarray
  targets: np.ndarray


class FeatureLayout(Protocol):
  """How pairs become the features of an example."""

  @property
  def feature_names(self) -> tuple[str, ...]:
    """Features whose lengths TASK_FEATURE_LENGTHS gives."""

  def slots(self, inputs: Count, targets: Count) -> tuple[Count, ...]:
    """Slots that a pair of these lengths takes in each of `feature_names`."""

  def prompt(
    self, inputs: Sequence[int] | np.ndarray, eos_id: int
  ) -> np.ndarray:
    """int32[...], what a model has read when it begins to write."""

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """Length and type of each feature of an example."""

  def join(
    self,
    pairs: Sequence[Pair],
    feature_lengths: Mapping[str, int],
    *,
    pad_id: int,
    eos_id: int,
  ) -> dict[str, np.ndarray]:
    """Packs pairs into one example, in which they do not see each other."""


class DecoderLayout:
  """Inputs and targets joined: a prefix, and its continuation.

  The feature "tokens" has T slots:
    tokens: int32[T], one pair after another. A pair of s tokens takes s - 1
      slots, since its last token is never an input.
    targets: int32[T], the next token of the same pair.
    target_weights: float32[T], 1 where that token is one of the pair's targets.
    segment_ids: int32[T], number of the pair, counted from 1; 0 is padding.
    positions: int32[T], position within the pair.
    in_prefix: int32[T], 1 for the pair's inputs, visible to all its tokens.
  Padding is the padding token in `tokens` and `targets`, and 0 elsewhere.
  """

  feature_names = ("tokens",)
  has_prefix: ClassVar[bool] = True

  def slots(self, inputs: Count, targets: Count) -> tuple[Count, ...]:
    return (inputs + targets - 1,)

  def prompt(
    self, inputs: Sequence[int] | np.ndarray, eos_id: int
  ) -> np.ndarray:
    del eos_id
    return np.array(inputs, np.int32)

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    tokens = (feature_lengths["tokens"], np.int32)
    features: dict[str, tuple[int, type]] = {
      "tokens": tokens,
      "targets": tokens,
      "target_weights": (tokens[0], np.float32),
      "segment_ids": tokens,
      "positions": tokens,
    }
    if self.has_prefix:
      features["in_prefix"] = tokens
    return features

  def join(
    self,
    pairs: Sequence[Pair],
    feature_lengths: Mapping[str, int],
    *,
    pad_id: int,
    eos_id: int,
  ) -> dict[str, np.ndarray]:
    del eos_id  # Targets include it.
    length = feature_lengths["tokens"]
    wholes = [np.concatenate(pair) for pair in pairs]
    sizes = [len(whole) - 1 for whole in wholes]
    prefixes = np.array([len(pair.inputs) for pair in pairs], np.int64)
    places = positions(sizes)
    prefix = np.repeat(prefixes, sizes)
    features = {
      "tokens": pad([whole[:-1] for whole in wholes], length, fill=pad_id),
      "targets": pad([whole[1:] for whole in wholes], length, fill=pad_id),
      "target_weights": pad([places >= prefix - 1], length, np.float32),
      "segment_ids": pad([segment_ids(sizes)], length),
      "positions": pad([places], length),
    }
    if self.has_prefix:
      features["in_prefix"] = pad([places < prefix], length)
    return features


class CausalLayout(DecoderLayout):
  """The layout of a decoder that reads all tokens from left to right.

  It lacks the feature `in_prefix`; the others are those of `DecoderLayout`.
  """

  has_prefix = False


class EncoderDecoderLayout:
  """Inputs for the encoder, targets for the decoder, as in T5.

  The feature "inputs" has S slots:
    encoder_tokens: int32[S], the pairs' inputs, each with an end token.
    encoder_segment_ids: int32[S], number of the pair, counted from 1; 0 is
      padding.
  The feature "targets" has T slots:
    tokens: int32[T], the decoder's inputs: for each pair, the padding token as
      a start token, then its targets without the last.
    targets: int32[T], the pairs' targets.
    target_weights: float32[T], 1 for targets, 0 for padding.
    segment_ids: int32[T], number of the pair, as in the encoder.
  Padding is the padding token in all tokens and targets, and 0 elsewhere.
  """

  feature_names = ("inputs", "targets")

  def slots(self, inputs: Count, targets: Count) -> tuple[Count, ...]:
    return inputs + 1, targets

  def prompt(
    self, inputs: Sequence[int] | np.ndarray, eos_id: int
  ) -> np.ndarray:
    return np.array([*inputs, eos_id], np.int32)

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    inputs = (feature_lengths["inputs"], np.int32)
    targets = (feature_lengths["targets"], np.int32)
    return {
      "encoder_tokens": inputs,
      "encoder_segment_ids": inputs,
      "tokens": targets,
      "targets": targets,
      "target_weights": (targets[0], np.float32),
      "segment_ids": targets,
    }

  def join(
    self,
    pairs: Sequence[Pair],
    feature_lengths: Mapping[str, int],
    *,
    pad_id: int,
    eos_id: int,
  ) -> dict[str, np.ndarray]:
    inputs = [self.prompt(pair.inputs, eos_id) for pair in pairs]
    targets = [pair.targets for pair in pairs]
    shifted = [np.insert(part[:-1], 0, pad_id) for part in targets]
    numbers = segment_ids([len(part) for part in targets])
    source, length = feature_lengths["inputs"], feature_lengths["targets"]
    return {
      "encoder_tokens": pad(inputs, source, fill=pad_id),
      "encoder_segment_ids": pad(
        [segment_ids([len(part) for part in inputs])], source
      ),
      "tokens": pad(shifted, length, fill=pad_id),
      "targets": pad(targets, length, fill=pad_id),
      "target_weights": pad([numbers > 0], length, np.float32),
      "segment_ids": pad([numbers], length),
    }
