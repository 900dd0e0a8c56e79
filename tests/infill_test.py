import types

import numpy as np
import pytest

from raptr_jax.inference.infill import (
  Infill,
  Infilling,
  infills_page,
  make_infill,
)
from raptr_jax.tasks.objectives.denoising import hidden_spans
from raptr_jax.tasks.objectives.layouts import Pair
from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.training.partitioning import Partitioner

# As SentencePiece has them: the sign stands for the space before a word.
LETTERS = [*"abcdefgh", *(f"▁{letter}" for letter in "abcdefgh")]


class Pieces:
  """A vocabulary of letters, those that begin a word and those that do not."""

  pad_id, eos_id, sentinel_ids = 0, 1, (39, 38, 37, 36, 35, 34, 33, 32, 31, 30)

  def encode(self, text):
    pieces = [f"▁{word[0]}{word[1:]}" for word in text.split()]
    return [
      2 + LETTERS.index(f"▁{letter}" if begins else letter)
      for word in pieces
      for begins, letter in zip([True, *[False] * len(word)], word[1:])
    ]

  def decode(self, ids):
    pieces = [LETTERS[i - 2] for i in ids if 2 <= i < 2 + len(LETTERS)]
    return "".join(pieces).replace("▁", " ").removeprefix(" ")

  def mode_ids(self, mode):
    return (29,)


VOCABULARY = Pieces()
DOCUMENTS = ("a", "abc de fgh ab", "", "gh ab cd ef " * 20, "b cde " * 9, "abc")


def make_infilling(documents=DOCUMENTS, **overrides):
  task = types.SimpleNamespace(
    name="letters",
    objective=UL2(),
    documents=lambda split: iter(documents if split == "validation" else ()),
    vocabulary=lambda data_dir: VOCABULARY,
  )
  return Infilling(task=task, data_dir="data", **overrides)


def test_blanks_are_numbered_and_stay_within_words():
  #     ab [cd e]f g [h] a
  ab, cde, f, g, h, a = map(
    VOCABULARY.encode, ("ab", "cd e", "f", "g", "h", "a")
  )
  f = [LETTERS.index("f") + 2]
  pair = Pair(
    np.array([*ab, 39, *f, *g, 38, *a]), np.array([39, *cde, 38, *h, 1])
  )
  assert make_infill(pair, {39: h, 30: a}, VOCABULARY) == Infill(
    prompt="ab [1]f g [2] a", model="ab [h]f g [] a", truth="ab [cd e]f g [h] a"
  )
  inside = Pair(np.array([*ab, 39, *f]), np.array([39, *f, *cde, 1]))
  written = {39: [*f, *f]}
  assert make_infill(inside, written, VOCABULARY) == Infill(
    prompt="ab[1]f", model="ab[ff]f", truth="ab[f cd e]f"
  )


def fill(infilling, monkeypatch, answers):
  """Runs it with a model that gives `answers(prompt)` for a prompt's tokens."""

  def write(model, params, prompts, lengths, paths, *, decoding, eos_id, **_):
    tokens = np.zeros((len(prompts), decoding.max_new_tokens), np.int32)
    lengths = np.asarray(lengths)
    for row, prompt, length in zip(tokens, np.asarray(prompts), lengths):
      told = [*answers(prompt[:length].tolist()), eos_id]
      row[: len(told)] = told
    return types.SimpleNamespace(tokens=tokens)

  monkeypatch.setattr("raptr_jax.inference.text_predictor.generate", write)
  model = types.SimpleNamespace(stacks={})
  return infilling.infills(model, None, Partitioner())


def whole(text):
  """A text whose blanks have been filled."""
  return text.replace("[", "").replace("]", "")


def test_a_model_that_knows_the_text_fills_in_the_truth(monkeypatch):
  infilling = make_infilling(num_tokens=20)
  wanted = {}
  for pair in infilling._pairs(VOCABULARY):
    wanted[29, *pair.inputs.tolist()] = pair.targets[:-1].tolist()
  infills = fill(
    infilling, monkeypatch, lambda prompt: wanted.get(tuple(prompt), [])
  )
  assert [infill.model for infill in infills] == [i.truth for i in infills]
  # Those long enough for a blank, from their beginnings.
  assert [whole(infill.truth) for infill in infills] == [
    VOCABULARY.decode(VOCABULARY.encode(document)[:20])
    for document in (DOCUMENTS[1], DOCUMENTS[3], DOCUMENTS[4])
  ]
  for infill in infills:
    assert "[1]" in infill.prompt and infill.prompt != infill.truth


def test_a_prompt_has_the_mode_and_the_blanks(monkeypatch):
  seen = []
  infilling = make_infilling(num_texts=2, num_tokens=20)
  infills = fill(infilling, monkeypatch, lambda p: seen.append(p) or [])
  prompts = [prompt for prompt in seen if prompt != [0]]  # Rows left over.
  assert all(
    prompt[0] == 29 and prompt[1] in range(2, 18) for prompt in prompts
  )
  assert len(infills) == 2
  # 15 % of 20 tokens.
  pairs = list(infilling._pairs(VOCABULARY))
  spans = hidden_spans(
    pairs[1].targets, sentinel_ids=VOCABULARY.sentinel_ids, eos_id=1
  )
  assert sum(map(len, spans.values())) == 3
  assert sorted(prompts) == sorted([29, *pair.inputs] for pair in pairs)
  assert all("[]" in infill.model for infill in infills)


def test_fewer_texts_than_asked_for(monkeypatch):
  assert len(fill(make_infilling(num_texts=9), monkeypatch, lambda p: [])) == 4


def test_page():
  infills = [
    Infill("a [1]", "a [b]", "a [c]"),
    Infill("[1] d", "[] d", "[e] d"),
  ]
  assert infills_page(infills) == (
    "# Blanks in held-out text, filled by the model\n\n"
    "- blanks: a [1]\n- model: a [b]\n- truth: a [c]\n\n"
    "- blanks: [1] d\n- model: [] d\n- truth: [e] d\n"
  )


def test_arguments_that_do_not_fit_are_refused():
  for name in ("num_texts", "num_tokens", "max_new_tokens"):
    with pytest.raises(ValueError, match=rf"Infilling\.{name} = 0, expected"):
      make_infilling(**{name: 0})
  task = types.SimpleNamespace(name="words", objective=MaskedLM())
  with pytest.raises(ValueError, match=r"words is MaskedLM: set --gin.AT_END"):
    Infilling(task=task, data_dir="data")
