"""Models that write learn tasks as texts: a prompt, and the answer to it.

Only the answer counts in the loss. Prompts are put as the model's objective
puts them, and answers are found as in evaluation by prompt: the likeliest of
the choices, or what the model writes.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raptr_jax.contracts import Params
from raptr_jax.fine_tuning.form import TRAIN, Predictor
from raptr_jax.fine_tuning.prompted import PromptSource
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.generate import Generator
from raptr_jax.inference.text_predictor import TextPredictor
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.downstream.task import Answer, Example
from raptr_jax.tasks.objectives.layouts import Pair
from raptr_jax.tasks.objectives.objective import GenerativeObjective
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.partitioning import Partitioner

PREDICTED = 32  # Texts at once, for each device; our choice.
MOST_ANSWER = 64  # Tokens of a choice; longer ones are cut to learn them.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextAnswers:
  """A `Form`: tasks as texts, for models that write.

  Attributes:
    source: the task.
    model: the pretrained model.
    objective: what it was trained on; puts prompts.
    vocabulary: its own.
    length: most tokens of a prompt; of a longer one, the end is read.
    num_examples: of training, the first ones; None for all.
  """

  source: PromptSource
  model: Generator
  objective: GenerativeObjective
  vocabulary: Vocabulary
  length: int
  num_examples: int | None = None
  fresh_parts: tuple[str, ...] = ()
  _read: dict[str, list[Example]] = dataclasses.field(
    default_factory=dict, init=False
  )

  @property
  def name(self) -> str:
    return self.source.name

  @property
  def metrics(self) -> tuple[str, ...]:
    return self.source.metrics

  @property
  def validation_splits(self) -> tuple[str, ...]:
    return self.source.validation_splits

  @property
  def test_splits(self) -> tuple[str, ...]:
    return self.source.test_splits

  def examples(self, split: str) -> Sequence[Example]:
    """The examples of a split, read once."""
    if split not in self._read:
      found = self.source.examples(split)
      self._read[split] = (
        found[: self.num_examples] if split == TRAIN else found
      )
    return self._read[split]

  def features(self, example: Example) -> Mapping[str, np.ndarray]:
    """Prompt and answer as the features that the model reads."""
    objective, vocabulary = self.objective, self.vocabulary
    tokens = vocabulary.encode(example.prompt)[-self.length :]
    inputs = objective.continuation(tokens, vocabulary)
    layout = objective.feature_layout
    slots = layout.slots(self._most_inputs, self._most_targets)
    return layout.join(
      [Pair(inputs, self._targets(example.answer))],
      dict(zip(layout.feature_names, slots)),
      pad_id=vocabulary.pad_id,
      eos_id=vocabulary.eos_id,
    )

  def predictor(self, partitioner: Partitioner) -> Predictor:
    """Answers prompts, with all layers."""
    paths = partitioner.put_replicated(full_paths(self.model.stacks))
    # One for all evaluations, so that its programs are compiled once.
    predictor = TextPredictor(
      model=self.model,
      params={},
      paths=paths,
      objective=self.objective,
      vocabulary=self.vocabulary,
      partitioner=partitioner,
      batch_size=PREDICTED * partitioner.batch_shards,
      max_prompt_tokens=self.length,
    )

    def predict(params: Params, examples: Sequence[Example]) -> list[Any]:
      return self._answers(predictor.with_params(params), examples)

    return predict

  def scores(
    self, split: str, predictions: Sequence[Any]
  ) -> Mapping[str, float]:
    """The task's metrics."""
    found = self.source.scores(self.examples(split), predictions)
    mean = sum(found[name] for name in self.metrics) / len(self.metrics)
    return {**found, "score": mean}

  def baseline(self) -> Mapping[str, float]:
    """Scores of the commonest choice of training; empty without choices."""
    if self.source.max_new_tokens is not None:
      return {}
    labels = [example.label for example in self.examples(TRAIN)]
    known = [label for label in labels if label is not None]
    split = self.validation_splits[0]
    guess = max(sorted(set(known)), key=known.count, default=0)
    examples = self.examples(split)
    guesses = [min(guess, len(example.choices) - 1) for example in examples]
    return self.scores(split, guesses)

  def lines(
    self, split: str, predictions: Sequence[Any]
  ) -> Sequence[Mapping[str, Any]]:
    """Prompt, answer and prediction of each example."""
    return [
      {
        "index": number,
        "prompt": example.prompt,
        "prediction": self._shown(example, found),
        "references": list(example.references) or [example.answer],
      }
      for number, (example, found) in enumerate(
        zip(self.examples(split), predictions, strict=True)
      )
    ]

  def submission(
    self, split: str, predictions: Sequence[Any]
  ) -> tuple[str, str]:
    """What the source makes of predictions on a test set."""
    return self.source.submission(split, predictions)

  def _answers(
    self, predictor: TextPredictor, examples: Sequence[Example]
  ) -> list[Any]:
    """The number of the likeliest choice, or what the model writes."""
    prompts = [example.prompt for example in examples]
    if self.source.max_new_tokens is not None:
      decoding = Decoding(max_new_tokens=self.source.max_new_tokens)
      return [Answer(text) for text in predictor.write(prompts, decoding)]
    scores = predictor.score(
      [p for p, e in zip(prompts, examples) for _ in e.choices],
      [choice for example in examples for choice in example.choices],
    )
    ends = np.cumsum([len(example.choices) for example in examples])
    return [int(part.argmax()) for part in np.split(scores, ends[:-1])]

  def _shown(self, example: Example, found: Any) -> str:
    """A prediction in words."""
    return found.text if isinstance(found, Answer) else example.choices[found]

  def _targets(self, answer: str) -> np.ndarray:
    """What the model is to write, with its end; too long answers are cut."""
    vocabulary = self.vocabulary
    tokens = vocabulary.encode(answer)[: self._most_answer]
    lead = self.objective.lead(vocabulary)
    return np.array([*lead, *tokens, vocabulary.eos_id], np.int32)

  @functools.cached_property
  def _most_answer(self) -> int:
    """Tokens of the longest answer to learn or to choose, within bounds."""
    texts = {example.answer for example in self._learned}
    texts |= {c for example in self._learned for c in example.choices}
    longest = max(map(len, self.vocabulary.encode_batch(sorted(texts))))
    return min(longest, self.source.max_new_tokens or MOST_ANSWER)

  @functools.cached_property
  def _most_inputs(self) -> int:
    """Tokens of the longest prompt, as it is put."""
    prompts = [example.prompt for example in self._learned]
    longest = max(map(len, self.vocabulary.encode_batch(prompts)))
    frame = self.objective.continuation([], self.vocabulary)
    return min(longest, self.length) + len(frame)

  @property
  def _most_targets(self) -> int:
    """Tokens of the longest answer, with what is around it."""
    return self._most_answer + len(self.objective.lead(self.vocabulary)) + 1

  @property
  def _learned(self) -> list[Example]:
    """The examples that batches are made of."""
    deciding = self.examples(self.validation_splits[0])
    return [*self.examples(TRAIN), *deciding]
