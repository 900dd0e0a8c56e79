import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerPath
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.generate import generate
from raptr_jax.inference.stop_strings import stop_table
from raptr_jax.tasks.objectives import layouts
from tests import families
from tests.families import EOS


class Chain:
  """A generator whose logits [V, V, V] depend on the last two tokens alone."""

  def __init__(self):
    self.traces = 0
    self.steps = 0

  def start(self, params, prompts, lengths, paths, max_new_tokens):
    self.traces += 1
    end = lengths[:, None] - 1 + jnp.arange(-1, 1)[None]
    last = jnp.take_along_axis(prompts, jnp.maximum(end, 0), axis=1)
    return params[last[:, 0], last[:, 1]], {
      "last": last[None],
      "slot": jnp.zeros((), jnp.int32),
    }

  def extend(self, params, tokens, cache, paths):
    jax.debug.callback(self._count)
    last = jnp.stack([cache["last"][0, :, 1], tokens], axis=1)
    cache = {"last": last[None], "slot": cache["slot"] + 1}
    return params[last[:, 0], last[:, 1]], cache

  def _count(self):
    self.steps += 1


def write(
  params,
  prompts,
  *,
  model=None,
  keys=None,
  eos_id=EOS,
  lead=(),
  stops=None,
  **decoding,
):
  prompts = np.asarray(prompts)
  lengths = np.full(len(prompts), prompts.shape[1])
  return generate(
    model or Chain(),
    params,
    prompts,
    lengths,
    {},
    decoding=Decoding(**decoding),
    eos_id=eos_id,
    keys=keys,
    lead=lead,
    stops=stops,
  )


def random_chain(vocab, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 2, (vocab,) * 3).astype(np.float32)


def log_likelihood(params, prompt, text):
  """Of a text after a prompt of two tokens, by the chain's table."""
  tokens = [*prompt, *text]
  table = np.asarray(jax.nn.log_softmax(params))
  return sum(table[tuple(tokens[i : i + 3])] for i in range(len(text)))


# After 2 comes 3 or 4, after 3 anything, and after 4 the end.
BRANCHES = np.log(
  np.maximum(
    [
      [1, 0, 0, 0, 0],
      [1, 0, 0, 0, 0],
      [0, 0, 0, 0.6, 0.4],
      [0, 0.3, 0, 0.3, 0.4],
      [0, 1, 0, 0, 0],
    ],
    1e-30,
  ).astype(np.float32)
)
BRANCHES = np.broadcast_to(BRANCHES, (5, 5, 5))


def test_greedy_by_hand():
  out = write(BRANCHES, [[2, 2], [2, 4], [4, 3]], max_new_tokens=2)
  np.testing.assert_array_equal(out.tokens, [[3, 4], [1, 0], [4, 1]])
  np.testing.assert_array_equal(out.lengths, [2, 1, 2])
  np.testing.assert_allclose(
    out.scores, np.log([0.6 * 0.4, 1, 0.4]), rtol=1e-5, atol=1e-6
  )


def test_writing_stops_when_all_rows_have_ended():
  model = Chain()
  out = write(BRANCHES, [[2, 2], [2, 4]], model=model, max_new_tokens=9)
  jax.effects_barrier()
  np.testing.assert_array_equal(out.lengths, [3, 1])
  assert out.tokens.shape == (2, 9) and not out.tokens[:, 3:].any()
  assert model.steps == 2  # The first token needs none.


