import itertools

import jax
import numpy as np
import pytest
from jax.nn import log_softmax

from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.text_predictor import TextPredictor
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.objectives.causal_lm import CausalLM
from raptr_jax.tasks.objectives.layouts import Pair
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.training.partitioning import Partitioner
from tests import families

MODE, SENTINELS = 2, (19, 18)


class Numbers:
  """A vocabulary whose text is its ids."""

  pad_id, eos_id, sentinel_ids = 0, families.EOS, SENTINELS
  cls_id, size = 2, families.VOCAB

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids):
    return " ".join(map(str, ids))

  def mode_ids(self, mode):
    return (MODE,)


@pytest.fixture(params=families.FAMILIES)
def predictor(request):
  return make_predictor(request.param)


def make_predictor(family, **overrides):
  model = families.make_model(family)
  fields = dict(
    model=model,
    params=families.random_params(model),
    paths=full_paths(model.stacks),
    objective=UL2(layout=family),
    vocabulary=Numbers(),
    partitioner=Partitioner(),
    batch_size=8,
    max_prompt_tokens=9,
  )
  return TextPredictor(**fields | overrides)


def likelihood(predictor, prompt, continuation):
  """Of one text, by the model itself, in a row of just its length."""
  inputs = np.array([MODE, *map(int, prompt.split()), SENTINELS[0]], np.int32)
  told = [int(word) for word in continuation.split()]
  pair = Pair(inputs, np.array([SENTINELS[0], *told], np.int32))
  read, written = len(inputs), len(told) + 1
  lengths = {
    "tokens": read + written - 1,
    "inputs": read + 1,
    "targets": written,
  }
  batch = families.make_batch(predictor.model, [[pair]], lengths)
  logits = families.logits(
    predictor.model, predictor.params, batch, predictor.paths
  )[0]
  scores = log_softmax(logits)[np.arange(len(logits)), batch["targets"][0]]
  return float(scores[len(scores) - len(told) :].sum())


PROMPTS = ["3", "4 5 6", *["4"] * 10]
CONTINUATIONS = [
  "7",
  "9 8 9 3 4 5 6 7 8 9 10 11",
  *(str(token) for token in range(3, 13)),
]


def test_scores_are_those_of_single_unpadded_rows(predictor):
  done = []
  scores = predictor.score(PROMPTS, CONTINUATIONS, watch=done.append)
  # Eleven short texts, of which three are left for a second batch.
  assert done == [1, 8, 3]
  for number in (0, 1, 11):
    expected = likelihood(predictor, PROMPTS[number], CONTINUATIONS[number])
    assert scores[number] == pytest.approx(expected, rel=1e-4, abs=1e-4)
  assert len(set(scores.round(3))) == len(scores)


def test_a_score_does_not_depend_on_other_texts(predictor):
  together = predictor.score(PROMPTS, CONTINUATIONS)
  backwards = predictor.score(PROMPTS[::-1], CONTINUATIONS[::-1])
  np.testing.assert_array_equal(together, backwards[::-1])
  alone = predictor.score(PROMPTS[1:2], CONTINUATIONS[1:2])
  np.testing.assert_array_equal(together[1:2], alone)


def test_nothing_is_certain_and_no_texts_have_no_scores(predictor):
  np.testing.assert_array_equal(predictor.score(["3 4"], [""]), [0])
  assert predictor.score([], []).shape == (0,)
  with pytest.raises(ValueError, match="shorter"):
    predictor.score(["3 4"], [])


def test_of_a_long_prompt_the_end_is_read(predictor):
  end = " ".join(["4", "5", "6"] * 3)
  long, short, other = predictor.score(
    ["9 10 11 " + end, end, "9 " + end[2:]], ["5"] * 3
  )
  assert long == short != other


def greedy(predictor, prompts, room):
  """So many tokens after each prompt, by the whole model for each token.

  The first one is the sentinel, which the model is given.
  """
  tokens = np.zeros((len(prompts), room), np.int32)
  tokens[:, 0] = SENTINELS[0]
  lengths = {"tokens": 3 + room, "inputs": 5, "targets": room}
  for place in range(1, room):
    rows = [
      [Pair(np.array([MODE, *prompt, SENTINELS[0]], np.int32), row)]
      for prompt, row in zip(prompts, tokens)
    ]
    batch = families.make_batch(predictor.model, rows, lengths)
    logits = families.logits(
      predictor.model, predictor.params, batch, predictor.paths
    )
    slots = batch["target_weights"].argmax(-1) + place
    ended = (tokens == families.EOS).any(-1)
    new = logits[np.arange(len(prompts)), slots].argmax(-1)
    tokens[:, place] = np.where(ended, 0, new)
  return tokens


