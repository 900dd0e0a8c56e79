"""From somebody's own small text to batches, at the first attempt."""

import dataclasses
import os
import shutil

import gin
import hypothesis
import hypothesis.strategies as st
import pytest

from raptr_jax import main
from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.tasks.prepared import prepare as preparation
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.prepared.prepare import is_quick, prepare
from raptr_jax.tasks.task import NotPreparedError, TextTask
from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.sources import KingJamesBible, TextFolder
from raptr_jax.tasks.text.tfds_source import TfdsCorpus
from raptr_jax.tasks.text.vocabularies import open_vocabulary
from raptr_jax.tasks.text.vocabulary import AtMost
from tests.small_task import take, write_own_text

DEFAULT_SIZE = AtMost(8192)
KINDS = {
  "bert": (MaskedLM(), {"inputs": 128}),
  "decoder": (UL2("decoder"), {"tokens": 128}),
  "encdec": (UL2("encoder_decoder"), {"inputs": 96, "targets": 64}),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  return write_own_text(tmp_path_factory.mktemp("own") / "text")


def make(text, kind="bert", size=DEFAULT_SIZE, **changes):
  objective, lengths = KINDS[kind]
  task = TextTask(
    name="own",
    source=TextFolder(str(text), **changes),
    objective=objective,
    vocabulary_size=size,
  )
  return task, lengths


def do_prepare(task, lengths, data_dir):
  """Prepares a task; returns its folder and vocabulary."""
  prepare(task=task, feature_lengths=lengths, data_dir=str(data_dir))
  folder = data_dir / task.name
  return folder, open_vocabulary(folder / task.vocabulary_file)


@pytest.mark.parametrize("kind", KINDS)
def test_small_text_is_prepared_and_read_as_it_is(text, tmp_path, capsys, kind):
  task, lengths = make(text, kind)
  folder, vocabulary = do_prepare(task, lengths, tmp_path)
  size = vocabulary.size
  assert 300 < size < 1_000
  pieces = task.objective.extra_pieces(lengths)
  # Sentinels and mode tokens come last, and count.
  found = [vocabulary._find(piece) for piece in pieces]
  assert found == [*range(size - len(pieces), size)]
  lines = capsys.readouterr().out.splitlines()
  assert f"{text}: 3 files read" in lines
  assert (
    f"VOCABULARY_SIZE: {size} ids, as many as this text supports (limit 8,192)"
    in lines
  )
  assert len(lines) <= 25
  assert max(map(len, lines)) <= 100
  shown = [line for line in lines if line.startswith("  ")]
  marks = "[MASK]" if kind == "bert" else "<extra_id_0>"
  assert sum(marks in line for line in shown) >= 2
  assert len(set(shown)) == len(shown) >= 4
  assert max(len(line) for line in shown if marks in line) <= 80
  # A run, now or later, has the fitted number.
  found = records.fitted_vocabulary_size(
    name="own", data_dir=str(tmp_path), at_most=8192
  )
  assert (found, type(found)) == (size, int)
  dataset = PreparedDataset(
    task=dataclasses.replace(task, vocabulary_size=found),
    data_dir=str(tmp_path),
    feature_lengths=lengths,
    batch_size=32,
    seed=0,
  )
  dataset.open()
  assert dataset.num_examples < 32
  (batch,) = take(dataset, 1)
  assert {len(feature) for feature in batch.values()} == {32}
  assert max(batch["targets"].max(), batch["tokens"].max()) < size
  # The same call again finds it complete.
  fitted = prepare(task=task, feature_lengths=lengths, data_dir=str(tmp_path))
  assert capsys.readouterr().out.splitlines()[1:] == [f"{folder} is complete"]
  assert fitted == dataclasses.replace(task, vocabulary_size=size)


def test_the_smallest_text_is_enough(tmp_path):
  (tmp_path / "a.txt").write_text("To be, or not to be: that is the question.")
  for kind in KINDS:
    task, lengths = make(tmp_path / "a.txt", kind)
    _, vocabulary = do_prepare(task, lengths, tmp_path / kind)
    assert vocabulary.decode(vocabulary.encode("be there")) == "be there"


def test_text_that_fills_the_vocabulary_gets_all_of_it(tmp_path):
  documents = list(KingJamesBible().documents("train"))[:40]
  pieces = []
  for name, size in (("strict", 500), ("fitted", AtMost(500))):
    path = tmp_path / f"{name}.model"
    train_sentencepiece(documents, size, path)
    vocabulary = open_vocabulary(path)
    assert vocabulary.size == 500
    pieces.append([vocabulary.spell([i]) for i in range(500)])
  assert pieces[0] == pieces[1]


def test_an_explicit_size_is_strict(text, tmp_path):
  task, lengths = make(text, size=8192)
  with pytest.raises(ValueError, match=r"VOCABULARY_SIZE=8192 does not suit"):
    do_prepare(task, lengths, tmp_path)
  task, _ = make(text)
  do_prepare(task, lengths, tmp_path)  # At the next attempt.
  strict, _ = make(text, size=8192)
  with pytest.raises(ValueError, match=r"vocabulary_size=\d+, but now .*=8192"):
    do_prepare(strict, lengths, tmp_path)


def test_a_bound_below_the_prepared_size_is_refused(text, tmp_path):
  task, lengths = make(text)
  do_prepare(task, lengths, tmp_path)
  task, _ = make(text, size=AtMost(300))
  with pytest.raises(ValueError, match=r"but now vocabulary_size='at most 300"):
    do_prepare(task, lengths, tmp_path)


def test_an_unfinished_vocabulary_is_not_a_runs(text, tmp_path):
  task, lengths = make(text)
  with pytest.raises(NotPreparedError, match=r"raptr --run_mode=prepare"):
    task.vocabulary(str(tmp_path))
  folder, _ = do_prepare(task, lengths, tmp_path)
  (folder / records.METADATA).unlink()
  shared = {"name": "own", "data_dir": str(tmp_path), "at_most": 8192}
  size = records.fitted_vocabulary_size(**shared)
  assert isinstance(size, AtMost)
  assert size == 8192
  with pytest.raises(NotPreparedError, match=r"raptr --run_mode=prepare"):
    task.vocabulary(str(tmp_path))


def flags(text, tmp_path, *more):
  return [
    "--gin_file=experiments/quickstart_bert_raptr.gin",
    "--gin_file=data/bert_text.gin",
    f"--gin.TEXT_DIR='{text}'",
    f"--gin.DATA_DIR='{tmp_path / 'data'}'",
    "--gin.MODEL_DIR='x'",
    *more,
  ]


def sizes(argv):
  """V of the task, of the model, and of the dataset's task."""
  main.configure(argv, "")
  task, model, dataset = (
    gin.query_parameter(name).scoped_configurable_fn()
    for name in ("%TASK", "%MODEL", "%TRAIN_DATASET")
  )
  return (
    task.vocabulary_size,
    model.config.vocab_size,
    dataset.task.vocabulary_size,
  )


@pytest.mark.parametrize(
  ("leaf", "data", "lengths", "layout"),
  [
    ("quickstart_bert_raptr", "bert", {"inputs": 128}, None),
    ("quickstart_ul2_decoder_raptr", "ul2", {"tokens": 128}, "decoder"),
    (
      "quickstart_ul2_encdec_raptr",
      "ul2",
      {"inputs": 96, "targets": 64},
      "encoder_decoder",
    ),
    # This one reads a mixture, and appends sentinels to a given vocabulary.
    ("ul2_1_6b_decoder", "ul2", None, "decoder"),
  ],
)
def test_own_text_takes_the_place_of_a_leafs_text(
  text, leaf, data, lengths, layout
):
  argv = [
    f"--gin_file=experiments/{leaf}.gin",
    f"--gin_file=data/{data}_text.gin",
    f"--gin.TEXT_DIR='{text}'",
    "--gin.MODEL_DIR='x'",
  ]
  if lengths is None:
    argv += ["--gin.GITHUB_DIR='unused'"]
  main.configure(argv, "")
  dataset = gin.query_parameter("%TRAIN_DATASET").scoped_configurable_fn()
  assert isinstance(dataset, PreparedDataset)
  if lengths:
    assert dataset.feature_lengths == lengths
  task = gin.query_parameter("%TASK").scoped_configurable_fn()
  assert task.source == TextFolder(str(text))
  assert isinstance(task.vocabulary_size, AtMost)
  assert getattr(task.objective, "layout", None) == layout
  assert task.name == f"{data}_text"


def test_task_and_model_have_the_same_number(text, tmp_path):
  argv = flags(text, tmp_path)
  assert sizes(argv) == (8192, 8192, 8192)  # A plan's, before preparation.
  main.prepare_main(argv)
  metadata = records.load_metadata(tmp_path / "data" / "bert_text")
  fitted = metadata.settings["vocabulary_size"]
  assert fitted < 8192
  assert sizes(argv) == (fitted, fitted, fitted)
  main.prepare_main(argv)  # Nothing has changed.


def test_a_changed_text_is_fitted_anew_after_an_interruption(
  text, tmp_path, monkeypatch
):
  copy = shutil.copytree(text, tmp_path / "text")
  argv = flags(copy, tmp_path, "--gin.TEXT_DOCUMENTS='line'")

  def interrupted(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(preparation.parts, "write_parts", interrupted)
    main.configure(argv, "")
    with pytest.raises(KeyboardInterrupt):
      gin.get_configurable(prepare)()
  folder = tmp_path / "data" / "bert_text"
  before = open_vocabulary(folder / "vocabulary.model").size
  (copy / "more").write_text(next(KingJamesBible().documents("validation")))
  main.prepare_main(argv)
  after = records.load_metadata(folder).settings["vocabulary_size"]
  assert before < after < 8192
  assert sizes(argv) == (after, after, after)


@pytest.fixture(scope="module")
def keeping(text, tmp_path_factory):
  """A vocabulary trained on text whose white space is kept."""
  task, lengths = make(text, "decoder", whitespace="keep")
  _, vocabulary = do_prepare(task, lengths, tmp_path_factory.mktemp("keep"))
  return vocabulary


def test_own_text_with_its_white_space_comes_back(text, keeping):
  for path in text.iterdir():
    content = path.read_text(encoding="utf-8")
    assert keeping.decode(keeping.encode(content)) == content
  code = "def f(x):\n    if x:\n\treturn x\n\n"
  pieces = [keeping.decode([i]) for i in keeping.encode(code)]
  assert pieces.count("\n") == 4
  assert "\t" in pieces
  assert "    " in pieces  # Indentation is a piece.


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(
  st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]))
)
@hypothesis.example(" \n\n   x  \t y ")
@hypothesis.example("ﬁ ① é e\u0301 \u00a0 \r\n\x00\u2585")
@hypothesis.example("[CLS] [MASK] <extra_id_0> [NLU]")
def test_any_text_comes_back_with_its_white_space(keeping, text):
  assert keeping.decode(keeping.encode(text)) == text


