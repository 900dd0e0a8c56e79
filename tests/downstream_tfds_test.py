"""The downstream tasks from TFDS, made of the hand-made original files."""

import functools
import shutil
from types import SimpleNamespace

import pytest

from raptr_jax.tasks.downstream.registry import TASKS
from raptr_jax.tasks.downstream.seqio_tasks import seqio_task
from raptr_jax.tasks.downstream.shots import build_prompt, draw_shots
from tests.downstream_test import FIXTURES, FOLDERS, PREDICTED

seqio = pytest.importorskip("seqio")
tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
  """The files where TFDS looks for them in what it has downloaded."""
  folder = tmp_path_factory.mktemp("originals")
  for name, official in FOLDERS.items():
    (folder / official).mkdir()
    for split in ("train", "val", "test"):
      target = folder / official / f"{split}.jsonl"
      shutil.copy(FIXTURES / f"{name}.jsonl", target)
  (folder / "triviaqa-unfiltered").mkdir()
  for path in FIXTURES.glob("*.json"):
    shutil.copy(path, folder)
  for path in FIXTURES.glob("unfiltered-*.json"):
    shutil.copy(path, folder / "triviaqa-unfiltered")
  return folder


@pytest.fixture(scope="module")
def prepare(originals, tmp_path_factory):
  """A function that prepares a set of TFDS by TFDS' own code, offline."""
  data_dir = str(tmp_path_factory.mktemp("tfds"))

  def found(url):
    path = originals / str(url).rsplit("/", 1)[-1]
    return str(path if path.is_file() else originals)

  downloads = SimpleNamespace(
    download_and_extract=lambda urls: (
      found(urls)
      if isinstance(urls, str)
      else {key: found(url) for key, url in urls.items()}
    ),
    downloaded_size=0,
  )

  @functools.cache
  def prepare(name):
    task = TASKS[name]
    builder = tfds.builder(task.tfds_name, data_dir=data_dir)
    generators = builder._split_generators
    with pytest.MonkeyPatch.context() as patch:
      # Of TyDiQA's splits, those that there are files of.
      patch.setattr(
        builder,
        "_split_generators",
        lambda dl_manager: [
          part for part in generators(dl_manager) if part.name in task.files
        ],
      )
      patch.setattr(builder, "_make_download_manager", lambda **_: downloads)
      builder.download_and_prepare()
    return data_dir

  tfds.disable_progress_bar()
  yield prepare
  tfds.enable_progress_bar()


@pytest.mark.parametrize("name", TASKS)
def test_both_sources_give_the_same_examples(name, prepare):
  task = TASKS[name]
  from_tfds = task.examples_from_tfds("train", prepare(task.name))
  from_folder = task.examples_from_folder(str(FIXTURES), "train")
  assert from_tfds and sorted(from_tfds, key=str) == sorted(
    from_folder, key=str
  )


def test_sets_that_are_not_prepared_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tfds build super_glue/rte"):
    TASKS["rte"].examples_from_tfds("train", str(tmp_path))
  with pytest.raises(ValueError, match=r"'test' is not one of"):
    TASKS["rte"].examples_from_tfds("test", str(tmp_path))


@pytest.fixture
def vocabulary():
  """One id a byte."""
  return SimpleNamespace(
    encode=lambda text: list(text.encode()), to_seqio=seqio.ByteVocabulary
  )


def _targets(task, rows):
  return [
    task.postprocess_fn(
      row["targets_pretokenized"], example=row, is_target=True
    )
    for row in rows
  ]


def test_seqio_ranks_choices(prepare, vocabulary):
  task = TASKS["boolq"]
  registered = seqio_task(task, vocabulary, data_dir=prepare(task.name))
  assert seqio.get_mixture_or_task("boolq_0_shot") is registered
  rows = list(
    registered.get_dataset(
      None, "validation", shuffle=False
    ).as_numpy_iterator()
  )
  examples = task.examples_from_tfds("validation", prepare(task.name))
  assert [row["inputs_pretokenized"].decode() for row in rows] == [
    example.prompt for example in examples for _ in example.choices
  ]
  assert [row["targets_pretokenized"].decode() for row in rows] == [
    choice for example in examples for choice in example.choices
  ]
  decoded = registered.output_features["targets"].vocabulary.decode(
    rows[1]["targets"].tolist()
  )
  assert decoded == "yes"
  scores = [
    -0.5 if choice == example.answer else -2.5
    for example in examples
    for choice in example.choices
  ]
  scores[0:2] = scores[1], scores[0]  # The first one wrong.
  (metric,) = registered.score_metric_fns
  assert metric(_targets(registered, rows), scores) == {"accuracy": 75}


def test_seqio_shows_shots_and_scores_text(prepare, vocabulary):
  task = TASKS["squad_v2"]
  data_dir = prepare(task.name)
  registered = seqio_task(
    task, vocabulary, num_shots=2, seed=5, data_dir=data_dir
  )
  pool, examples = (
    task.examples_from_tfds(split, data_dir)
    for split in ("train", "validation")
  )
  for room in (10_000, 450):
    rows = list(
      registered.get_dataset(
        {"inputs": room, "targets": 99}, "validation", shuffle=False
      ).as_numpy_iterator()
    )
    expected = [
      build_prompt(
        example,
        draw_shots(pool, example, num_shots=2, seed=5),
        max_tokens=room,
        count_tokens=lambda text: len(text.encode()),
      )
      for example in examples
    ]
    assert [row["inputs_pretokenized"].decode() for row in rows] == expected
    assert [prompt.count("answer:") - 1 for prompt in expected] == (
      [2 if room == 10_000 else 1] * len(examples)
    )
  # TFDS shuffles; without no-answer scores, all but two answers are right.
  answers = dict(
    zip(
      task.examples_from_folder(str(FIXTURES), "validation"),
      PREDICTED["squad_v2"][0],
    )
  )
  (metric,) = registered.predict_metric_fns
  scores = metric(
    _targets(registered, rows), [answers[example].text for example in examples]
  )
  assert scores["exact"] == 60
