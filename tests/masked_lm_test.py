import numpy as np
import pytest

from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.text.vocabularies import open_vocabulary

LENGTH, NUM_TARGETS = 64, 10  # 10 = 15 % of 64, rounded up.


class Vocabulary:
  size = 200
  pad_id, cls_id, sep_id, mask_id = 1, 2, 3, 4
  special_ids = (0, 1, 2, 3, 4, *range(190, 200))


ORDINARY = set(range(5, 190))


def _row(rng, lengths):
  pieces = [
    [2, *rng.integers(5, 190, size=length - 2), 3] for length in lengths
  ]
  return Row(
    tokens=np.concatenate(pieces).astype(np.int32),
    segment_lengths=np.array(lengths, np.int32),
  )


@pytest.fixture(scope="module")
def corrupt():
  return MaskedLM().corruption(Vocabulary, {"inputs": LENGTH})


@pytest.fixture(scope="module")
def pairs(corrupt):
  rng = np.random.default_rng(0)
  rows = [_row(rng, [5 + i % 30, 4, 20]) for i in range(4_000)]
  return [(row, corrupt(row, rng)) for row in rows]


def test_shapes_and_types(pairs):
  _, example = pairs[3]
  shapes = {key: (value.shape, value.dtype) for key, value in example.items()}
  assert shapes == {
    "tokens": ((LENGTH,), np.int32),
    "segment_ids": ((LENGTH,), np.int32),
    "positions": ((LENGTH,), np.int32),
    "target_positions": ((NUM_TARGETS,), np.int32),
    "targets": ((NUM_TARGETS,), np.int32),
    "target_weights": ((NUM_TARGETS,), np.float32),
  }


def test_targets_restore_the_row(pairs):
  for row, example in pairs:
    tokens = example["tokens"].copy()
    used = example["target_weights"] > 0
    tokens[example["target_positions"][used]] = example["targets"][used]
    np.testing.assert_array_equal(tokens[: len(row.tokens)], row.tokens)
    assert (tokens[len(row.tokens) :] == Vocabulary.pad_id).all()


def test_unused_slots_are_zero_and_places_ascend(pairs):
  for _, example in pairs:
    count = int(example["target_weights"].sum())
    weights = [1.0] * count + [0.0] * (NUM_TARGETS - count)
    assert list(example["target_weights"]) == weights
    assert (np.diff(example["target_positions"][:count]) > 0).all()
    assert not example["target_positions"][count:].any()
    assert not example["targets"][count:].any()


def test_segments_and_positions_by_hand(corrupt):
  row = _row(np.random.default_rng(0), [4, 3])
  example = corrupt(row, np.random.default_rng(0))
  assert list(example["segment_ids"][:8]) == [1, 1, 1, 1, 2, 2, 2, 0]
  assert list(example["positions"][:8]) == [0, 1, 2, 3, 0, 1, 2, 0]


def test_special_tokens_are_neither_predicted_nor_drawn(pairs):
  for row, example in pairs:
    used = example["target_weights"] > 0
    assert set(example["targets"][used]) <= ORDINARY
    n = len(row.tokens)
    new = example["tokens"][:n][example["tokens"][:n] != row.tokens]
    assert set(new) <= ORDINARY | {Vocabulary.mask_id}


def test_fifteen_percent_are_predicted(pairs):
  ordinary = sum(np.isin(row.tokens, list(ORDINARY)).sum() for row, _ in pairs)
  predicted = sum(example["target_weights"].sum() for _, example in pairs)
  assert predicted / ordinary == pytest.approx(0.15, rel=0.01)


def test_number_of_targets_is_rounded_at_random(corrupt):
  row = _row(np.random.default_rng(0), [12])  # 10 ordinary tokens: 1.5.
  counts = [
    corrupt(row, np.random.default_rng(i))["target_weights"].sum()
    for i in range(2_000)
  ]
  assert set(counts) == {1, 2}
  assert np.mean(counts) == pytest.approx(1.5, abs=0.05)


def test_eighty_ten_ten(pairs):
  originals, replacements = [], []
  for _, example in pairs:
    used = example["target_weights"] > 0
    originals.append(example["targets"][used])
    replacements.append(example["tokens"][example["target_positions"][used]])
  original = np.concatenate(originals)
  replacement = np.concatenate(replacements)
  masked = replacement == Vocabulary.mask_id
  same = replacement == original
  assert masked.mean() == pytest.approx(0.8, abs=0.015)
  # A random token is the original one in 1 of 185 cases.
  assert same.mean() == pytest.approx(0.1 + 0.1 / 185, abs=0.015)
  random = replacement[~masked & ~same]
  assert len(random) / len(original) == pytest.approx(0.1, abs=0.015)
  counts = np.bincount(random, minlength=200)[5:190]
  assert counts.min() > 0 and counts.max() < 5 * counts.mean()


def test_every_place_is_predicted_alike(corrupt):
  row = _row(np.random.default_rng(0), [32, 32])
  counts = np.zeros(LENGTH)
  for i in range(6_000):
    example = corrupt(row, np.random.default_rng(i))
    used = example["target_weights"] > 0
    counts[example["target_positions"][used]] += 1
  framing = [0, 31, 32, 63]
  assert not counts[framing].any()
  rates = np.delete(counts, framing) / 6_000
  assert np.abs(rates - 0.15).max() < 0.025


def test_the_generator_alone_decides(corrupt):
  row = _row(np.random.default_rng(0), [30, 30])
  first, again, other = (
    corrupt(row, np.random.default_rng(seed)) for seed in (1, 1, 2)
  )
  for key, value in first.items():
    np.testing.assert_array_equal(value, again[key])
  assert (first["tokens"] != other["tokens"]).any()


def test_row_of_framing_alone_has_no_targets(corrupt):
  row = Row(np.array([2, 3], np.int32), np.array([2], np.int32))
  example = corrupt(row, np.random.default_rng(0))
  assert not example["target_weights"].any()
  assert list(example["tokens"][:3]) == [2, 3, Vocabulary.pad_id]


def test_wrong_features_and_rates_are_refused():
  with pytest.raises(ValueError, match=r"TASK_FEATURE_LENGTHS.*'inputs'"):
    MaskedLM().corruption(Vocabulary, {"inputs": 64, "targets": 8})
  with pytest.raises(ValueError, match=r"mask_rate=1.5"):
    MaskedLM(mask_rate=1.5)


def test_vocabulary_without_mask_is_refused(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
  with pytest.raises(ValueError, match=r"no \[MASK\]"):
    MaskedLM().corruption(open_vocabulary(path), {"inputs": 64})
