"""Which form a task has for which model."""

from raptr_jax.contracts import Model
from raptr_jax.fine_tuning.bert_labels import BertLabels
from raptr_jax.fine_tuning.form import Form
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.tasks.labelled import glue
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabulary import Vocabulary


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
    name: of a task of GLUE.
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
  if name not in glue.TASKS:
    raise ValueError(
      f"FINE_TUNING_TASK = {name!r}, expected one of {', '.join(glue.TASKS)}."
    )
  if not isinstance(model, BertMaskedLM):
    raise ValueError(f"{type(model).__name__}, expected a BERT.")
  longest = model.config.max_length
  if length > longest:
    raise ValueError(
      f"FINE_TUNING_LENGTH = {length}, but the pretrained model has positions"
      f" for {longest} tokens: set --gin.FINE_TUNING_LENGTH={longest}."
    )
  return BertLabels(
    task=glue.TASKS[name],
    pretrained=model,
    vocabulary=vocabulary,
    length=length,
    folder=folder,
    tfds_data_dir=tfds_data_dir,
    num_examples=num_examples,
  )
