"""A trained language model that scores and writes continuations of text.

It puts a prompt as its objective's `continuation` does; UL2, for one, as its
denoiser S: "[S2S] prompt <extra_id_0>", whose targets begin with that sentinel.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from raptr_jax.contracts import Batch, LayerPath, Params
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.generate import Generator, generate
from raptr_jax.inference.stop_strings import cut_at, stop_table
from raptr_jax.inference.text_losses import stack_rows
from raptr_jax.models.language_model import LanguageModel
from raptr_jax.tasks.objectives.denoising import hidden_spans
from raptr_jax.tasks.objectives.layouts import Pair
from raptr_jax.tasks.objectives.objective import GenerativeObjective
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.partitioning import Partitioner

Spans: TypeAlias = dict[int, list[int]]  # Tokens by the id of their sentinel.
Watch: TypeAlias = Callable[[int], None]  # Takes the number of texts just done.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextPredictor:
  """A model, its parameters, and what turns text into its tokens.

  Texts of similar length share a batch, and incomplete batches are filled up.
  So there are few shapes to compile programs for, and a text's result does not
  depend on the other texts.

  Attributes:
    model: a language model of any family.
    params: parameters without boxes.
    paths: the layers that run, for each stack.
    objective: what the model was trained on; has its feature layout.
    vocabulary: the model's vocabulary.
    partitioner: places batches on devices.
    batch_size: texts at once; a multiple of the data-parallel devices.
    max_prompt_tokens: room for a prompt; only the end of a longer one is read.

  Raises:
    ValueError: the batch does not split evenly.
  """

  model: Generator
  params: Params
  paths: Mapping[str, LayerPath]
  objective: GenerativeObjective
  vocabulary: Vocabulary
  partitioner: Partitioner
  batch_size: int
  max_prompt_tokens: int

  def __post_init__(self):
    devices = self.partitioner.batch_shards
    if self.batch_size < 1 or self.batch_size % devices:
      raise ValueError(
        f"batch_size = {self.batch_size}, expected a multiple of the {devices}"
        " data-parallel devices."
      )

  def with_params(self, params: Params) -> "TextPredictor":
    """The same with other parameters; its programs need not be compiled again."""
    other = dataclasses.replace(self, params=params)
    other.__dict__["_score_fn"] = self._score_fn
    return other

  def count_tokens(self, text: str) -> int:
    """Number of tokens in a text."""
    return len(self.vocabulary.encode(text))

  def is_too_long(self, prompt: str) -> bool:
    """Whether only the end of a prompt is read."""
    return self.count_tokens(prompt) > self.max_prompt_tokens

  def score(
    self,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    watch: Watch = lambda count: None,
  ) -> Float[np.ndarray, "N"]:
    """Log-likelihood of each prompt's continuation, in nats.

    Sums over the continuation's own tokens, without what the objective puts
    before them and the end token after them; an empty continuation scores 0.
    """
    encode = self.vocabulary.encode
    pairs = [
      self._pair(encode(prompt), encode(continuation))
      for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    scores = np.zeros(len(pairs))
    for numbers, batch in self._scored_batches(pairs):
      scores[numbers] = self._call(self._score_fn, batch)[: len(numbers)]
      watch(len(numbers))
    return scores

  def score_and_compare(
    self,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    watch: Watch = lambda count: None,
  ) -> tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """`score` for tokens: of each pair, a prompt and its continuation.

    Returns:
      Log-likelihoods, in nats, and whether the model would have written each
      continuation greedily.

    Raises:
      TypeError: the model is no `LanguageModel`.
    """
    if not isinstance(self.model, LanguageModel):
      raise TypeError(
        f"{type(self.model).__name__} does not say whether a text is greedy:"
        " expected a model that inherits language_model.LanguageModel."
      )
    framed = [self._pair(*pair) for pair in pairs]
    scores, greedy = np.zeros(len(pairs)), np.zeros(len(pairs), bool)
    for numbers, batch in self._scored_batches(framed):
      found = self._call(self._compare_fn, batch)
      scores[numbers], greedy[numbers] = (x[: len(numbers)] for x in found)
      watch(len(numbers))
    return scores, greedy

  def write(
    self,
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    seed: int = 0,
    watch: Watch = lambda count: None,
  ) -> list[str]:
    """The model's continuation of each prompt, until it ends the text.

    The arguments are those of `fill`. What the objective puts first, such as a
    sentinel, is given: the model need not choose it.
    """
    inputs = [self._inputs(self.vocabulary.encode(text)) for text in prompts]
    written = self._written(inputs, decoding, seed, watch, lead=self._lead)
    return [
      cut_at(self._text([*self._lead, *targets]), decoding.stop_strings)
      for targets in written
    ]

  def _text(self, targets: Sequence[int]) -> str:
    """The continuation that targets spell."""
    written = self.objective.written_text(targets, self.vocabulary)
    return self.vocabulary.decode(written)

  def fill(
    self,
    inputs: Sequence[Int[np.ndarray, "..."]],
    decoding: Decoding,
    *,
    seed: int = 0,
    watch: Watch = lambda count: None,
  ) -> list[Spans]:
    """What the model writes for each sentinel in the inputs.

    Args:
      inputs: tokens with sentinels, as a denoiser makes them.
      decoding: how tokens are chosen.
      seed: of the tokens that are drawn, if any. What is drawn for an input
        depends on its number, but on no other input.
      watch: called with the number of inputs just done.

    Returns:
      For each of the inputs, tokens by the id of their sentinel, without
      sentinels that the model skipped.
    """
    vocabulary = self.vocabulary
    return [
      hidden_spans(
        targets,
        sentinel_ids=vocabulary.sentinel_ids,
        eos_id=vocabulary.eos_id,
      )
      for targets in self._written(inputs, decoding, seed, watch)
    ]

  def _written(
    self,
    inputs: Sequence[Int[np.ndarray, "..."]],
    decoding: Decoding,
    seed: int,
    watch: Watch,
    *,
    lead: tuple[int, ...] = (),
  ) -> list[Int[np.ndarray, "..."]]:
    """The targets that the model writes for each of the inputs, after `lead`."""
    eos_id = self.vocabulary.eos_id
    read = [self.objective.feature_layout.prompt(ids, eos_id) for ids in inputs]
    found = [np.zeros(0, np.int32) for _ in read]
    for (length,), numbers in self._batches([(len(ids),) for ids in read]):
      prompts = np.zeros((self.batch_size, length), np.int32)
      lengths = np.ones(self.batch_size, np.int32)
      places = np.zeros(self.batch_size, np.uint32)
      places[: len(numbers)] = numbers
      for row, number in enumerate(numbers):
        lengths[row] = len(read[number])
        prompts[row, : lengths[row]] = read[number]
      keys = None
      if decoding.temperature > 0:
        fold_in = jax.vmap(jax.random.fold_in, (None, 0))
        keys = fold_in(jax.random.key(seed), places)
      written = self._generate(prompts, lengths, decoding, keys, lead)
      for number, targets in zip(numbers, written):
        found[number] = targets
      watch(len(numbers))
    return found

  def _inputs(self, tokens: Sequence[int]) -> np.ndarray:
    """What a model reads of a prompt."""
    end = tokens[-self.max_prompt_tokens :]
    return self.objective.continuation(end, self.vocabulary)

  def _pair(self, prompt: Sequence[int], continuation: Sequence[int]) -> Pair:
    targets = np.array([*self._lead, *continuation], np.int32)
    return Pair(self._inputs(prompt), targets)

  @functools.cached_property
  def _lead(self) -> tuple[int, ...]:
    return self.objective.lead(self.vocabulary)

  def _row(
    self, pair: Pair, feature_lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """The features of a pair; what leads its targets has no weight."""
    row = self.objective.feature_layout.join(
      [pair],
      feature_lengths,
      pad_id=self.vocabulary.pad_id,
      eos_id=self.vocabulary.eos_id,
    )
    weights = row["target_weights"]
    weights[np.flatnonzero(weights)[: len(self._lead)]] = 0
    return row

  def _batches(
    self, sizes: Sequence[tuple[int, ...]]
  ) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Groups texts by rounded size: (array lengths, numbers of the texts)."""
    rounded = [tuple(map(_round_up, size)) for size in sizes]
    # Longest first, so that a lack of memory shows at once.
    order = sorted(range(len(sizes)), key=rounded.__getitem__, reverse=True)
    for lengths, group in itertools.groupby(order, rounded.__getitem__):
      numbers = list(group)
      for begin in range(0, len(numbers), self.batch_size):
        yield lengths, numbers[begin : begin + self.batch_size]

  def _scored_batches(
    self, pairs: Sequence[Pair]
  ) -> Iterator[tuple[list[int], Batch]]:
    """Batches of pairs, with the pairs' numbers."""
    layout = self.objective.feature_layout
    sizes = [
      layout.slots(len(pair.inputs), len(pair.targets)) for pair in pairs
    ]
    for lengths, numbers in self._batches(sizes):
      feature_lengths = dict(zip(layout.feature_names, lengths))
      rows = [self._row(pairs[number], feature_lengths) for number in numbers]
      yield numbers, stack_rows(rows, self.batch_size)

  @functools.cached_property
  def _score_fn(self) -> Any:
    return self.partitioner.jit(self.model.score_batch)

  @functools.cached_property
  def _compare_fn(self) -> Any:
    model = cast(LanguageModel, self.model)
    return self.partitioner.jit(model.score_and_compare)

  def _call(self, function: Any, batch: Batch) -> Any:
    """What a function of the model gives for a batch, on this host."""
    batch = self.partitioner.put_split(batch)
    return jax.tree.map(np.asarray, function(self.params, batch, self.paths))

  def _generate(
    self,
    prompts: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, "B"],
    decoding: Decoding,
    keys: Key[Array, "B"] | None,
    lead: tuple[int, ...],
  ) -> Int[np.ndarray, "B N"]:
    stops = None
    if decoding.stop_strings:
      stops = stop_table(decoding.stop_strings, self.vocabulary)
    found = generate(
      self.model,
      self.params,
      *self.partitioner.put_split((prompts, lengths)),
      self.paths,
      decoding=decoding,
      eos_id=self.vocabulary.eos_id,
      keys=keys,
      lead=lead,
      stops=stops,
    )
    return self.partitioner.fetch(found.tokens)


def _round_up(size: int) -> int:
  """The next power of 2, at least 16, or three quarters of it if that fits."""
  power = max(16, 1 << (size - 1).bit_length())
  return power * 3 // 4 if size <= power * 3 // 4 else power
