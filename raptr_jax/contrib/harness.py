"""The three requests of lm-evaluation-harness, answered by a run.

Knows the harness's conventions, but does not import it: `lm_eval.py` does.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.paths import Layers
from raptr_jax.inference.prompt_length import longest_prompt, shares_row
from raptr_jax.inference.run import Run
from raptr_jax.inference.text_predictor import TextPredictor, Watch

MAX_NEW_TOKENS = 256  # The harness's default.
_MOST_TOKENS = (  # The harness's names for it; the first one given counts.
  "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens",
)  # fmt: skip
_GENERATION = {
  *_MOST_TOKENS, "until", "do_sample", "temperature", "top_k", "top_p",
}  # fmt: skip


def _ignore(count: int) -> None:
  """Watches nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HarnessModel:
  """Answers requests within the lengths that a model was trained on.

  Of a long prompt the end is read, as the harness's own models do.

  Attributes:
    predictor: the model.
    prompt_tokens: most tokens of a prompt, and of what follows it in its row.
    target_tokens: most tokens that may follow a prompt.
  """

  predictor: TextPredictor
  prompt_tokens: int
  target_tokens: int

  @classmethod
  def of_run(
    cls, run: Run, layers: Layers = None, *, batch_size: int | None = None
  ) -> "HarnessModel":
    """A run with any path of its layers; see `Run.path`.

    Raises:
      ValueError: the run does not write, or the batch does not split evenly.
    """
    predictor = run.predictor(layers, batch_size=batch_size)
    objective, vocabulary = predictor.objective, predictor.vocabulary
    prompt = longest_prompt(objective, vocabulary, run.feature_lengths)
    targets = prompt
    if not shares_row(objective):
      name = objective.feature_layout.feature_names[1]
      targets = run.feature_lengths[name] - len(objective.lead(vocabulary))
    return cls(
      predictor=dataclasses.replace(predictor, max_prompt_tokens=prompt),
      prompt_tokens=prompt,
      target_tokens=targets,
    )

  def loglikelihood(
    self, pairs: Sequence[tuple[str, str]], *, watch: Watch = _ignore
  ) -> list[tuple[float, bool]]:
    """Log-likelihood of each continuation, in nats, and whether it is greedy.

    Args:
      pairs: contexts and continuations; the space between words belongs to the
        continuation.
      watch: called with the number of pairs just done.

    Raises:
      ValueError: a continuation is longer than those the model was trained on.
    """
    tokens = [self._split(*pair) for pair in pairs]
    for _, continuation in tokens:
      if len(continuation) > self.target_tokens:
        raise ValueError(
          f"A continuation has {len(continuation)} tokens, expected at most"
          f" {self.target_tokens}, as the model was trained with: train it with"
          " larger --gin.TASK_FEATURE_LENGTHS."
        )
    fitting = [(self._end(*pair), pair[1]) for pair in tokens]
    found = self.predictor.score_and_compare(fitting, watch=watch)
    return [(float(score), bool(greedy)) for score, greedy in zip(*found)]

  def loglikelihood_rolling(
    self, texts: Sequence[str], *, watch: Watch = _ignore
  ) -> list[float]:
    """Log-likelihood of each whole text, in nats.

    Long ones are read in windows; see `rolling_windows`.
    """
    size = min(self.prompt_tokens - 1, self.target_tokens)
    windows = [
      list(rolling_windows(self.predictor.vocabulary.encode(text), size))
      for text in texts
    ]
    flat = [*itertools.chain.from_iterable(windows)]
    scores, _ = self.predictor.score_and_compare(flat, watch=watch)
    ends = np.cumsum([len(own) for own in windows])[:-1]
    return [float(own.sum()) for own in np.split(scores, ends)][: len(texts)]

  def generate_until(
    self,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    watch: Watch = _ignore,
  ) -> list[str]:
    """Continues each context until one of its stop strings.

    Args:
      requests: contexts, each with the harness's arguments of generation:
        `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k`, `top_p`.
      watch: called with the number of contexts just done.

    Raises:
      ValueError: an argument is unknown, or out of range.
    """
    decodings = [self._decoding(arguments) for _, arguments in requests]
    texts = [""] * len(requests)
    for decoding in dict.fromkeys(decodings):
      numbers = [i for i, other in enumerate(decodings) if other == decoding]
      room = self.prompt_tokens
      if shares_row(self.predictor.objective):
        room -= decoding.max_new_tokens
      predictor = dataclasses.replace(self.predictor, max_prompt_tokens=room)
      contexts = [requests[number][0].rstrip() for number in numbers]
      written = predictor.write(contexts, decoding, watch=watch)
      for number, text in zip(numbers, written):
        texts[number] = text
    return texts

  def _split(
    self, context: str, continuation: str
  ) -> tuple[list[int], list[int]]:
    """Tokens of both; a space at the end of the context begins a word."""
    encode = self.predictor.vocabulary.encode
    read = context.rstrip()
    continuation = context[len(read) :] + continuation
    before, whole = encode(read), encode(read + continuation)
    if whole[: len(before)] != before:  # A token spans both.
      return before, encode(continuation)
    return before, whole[len(before) :]

  def _end(
    self, prompt: Sequence[int], continuation: Sequence[int]
  ) -> list[int]:
    """As much of a prompt as fits before its continuation."""
    room = self.prompt_tokens
    if shares_row(self.predictor.objective):
      room -= len(continuation)
    return list(prompt[max(0, len(prompt) - room) :])

  def _decoding(self, arguments: Mapping[str, Any]) -> Decoding:
    """How a request wants tokens to be chosen."""
    unknown = arguments.keys() - _GENERATION
    if unknown:
      raise ValueError(
        f"generation arguments {sorted(unknown)} are unknown, expected some of"
        f" {sorted(_GENERATION)}: correct the task's generation_kwargs, or"
        " --gen_kwargs."
      )
    asked = (arguments[name] for name in _MOST_TOKENS if name in arguments)
    room = self.target_tokens
    if shares_row(self.predictor.objective):
      room //= 2  # The other half is the prompt's.
    until = arguments.get("until") or ()
    temperature = arguments.get("temperature")
    sampled = arguments.get("do_sample", bool(temperature))
    return Decoding(
      max_new_tokens=min(next(asked, MAX_NEW_TOKENS), room),
      temperature=(temperature or 1.0) if sampled else 0.0,
      top_k=arguments.get("top_k") if sampled else None,
      top_p=arguments.get("top_p") if sampled else None,
      stop_strings=(until,) if isinstance(until, str) else tuple(until),
    )


def rolling_windows(
  tokens: Sequence[int], size: int
) -> Iterator[tuple[list[int], list[int]]]:
  """Yields contexts and what follows them; each token is predicted once.

  A window predicts `size` tokens from the one before them. The last one
  predicts what is left, from so many tokens that it is as long.
  """
  tokens = list(tokens)
  for begin in range(0, len(tokens), size):
    end = min(begin + size, len(tokens))
    yield tokens[max(0, end - size - 1) : begin], tokens[begin:end]
