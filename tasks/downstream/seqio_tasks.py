"""The downstream tasks as seqio tasks over TFDS."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tasks import extras
from tasks.downstream import sources
from tasks.downstream.registry import DownstreamTask
from tasks.downstream.shots import build_prompt, draw_shots
from tasks.downstream.task import Answer, Example, RankTask, Scores
from tasks.vocabulary import Vocabulary


def seqio_task(
  task: DownstreamTask,
  vocabulary: Vocabulary,
  *,
  num_shots: int = 0,
  seed: int = 0,
  data_dir: str | None = None,
) -> Any:
  """Registers a task with seqio as `<name>_<k>_shot`, and returns it.

  An example has `inputs` and `targets`, tokenised without an end, and both as
  text, as `..._pretokenized`. Where choices are ranked, each is the target of
  an example of its own, and the metrics take `scores`, log-likelihoods of
  targets. Where text is written, they take `predictions`, and no-answer scores
  are 0. Registering again replaces the task.

  Args:
    task: one of `registry.TASKS`.
    vocabulary: tokenises both features.
    num_shots: k solved examples of the train split before each; those for
      which `inputs` has no room are left out.
    seed: decides which.
    data_dir: folder of the prepared sets; None for the default of TFDS.
  """
  seqio = extras.require("seqio")
  name = f"{task.name}_{num_shots}_shot"
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  source = seqio.TfdsDataSource(
    tfds_name=task.tfds_name,
    tfds_data_dir=data_dir,
    splits=tuple(task.files),
  )

  def train_examples() -> list[Example]:
    train = source.get_dataset("train", shuffle=False)
    return list(_examples(task, train))

  def show(example: Example, pool: Sequence[Example], room: int) -> str:
    return build_prompt(
      example,
      draw_shots(pool, example, num_shots=num_shots, seed=seed),
      max_tokens=room,
      count_tokens=lambda text: len(vocabulary.encode(text)),
    )

  def rows(dataset: Any, room: int) -> Iterator[dict[str, Any]]:
    pool = train_examples() if num_shots else []
    for example in _examples(task, dataset):
      yield from _rows(example, show(example, pool, room))

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


def _rows(example: Example, prompt: str) -> Iterator[dict[str, Any]]:
  """An example as seqio has it: once, or once for each choice."""
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
  """A tf.data.Dataset of `rows`, from one of TFDS records."""
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
  """What a metric gets: the text of a model, or an example and its choice."""
  if not is_target:
    return text
  fields: dict[str, Any] = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in json.loads(example["example"]).items()
  }
  return Example(**fields), int(example["choice"])


def _metric(task: DownstreamTask) -> Callable[..., Scores]:
  """The metrics of a task; seqio goes by the names of the arguments."""
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
