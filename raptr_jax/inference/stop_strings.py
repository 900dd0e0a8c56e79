"""Stop strings: texts at which a model ends what it writes.

They are found within the decoding loop, token by token: a table says how much
of a stop string the text so far ends in, whatever tokens spell it.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from raptr_jax.tasks.text.vocabulary import Vocabulary


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
  """The text before the first of the stop strings, or all of it."""
  found = [text.find(stop) for stop in stop_strings]
  return text[: min((place for place in found if place >= 0), default=None)]


@functools.lru_cache(maxsize=32)
def stop_table(
  stop_strings: tuple[str, ...], vocabulary: Vocabulary
) -> Int[np.ndarray, "S ids"]:
  """The automaton of Aho and Corasick (1975), a token for a letter.

  State s and token v are followed by state table[s, v]. The first state has
  seen nothing of a stop string, and the last one all of one.
  """
  prefixes = sorted(
    {stop[:size] for stop in stop_strings for size in range(len(stop))}
  )
  numbers = {prefix: number for number, prefix in enumerate(prefixes)}
  end = len(prefixes)
  letters = {c: i for i, c in enumerate(sorted(set("".join(stop_strings))), 1)}

  def after(prefix: str, letter: str) -> int:
    seen = prefix + letter
    if seen.endswith(stop_strings):
      return end
    while seen not in numbers:
      seen = seen[1:]
    return numbers[seen]

  steps = np.zeros((end + 1, len(letters) + 1), np.int32)  # By letter.
  for prefix, number in numbers.items():
    for letter, column in letters.items():
      steps[number, column] = after(prefix, letter)
  steps[end] = end

  table = np.repeat(
    np.arange(end + 1, dtype=np.int32)[:, None], vocabulary.size, 1
  )
  for token in range(vocabulary.size):
    for letter in _text_of(token, vocabulary):
      table[:, token] = steps[table[:, token], letters.get(letter, 0)]
  return table


def _text_of(token: int, vocabulary: Vocabulary) -> str:
  """What a token adds to a text, with the space before a word."""
  return vocabulary.decode([token, token])[len(vocabulary.decode([token])) :]
