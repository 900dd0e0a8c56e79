"""A trained language model that takes and gives text.

A prompt is put to it as the prefix of a prefix language model: the denoiser S
of UL2, "[S2S] prompt <extra_id_0>", whose targets begin with that sentinel.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int

from raptr_jax.contracts import Batch, Generator, LayerPath, Params
from raptr_jax.generate import Decoding, generate
from raptr_jax.partitioning import Partitioner
from tasks.denoising import hidden_spans
from tasks.forms import Pair
from tasks.ul2 import UL2
from tasks.vocabulary import Vocabulary

Spans: TypeAlias = dict[int, list[int]]  # Tokens by the id of their sentinel.
Watch: TypeAlias = Callable[[int], None]  # Told how many texts more are done.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextModel:
  """A model, its parameters, and what turns text into its tokens.

  Texts of about the same length make a batch, whatever their order, and one
  that is short of texts is filled up: there are few shapes, each of which is a
  program to compile, and what a text gets does not depend on the others.

  Attributes:
    model: a language model of any family.
    params: without boxes.
    paths: the layers that run, of each stack.
    objective: what it was trained on; knows the form of its inputs.
    vocabulary: of its tokens.
    partitioner: places batches on devices.
    batch_size: texts at once, a multiple of the data-parallel devices.
    max_prompt_tokens: of a longer prompt only the end is read.
  """

  model: Generator
  params: Params
  paths: Mapping[str, LayerPath]
  objective: UL2
  vocabulary: Vocabulary
  partitioner: Partitioner
  batch_size: int
  max_prompt_tokens: int

  def count_tokens(self, text: str) -> int:
    """Number of tokens of a text."""
    return len(self.vocabulary.encode(text))

  def score(
    self,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    watch: Watch = lambda count: None,
  ) -> Float[np.ndarray, "N"]:
    """Log-likelihood of a continuation of each prompt, in nats.

    It is summed over the tokens of the continuation alone: that of nothing is
    0. Neither the sentinel before them counts, nor that they end there.
    """
    pairs = [
      Pair(self._inputs(prompt), self._targets(continuation))
      for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    form = self.objective.packing
    sizes = [form.slots(len(pair.inputs), len(pair.targets)) for pair in pairs]
    scores = np.zeros(len(pairs))
    for lengths, numbers in self._batches(sizes):
      feature_lengths = dict(zip(form.feature_names, lengths))
      rows = [self._row(pairs[number], feature_lengths) for number in numbers]
      rows += rows[-1:] * (self.batch_size - len(rows))
      batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      scores[numbers] = self._score(batch)[: len(numbers)]
      watch(len(numbers))
    return scores

  def write(
    self,
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    watch: Watch = lambda count: None,
  ) -> list[str]:
    """What follows each prompt, up to the end that the model gives it.

    The sentinel that it writes first is one of `decoding.max_new_tokens`.
    """
    inputs = [self._inputs(prompt) for prompt in prompts]
    first = self._sentinel_ids[0]
    return [
      self.vocabulary.decode(spans.get(first, []))
      for spans in self.fill(inputs, decoding, watch=watch)
    ]

  def fill(
    self,
    inputs: Sequence[Int[np.ndarray, "..."]],
    decoding: Decoding,
    *,
    watch: Watch = lambda count: None,
  ) -> list[Spans]:
    """What a model writes for each sentinel of inputs.

    Args:
      inputs: tokens with sentinels, as a denoiser makes them.
      decoding: how to search.
      watch: told how many inputs more are done.

    Returns:
      For each of the inputs, tokens by the id of their sentinel; a sentinel
      that the model leaves out is missing.
    """
    eos_id = self.vocabulary.eos_id
    read = [self.objective.packing.prompt(ids, eos_id) for ids in inputs]
    filled: list[Spans] = [{} for _ in read]
    for (length,), numbers in self._batches([(len(ids),) for ids in read]):
      prompts = np.zeros((self.batch_size, length), np.int32)
      lengths = np.ones(self.batch_size, np.int32)
      for row, number in enumerate(numbers):
        lengths[row] = len(read[number])
        prompts[row, : lengths[row]] = read[number]
      written = self._generate(prompts, lengths, decoding)
      for number, targets in zip(numbers, written):
        filled[number] = hidden_spans(
          targets, sentinel_ids=self._sentinel_ids, eos_id=eos_id
        )
      watch(len(numbers))
    return filled

  @functools.cached_property
  def _sentinel_ids(self) -> tuple[int, ...]:
    return self.vocabulary.sentinel_ids

  def _inputs(self, prompt: str) -> np.ndarray:
    tokens = self.vocabulary.encode(prompt)[-self.max_prompt_tokens :]
    return self.objective.continuation(tokens, self.vocabulary)

  def _targets(self, continuation: str) -> np.ndarray:
    tokens = self.vocabulary.encode(continuation)
    return np.array([self._sentinel_ids[0], *tokens], np.int32)

  def _row(
    self, pair: Pair, feature_lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """The features of a pair, in which the first sentinel is no target."""
    row = self.objective.packing.join(
      [pair],
      feature_lengths,
      pad_id=self.vocabulary.pad_id,
      eos_id=self.vocabulary.eos_id,
    )
    row["target_weights"][row["target_weights"].argmax()] = 0
    return row

  def _batches(
    self, sizes: Sequence[tuple[int, ...]]
  ) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Lengths of arrays, and the numbers of what goes into them together."""
    rounded = [tuple(map(_round_up, size)) for size in sizes]
    # The longest first: if memory does not suffice, that shows at once.
    order = sorted(range(len(sizes)), key=rounded.__getitem__, reverse=True)
    for lengths, group in itertools.groupby(order, rounded.__getitem__):
      numbers = list(group)
      for begin in range(0, len(numbers), self.batch_size):
        yield lengths, numbers[begin : begin + self.batch_size]

  @functools.cached_property
  def _score_fn(self) -> Any:
    return jax.jit(
      self.model.score_batch, out_shardings=self.partitioner.replicated
    )

  def _score(self, batch: Batch) -> Float[np.ndarray, "B"]:
    batch = self.partitioner.put_split(batch)
    return np.asarray(self._score_fn(self.params, batch, self.paths))

  def _generate(
    self,
    prompts: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, "B"],
    decoding: Decoding,
  ) -> Int[np.ndarray, "B N"]:
    found = generate(
      self.model,
      self.params,
      *self.partitioner.put_split((prompts, lengths)),
      self.paths,
      decoding=decoding,
      eos_id=self.vocabulary.eos_id,
    )
    return self.partitioner.fetch(found.tokens)


def _round_up(size: int) -> int:
  """The next power of 2 from 16 on, or three quarters of it if that will do."""
  power = max(16, 1 << (size - 1).bit_length())
  return power * 3 // 4 if size <= power * 3 // 4 else power
