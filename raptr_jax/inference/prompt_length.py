"""How long prompts may be: as long as what a model was trained on."""

from collections.abc import Mapping

from raptr_jax.tasks.objectives.objective import GenerativeObjective
from raptr_jax.tasks.text.vocabulary import Vocabulary

ANSWER_TOKENS = 64  # Where prompt and answer share a row, left to the answer.


def shares_row(objective: GenerativeObjective) -> bool:
  """Whether a prompt and what follows it share a feature, as in a decoder."""
  return len(objective.feature_layout.feature_names) == 1


def longest_prompt(
  objective: GenerativeObjective,
  vocabulary: Vocabulary,
  feature_lengths: Mapping[str, int],
) -> int:
  """Most tokens of a prompt, without those that the objective adds.

  Args:
    objective: what the model was trained on.
    vocabulary: its vocabulary.
    feature_lengths: lengths of the features it was trained on.
  """
  layout = objective.feature_layout
  empty = objective.continuation((), vocabulary)
  added = len(layout.prompt(empty, vocabulary.eos_id))
  return feature_lengths[layout.feature_names[0]] - added


def usual_prompt(
  objective: GenerativeObjective,
  vocabulary: Vocabulary,
  feature_lengths: Mapping[str, int],
) -> int:
  """`longest_prompt`, with room for an answer in the same row."""
  room = longest_prompt(objective, vocabulary, feature_lengths)
  if not shares_row(objective):
    return room
  return room - min(ANSWER_TOKENS, room // 2)