def test_rows_keep_white_space(text, tmp_path):
  task, lengths = make(text, whitespace="keep", unit="paragraph")
  folder, vocabulary = do_prepare(task, lengths, tmp_path)
  (path,) = folder.glob("train-*")
  rows = [vocabulary.decode(row.tokens) for row in records.read_shard(path)]
  assert ",\n    And God" in "".join(rows)
  assert 'class TextWrapper:\n    """\n    Object' in "".join(rows)


@pytest.mark.parametrize("kind", [".model", ".txt"])
def test_a_vocabulary_that_cannot_keep_white_space_is_refused(
  text, tmp_path, kind
):
  given = tmp_path / f"given{kind}"
  if kind == ".model":
    train_sentencepiece(["some text " * 50], AtMost(600), given)
  else:
    pytest.importorskip("tokenizers")
    given.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc")
  size = open_vocabulary(given).size
  task, lengths = make(text, size=size, whitespace="keep")
  task = dataclasses.replace(task, vocabulary_path=str(given))
  with pytest.raises(ValueError, match=r"TEXT_WHITESPACE='keep', but .*given"):
    do_prepare(task, lengths, tmp_path)
  collapsing = dataclasses.replace(task, source=TextFolder(str(text)))
  do_prepare(collapsing, lengths, tmp_path)


