import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from raptr_jax.tasks.objectives.corruption import KindDraw
from raptr_jax.tasks.objectives.denoising import (
  UL2_DENOISERS,
  Denoiser,
  ul2_denoisers,
)
from raptr_jax.tasks.objectives.packing import Framing, Row, pack
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sources import KingJamesBible
from tests.reassembly import reassemble

PAD, EOS, SENTINEL = 0, 1, 90_000  # Greater ids are sentinels.
MODES = {"[NLU]": (2,), "[NLG]": (3, 4), "[S2S]": (5,)}
LAYOUTS = {
  "decoder": lambda size: {"tokens": size},
  "encoder_decoder": lambda size: {"inputs": size, "targets": size},
}


class Vocabulary:
  pad_id, eos_id = PAD, EOS

  def __init__(self, num_sentinels=100):
    self.sentinel_ids = tuple(range(99_999, 99_999 - num_sentinels, -1))

  def mode_ids(self, mode):
    return MODES[mode]


class FirstOfAll:
  """Draws the first there is, and rounds down."""

  def __init__(self, point=0.0):
    self._point = point  # Decides which denoisers are drawn.

  def random(self, count=None):
    return self._point if count is None else np.zeros(count)

  def permutation(self, count):
    return np.arange(count)


def _row(*lengths):
  """Pieces of such lengths, of tokens that are all different."""
  size = sum(lengths)
  return Row(np.arange(100, 100 + size), np.array(lengths))


def _only(kind, layout, size, num_sentinels=100):
  """The corruption of one denoiser, and the length of its rows."""
  weights = np.eye(len(UL2_DENOISERS))[kind]
  objective, lengths = UL2(layout, tuple(weights)), LAYOUTS[layout](size)
  corrupt = objective.corruption(Vocabulary(num_sentinels), lengths)
  return corrupt, objective.row_length(lengths)


def _pairs(example):
  """Inputs without mode, and targets, of the segments of an example."""
  pairs = []
  for number in range(1, example["segment_ids"].max(initial=0) + 1):
    slots = example["segment_ids"] == number
    targets = example["targets"][slots & (example["target_weights"] > 0)]
    if "in_prefix" in example:
      inputs = example["tokens"][slots & (example["in_prefix"] > 0)]
    else:
      inputs = example["encoder_tokens"][
        example["encoder_segment_ids"] == number
      ]
      assert inputs[-1] == EOS
      inputs = inputs[:-1]
    assert targets[-1] == EOS
    pairs.append((inputs[inputs >= 100], targets))
  return pairs


def _texts(example):
  sentinels = range(SENTINEL, 100_000)
  return [
    reassemble(*pair, sentinel_ids=sentinels, eos_id=EOS)
    for pair in _pairs(example)
  ]


def _fill(example):
  """Share of the slots that are used, of the fuller feature."""
  return max(
    np.mean(example[key] > 0)
    for key in ("segment_ids", "encoder_segment_ids")
    if key in example
  )


def _by_hand(layout, lengths):
  denoiser = Denoiser("half", 2, 0.5, "[NLU]")
  objective = UL2(layout, weights=(1,), denoisers=(denoiser,))
  row = Row(
    np.array([11, 12, 13, 14, 15, 16, 17, 18, 21, 22, 23, 24], np.int32),
    np.array([8, 4], np.int32),
  )
  # 4 of 8 tokens in two spans, and 2 of 4 in one; of two lengths that sum to
  # 4, the first drawn is 1. So [12] and [16, 17, 18], then [23, 24] are hidden.
  example = objective.corruption(Vocabulary(), lengths)(row, FirstOfAll())
  features = objective.features(lengths)
  assert {k: (len(x), x.dtype) for k, x in example.items()} == features
  return {key: value.tolist() for key, value in example.items()}


A, B = 99_999, 99_998  # The first sentinels.


def test_decoder_example_by_hand():
  assert _by_hand("decoder", {"tokens": 22}) == {
    "tokens": [
      2, 11, A, 13, 14, 15, B, A, 12, B, 16, 17, 18,
      2, 21, 22, A, A, 23, 24,
      0, 0,
    ],
    "targets": [
      11, A, 13, 14, 15, B, A, 12, B, 16, 17, 18, 1,
      21, 22, A, A, 23, 24, 1,
      0, 0,
    ],
    "target_weights": [0] * 6 + [1] * 7 + [0] * 3 + [1] * 4 + [0] * 2,
    "segment_ids": [1] * 13 + [2] * 7 + [0] * 2,
    "positions": [*range(13), *range(7), 0, 0],
    "in_prefix": [1] * 7 + [0] * 6 + [1] * 4 + [0] * 3 + [0] * 2,
    "example_kind": [0],
  }  # fmt: skip


