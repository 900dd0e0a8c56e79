"""Labelled tasks: their files, their metrics, and BERT's rows of them."""

import gzip
import lzma

import numpy as np
import pytest

from raptr_jax.tasks.downstream import metrics, sources
from raptr_jax.tasks.labelled import glue, squad
from raptr_jax.tasks.labelled.bert_rows import shortened, token_features

# One line as GLUE's own files have it: header, line, texts, label.
OFFICIAL = {
  "CoLA/dev.tsv": ("", "gj04\t0\t*\tOne more.", ("One more.",), 0),
  "SST-2/dev.tsv": (
    "sentence\tlabel",
    'a "fine" film\t1',
    ('a "fine" film',),
    1,
  ),
  "MRPC/dev.tsv": (
    "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "1\t7\t8\tHe left.\tHe went.",
    ("He left.", "He went."),
    1,
  ),
  "STS-B/dev.tsv": (
    "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1"
    "\tsentence2\tscore",
    "0\tnews\tf\t2012\t4\ta\tb\tHe left.\tHe went.\t3.800",
    ("He left.", "He went."),
    3.8,
  ),
  "QQP/dev.tsv": (
    "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "0\t1\t2\tWhy?\tHow come?\t1",
    ("Why?", "How come?"),
    1,
  ),
  "MNLI/dev_matched.tsv": (
    "index\tpairID\tsentence1\tsentence2\tlabel1\tgold_label",
    "0\tp\tIt rains.\tIt is wet.\tneutral\tcontradiction",
    ("It rains.", "It is wet."),
    2,
  ),
  "QNLI/dev.tsv": (
    "index\tquestion\tsentence\tlabel",
    "0\tWho?\tShe did.\tnot_entailment",
    ("Who?", "She did."),
    1,
  ),
  "RTE/dev.tsv": (
    "index\tsentence1\tsentence2\tlabel",
    "0\tIt rains.\tIt is wet.\tentailment",
    ("It rains.", "It is wet."),
    0,
  ),
  "WNLI/dev.tsv": (
    "index\tsentence1\tsentence2\tlabel",
    "0\tIt rains.\tIt is wet.\t1",
    ("It rains.", "It is wet."),
    1,
  ),
}


def write(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("file", OFFICIAL)
def test_official_files_are_read(file, tmp_path):
  header, line, texts, label = OFFICIAL[file]
  write(tmp_path / file, *([header] if header else []), line)
  name = file.split("/")[0].lower().replace("-", "")
  task = glue.TASKS[name]
  (example,) = task.examples_from_folder(
    str(tmp_path), task.validation_splits[0]
  )
  assert (example.texts, example.label, example.index) == (texts, label, 0)


def test_all_nine_tasks_have_an_official_file_here():
  assert len(glue.TASKS) == 9 == len(OFFICIAL)


def test_test_files_have_no_labels_and_a_form_of_submission(tmp_path):
  write(tmp_path / "CoLA/test.tsv", "index\tsentence", "0\tOne more.")
  cola = glue.TASKS["cola"]
  (example,) = cola.examples_from_folder(str(tmp_path), "test")
  assert (example.texts, example.label) == (("One more.",), None)
  assert cola.splits["test"].submission == "CoLA.tsv"
  mnli = glue.TASKS["mnli"]
  names = [mnli.splits[split].submission for split in mnli.test_splits]
  assert names == ["MNLI-m.tsv", "MNLI-mm.tsv"]
  assert mnli.shown(1) == "neutral"
  assert glue.TASKS["stsb"].shown(2.5) == "2.500"


@pytest.mark.parametrize(("end", "opened"), [(".gz", gzip), (".xz", lzma)])
def test_packed_files_in_one_folder(end, opened, tmp_path):
  with opened.open(tmp_path / f"cola-train.tsv{end}", "wt") as file:
    file.write("sentence\tlabel\nOne more.\t1\n")
  (example,) = glue.TASKS["cola"].examples_from_folder(str(tmp_path), "train")
  assert example.label == 1


@pytest.mark.parametrize(
  ("task", "lines", "message"),
  [
    ("sst2", ["sentence\tmood", "fine\t1"], "lacks label"),
    ("sst2", ["sentence\tlabel", "fine\t2"], "line 2: the label is '2'"),
    ("sst2", ["sentence\tlabel", "fine"], "line 2 has 1 columns, expected 2"),
    ("sst2", ["sentence\tlabel"], "has no examples"),
    ("sst2", [], "has no examples"),
    ("cola", ["a\tb"], "lacks sentence, label"),
    (
      "rte",
      ["sentence1\tsentence2\tlabel", "a\tb\tmaybe"],
      "one of entailment",
    ),
  ],
)
def test_bad_files_are_named(task, lines, message, tmp_path):
  write(tmp_path / f"{task}-train.tsv", *lines)
  with pytest.raises(ValueError, match=message):
    glue.TASKS[task].examples_from_folder(str(tmp_path), "train")


def test_a_label_that_is_out_of_bounds_is_named(tmp_path):
  header, line, *_ = OFFICIAL["STS-B/dev.tsv"]
  write(tmp_path / "STS-B/train.tsv", header, line.replace("3.800", "nan"))
  with pytest.raises(ValueError, match="expected a number from 0 to 5"):
    glue.TASKS["stsb"].examples_from_folder(str(tmp_path), "train")


def test_only_qqp_may_have_short_rows(tmp_path):
  header, line, *_ = OFFICIAL["QQP/dev.tsv"]
  write(tmp_path / "QQP/train.tsv", header, "0\t1", line)
  assert (
    len(glue.TASKS["qqp"].examples_from_folder(str(tmp_path), "train")) == 1
  )


def test_a_missing_or_damaged_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="FINE_TUNING_DIR"):
    glue.TASKS["cola"].examples_from_folder(str(tmp_path), "train")
  (tmp_path / "cola-train.tsv.gz").write_bytes(b"\x1f\x8bnothing")
  with pytest.raises(ValueError, match="cannot be read"):
    glue.TASKS["cola"].examples_from_folder(str(tmp_path), "train")