def test_what_is_written_is_greedy(predictor, monkeypatch):
  monkeypatch.setattr(
    type(predictor.objective),
    "written_text",
    lambda self, targets, vocabulary: targets,
  )
  prompts = [[3, 4], [5, 6], [17, 8], [3, 3], [11, 12]]
  texts = predictor.write(
    [" ".join(map(str, prompt)) for prompt in prompts],
    Decoding(max_new_tokens=4),
  )
  expected = greedy(predictor, prompts, 5).tolist()
  assert [predictor.vocabulary.encode(text) for text in texts] == expected
  assert len(set(texts)) > 2


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_model_that_would_not_begin_with_its_sentinel_writes(family):
  predictor = make_predictor(family)
  decoding = Decoding(max_new_tokens=6)
  inputs = [
    predictor.objective.continuation([n], Numbers()) for n in range(3, 9)
  ]
  assert {} in predictor.fill(inputs, decoding)  # It does not choose it.
  texts = predictor.write([str(n) for n in range(3, 9)], decoding)
  assert sum(map(bool, texts)) > len(texts) / 2


def test_writing_ends_before_a_stop_string(predictor):
  prompts = ["3 4", "5 6", "17 8", "3 3", "11 12"]
  whole = predictor.write(prompts, Decoding(max_new_tokens=8))
  words = next(text.split() for text in whole if len(text.split()) > 3)
  stops = (" ".join(words[1:3]), "no such token")
  texts = predictor.write(
    prompts, Decoding(max_new_tokens=8, stop_strings=stops)
  )
  assert texts == [text.partition(stops[0])[0] for text in whole] != whole


def test_a_causal_model_reads_prompts_without_a_sentinel():
  model = families.make_model("decoder", attention="causal")
  predictor = make_predictor(
    "decoder",
    model=model,
    params=families.random_params(model),
    objective=CausalLM(),
  )
  prompt, continuation = [4, 5, 6], [7, 8]
  row = np.array([[Numbers.cls_id, *prompt, *continuation]])
  batch = {
    "tokens": row[:, :-1],
    "targets": row[:, 1:],
    "target_weights": np.array([[0, 0, 0, 1, 1]], np.float32),
    "segment_ids": np.ones((1, 5), np.int32),
    "positions": np.arange(5)[None],
  }
  score = jax.jit(model.score_batch)
  (expected,) = score(predictor.params, batch, predictor.paths)
  scores = predictor.score(["4 5 6"], ["7 8"])
  assert scores == pytest.approx([float(expected)], rel=1e-4)


def test_filling_gives_each_sentinel_its_span(monkeypatch):
  def write(model, params, prompts, lengths, paths, *, decoding, eos_id, **_):
    # For each sentinel twice what stands before it in the prompt.
    found = np.zeros((len(prompts), decoding.max_new_tokens), np.int32)
    for row, prompt in zip(found, np.asarray(prompts).tolist()):
      told = []
      for before, token in itertools.pairwise(prompt):
        if token in SENTINELS:
          told += [token, before, before]
      row[: len(told) + 1] = [*told, eos_id]
    return type(
      "Generated", (), {"tokens": predictor.partitioner.put_split(found)}
    )

  predictor = make_predictor("decoder")
  monkeypatch.setattr("raptr_jax.inference.text_predictor.generate", write)
  inputs = [[3, 19, 4, 18, 5], [6, *range(3, 17), 19], [7, 8]]
  assert predictor.fill(
    [np.array(tokens, np.int32) for tokens in inputs],
    Decoding(max_new_tokens=9),
  ) == [{19: [3, 3], 18: [4, 4]}, {19: [16, 16]}, {}]
  # A prompt is followed by the first sentinel, whether or not it is repeated.
  decoding = Decoding(max_new_tokens=9)
  assert predictor.write(["3 4", "5", ""], decoding) == ["4 4", "5 5", "2 2"]
