"""Our tasks in seqio give what our datasets give, and fit its converters."""

import dataclasses
import itertools
import types

import gin
import numpy as np
import pytest

from raptr_jax import main
from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.causal_lm import CausalLM
from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text import text_files
from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.sources import KingJamesBible, TextFolder
from tests.small_task import assert_batches_equal, make_task, take, write_corpus

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")

from raptr_jax.tasks import seqio_features, seqio_tasks  # noqa: E402

# Objective, lengths of our features, lengths of seqio's standard features.
CASES = {
  "masked": (MaskedLM(), {"inputs": 32}, {"inputs": 32, "targets": 32}),
  "decoder": (UL2(), {"tokens": 64}, {"inputs": 48, "targets": 40}),
  "encdec": (
    UL2("encoder_decoder"),
    {"inputs": 48, "targets": 40},
    {"inputs": 48, "targets": 40},
  ),
  "causal": (CausalLM(), {"tokens": 64}, {"targets": 64}),
}
SEED, BATCH_SIZE = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Chapters, a vocabulary with sentinels, and a task for each case."""
  path = tmp_path_factory.mktemp("seqio")
  write_corpus(path / "corpus", 20)
  (path / "corpus" / "short.txt").write_text(
    "\n".join(f"It is {i}." for i in range(99)), "utf-8"
  )
  documents = itertools.islice(KingJamesBible().documents("train"), 40)
  train_sentencepiece(documents, 600, path / "given.model")
  for case, (_, lengths, _) in CASES.items():
    prepare(task=_task(path, case), feature_lengths=lengths, data_dir=str(path))
  return path


def _task(folder, case, **changes):
  corpus = str(folder / "corpus")
  return make_task(
    folder,
    **{
      "name": case,
      "objective": CASES[case][0],
      "source": TextFolder(corpus, validation_every=6, unit="line"),
      "vocabulary_path": str(folder / "given.model"),
      "vocabulary_size": 620,
      "extra_ids": 20,
      **changes,
    },
  )


def _ours(folder, task, lengths, count, **changes):
  """So many batches of our dataset of a task."""
  arguments = {
    "task": task,
    "data_dir": str(folder),
    "feature_lengths": lengths,
    "batch_size": BATCH_SIZE,
    "seed": SEED,
    "shuffle": False,
  }
  return take(PreparedDataset(**{**arguments, **changes}), count)


def _registered(folder, case):
  """Both forms of a task: their names."""
  task = _task(folder, case)
  packed = seqio_tasks.register(task, str(folder), CASES[case][1])
  return packed, seqio_tasks.register_unpacked(task, str(folder))


def _examples(name, lengths, **changes):
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    lengths, **{"split": "train", "shuffle": False, "seed": SEED, **changes}
  )
  return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("case", CASES)
def test_examples_are_those_of_our_dataset(folder, case, split):
  name, _ = _registered(folder, case)
  _, lengths, _ = CASES[case]
  dataset = seqio.get_dataset(
    name,
    lengths,
    seqio.PassThroughFeatureConverter(),
    dataset_split=split,
    seed=SEED,
    num_epochs=2,
    batch_size=BATCH_SIZE,
  )
  theirs = list(dataset.as_numpy_iterator())
  assert len(theirs) > 2
  task = _task(folder, case)
  ours = _ours(folder, task, lengths, len(theirs), split=split)
  assert_batches_equal(theirs, ours)


def test_shards_are_parts_of_the_source(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, "RANGE_BYTES", 3_000)
  task = _task(folder, "masked")
  lengths = CASES["masked"][1]
  prepare(task=task, feature_lengths=lengths, data_dir=str(tmp_path))
  name = seqio_tasks.register(task, str(tmp_path), lengths)
  theirs = _stacked(_examples(name, lengths))
  size = len(theirs["tokens"])
  assert_batches_equal(
    [theirs], _ours(tmp_path, task, lengths, 1, batch_size=size)
  )
  parts = task.source.num_parts()
  assert parts > 2
  for count in (2, parts + 1):  # Or every n-th document, of too few parts.
    shards = [
      _stacked(_examples(name, lengths, shard_info=seqio.ShardInfo(i, count)))
      for i in range(count)
    ]
    tokens = np.concatenate([_restored(shard) for shard in shards])
    assert sorted(tokens) == sorted(_restored(theirs))
    masks = [tuple(shard["target_positions"][0]) for shard in shards]
    assert len(set(masks)) > 1  # They share no randomness.


def _stacked(examples):
  return {key: np.stack([x[key] for x in examples]) for key in examples[0]}


def _restored(batch):
  """The ordinary tokens of a batch of masked language modelling."""
  tokens = batch["tokens"].copy()
  rows, slots = np.nonzero(batch["target_weights"])
  places = batch["target_positions"][rows, slots]
  tokens[rows, places] = batch["targets"][rows, slots]
  return tokens[tokens > 4]


def test_without_a_seed_every_dataset_is_new(folder):
  name, _ = _registered(folder, "masked")
  lengths = CASES["masked"][1]
  one, two = (_stacked(_examples(name, lengths, seed=None)) for _ in range(2))
  np.testing.assert_array_equal(_restored(one), _restored(two))
  assert (one["tokens"] != two["tokens"]).any()


def test_shuffled_examples_are_in_another_order(folder):
  name, _ = _registered(folder, "decoder")
  in_order, shuffled = (
    [x["tokens"].tobytes() for x in _examples(name, {"tokens": 64}, shuffle=s)]
    for s in (False, True)
  )
  assert in_order != shuffled
  assert sorted(in_order) == sorted(shuffled)


def test_masking_rate_and_shares_of_denoisers(folder):
  name, _ = _registered(folder, "masked")
  batch = _stacked(_examples(name, CASES["masked"][1], num_epochs=3))
  rate = batch["target_weights"].sum() / len(_restored(batch))
  assert rate == pytest.approx(0.15, abs=0.005)
  name, _ = _registered(folder, "decoder")
  batch = _stacked(_examples(name, CASES["decoder"][1], num_epochs=8))
  kinds = batch["example_kind"].ravel()
  assert len(kinds) > 400
  shares = np.bincount(kinds, minlength=7) / len(kinds)
  np.testing.assert_allclose(shares, UL2().weights, atol=0.07)


@pytest.mark.parametrize("case", ["encdec", "causal", "masked"])
def test_unpacked_texts_packed_again_are_rows(folder, case):
  """Our converters put the texts of a row where they were."""
  packed, unpacked = _registered(folder, case)
  _, lengths, standard = CASES[case]
  rows, texts = _examples(packed, lengths), iter(_examples(unpacked, standard))
  counts = [int(row["segment_ids"].max()) for row in rows]
  by_row = [list(itertools.islice(texts, count)) for count in counts]
  assert next(texts, None) is None
  fullest = int(np.argmax(counts))
  assert counts[fullest] > 1
  dataset = tf.data.Dataset.from_generator(
    lambda: by_row[fullest],
    output_signature=dict.fromkeys(standard, tf.TensorSpec((None,), tf.int32)),
  )
  convert = _converter(folder, case)
  (made,) = convert(dataset, standard).as_numpy_iterator()
  rows[fullest].pop("example_kind", None)
  assert_batches_equal([made], [rows[fullest]])


def _converter(folder, case, **arguments):
  cls_id = _task(folder, case).given_vocabulary().cls_id
  return {
    "masked": seqio_features.MaskedLMConverter,
    "decoder": seqio_features.DecoderConverter,
    "encdec": seqio_features.EncoderDecoderConverter,
    "causal": seqio_features.CausalConverter,
  }[case](**arguments, **({"bos_id": cls_id} if case == "causal" else {}))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_our_converters_give_our_features(folder, case, pack):
  _, name = _registered(folder, case)
  objective, lengths, standard = CASES[case]
  if case == "decoder":
    lengths = {"tokens": sum(standard.values())}
  features = objective.features(lengths)
  features.pop("example_kind", None)  # Of a row, which seqio has made.
  dataset = seqio.get_dataset(
    name, standard, _converter(folder, case, pack=pack), batch_size=8, seed=SEED
  )
  assert dataset.element_spec == {
    key: tf.TensorSpec((8, length), dtype)
    for key, (length, dtype) in features.items()
  }
  most = max(x["segment_ids"].max() for x in dataset.as_numpy_iterator())
  assert most > 1 if pack else most == 1


def test_a_decoder_reads_inputs_then_targets_by_hand():
  texts = [
    {"inputs": [5, 6, 7], "targets": [8, 9, 1]},
    {"inputs": [5], "targets": [4, 1]},
  ]
  dataset = tf.data.Dataset.from_generator(
    lambda: texts,
    output_signature=dict.fromkeys(
      ("inputs", "targets"), tf.TensorSpec((None,), tf.int32)
    ),
  )
  convert = seqio_features.DecoderConverter()
  (row,) = convert(dataset, {"inputs": 6, "targets": 3}).as_numpy_iterator()
  assert {key: value.tolist() for key, value in row.items()} == {
    "tokens": [5, 6, 7, 8, 9, 5, 4, 0, 0],
    "targets": [6, 7, 8, 9, 1, 4, 1, 0, 0],
    "target_weights": [0, 0, 1, 1, 1, 1, 1, 0, 0],
    "segment_ids": [1, 1, 1, 1, 1, 2, 2, 0, 0],
    "positions": [0, 1, 2, 3, 4, 0, 1, 0, 0],
    "in_prefix": [1, 1, 1, 0, 0, 1, 0, 0, 0],
  }


@pytest.mark.parametrize(
  ("case", "converter"),
  [
    ("encdec", seqio.EncDecFeatureConverter()),
    ("decoder", seqio.PrefixLMFeatureConverter()),
    ("causal", seqio.LMFeatureConverter()),
    ("masked", seqio.EncoderFeatureConverter(mask_id=4)),
  ],
)
def test_converters_of_seqio_lose_nothing(folder, case, converter):
  _, name = _registered(folder, case)
  standard = CASES[case][2]
  texts = _examples(name, standard)
  rows = list(
    seqio.get_dataset(name, standard, converter, seed=SEED).as_numpy_iterator()
  )
  side = "encoder" if case == "masked" else "decoder"
  assert max(row[f"{side}_segment_ids"].max() for row in rows) > 1
  targets = np.concatenate([row[f"{side}_target_tokens"] for row in rows])
  keys = ("inputs", "targets") if case == "decoder" else ("targets",)
  expected = [text[key] for text in texts for key in keys]
  np.testing.assert_array_equal(targets[targets != 0], np.concatenate(expected))
  if case != "masked":
    weights = sum(row["decoder_loss_weights"].sum() for row in rows)
    assert weights == sum(len(text["targets"]) for text in texts)


def test_only_inputs_of_an_encoder_have_an_end_token(folder):
  end = _task(folder, "encdec").given_vocabulary().eos_id
  for case, ends in (("encdec", True), ("decoder", False)):
    _, name = _registered(folder, case)
    for text in _examples(name, CASES[case][2])[:50]:
      assert (text["inputs"][-1] == end) == ends
      assert text["targets"][-1] == end


def test_a_mixture_has_the_examples_and_rates_of_its_tasks(folder, tmp_path):
  parts = [_task(folder, "decoder", name=name) for name in ("one", "two")]
  mixture = Mixture(name="both", tasks=parts, rates=(3, 1))
  _, lengths, standard = CASES["decoder"]
  prepare(task=parts[1], feature_lengths=lengths, data_dir=str(tmp_path))
  for _ in range(2):  # Again replaces it.
    assert seqio_tasks.register(mixture, str(folder), lengths) == "both"
  registered = seqio.get_mixture_or_task("both")
  assert {t.name: registered.get_rate(t) for t in registered.tasks} == {
    "one": 3,
    "two": 1,
  }
  # Its second task has a seed of its own, as in our mixtures.
  theirs = _stacked(_examples("two", lengths))
  seed = 2 * SEED + 1
  ours = _ours(
    tmp_path, parts[1], lengths, 1, seed=seed, batch_size=len(theirs["tokens"])
  )
  assert_batches_equal([theirs], ours)
  drawn = _examples("both", lengths, num_epochs=1)
  assert drawn[0].keys() == UL2().features(lengths).keys()
  name = seqio_tasks.register_unpacked(mixture, str(folder))
  assert name == "both_unpacked"
  texts = seqio.get_mixture_or_task(name).get_dataset(standard, "train")
  assert set(texts.element_spec) == set(standard)
  assert next(texts.as_numpy_iterator())["targets"].dtype == np.int32


def test_gin_files_register_what_they_configure(folder, tmp_path):
  (tmp_path / "t5x.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "from raptr_jax.tasks import seqio_tasks\n"
    "include 'data/ul2_kjv.gin'\n"
    "seqio_tasks.register_unpacked:\n"
    "  task = %TASK\n"
    "  data_dir = %DATA_DIR\n"
    "DATASET_NAME = @seqio_tasks.register_unpacked()\n"
  )
  given = {
    "VOCABULARY_PATH": str(folder / "given.model"),
    "VOCABULARY_SIZE": 620,
    "VOCABULARY_EXTRA_IDS": 20,
    "BATCH_SIZE": 8,
    "RANDOM_SEED": 0,
  }
  bindings = [f"--gin.{name}={value!r}" for name, value in given.items()]
  main.configure([f"--gin_file={tmp_path / 't5x.gin'}", *bindings], "")
  name = gin.query_parameter("%DATASET_NAME").scoped_configurable_fn()
  assert name == "ul2_kjv_unpacked"
  lengths = {"inputs": 48, "targets": 24}
  texts = seqio.get_mixture_or_task(name).get_dataset(lengths, "train")
  assert set(next(texts.as_numpy_iterator())) == set(lengths)


def test_what_does_not_fit_is_refused(folder, monkeypatch):
  task = _task(folder, "masked")
  name, unpacked = _registered(folder, "masked")
  with pytest.raises(
    ValueError, match=r"\{'inputs': 64\}, but masked has rows"
  ):
    _examples(name, {"inputs": 64})
  with pytest.raises(ValueError, match=r"sequence_length=\{\}, expected one"):
    _examples(unpacked, None)
  with pytest.raises(ValueError, match=r"expected one length for \('inputs', "):
    _examples(unpacked, {"inputs": 64, "targets": 32})
  share = dataclasses.replace(task, text_share=0.5)
  with pytest.raises(ValueError, match=r"TEXT_SHARE=0\.5, expected all text"):
    seqio_tasks.register_unpacked(share, str(folder))
  other = dataclasses.replace(task, objective=types.SimpleNamespace())
  with pytest.raises(TypeError, match=r"expected UL2, MaskedLM or CausalLM"):
    seqio_tasks.register_unpacked(other, str(folder))
  vocabulary = types.SimpleNamespace(pad_id=7, path="other.model")
  monkeypatch.setattr(type(task), "vocabulary", lambda *_: vocabulary)
  with pytest.raises(ValueError, match=r"other.model has padding at id 7"):
    seqio_tasks.register_unpacked(task, str(folder))
