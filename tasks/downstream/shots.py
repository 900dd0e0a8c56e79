"""k-shot prompts: solved examples from the train split, then a question."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from raptr_jax.tasks.downstream.task import Example, joined


def draw_shots(
  pool: Sequence[Example], example: Example, *, num_shots: int, seed: int
) -> list[Example]:
  """Draws the examples to show before a question, without replacement.

  They depend on the seed and the question's prompt alone, not on which other
  examples are evaluated, or in which order. Fewer shots are a prefix of more.

  Args:
    pool: the train split, or any list; may contain `example`.
    example: the question; examples with the same prompt are not drawn.
    num_shots: k.
    seed: seed of the draw.

  Raises:
    ValueError: `pool` has too few examples.
  """
  rng = random.Random(f"{seed} {example.prompt}")
  others = (
    shot for shot in _shuffled(pool, rng) if shot.prompt != example.prompt
  )
  shots = list(itertools.islice(others, num_shots))
  if len(shots) < num_shots:
    raise ValueError(
      f"{num_shots} shots are asked for, but there are only {len(shots)} other "
      "examples to draw from: set smaller numbers in --gin.DOWNSTREAM_SHOTS"
    )
  return shots


def _shuffled(pool: Sequence[Example], rng: random.Random) -> Iterator[Example]:
  """The pool in random order, shuffled lazily."""
  moved: dict[int, int] = {}  # What an in-place shuffle would have moved.
  for last in reversed(range(len(pool))):
    place = rng.randint(0, last)
    yield pool[moved.get(place, place)]
    moved[place] = moved.get(last, last)


def build_prompt(
  example: Example,
  shots: Sequence[Example],
  *,
  max_tokens: int,
  count_tokens: Callable[[str], int],
) -> str:
  """Joins solved shots and a question, separated by blank lines.

  Drops shots, first ones first, until the prompt fits. A question that is too
  long by itself is returned whole.

  Args:
    example: the question.
    shots: what to show before it, in this order.
    max_tokens: room for the prompt, without the tokens that the model adds.
    count_tokens: counts the tokens of a text.
  """
  parts = [joined(shot.prompt, shot.answer) for shot in shots]
  parts.append(example.prompt)
  prompt = "\n\n".join(parts)
  while len(parts) > 1 and count_tokens(prompt) > max_tokens:
    parts = parts[1:]
    prompt = "\n\n".join(parts)
  return prompt
