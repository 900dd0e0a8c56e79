"""Minimal pairs: their files, and the scores of sentences."""

import json
import lzma

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.inference.minimal_pairs import pair_scores
from raptr_jax.inference.sentence_scores import masked_scorer
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.labelled.minimal_pairs import MinimalPair, read_pairs
from raptr_jax.training.partitioning import Partitioner

OURS = {"good": "He is.", "bad": "He are.", "phenomenon": "a", "paradigm": "b"}
BLIMP = {
  "sentence_good": "He is.",
  "sentence_bad": "He are.",
  "linguistics_term": "a",
  "UID": "b",
  "field": "syntax",
}
PAIR = MinimalPair("He is.", "He are.", "a", "b")


class Letters:
  pad_id, cls_id, sep_id, mask_id = 0, 2, 3, 4

  def encode_batch(self, texts):
    return [np.array([ord(x) - 90 for x in t], np.int32) for t in texts]


def write(path, *rows):
  text = "".join(f"{json.dumps(row)}\n" for row in rows)
  opened = lzma.open if path.suffix == ".xz" else open
  with opened(path, "wt", encoding="utf-8") as file:
    file.write(text)


@pytest.mark.parametrize("row", [OURS, BLIMP])
@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.xz"])
def test_both_forms_of_files_are_read(row, name, tmp_path):
  write(tmp_path / name, row)
  assert read_pairs(str(tmp_path / name)) == [PAIR]
  assert read_pairs(str(tmp_path)) == [PAIR]


def test_the_first_pairs_of_each_paradigm_are_taken(tmp_path):
  write(tmp_path / "p.jsonl", OURS, OURS, OURS | {"paradigm": "c"}, OURS)
  found = read_pairs(str(tmp_path), per_paradigm=2)
  assert [pair.paradigm for pair in found] == ["b", "b", "c"]


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (["{}"], "line 1 is no minimal pair"),
    ([json.dumps(OURS), "{"], "line 2 is no minimal pair"),
    (["3"], "line 1 is no minimal pair"),
    ([], "has no pairs"),
  ],
)
def test_bad_files_are_named(lines, message, tmp_path):
  path = tmp_path / "p.jsonl"
  path.write_text("\n".join(lines), encoding="utf-8")
  with pytest.raises(ValueError, match=message):
    read_pairs(str(path))


def test_a_missing_file_is_named():
  with pytest.raises(FileNotFoundError, match="MINIMAL_PAIRS = 'nowhere'"):
    read_pairs("nowhere")


@pytest.fixture(scope="module")
def bert():
  model = BertMaskedLM(
    BertConfig(
      vocab_size=40,
      num_layers=2,
      embed_dim=16,
      num_heads=2,
      max_length=12,
      init_stddev=0.3,
    )
  )
  return model, nn.unbox(model.init(jax.random.key(0)))


def scorer_of(model, params, batch_size=3):
  return masked_scorer(
    model,
    params,
    full_paths(model.stacks),
    vocabulary=Letters(),
    partitioner=Partitioner(devices=jax.devices()[:1]),
    batch_size=batch_size,
  )


def by_hand(model, params, text):
  """Hides one token after the other, in rows without padding."""
  (ids,) = Letters().encode_batch([text])
  row = np.array([2, *ids[:10], 3], np.int32)
  total = 0.0
  for place in range(1, len(row) - 1):
    tokens = row.copy()
    tokens[place] = Letters.mask_id
    batch = {
      "tokens": tokens,
      "segment_ids": np.ones_like(row),
      "positions": np.arange(len(row), dtype=np.int32),
      "target_positions": np.array([place], np.int32),
    }
    batch = {name: jnp.asarray(x)[None] for name, x in batch.items()}
    logits = model.logits(params, batch, full_paths(model.stacks))[0, 0]
    total += float(jax.nn.log_softmax(logits)[row[place]])
  return total


def test_each_token_is_hidden_alone(bert):
  texts = ["abcde", "c", "hgfedcb", "abcdefghijklmn"]
  scores = scorer_of(*bert)(texts)
  expected = [by_hand(*bert, text) for text in texts]
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_scores_do_not_depend_on_batches_and_order(bert):
  texts = ["abcde", "c", "hgfedcb", "abcdefghij"]
  few, many = (scorer_of(*bert, batch_size=size)(texts) for size in (2, 50))
  np.testing.assert_allclose(few, many, rtol=1e-6)
  turned = scorer_of(*bert)(texts[::-1])[::-1]
  np.testing.assert_allclose(few, turned, rtol=1e-6)


def test_the_likelier_sentence_counts():
  pairs = [
    MinimalPair("aaa", "b", "x", "x1"),
    MinimalPair("b", "aaa", "x", "x1"),
    MinimalPair("aa", "b", "x", "x2"),
    MinimalPair("a", "b", "y", "y1"),  # Equal, and so wrong.
  ]
  scores = pair_scores(pairs, lambda texts: np.array([*map(len, texts)], float))
  assert scores["all"]["accuracy"] == 50
  assert scores["phenomena"]["x"]["accuracy"] == pytest.approx(200 / 3)
  assert scores["phenomena"]["y"] == {
    "accuracy": 0,
    "standard_error": 0,
    "pairs": 1,
  }
  assert scores["mean_of_paradigms"] == 50
  error = scores["all"]["standard_error"]
  assert error == pytest.approx(25)
