"""Which form a task has for which model."""

from collections.abc import Iterable
from typing import Any

from raptr_jax.contracts import Model
from raptr_jax.fine_tuning.bert_labels import BertLabels
from raptr_jax.fine_tuning.bert_spans import BertSpans
from raptr_jax.fine_tuning.form import Form
from raptr_jax.fine_tuning.prompted import ByPrompt, InWords, PromptSource
from raptr_jax.fine_tuning.text_answers import TextAnswers
from raptr_jax.inference.generate import Generator
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.tasks.downstream import registry
from raptr_jax.tasks.labelled import glue, squad
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.objective import GenerativeObjective
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabulary import Vocabulary

SUPERGLUE = "superglue/"


def form_of(
  name: str,
  *,
  model: Model,
  text_task: TextTask | Mixture,
  vocabulary: Vocabulary,
  length: int,
  folder: str | None,
  tfds_data_dir: str | None,
  num_examples: int | None,
) -> Form:
  """The form of a task for a pretrained model.

  Args:
    name: of a task of GLUE or SQuAD; for models that write, also of one by prompt, such
      as "boolq". "rte" is GLUE's; "superglue/rte" is the same by prompt.
    model: the pretrained model.
    text_task: what it was pretrained on.
    vocabulary: its own.
    length: most tokens of a row.
    folder: of the task's original files; None reads TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for TFDS's default.
    num_examples: of training, the first ones; None for all.

  Raises:
    ValueError: there is no such task, or the model cannot learn it.
  """
  place: dict[str, Any] = {"folder": folder, "tfds_data_dir": tfds_data_dir}
  shared: dict[str, Any] = {
    "vocabulary": vocabulary,
    "length": length,
    "num_examples": num_examples,
  }
  if isinstance(model, BertMaskedLM):
    _check_length(model, length)
    if name in squad.TASKS:
      spans = squad.TASKS[name]
      return BertSpans(task=spans, pretrained=model, **place, **shared)
    task = glue.TASKS.get(name)
    if task is None:
      raise _unknown(name, [*glue.TASKS, *squad.TASKS], "BERT")
    return BertLabels(task=task, pretrained=model, **place, **shared)
  objective = text_task.objective
  if not isinstance(model, Generator) or not isinstance(
    objective, GenerativeObjective
  ):
    raise ValueError(
      f"PRETRAINED is a {type(model).__name__}, expected a BERT, or a model that"
      " writes."
    )
  return TextAnswers(
    source=_source(name, **place), model=model, objective=objective, **shared
  )


def _source(
  name: str, folder: str | None, tfds_data_dir: str | None
) -> PromptSource:
  """The task of a name, for models that write."""
  if name in glue.TASKS:
    return InWords(glue.TASKS[name], folder, tfds_data_dir)
  if name == squad.IN_WORDS.name:
    return ByPrompt(squad.IN_WORDS, folder, tfds_data_dir)
  bare = name.removeprefix(SUPERGLUE)
  if bare not in registry.TASKS:
    known = dict.fromkeys((*glue.TASKS, squad.IN_WORDS.name, *registry.TASKS))
    raise _unknown(name, [*known, f"{SUPERGLUE}rte"], "models that write")
  return ByPrompt(registry.TASKS[bare], folder, tfds_data_dir)


def _unknown(name: str, known: Iterable[str], readers: str) -> ValueError:
  return ValueError(
    f"FINE_TUNING_TASK = {name!r}, expected one of those for {readers}:"
    f" {', '.join(known)}."
  )


def _check_length(model: BertMaskedLM, length: int) -> None:
  """Raises ValueError if rows are longer than a model can read."""
  longest = model.config.max_length
  if length > longest:
    raise ValueError(
      f"FINE_TUNING_LENGTH = {length}, but the pretrained model has positions"
      f" for {longest} tokens: set --gin.FINE_TUNING_LENGTH={longest}."
    )
