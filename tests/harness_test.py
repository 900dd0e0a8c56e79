"""The harness's requests against the models' own scores; needs no harness."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from raptr_jax.contrib.harness import HarnessModel, rolling_windows
from raptr_jax.inference.decoding import Decoding
from raptr_jax.tasks.objectives.layouts import Pair
from tests import families
from tests.text_predictor_test import MODE, SENTINELS, make_predictor

PAIRS = [("3 4 5", " 6 7"), ("3", " 8"), ("3 4 ", "9 10 11"), ("", "5 6"),
         ("3 4 5", " 6 8"), ("12 13", " 4")]  # fmt: skip


@pytest.fixture(params=families.FAMILIES)
def model(request):
  return make_harness_model(request.param)


def make_harness_model(family, batch_size=8):
  predictor = make_predictor(
    family, batch_size=batch_size, max_prompt_tokens=12
  )
  return HarnessModel(predictor=predictor, prompt_tokens=12, target_tokens=9)


def by_score_batch(predictor, context, continuation):
  """The log-likelihood of one text, in a row of just its length."""
  inputs = np.array([MODE, *map(int, context.split()), SENTINELS[0]], np.int32)
  told = [int(word) for word in continuation.split()]
  targets = np.array([SENTINELS[0], *told], np.int32)
  lengths = {
    "tokens": len(inputs) + len(targets) - 1,
    "inputs": len(inputs) + 1,
    "targets": len(targets),
  }
  pairs = [[Pair(inputs, targets)]]
  batch = families.make_batch(predictor.model, pairs, lengths)
  weights = batch["target_weights"]
  weights[0, weights[0].argmax()] = 0  # The sentinel is given.
  score = jax.jit(predictor.model.score_batch)
  return float(score(predictor.params, batch, predictor.paths)[0])


def test_log_likelihoods_are_those_of_the_model(model):
  done = []
  found = model.loglikelihood(PAIRS, watch=done.append)
  assert sum(done) == len(PAIRS)
  for (score, _), pair in zip(found, PAIRS):
    expected = by_score_batch(model.predictor, *pair)
    assert score == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_greedy_is_what_the_model_writes(model):
  contexts = ["3 4 5", "3", "12 13", "7 7"]
  texts = model.predictor.write(contexts, Decoding(max_new_tokens=3))
  assert all(texts)
  own = [(c, f" {text}") for c, text in zip(contexts, texts)]
  other = [(c, f" {text} 3 3 3") for c, text in zip(contexts, texts)]
  assert all(greedy for _, greedy in model.loglikelihood(own))
  assert not any(greedy for _, greedy in model.loglikelihood(other))


@pytest.mark.parametrize("batch_size", [8, 16])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_results_do_not_depend_on_the_batch(family, batch_size):
  one = make_harness_model(family)
  other = make_harness_model(family, batch_size)
  expected = [one.loglikelihood([pair])[0] for pair in PAIRS]
  for (score, greedy), (own, own_greedy) in zip(
    other.loglikelihood(PAIRS), expected
  ):
    assert score == pytest.approx(own, rel=1e-5) and greedy == own_greedy
  requests = [(context, {"max_gen_toks": 4}) for context, _ in PAIRS]
  assert other.generate_until(requests) == [
    one.generate_until([request])[0] for request in requests
  ]
  texts = ["3 4 5 6 7", " ".join(map(str, range(3, 18)))]
  assert other.loglikelihood_rolling(texts) == pytest.approx(
    [one.loglikelihood_rolling([text])[0] for text in texts], rel=1e-5
  )


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 9, 14])
def test_windows_predict_each_token_once_from_what_comes_before(length):
  tokens = list(range(100, 100 + length))
  windows = list(rolling_windows(tokens, 4))
  assert [x for _, told in windows for x in told] == tokens
  for number, (context, told) in enumerate(windows):
    begin = 4 * number
    assert context == tokens[begin - len(context) : begin]
    assert len(context) + len(told) == min(5, length) or number == 0
    assert bool(context) == bool(number)


def test_a_rolling_log_likelihood_adds_up_its_windows(model):
  text = " ".join(map(str, range(3, 18)))
  windows = rolling_windows(range(3, 18), 9)
  expected = sum(
    by_score_batch(
      model.predictor, *(" ".join(map(str, part)) for part in window)
    )
    for window in windows
  )
  found = model.loglikelihood_rolling([text, "", "4 5"])
  assert found[0] == pytest.approx(expected, rel=1e-4)
  assert found[1] == 0 and found[2] < 0
  assert model.loglikelihood_rolling([]) == []


def test_writing_ends_at_a_stop_string(model):
  contexts = ["3 4 5", "3", "12 13", "7 7"]
  whole = model.generate_until([(c, {"max_gen_toks": 4}) for c in contexts])
  words = next(text.split() for text in whole if len(text.split()) > 2)
  until = [" ".join(words[:2])]
  for stop in (until, until[0]):
    cut = model.generate_until(
      [(c, {"max_gen_toks": 4, "until": stop}) for c in contexts]
    )
    assert cut == [text.partition(until[0])[0] for text in whole] != whole


def test_requests_of_different_kinds_keep_their_order(model):
  kinds = [{"max_gen_toks": 1}, {"max_gen_toks": 3}, {}]
  requests = [*itertools.product(("3 4", "9"), kinds)]
  texts = model.generate_until(requests)
  for request, text in zip(requests, texts):
    assert model.generate_until([request]) == [text]
  sizes = [len(text.split()) for text in texts]
  assert max(sizes[0::3]) == 1 < max(sizes[1::3]) <= 3
  drawn = {"do_sample": True, "temperature": 3.0, "max_gen_toks": 4}
  assert model.generate_until([("3 4", drawn)]) != [texts[1]]


def test_of_a_long_context_the_end_is_read(model):
  end = " ".join(map(str, [*range(3, 13)]))
  pairs = [(f"17 17 17 {end}", " 6 7"), (f"17 16 {end}", " 6 7")]
  (long, _), (other, _) = model.loglikelihood(pairs)
  shared = "tokens" in model.predictor.objective.feature_layout.feature_names
  assert (long == other) == shared  # There, two tokens less are read.


def test_mistakes_get_one_clear_error(model):
  with pytest.raises(ValueError, match="has 10 tokens, expected at most 9"):
    model.loglikelihood([("3", " 4" * 10)])
  with pytest.raises(ValueError, match=r"\['beams'\] are unknown, expected"):
    model.generate_until([("3", {"beams": 4})])
  with pytest.raises(ValueError, match=r"Decoding\.top_p = 2"):
    model.generate_until([("3", {"do_sample": True, "top_p": 2})])
  with pytest.raises(ValueError, match="batch_size = 3, expected a multiple"):
    dataclasses.replace(model.predictor, batch_size=3)
