import functools
import itertools

import gin
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from raptr_jax import main
from raptr_jax.data.mixed import MixtureDataset
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


def _mixture(rates=RATES):
  tasks = [_task(f"part_{i}") for i in range(len(rates))]
  return Mixture(name="mix", tasks=tasks, rates=rates)


@pytest.mark.parametrize(
  ("batch_size", "multiple", "shares"),
  [
    (512, 1, (292, 87, 87, 46)),  # 291.84, 87.04, 87.04, 46.08
    (512, 8, (288, 88, 88, 48)),  # 36.48, 10.88, 10.88, 5.76 times 8
    (256, 1, (146, 44, 43, 23)),  # 145.92, 43.52, 43.52, 23.04
    (8, 1, (5, 1, 1, 1)),  # 4.56, 1.36, 1.36, 0.72
    (4, 1, (1, 1, 1, 1)),
  ],
)
def test_shares_by_hand(batch_size, multiple, shares):
  assert _mixture().shares(batch_size, multiple) == shares


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(
  rates=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
  extra=st.integers(0, 200),
  multiple=st.integers(1, 4),
)
def test_shares_are_whole_and_near_the_rates(rates, extra, multiple):
  units = len(rates) + extra
  shares = _mixture(rates).shares(units * multiple, multiple)
  assert sum(shares) == units * multiple
  assert min(shares) >= multiple
  assert all(share % multiple == 0 for share in shares)
  exact = units * np.array(rates) / sum(rates)
  if min(exact) >= 1:
    assert (np.abs(np.array(shares) / multiple - exact) < 1).all()


class _Part:
  """Numbered rows, so that a batch shows where they come from."""

  example_kinds = ("a", "b")
  num_examples = 10

  def __init__(self, *, task, batch_size, seed):
    self.batch_size, self.seed = batch_size, seed
    self.number = int(task.name.removeprefix("part_"))
    self.unigram_counts = np.array([[1, 3], [20, 0]][self.number])
    self.opened = False

  def open(self):
    self.opened = True

  def batch_spec(self):
    return {"x": jax.ShapeDtypeStruct((self.batch_size, 7), np.int32)}

  def batches(self, start):
    size = self.batch_size // jax.process_count()
    for batch in itertools.count(start):
      yield {"x": np.array([[self.number, batch]] * size)}


def _dataset(seed=0, batch_size=8):
  return MixtureDataset(
    mixture=_mixture((3, 1)),
    part_dataset=_Part,
    batch_size=batch_size,
    seed=seed,
  )


def test_every_batch_has_the_shares_of_the_parts():
  (batch,) = itertools.islice(_dataset().batches(5), 1)
  assert batch["x"].tolist() == [[0, 5]] * 6 + [[1, 5]] * 2
  assert _dataset().batch_spec()["x"].shape == (8, 7)


def test_hosts_read_their_parts_of_every_share(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  (batch,) = itertools.islice(_dataset().batches(0), 1)
  assert batch["x"].tolist() == [[0, 0]] * 3 + [[1, 0]]
  with pytest.raises(ValueError, match=r"BATCH_SIZE=2 .* at least 4 for the 2"):
    _dataset(batch_size=2)


def test_what_a_mixture_knows_of_its_parts():
  dataset = _dataset()
  dataset.open()
  assert all(part.opened for part in dataset.parts)
  assert dataset.example_kinds == ("a", "b")
  assert dataset.num_examples == 20
  # 3/4 of (1/4, 3/4) and 1/4 of (1, 0), of 24 tokens.
  np.testing.assert_allclose(dataset.unigram_counts, [10.5, 13.5])
  dataset.parts[1].unigram_counts = dataset.parts[0].num_examples = None
  assert dataset.unigram_counts is None
  assert dataset.num_examples is None


def test_parts_of_different_seeds_share_no_randomness():
  seeds = [part.seed for seed in range(3) for part in _dataset(seed).parts]
  assert len(set(seeds)) == len(seeds)


def test_prepared_mixture_joins_the_batches_of_its_parts(tmp_path):
  path = tmp_path / "given.model"
  documents = itertools.islice(KingJamesBible().documents("train"), 40)
  train_sentencepiece(documents, 600, path)
  tasks = [
    make_task(
      write_corpus(tmp_path / name, size),
      name=name,
      objective=UL2(),
      vocabulary_path=str(path),
      extra_ids=10,
      vocabulary_size=610,
    )
    for name, size in (("many", 60), ("few", 30))
  ]
  mixture = Mixture(name="mix", tasks=tasks, rates=(3, 1))
  shared = {
    "feature_lengths": {"tokens": 64},
    "data_dir": str(tmp_path / "data"),
  }
  prepare(task=mixture, **shared)
  dataset = MixtureDataset(
    mixture=mixture,
    part_dataset=functools.partial(PreparedDataset, **shared),
    batch_size=16,
    seed=3,
  )
  dataset.open()
  batches = take(dataset, 20)
  assert_batches_equal(take(dataset, 2, 18), batches[18:])
  parts = [
    take(PreparedDataset(task=t, batch_size=size, seed=seed, **shared), 20)
    for t, size, seed in zip(tasks, (12, 4), (6, 7))
  ]
  joined = [
    {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts)
  ]
  assert_batches_equal(batches, joined)
  spec = dataset.batch_spec()
  shapes = {key: (value.shape, value.dtype) for key, value in spec.items()}
  assert shapes == {k: (v.shape, v.dtype) for k, v in batches[0].items()}
  assert dataset.unigram_counts.shape == (610,)


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
  ("name", "kind"),
  [
    ("streaming.StreamingDataset", StreamingDataset),
    ("prepared.PreparedDataset", PreparedDataset),
  ],
)
def test_mix_of_the_paper_is_what_its_file_says(name, kind):
  main.configure([*PAPER_MIX, f"--gin.PART_DATASET=@{name}"], "")
  train, held_out = (
    gin.query_parameter(name).scoped_configurable_fn()
    for name in ("%TRAIN_DATASET", "%EVAL_DATASET")
  )
  assert [part.batch_size for part in train.parts] == [146, 44, 43, 23]
  assert [part._task.source.description() for part in train.parts] == [
    "TFDS c4/en (text), validation: the first 1 % of each",
    "TFDS wikipedia/20230601.en (text), validation: the first 1 % of each",
    "text of code (**/*), a document is a file, white space: collapse, "
    "validation: every 20th document",
    "TFDS scientific_papers/arxiv (article), validation: the first 1 % of each",
  ]
  for dataset, split in ((train, "train"), (held_out, "validation")):
    for part in dataset.parts:
      assert isinstance(part, kind)
      assert part._split == split
      assert part._task.extra_ids == 100
  assert [part._order.seed for part in train.parts] == [20, 21, 22, 23]
  assert [part._order.seed for part in held_out.parts] == [0, 1, 2, 3]