def test_what_is_quick_to_prepare(text, tmp_path, monkeypatch):
  own, _ = make(text)
  bible = dataclasses.replace(own, source=KingJamesBible())
  large = dataclasses.replace(own, source=TfdsCorpus({"c4/en": "text"}))
  assert is_quick(own)
  assert is_quick(bible)
  assert not is_quick(large)

  def mixture(*tasks):
    parts = [
      dataclasses.replace(task, name=f"part_{i}", vocabulary_path="x.model")
      for i, task in enumerate(tasks)
    ]
    return Mixture(name="mix", tasks=parts, rates=[1] * len(parts))

  assert is_quick(mixture(own, bible))
  assert not is_quick(mixture(own, large))
  size = sum(path.stat().st_size for path in text.iterdir())
  monkeypatch.setattr(preparation, "QUICK_BYTES", size)
  assert is_quick(own)
  monkeypatch.setattr(preparation, "QUICK_BYTES", size - 1)
  assert not is_quick(own)
  with pytest.raises(FileNotFoundError, match="TEXT_DIR"):
    is_quick(make(tmp_path / "nowhere")[0])


def test_a_folder_may_be_relative_to_the_home_folder(text, monkeypatch):
  monkeypatch.setenv("HOME", str(text.parent))
  source = TextFolder(os.path.join("~", text.name))
  assert len(list(source.documents("train"))) == 2
