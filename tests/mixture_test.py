import itertools

import gin
import jax
import numpy as np
import pytest

from raptr_jax import main
from raptr_jax.data.interleaving import Interleaving
from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.data.streaming import StreamingDataset
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.sources import KingJamesBible
from tests.small_task import assert_batches_equal, make_task, take, write_corpus

RATES = (57, 17, 17, 9)
PAPER_MIX = [
  "--gin_file=models/bert_tiny.gin",
  "--gin_file=methods/dense.gin",
  "--gin_file=runs/pretrain.gin",
  "--gin_file=data/ul2_paper_mix.gin",
  "--gin.MODEL_DIR='x'",
  "--gin.TRAIN_STEPS=1",
  "--gin.VOCABULARY_PATH='t5.model'",
  "--gin.GITHUB_DIR='code'",
  "--gin.RANDOM_SEED=5",
]


def _task(name, **changes):
  fields = {
    "source": KingJamesBible(),
    "objective": UL2(),
    "vocabulary_size": 600,
    "vocabulary_path": "given.model",
  }
  return TextTask(name=name, **{**fields, **changes})


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """A mixture that is prepared, and what its datasets have in common."""
  folder = tmp_path_factory.mktemp("mixture")
  path = folder / "given.model"
  documents = itertools.islice(KingJamesBible().documents("train"), 40)
  train_sentencepiece(documents, 600, path)
  tasks = [
    make_task(
      write_corpus(folder / name, size),
      name=name,
      objective=UL2(),
      vocabulary_path=str(path),
      extra_ids=10,
      vocabulary_size=610,
    )
    for name, size in (("many", 60), ("few", 30))
  ]
  arguments = {
    "task": Mixture(name="mix", tasks=tasks, rates=(3, 1)),
    "feature_lengths": {"tokens": 64},
    "data_dir": str(folder / "data"),
  }
  prepare(**arguments)
  return arguments


def _dataset(shared, **changes):
  dataset = PreparedDataset(
    **{**shared, "batch_size": 16, "seed": 3, **changes}
  )
  dataset.open()
  return dataset


def _examples(batches):
  """The examples of batches, as dictionaries."""
  return [
    {key: value[i] for key, value in batch.items()}
    for batch in batches
    for i in range(len(batch["tokens"]))
  ]


def test_a_mixture_has_the_examples_of_its_tasks_in_turn(shared):
  batches = take(_dataset(shared), 20)
  alone = [
    _examples(take(_dataset(shared, task=task, seed=seed), 20))
    for task, seed in zip(shared["task"].tasks, (6, 7))
  ]
  mixed = Interleaving((3, 1), 16)
  for number, example in enumerate(_examples(batches)):
    task, place = mixed.locate(number)
    for key, value in alone[task][place].items():
      np.testing.assert_array_equal(example[key], value)
  assert mixed.before(20).tolist() == [240, 80]
  assert_batches_equal(take(_dataset(shared), 2, 18), batches[18:])


@pytest.mark.parametrize("hosts", [2, 4, 16])
def test_hosts_go_on_where_others_have_stopped(shared, hosts, monkeypatch):
  whole = take(_dataset(shared), 6)
  monkeypatch.setattr(jax, "process_count", lambda: hosts)
  parts = []
  for host in range(hosts):
    monkeypatch.setattr(jax, "process_index", lambda host=host: host)
    parts.append(take(_dataset(shared), 3, start=3))
  joined = [
    {key: np.concatenate([part[key] for part in batch]) for key in batch[0]}
    for batch in zip(*parts)
  ]
  assert_batches_equal(joined, whole[3:])


def test_what_a_mixture_knows_of_its_tasks(shared):
  dataset = _dataset(shared)
  assert dataset.example_kinds == UL2().example_kinds
  alone = [_dataset(shared, task=task) for task in shared["task"].tasks]
  assert dataset.num_examples == sum(part.num_examples for part in alone)
  one, two = (part.unigram_counts for part in alone)
  total = one.sum() + two.sum()
  expected = total * (0.75 * one / one.sum() + 0.25 * two / two.sum())
  np.testing.assert_allclose(dataset.unigram_counts, expected)
  spec = dataset.batch_spec()
  shapes = {key: (value.shape, value.dtype) for key, value in spec.items()}
  (batch,) = take(dataset, 1)
  assert shapes == {k: (v.shape, v.dtype) for k, v in batch.items()}


def test_mixtures_of_different_seeds_share_no_randomness(shared):
  datasets = [_dataset(shared, seed=seed) for seed in range(3)]
  seeds = [order.seed for dataset in datasets for order in dataset._orders]
  assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rates": (1,)}, r"MIXTURE_RATES=\(1,\) must have one number for each"),
    ({"rates": (1, 0)}, r"all be positive: set --gin.MIXTURE_RATES"),
    ({"tasks": [_task("a"), _task("a")]}, r"\['a', 'a'\].*different names"),
    (
      {"tasks": [_task("a"), _task("b", vocabulary_path="other.model")]},
      r"vocabulary_path='given.model' in a but 'other.model' in b",
    ),
    (
      {"tasks": [_task("a"), _task("b", objective=UL2("encoder_decoder"))]},
      r"objective=",
    ),
    (
      {"tasks": [_task(name, vocabulary_path=None) for name in "ab"]},
      r"--gin.VOCABULARY_PATH",
    ),
  ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
  arguments = {"name": "x", "tasks": [_task("a"), _task("b")], "rates": (1, 1)}
  with pytest.raises(ValueError, match=message):
    Mixture(**{**arguments, **changes})


@pytest.mark.parametrize(
  ("files", "kind"),
  [
    ([], PreparedDataset),
    (["--gin_file=data/streaming.gin"], StreamingDataset),
  ],
)
def test_mix_of_the_paper_is_what_its_file_says(files, kind):
  main.configure([*PAPER_MIX, *files], "")
  train, held_out = (
    gin.query_parameter(name).scoped_configurable_fn()
    for name in ("%TRAIN_DATASET", "%EVAL_DATASET")
  )
  assert train.task.rates == RATES
  assert [part.source.description() for part in train.task.parts] == [
    "TFDS c4/en (text), validation: the first 1 % of each",
    "TFDS wikipedia/20230601.en (text), validation: the first 1 % of each",
    "text of code (**/*), a document is a file, white space: collapse, "
    "validation: every 20th document",
    "TFDS scientific_papers/arxiv (article), validation: the first 1 % of each",
  ]
  assert all(part.extra_ids == 100 for part in train.task.parts)
  for dataset, split in ((train, "train"), (held_out, "validation")):
    assert isinstance(dataset, kind)
    assert dataset.split == split
  assert [order.seed for order in train._orders] == [20, 21, 22, 23]
  assert [order.seed for order in held_out._orders] == [0, 1, 2, 3]
