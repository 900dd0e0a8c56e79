"""Downstream tasks as seqio tasks over TFDS."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from raptr_jax.tasks import extras
from raptr_jax.tasks.downstream import sources
from raptr_jax.tasks.downstream.shots import build_prompt, draw_shots
from raptr_jax.tasks.downstream.task import (
  Answer,
  DownstreamTask,
  Example,
  RankTask,
  Scores,
)
from raptr_jax.tasks.text.vocabulary import Vocabulary


def seqio_task(
  task: DownstreamTask,
  vocabulary: Vocabulary,
  *,
  num_shots: int = 0,
  seed: int = 0,
  data_dir: str | None = None,
) -> Any:
  """Registers a task with seqio as `<name>_<k>_shot`; replaces an earlier one.

  A seqio example has `inputs` and `targets`, tokenised without an end token,
  and both as text in `..._pretokenized`. If choices are ranked, each one is the
  target of its own example, and metrics take `scores`, the log-likelihoods of
  targets. If text is written, they take `predictions`; no-answer scores are 0.

  Args:
    task: what to register.
    vocabulary: tokenises both features.
    num_shots: k solved train examples before each question, if there is room.
    seed: seed of the draw of these examples.
    data_dir: folder of the prepared sets; None for TFDS's default.
  """
  seqio = extras.require("seqio")
  name = f"{task.name}_{num_shots}_shot"
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  source = seqio.TfdsDataSource(
    tfds_name=task.tfds_name, tfds_data_dir=data_dir, splits=tuple(task.files)
  )

  def rows(dataset: Any, room: int) -> Iterator[dict[str, Any]]:
    pool: list[Example] = []
    if num_shots:
      pool = list(_examples(task, source.get_dataset("train", shuffle=False)))
    for example in _examples(task, dataset):
      shots = draw_shots(pool, example, num_shots=num_shots, seed=seed)
      yield from _rows(example, shots, vocabulary, room)

  feature = seqio.Feature(vocabulary.to_seqio(), add_eos=False)
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      functools.partial(_row_dataset, rows=rows),
      seqio.preprocessors.tokenize,
    ],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=_postprocess,
    metric_fns=[_metric(task)],
  )


def _examples(task: DownstreamTask, dataset: Any) -> Iterator[Example]:
  """The examples of a tf.data.Dataset of TFDS records."""
  records = map(sources.plain, dataset.as_numpy_iterator())
  return map(task.to_example, records)


def _rows(
  example: Example, shots: Sequence[Example], vocabulary: Vocabulary, room: int
) -> Iterator[dict[str, Any]]:
  """An example's rows for seqio: one, or one for each choice."""
  prompt = build_prompt(
    example,
    shots,
    max_tokens=room,
    count_tokens=lambda text: len(vocabulary.encode(text)),
  )
  content = json.dumps(dataclasses.asdict(example))
  for number, target in enumerate(example.choices or (example.answer,)):
    yield {
      "inputs": prompt,
      "targets": target,
      "choice": number,
      "example": content,
    }


def _row_dataset(
  dataset: Any,
  sequence_length: Mapping[str, int] | None,
  *,
  rows: Callable[[Any, int], Iterator[dict[str, Any]]],
) -> Any:
  """Turns a tf.data.Dataset of TFDS records into one of `rows`."""
  tf = extras.require("tensorflow")
  room = (sequence_length or {}).get("inputs", sys.maxsize)
  text = tf.TensorSpec((), tf.string)
  return tf.data.Dataset.from_generator(
    lambda: rows(dataset, room),
    output_signature={
      "inputs": text,
      "targets": text,
      "choice": tf.TensorSpec((), tf.int32),
      "example": text,
    },
  )


def _postprocess(
  text: str, example: Mapping[str, Any], is_target: bool
) -> str | tuple[Example, int]:
  """What metrics receive: a model's text, or an example and its choice."""
  if not is_target:
    return text
  fields: dict[str, Any] = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in json.loads(example["example"]).items()
  }
  return Example(**fields), int(example["choice"])


def _metric(task: DownstreamTask) -> Callable[..., Scores]:
  """A task's metrics; seqio matches their arguments by name."""
  if isinstance(task, RankTask):

    def rank(targets, scores) -> Scores:
      examples: list[Example] = []
      by_example: list[list[float]] = []
      for (example, choice), score in zip(targets, scores, strict=True):
        if choice == 0:
          examples.append(example)
          by_example.append([])
        by_example[-1].append(score)
      chosen = [max(range(len(s)), key=s.__getitem__) for s in by_example]
      return task.score(examples, chosen)

    return rank

  def generate(targets, predictions) -> Scores:
    examples = [example for example, _ in targets]
    return task.score(examples, [Answer(text) for text in predictions])

  return generate