def test_encoder_decoder_example_by_hand():
  lengths = {"inputs": 15, "targets": 12}
  assert _by_hand("encoder_decoder", lengths) == {
    "encoder_tokens": [2, 11, A, 13, 14, 15, B, 1, 2, 21, 22, A, 1, 0, 0],
    "encoder_segment_ids": [1] * 8 + [2] * 5 + [0] * 2,
    "tokens": [0, A, 12, B, 16, 17, 18, 0, A, 23, 24, 0],
    "targets": [A, 12, B, 16, 17, 18, 1, A, 23, 24, 1, 0],
    "target_weights": [1] * 11 + [0],
    "segment_ids": [1] * 7 + [2] * 4 + [0],
    "example_kind": [0] * 12,
  }


def test_two_opposite_denoisers_share_a_row_by_hand():
  denoisers = (
    Denoiser("half", 2, 0.5, "[NLU]"),
    Denoiser("end", None, 0.25, "[S2S]"),
  )
  objective = UL2("encoder_decoder", weights=(1, 1), denoisers=denoisers)
  lengths = {"inputs": 16, "targets": 10}
  corrupt = objective.corruption(Vocabulary(), lengths)
  row = Row(np.arange(11, 22, dtype=np.int32), np.array([11]))
  # "end" hides 1 of 7 tokens: 6 and 3 more are 9 slots of inputs, and 3 targets.
  # "half" hides 3, in one span: 4 + 3 inputs, 5 targets. Of 8 tokens each, they
  # would take 9 + 8 inputs. So "end" has 7 tokens, and "half" the other 4.
  example = corrupt(row, FirstOfAll())
  assert {key: value.tolist() for key, value in example.items()} == {
    "encoder_tokens": [5, *range(11, 17), A, 1, 2, 18, 19, A, 1, 0, 0],
    "encoder_segment_ids": [1] * 9 + [2] * 5 + [0] * 2,
    "tokens": [0, A, 17, 0, A, 20, 21, 0, 0, 0],
    "targets": [A, 17, 1, A, 20, 21, 1, 0, 0, 0],
    "target_weights": [1] * 7 + [0] * 3,
    "segment_ids": [1] * 3 + [2] * 4 + [0] * 3,
    "example_kind": [1] * 3 + [0] * 4 + [0] * 3,
  }
  # From the other end of the line, "half" comes first.
  kinds = corrupt(row, FirstOfAll(0.9))["example_kind"]
  assert kinds.tolist() == [0] * 5 + [1] * 3 + [0] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [128, 512, 1280])
def test_a_full_row_fills_what_binds_and_is_not_cut(layout, size):
  rng = np.random.default_rng(0)
  for kind in range(len(UL2_DENOISERS)):
    corrupt, length = _only(kind, layout, size, num_sentinels=1_000)
    for _ in range(15):
      example = corrupt(_row(length), rng)
      assert _fill(example) >= 0.98
      (text,) = _texts(example)
      if not UL2_DENOISERS[kind].uniform:
        assert len(text) >= 0.97 * length
      assert text == [*range(text[0], text[0] + len(text))]


