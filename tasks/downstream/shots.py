"""Prompts of k shots: solved examples of the train split before a question."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from tasks.downstream.task import Example, joined


def draw_shots(
  pool: Sequence[Example], example: Example, *, num_shots: int, seed: int
) -> list[Example]:
  """Examples to show before another, drawn without replacement.

  They depend on the seed and the prompt alone: neither on the order in which
  examples are evaluated, nor on which others are. A smaller number of shots
  is a part of a greater one.

  Args:
    pool: the train split, or any list that may contain `example`.
    example: the question. What has the same prompt is not drawn.
    num_shots: k.
    seed: another one draws others.

  Raises:
    ValueError: `pool` has too few.
  """
  rng = random.Random(f"{seed} {example.prompt}")
  others = (
    shot for shot in _shuffled(pool, rng) if shot.prompt != example.prompt
  )
  shots = list(itertools.islice(others, num_shots))
  if len(shots) < num_shots:
    raise ValueError(
      f"{num_shots} shots are asked for, and there are but {len(shots)} other "
      "examples to draw them from: set --gin.DOWNSTREAM_SHOTS to fewer"
    )
  return shots


def _shuffled(pool: Sequence[Example], rng: random.Random) -> Iterator[Example]:
  """All of the pool in random order; each costs only when it is taken."""
  moved: dict[int, int] = {}  # What a shuffle in place would have moved.
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
  """Shots, each with its answer, and a question, divided by blank lines.

  Shots are left out, the first one first, until the prompt is short enough.
  A question that is too long by itself is returned whole.

  Args:
    example: the question.
    shots: shown before it, in this order.
    max_tokens: room for the prompt, without what the model adds to it.
    count_tokens: number of tokens of a text.
  """
  parts = [joined(shot.prompt, shot.answer) for shot in shots]
  parts.append(example.prompt)
  prompt = "\n\n".join(parts)
  while len(parts) > 1 and count_tokens(prompt) > max_tokens:
    parts = parts[1:]
    prompt = "\n\n".join(parts)
  return prompt
