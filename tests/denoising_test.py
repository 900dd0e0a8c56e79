import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from raptr_jax.tasks.objectives.denoising import (
  UL2_DENOISERS,
  Denoiser,
  corrupt,
  hide_spans,
  random_lengths,
  ul2_denoisers,
)
from tests.reassembly import reassemble

EOS = 1
SENTINELS = np.arange(999, 799, -1)  # The last ids of a vocabulary of 1,000.
IDS = {"sentinel_ids": SENTINELS, "eos_id": EOS}
NAMES = [denoiser.name for denoiser in UL2_DENOISERS]


def _tokens(size):
  return np.arange(100, 100 + size)


def test_spans_by_hand():
  inputs, targets = hide_spans(
    np.array([11, 12, 13, 14, 15, 16, 17, 18]),
    kept=np.array([2, 1]),
    hidden=np.array([1, 4]),
    **IDS,
  )
  assert inputs.tolist() == [11, 12, 999, 14, 998]
  assert targets.tolist() == [999, 13, 998, 15, 16, 17, 18, EOS]


def test_one_span_is_a_prefix_and_what_follows():
  rng = np.random.default_rng(0)
  inputs, targets = corrupt(_tokens(6), rng, num_hidden=2, num_spans=1, **IDS)
  assert inputs.tolist() == [100, 101, 102, 103, 999]
  assert targets.tolist() == [999, 104, 105, EOS]


def test_all_divisions_are_equally_likely():
  rng = np.random.default_rng(0)
  draws = [tuple(random_lengths(5, 3, rng)) for _ in range(6_000)]
  divisions = {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
  assert set(draws) == divisions
  for division in divisions:
    assert draws.count(division) == pytest.approx(1_000, abs=120)
  assert random_lengths(4, 4, rng).tolist() == [1, 1, 1, 1]
  assert random_lengths(1, 1, rng).tolist() == [1]


def test_sizes_by_hand():
  denoiser = Denoiser("x", 3, 0.5, "[NLG]")
  lengths = np.array([2, 3, 9, 10, 11])
  hidden, spans = denoiser.sizes(lengths, np.zeros(3))
  assert hidden.tolist() == [1, 1, 4, 5, 5]
  assert spans.tolist() == [1, 1, 1, 1, 1]
  hidden, spans = denoiser.sizes(lengths, np.full(3, 0.5))
  assert hidden.tolist() == [1, 2, 5, 5, 6]
  # 0.83, 1.17, 2.17, 2.17, 2.5: one at least, and one token after each.
  assert spans.tolist() == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(
  "denoiser", [*UL2_DENOISERS, Denoiser("almost all", 1, 0.9, "[NLG]")]
)
def test_sizes_never_decrease_and_leave_something(denoiser):
  lengths = np.arange(2, 1_500)
  for rounding in np.random.default_rng(0).random((20, 3)):
    hidden, spans = denoiser.sizes(lengths, rounding)
    for sizes in (hidden, lengths - hidden, spans):
      assert (np.diff(sizes) >= 0).all()
    assert (spans >= 1).all()
    assert (spans <= np.minimum(hidden, lengths - hidden)).all()


@pytest.mark.parametrize("denoiser", UL2_DENOISERS, ids=NAMES)
def test_rate_and_mean_span_are_those_of_the_denoiser(denoiser):
  rng, examples, size = np.random.default_rng(0), 5_000, 500
  all_hidden, all_spans = denoiser.sizes(
    np.full(examples, size), rng.random((3, examples))
  )
  lengths = []  # Of spans, as the targets show them.
  for hidden, spans in zip(all_hidden, all_spans):
    _, targets = corrupt(
      _tokens(size), rng, num_hidden=hidden, num_spans=spans, **IDS
    )
    begins = np.flatnonzero((targets >= 800) | (targets == EOS))
    lengths.append(np.diff(begins) - 1)
  lengths = np.concatenate(lengths)
  assert lengths.min() >= 1
  assert lengths.sum() / (size * examples) == pytest.approx(
    denoiser.rate, rel=0.02
  )
  mean_span = denoiser.mean_span or denoiser.rate * size
  assert lengths.mean() == pytest.approx(mean_span, rel=0.03)


def test_a_uniform_share_is_up_to_twice_the_rate():
  *_, denoiser = ul2_denoisers()
  shares = np.linspace(0, 1, 5)[:-1]
  hidden, spans = denoiser.sizes(
    np.full(4, 400), np.array([np.full(4, 0.5), np.zeros(4), shares])
  )
  assert hidden.tolist() == [1, 50, 100, 150]  # One at least.
  assert spans.tolist() == [1] * 4
  *_, fixed = ul2_denoisers(uniform_suffix=False)
  hidden, _ = fixed.sizes(np.full(2, 400), np.array([[0, 0], [0, 0], [0, 0.9]]))
  assert hidden.tolist() == [100, 100]
  with pytest.raises(ValueError, match=r"rate=0.6 .* at most 0.5"):
    Denoiser("too much", None, 0.6, "[S2S]", uniform=True)


@pytest.mark.parametrize("denoiser", UL2_DENOISERS, ids=NAMES)
@hypothesis.settings(deadline=None, derandomize=True, max_examples=30)
@hypothesis.given(size=st.integers(2, 250), seed=st.integers(0, 2**32))
def test_targets_put_back_restore_the_text(denoiser, size, seed):
  rng = np.random.default_rng(seed)
  hidden, spans = denoiser.sizes(np.array([size]), rng.random(3))
  inputs, targets = corrupt(
    _tokens(size), rng, num_hidden=hidden[0], num_spans=spans[0], **IDS
  )
  assert reassemble(inputs, targets, **IDS) == _tokens(size).tolist()
  assert len(inputs) == size - hidden[0] + spans[0]
  assert len(targets) == hidden[0] + spans[0] + 1
  # The sentinels of the beginning, in order, on both sides.
  expected = SENTINELS[: spans[0]].tolist()
  for side in (inputs, targets):
    assert side[side >= 800].tolist() == expected
  assert inputs[0] == 100
  assert inputs[-1] in SENTINELS


@pytest.mark.parametrize(
  ("targets", "text"),
  [
    ([999, 5, 998, 6, EOS, 7], [11, 5, 12, 6]),
    ([998, 6, 999, 5], [11, 5, 12, 6]),  # Another order, no end.
    ([999, 5, 999, 6], [11, 5, 6, 12]),  # The same sentinel twice.
    ([997, 4, 998, 6], [11, 12, 6]),  # One that is not asked for.
    ([4, 999, 5], [11, 5, 12]),  # Before any sentinel.
    ([], [11, 12]),
  ],
)
def test_what_a_model_writes_is_put_back_as_far_as_it_goes(targets, text):
  assert reassemble([11, 999, 12, 998], targets, **IDS) == text


def test_impossible_denoisers_are_refused():
  with pytest.raises(ValueError, match=r"rate=1.5 .*--gin"):
    Denoiser("x", 3, 1.5, "[NLG]")
  with pytest.raises(ValueError, match=r"mean_span=0.5 .*--gin"):
    Denoiser("x", 0.5, 0.5, "[NLG]")