def test_joined_documents_have_room_for_long_spans():
  weights = tuple(np.eye(7)[5])  # X 64 50 %.
  row = _row(*[90] * 5)
  spans = {}
  for concatenate in (False, True):
    objective = UL2(weights=weights, concatenate=concatenate)
    corrupt = objective.corruption(Vocabulary(), {"tokens": 512})
    pairs = _pairs(corrupt(row, np.random.default_rng(0)))
    spans[concatenate] = [
      int((targets >= SENTINEL).sum()) for _, targets in pairs
    ]
  assert spans[False] == [1] * 5  # Each text has only its end hidden.
  (joined,) = spans[True]
  assert joined in (3, 4)  # 225 hidden tokens.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sentinels_never_run_out(layout):
  corrupt, length = _only(2, layout, 512, num_sentinels=20)
  rng = np.random.default_rng(0)
  for _ in range(20):
    example = corrupt(_row(length), rng)
    pairs = _pairs(example)
    assert len(pairs) > 3
    for inputs, targets in pairs:
      assert 0 < (targets >= SENTINEL).sum() <= 20
      assert (inputs >= SENTINEL).sum() == (targets >= SENTINEL).sum()
    assert _fill(example) >= 0.98
    assert (np.diff(np.concatenate(_texts(example))) == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@hypothesis.settings(deadline=None, derandomize=True, max_examples=60)
@hypothesis.given(
  lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
  num_sentinels=st.sampled_from([1, 5, 100]),
  seed=st.integers(0, 2**32),
)
def test_any_row_gives_whole_texts(layout, lengths, num_sentinels, seed):
  features = LAYOUTS[layout](128)
  corrupt = UL2(layout).corruption(Vocabulary(num_sentinels), features)
  row = _row(*lengths)
  example = corrupt(row, np.random.default_rng(seed))
  ends = 100 + np.cumsum(lengths)
  texts = _texts(example)
  previous = None
  for text in texts:
    assert len(text) >= 2
    assert text == [*range(text[0], text[-1] + 1)]
    # Of one piece, and directly after the one before, but for single tokens.
    assert np.searchsorted(ends, text[0], side="right") == np.searchsorted(
      ends, text[-1], side="right"
    )
    if previous is not None:
      between = range(previous + 1, text[0])
      assert all(t + 1 in ends for t in between)
    previous = text[-1]
  # What follows the inputs' sentinels and the mode is text.
  weights = example["target_weights"].sum()
  assert weights == sum(len(targets) for _, targets in _pairs(example))


def test_decoder_predicts_the_next_token_of_the_same_text():
  corrupt = UL2().corruption(Vocabulary(), {"tokens": 256})
  rng = np.random.default_rng(0)
  for _ in range(30):
    example = corrupt(_row(60, 40, 7, 80, 90), rng)
    tokens, targets = example["tokens"], example["targets"]
    segments = example["segment_ids"]
    together = (segments[:-1] == segments[1:]) & (segments[1:] > 0)
    assert (targets[:-1][together] == tokens[1:][together]).all()
    last = np.flatnonzero(~together & (segments[:-1] > 0))
    assert (targets[last] == EOS).all()
    # A mode begins each text.
    begins = example["positions"] == 0
    assert np.isin(tokens[begins & (segments > 0)], (2, 3, 5)).all()


def test_denoisers_are_drawn_by_weight():
  weights = (3, 0, 1, 1, 2, 1, 2)
  corrupt = UL2(weights=weights).corruption(Vocabulary(), {"tokens": 32})
  rng = np.random.default_rng(0)
  row = _row(4)
  kinds = [int(corrupt(row, rng)["example_kind"][0]) for _ in range(2_000)]
  frequency = np.bincount(kinds, minlength=7) / len(kinds)
  np.testing.assert_allclose(frequency, np.array(weights) / 10, atol=0.04)
  assert frequency[1] == 0


@pytest.mark.parametrize("uniform_suffix", [True, False])
@pytest.mark.parametrize("inputs", [96, 512, 1024])
def test_two_denoisers_fill_inputs_and_targets(inputs, uniform_suffix):
  """On texts as long as those of C4, whose lengths are about log-normal."""
  objective = UL2(
    "encoder_decoder",
    denoisers=ul2_denoisers(uniform_suffix=uniform_suffix),
    mode_tokens=uniform_suffix,
  )
  lengths = {"inputs": inputs, "targets": inputs // 2}
  rng = np.random.default_rng(0)
  # A median of 250 tokens and a mean of 480.
  sizes = 250 * np.exp(np.sqrt(2 * np.log(480 / 250)) * rng.normal(size=600))
  rows = pack(
    (np.arange(100, 102 + size) for size in sizes.astype(int)),
    framing=Framing(),
    length=objective.row_length(lengths),
  )
  corrupt = objective.corruption(Vocabulary(), lengths)
  examples = [corrupt(row, rng) for row in itertools.islice(rows, 300)]
  assert len(examples) > 150
  names = ("encoder_segment_ids", "segment_ids")
  used = [(example[name] > 0).sum() for example in examples for name in names]
  assert sum(used) / (len(examples) * 1.5 * inputs) >= 0.9
  tokens = np.zeros(7)
  for example in examples:
    for number, pair in enumerate(_pairs(example), 1):
      kinds = example["example_kind"][example["segment_ids"] == number]
      assert len(set(kinds)) == 1
      text = np.concatenate(pair)
      tokens[kinds[0]] += ((text >= 100) & (text < SENTINEL)).sum()
  # Denoisers get as much text as their weights say.
  np.testing.assert_allclose(
    tokens / tokens.sum(), objective.weights, atol=0.04
  )


def test_opposite_draws_keep_the_weights():
  weights, rates = (0.3, 0.1, 0.2, 0.4), (0.5, 0.1, 0.3, 0.2)
  draw = KindDraw(np.array(weights), rates, 2)
  points = (np.arange(1_000) + 0.5) / 1_000
  drawn = [draw.at(point) for point in points]
  # In the order of their rates, they end at 0.1, 0.5, 0.7 and 1.
  assert draw.at(0.05) == [1, 0]
  assert draw.at(0.25) == [3, 0]
  assert draw.at(0.4) == [3, 2]
  assert draw.at(0.95) == [0, 1]
  shares = np.bincount(np.ravel(drawn)) / 2_000
  np.testing.assert_allclose(shares, weights, atol=1e-9)
  assert {tuple(kinds) for kinds in drawn} == {tuple(k) for k in draw.all()}
  alone = KindDraw(np.array(weights), rates, 1)
  shares = np.bincount([kind for p in points for kind in alone.at(p)]) / 1_000
  np.testing.assert_allclose(shares, weights, atol=1e-9)
  # One that is opposite to itself is drawn once.
  assert KindDraw(np.array([0.0, 1.0]), (0.1, 0.2), 2).all() == [[1]]


def test_windows_cover_a_row_evenly():
  corrupt, _ = _only(0, "decoder", 128)
  length = 300
  rng = np.random.default_rng(0)
  starts, seen = [], np.zeros(length)
  for _ in range(300):
    (text,) = _texts(corrupt(_row(length), rng))
    starts.append(text[0] - 100)
    seen[np.array(text) - 100] += 1
  # 116 tokens at a time, so three windows: at 0, in the middle, at the end.
  found, counts = np.unique(np.round(starts, -1), return_counts=True)
  assert found.tolist() == [0, 90, 180]
  assert counts == pytest.approx(np.full(3, 100), abs=30)
  assert seen.min() >= 70
  assert seen.max() <= 2 * 130


@pytest.mark.parametrize("mode_tokens", [True, False])
def test_row_length_and_pieces_of_a_vocabulary(mode_tokens):
  objective = UL2(mode_tokens=mode_tokens)
  lengths = {"tokens": 512}
  # S: n tokens, two sentinels, and the mode; the end takes no slot.
  assert objective.row_length(lengths) == 510 - mode_tokens
  # X 3 50%: at most 192 of 383 tokens, or of 384 without a mode, in 64 spans.
  sentinels = [f"<extra_id_{i}>" for i in reversed(range(64))]
  modes = ["[NLU]", "[NLG]", "[S2S]"] if mode_tokens else []
  assert list(objective.extra_pieces(lengths)) == modes + sentinels
  assert len(objective.extra_pieces({"tokens": 4096})) == 100 + len(modes)
  corrupt = objective.corruption(Vocabulary(), lengths)
  tokens = corrupt(_row(300), np.random.default_rng(0))["tokens"]
  assert (tokens[0] < 100) == mode_tokens


def test_a_prompt_reads_as_the_inputs_of_the_prefix_denoiser():
  decoder, both = UL2(), UL2("encoder_decoder")
  inputs = decoder.continuation([11, 12], Vocabulary())
  assert inputs.tolist() == [5, 11, 12, A]
  assert decoder.feature_layout.prompt(inputs, EOS).tolist() == [5, 11, 12, A]
  assert both.feature_layout.prompt(inputs, EOS).tolist() == [5, 11, 12, A, EOS]
  without = UL2(mode_tokens=False).continuation([11], Vocabulary())
  assert without.tolist() == [11, A]


def test_rows_of_another_length_are_other_rows():
  def settings(weights):
    task = TextTask(
      name="x",
      source=KingJamesBible(),
      objective=UL2(weights=weights),
      vocabulary_size=600,
    )
    return task.settings({"tokens": 512})

  spans, prefixes = (0, 0, 1, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 1)
  assert settings(spans)["row_length"] < settings(prefixes)["row_length"]


@pytest.mark.parametrize(
  ("changes", "lengths", "message"),
  [
    ({"layout": "encoder"}, {}, r"UL2_LAYOUT='encoder' .*--gin.UL2_LAYOUT"),
    ({"weights": (1, 1)}, {}, r"UL2_WEIGHTS=\(1, 1\) must be 7"),
    ({"weights": (0,) * 7}, {}, r"not all 0"),
    ({"weights": (-1, *[1] * 6)}, {}, r"none negative"),
    ({}, {"inputs": 8}, r"'inputs': 8.*\('tokens',\).*--gin.TASK_FEATURE"),
    ({"layout": "encoder_decoder"}, {"tokens": 8}, r"'inputs': 512"),
    ({}, {"tokens": 4}, r"no room for two tokens"),
  ],
)
def test_what_does_not_fit_is_refused(changes, lengths, message):
  with pytest.raises(ValueError, match=message):
    UL2(**changes).corruption(Vocabulary(), lengths)


def test_a_vocabulary_without_padding_at_0_is_refused():
  vocabulary = Vocabulary()
  vocabulary.pad_id, vocabulary.path = -1, "other.model"
  with pytest.raises(ValueError, match="other.model has padding at id -1"):
    UL2().corruption(vocabulary, {"tokens": 32})