def test_the_end_may_be_any_token():
  out = write(BRANCHES, [[2, 2]], max_new_tokens=4, eos_id=4)
  np.testing.assert_array_equal(out.tokens, [[3, 4, 0, 0]])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_lead_is_read_before_the_text(num_beams):
  kind = dict(num_beams=num_beams, max_new_tokens=4)
  params = random_chain(6)
  out = write(params, [[2, 3], [4, 5]], lead=(3, 2), **kind)
  expected = write(params, [[2, 3, 3, 2], [4, 5, 3, 2]], **kind)
  for got, want in zip(jax.tree.leaves(out), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(got, want)


class Letters:
  """A vocabulary of words; ids beyond it spell nothing."""

  words = ("", "", " a", " ab", "ab", "c")
  size = len(words)

  def decode(self, ids):
    return "".join(self.words[token] for token in ids)


@pytest.mark.parametrize(
  ("stop_strings", "tokens", "size"),
  [
    (("c",), [2, 3, 5, 4], 3),
    (("abc",), [2, 3, 5, 4], 3),  # Two tokens spell it.
    (("abac", "aabc", "ba"), [2, 4, 4, 4], 3),
    (("a aba",), [2, 3, 4, 5], 3),
    (("aab", "b c"), [2, 2, 4, 5], 3),  # Of " a aab", the end counts.
    (("abb",), [3, 4, 5, 5], 4),
  ],
)
def test_a_stop_string_ends_a_text(stop_strings, tokens, size):
  params = np.full((7, 7, 7), -9.0, np.float32)
  before = (6, 6)
  for token in tokens:
    params[(*before, token)] = 9
    before = (before[1], token)
  stops = stop_table(stop_strings, Letters())
  model = Chain()
  out = write(
    params, [[6, 6]], model=model, eos_id=-1, stops=stops, max_new_tokens=4
  )
  jax.effects_barrier()
  assert out.lengths.tolist() == [size] and model.steps == size - 1
  np.testing.assert_array_equal(out.tokens, [tokens[:size] + [0] * (4 - size)])


def test_a_table_finds_the_stop_strings_of_any_text():
  rng = np.random.default_rng(0)
  stop_strings = ("ab a", "bab", "cc", " a a")
  table = stop_table(stop_strings, Letters())
  found = 0
  for _ in range(300):
    tokens, state = rng.integers(2, 6, 3), 0
    for token in tokens:
      state = table[state, token]
    text = Letters().decode(tokens)
    assert (state == len(table) - 1) == any(
      stop in text for stop in stop_strings
    )
    found += state == len(table) - 1
  assert 50 < found < 250


def test_parameters_and_the_end_are_arguments_of_one_program():
  model = Chain()
  first, second = (
    write(random_chain(6, seed), [[2, 3]], model=model, max_new_tokens=5)
    for seed in (0, 1)
  )
  write(random_chain(6), [[2, 3]], model=model, max_new_tokens=5, eos_id=4)
  assert model.traces == 1
  assert (first.tokens != second.tokens).any()


PROBABILITIES = np.array([0.05, 0.5, 0.15, 0.3])


@pytest.mark.parametrize(
  ("decoding", "expected"),
  [
    (
      dict(temperature=0.5, top_k=9),
      PROBABILITIES**2 / (PROBABILITIES**2).sum(),
    ),
    (dict(temperature=1.0, top_k=2), [0, 0.625, 0, 0.375]),
    (dict(temperature=1.0, top_p=0.6), [0, 0.625, 0, 0.375]),
    # The nucleus is that of what the k leave.
    (dict(temperature=1.0, top_p=0.6, top_k=2), [0, 1, 0, 0]),
  ],
)
def test_frequencies_of_drawn_tokens(decoding, expected):
  rows = 4000
  params = np.broadcast_to(np.log(PROBABILITIES), (4, 4, 4))
  out = write(
    params,
    np.zeros((rows, 2), int),
    max_new_tokens=1,
    keys=jax.random.split(jax.random.key(0), rows),
    **decoding,
  )
  expected = np.asarray(expected)
  counted = np.bincount(out.tokens[:, 0], minlength=4) / rows
  assert not counted[expected == 0].any()
  error = np.sqrt(expected * (1 - expected) / rows)
  np.testing.assert_array_less(abs(counted - expected), 4 * error + 1e-9)
  likelihood = np.log(PROBABILITIES)[out.tokens[:, 0]]
  np.testing.assert_allclose(out.scores, likelihood, rtol=1e-5)


def test_the_narrowest_draws_are_greedy():
  params, prompts = random_chain(7), [[2, 3], [4, 5], [6, 6]]
  keys = jax.random.split(jax.random.key(1), 3)
  greedy = write(params, prompts, max_new_tokens=6)
  for narrow in (dict(top_k=1), dict(top_p=1e-6)):
    drawn = write(
      params, prompts, keys=keys, temperature=1.0, max_new_tokens=6, **narrow
    )
    np.testing.assert_array_equal(drawn.tokens, greedy.tokens)
    np.testing.assert_allclose(drawn.scores, greedy.scores, rtol=1e-5)


def test_a_rows_draw_does_not_depend_on_its_batch():
  model, params = Chain(), random_chain(7)
  prompts = np.array([[2, 3], [4, 5], [6, 6], [2, 3]])
  keys = jax.random.split(jax.random.key(2), 4)

  def drawn(rows, params=params):
    return write(
      params,
      prompts[rows],
      model=model,
      keys=keys[rows],
      temperature=2.0,
      max_new_tokens=8,
      eos_id=-1,
    ).tokens

  together = drawn(np.arange(4))
  rows = np.array([3, 1])
  np.testing.assert_array_equal(drawn(rows), together[rows])
  assert (together[0] != together[3]).any()  # Only their keys differ.
  # Nor do later steps repeat the draws of earlier ones.
  flat = drawn(np.arange(4), np.zeros_like(params))
  assert all(len(set(row)) > 2 for row in flat.tolist())


@pytest.mark.parametrize(
  ("length_penalty", "text", "probability"),
  [
    # 4 end has 0.4; 3 4 end, which greedy finds, 0.24; 3 end 0.18.
    (0.0, [4, 1, 0, 0, 0], 0.4),
    # (8 / 7)^4 > log 0.24 / log 0.4.
    (4.0, [3, 4, 1, 0, 0], 0.24),
  ],
)
def test_beams_by_hand(length_penalty, text, probability):
  out = write(
    BRANCHES,
    [[2, 2], [2, 4]],
    max_new_tokens=5,
    num_beams=2,
    length_penalty=length_penalty,
  )
  np.testing.assert_array_equal(out.tokens, [text, [1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(out.lengths, [np.count_nonzero(text), 1])
  np.testing.assert_allclose(
    out.scores, [np.log(probability), 0], rtol=1e-5, atol=1e-6
  )


def test_a_search_stops_when_nothing_can_become_better():
  model = Chain()
  write(
    BRANCHES,
    [[2, 2]],
    model=model,
    max_new_tokens=20,
    num_beams=2,
    length_penalty=0.0,
  )
  jax.effects_barrier()
  assert model.steps == 1  # What is left has 0.6 x 0.4 at most.


@pytest.mark.parametrize(
  ("early_stopping", "text"),
  [
    (None, [4, 1, 0, 0, 0]),
    (True, [3, 4, 1, 0, 0]),
    (False, [3, 3, 4, 1, 0]),
    ("never", [3, 3, 3, 4, 1]),
  ],
)
def test_rules_by_which_beams_end_by_hand(early_stopping, text):
  """4 end, 3 4 end, 3 3 4 end, 3 3 3 4 end: 0.4, 0.24, 0.072, 0.0216.

  Over ((5 + length) / 6)^3, as ours is, the first is the best with -0.58. Over
  length^3, they are -0.115, -0.053, -0.041 and -0.031. Two have ended in step
  3, where `True` stops. After step 4, False stops, since 3 3 3 4 has -0.060 at
  its present length; "never" takes it for 5 tokens long.
  """
  out = write(
    BRANCHES,
    [[2, 2]],
    max_new_tokens=5,
    num_beams=2,
    length_penalty=3.0,
    early_stopping=early_stopping,
  )
  np.testing.assert_array_equal(out.tokens, [text])


def test_enough_beams_find_the_best_of_all_texts():
  vocab, room, length_penalty = 4, 4, 2.0
  prompts = np.array([[2, 3], [3, 3], [2, 2], [3, 2]])
  for seed in range(3):
    params = random_chain(vocab, seed)
    params[..., EOS] -= 3  # So that long texts win, too.
    out = write(
      params,
      prompts,
      max_new_tokens=room,
      num_beams=vocab**room,
      length_penalty=length_penalty,
    )
    assert out.lengths.max() == room
    for prompt, tokens, score in zip(prompts, out.tokens, out.scores):
      ended = {}
      for size in range(1, room + 1):
        for body in itertools.product((0, 2, 3), repeat=size - 1):
          likelihood = log_likelihood(params, prompt, (*body, EOS))
          value = likelihood / ((5 + size) / 6) ** length_penalty
          ended[(*body, EOS, *[0] * (room - size))] = value, likelihood
      best = max(ended, key=lambda text: ended[text][0])
      assert tuple(tokens.tolist()) == best
      np.testing.assert_allclose(score, ended[best][1], rtol=1e-5)


def test_a_text_without_end_counts_if_none_has_one():
  params = np.array(random_chain(5))
  params[..., EOS] = -np.inf
  out = write(params, [[2, 3], [4, 4]], max_new_tokens=3, num_beams=125)
  np.testing.assert_array_equal(out.lengths, [3, 3])
  for prompt, text, score in zip([[2, 3], [4, 4]], out.tokens, out.scores):
    texts = itertools.product((0, 2, 3, 4), repeat=3)
    best = max(texts, key=functools.partial(log_likelihood, params, prompt))
    assert tuple(text.tolist()) == best
    np.testing.assert_allclose(
      score, log_likelihood(params, prompt, best), rtol=1e-5
    )


# Prompts end as the inputs of `EncoderDecoderLayout` do, which adds the end.
PROMPTS = np.array([[5, 7, 9, 4, 1], [6, 1, 0, 0, 0], [3, 8, 2, 1, 0]])
LENGTHS = np.array([5, 2, 4])
ROOM = 4


def teacher_batch(model, texts):
  """The batch of these prompts as inputs and these texts as targets."""
  prompts = [row[:size] for row, size in zip(PROMPTS, LENGTHS)]
  if "encoder" in model.stacks:
    prompts = [row[:-1] for row in prompts]
  rows = [[layouts.Pair(*pair)] for pair in zip(prompts, texts)]
  lengths = {"tokens": 9, "inputs": 5, "targets": ROOM}
  return families.make_batch(model, rows, lengths)


def some_layers(model, *, full):
  """All layers, or but the second of each stack, scaled."""
  return {
    name: LayerPath(
      np.arange(size) if full else np.delete(np.arange(size), 1),
      np.full(size if full else size - 1, 1.0 if full else 1.3, np.float32),
    )
    for name, size in model.stacks.items()
  }


def write_both_ways(name, *, full, **decoding):
  """What is written, and what the whole model says of it [3, ROOM, V]."""
  model = families.make_model(name)
  params = families.random_params(model)
  paths = some_layers(model, full=full)
  out = generate(
    model,
    params,
    PROMPTS,
    LENGTHS,
    paths,
    decoding=Decoding(max_new_tokens=ROOM, **decoding),
    eos_id=-1,
  )
  batch = teacher_batch(model, np.asarray(out.tokens))
  logits = families.logits(model, params, batch, paths)
  likelihood = jax.nn.log_softmax(logits[batch["target_weights"] > 0])
  likelihood = likelihood.reshape(len(PROMPTS), ROOM, -1)
  told = np.take_along_axis(likelihood, out.tokens[..., None], axis=-1)
  np.testing.assert_allclose(out.scores, told.sum((1, 2)), rtol=1e-4)
  assert len(set(map(tuple, out.tokens.tolist()))) > 1  # Rows differ.
  return out, likelihood


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_greedy_is_what_the_whole_model_would_write(name, full):
  out, likelihood = write_both_ways(name, full=full)
  np.testing.assert_array_equal(likelihood.argmax(-1), out.tokens)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_beams_have_the_scores_of_the_whole_model(name):
  out, likelihood = write_both_ways(name, full=False, num_beams=5)
  assert (likelihood.argmax(-1) != out.tokens).any()  # It is not greedy.


@pytest.mark.parametrize(
  ("field", "values"),
  [
    ("max_new_tokens", dict(max_new_tokens=0)),
    ("temperature", dict(temperature=-1.0)),
    ("temperature", dict(top_k=3)),
    ("temperature", dict(top_p=0.9)),
    ("top_k", dict(temperature=1.0, top_k=0)),
    ("top_p", dict(temperature=1.0, top_p=1.5)),
    ("num_beams", dict(num_beams=0)),
    ("num_beams", dict(num_beams=2, temperature=1.0)),
    ("length_penalty", dict(length_penalty=-0.1)),
    ("stop_strings", dict(stop_strings="end")),
    ("stop_strings", dict(stop_strings=("",))),
    ("stop_strings", dict(stop_strings=("end",), num_beams=2)),
    ("early_stopping", dict(early_stopping="always")),
  ],
)
def test_errors_name_value_and_binding(field, values):
  with pytest.raises(ValueError, match=rf"Decoding\.{field} = .*, expected"):
    Decoding(**dict(max_new_tokens=4) | values)


def test_draws_need_keys():
  with pytest.raises(ValueError, match=r"temperature = 0\.5 .*expected keys"):
    write(BRANCHES, [[2, 2]], max_new_tokens=2, temperature=0.5)