def test_matthews_by_hand():
  # 2 hits, 1 rejection, 1 false hit, 1 miss: (2 - 1) / sqrt(3 * 3 * 2 * 2).
  labels, guesses = [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]
  assert metrics.matthews(labels, guesses) == pytest.approx(1 / 6)
  assert metrics.matthews(labels, labels) == 1
  assert metrics.matthews(labels, [1] * 5) == 0


def test_correlations_by_hand():
  # Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15).
  labels, guesses = [0.0, 1.0, 2.0, 5.0], [0.1, 0.2, 4.0, 3.0]
  assert metrics.spearman(labels, guesses) == pytest.approx(0.8)
  assert metrics.pearson(labels, [2 * x + 1 for x in labels]) == pytest.approx(
    1
  )
  assert metrics.pearson([1.0, 2.0, 4.0], [1.0, 1.0, 4.0]) == pytest.approx(
    5 / np.sqrt(14 / 3 * 6)
  )
  assert metrics.pearson(labels, [3.0] * 4) == 0


def test_scores_are_the_metrics_and_their_mean():
  mrpc = glue.TASKS["mrpc"]
  scores = mrpc.scores([1, 1, 0, 0], [1, 0, 0, 0])
  assert scores == pytest.approx(
    {"f1": 200 / 3, "accuracy": 75.0, "score": (200 / 3 + 75) / 2}
  )


@pytest.mark.parametrize(
  ("sizes", "room", "expected"),
  [
    ((3, 2), 5, (3, 2)),
    ((6, 2), 5, (3, 2)),
    ((6, 6), 5, (3, 2)),
    ((2, 6), 4, (2, 2)),
    ((9, 0), 4, (4, 0)),
  ],
)
def test_the_longer_text_is_shortened_first(sizes, room, expected):
  texts = (list(range(size)) for size in sizes)
  assert tuple(map(len, shortened(*texts, room))) == expected


class Vocabulary:
  pad_id, cls_id, sep_id = 0, 2, 3


def test_rows_by_hand():
  row = token_features(
    (np.array([7, 8]), np.array([9])), Vocabulary(), length=8
  )
  assert row["tokens"].tolist() == [2, 7, 8, 3, 9, 3, 0, 0]
  assert row["token_types"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
  assert row["segment_ids"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
  assert row["positions"].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
  single = token_features((np.arange(7, 20),), Vocabulary(), length=5)
  assert single["tokens"].tolist() == [2, 7, 8, 9, 3]
  assert single["token_types"].tolist() == [0] * 5


@pytest.mark.parametrize("name", glue.TASKS)
def test_tfds_has_the_same_features_classes_and_splits(name, tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")
  task = glue.TASKS[name]
  builder = tfds.builder(task.tfds_name, data_dir=str(tmp_path))
  features = builder.info.features
  assert {*task.tfds_texts, "label", "idx"} <= set(features)
  if task.classes:
    assert features["label"].num_classes == len(task.classes)
    words = set(task.classes) & set(features["label"].names)
    if words:  # Others are numbers in the files.
      assert tuple(features["label"].names) == task.classes
  else:
    assert not hasattr(features["label"], "num_classes")


def test_a_set_that_is_not_prepared_is_named(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  for task in (glue.TASKS["cola"], squad.TASKS["squad"]):
    with pytest.raises(FileNotFoundError, match="FINE_TUNING_TFDS_DIR"):
      task.examples_from_tfds("train", str(tmp_path))


def test_records_of_tfds_are_examples(monkeypatch):
  records = [
    {"premise": "b", "hypothesis": "c", "label": 2, "idx": 1},
    {"premise": "a", "hypothesis": "b", "label": 0, "idx": 0},
  ]
  asked = []

  def found(*arguments, macros):
    asked.append(arguments)
    return iter(records)

  monkeypatch.setattr(sources, "tfds_records", found)
  mnli = glue.TASKS["mnli"]
  examples = mnli.examples_from_tfds("validation_matched", "there")
  assert asked == [("glue/mnli:2.0.0", "validation_matched", "there")]
  assert [(x.texts, x.label) for x in examples] == [
    (("a", "b"), 0),
    (("b", "c"), 2),
  ]
  tests = mnli.examples_from_tfds("test_matched")
  assert [x.label for x in tests] == [None, None]
