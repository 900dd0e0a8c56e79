"""A variant of a model is its block and nothing else.

The blocks are in `fixtures/blocks/`; not a line of the package knows them.
"""

import functools
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.configuration import configure
from raptr_jax.contracts import LayerDraw
from raptr_jax.methods.draws import as_executed
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.training.setup import parameter_count
from raptr_jax.training.state import init_state
from raptr_jax.training.train_step import train_step
from tests import families
from tests.toy import ToyDataset, make_model, make_optimizer

BLOCKS = Path(__file__).parent / "fixtures" / "blocks"
sys.path.append(str(BLOCKS))
import parallel  # noqa: E402

CONFIG = make_model().config
PARALLEL = BertMaskedLM(CONFIG, block=parallel.ParallelBlock)
PATHS = ([0, 1, 3], [0, 2, 3], [0, 1, 2])


def draw(kept):
  mask = np.isin(np.arange(CONFIG.num_layers), kept)
  return {"stack": LayerDraw(mask, mask.astype(np.float32))}


def train(execution):
  """The state after three steps, on as many paths."""
  optimizer = make_optimizer(3)
  init = functools.partial(init_state, model=PARALLEL, optimizer=optimizer)
  state = nn.unbox(jax.jit(init)(jax.random.key(0)))
  step = jax.jit(
    functools.partial(train_step, model=PARALLEL, optimizer=optimizer)
  )
  losses = []
  for kept, batch in zip(PATHS, ToyDataset().batches(0)):
    draws = as_executed(draw(kept), execution)
    state, metrics = step(state, batch, draws, jax.random.key(1))
    losses.append(float(metrics["loss"]))
  return state, losses


def test_both_executions_train_a_block_of_ones_own_to_the_same_bits():
  (state, losses), (other, same) = map(train, ("gather", "cond"))
  assert np.isfinite(losses).all() and losses == same
  jax.tree.map(np.testing.assert_array_equal, state, other)
  fresh = nn.unbox(jax.jit(PARALLEL.init)(jax.random.key(0)))
  moved = jax.tree.map(lambda x, y: bool((x != y).any()), fresh, state.params)
  assert all(jax.tree.leaves(moved["stack"]))


def test_only_the_layers_parameters_are_others():
  standard, own = (
    nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    for model in (BertMaskedLM(CONFIG), PARALLEL)
  )
  width, mlp, layers = CONFIG.embed_dim, CONFIG.mlp_width, CONFIG.num_layers
  attention = 4 * (width * width + width)
  per_layer = attention + 2 * width * mlp + mlp + width + 2 * width
  assert parameter_count(own["stack"]) == layers * per_layer
  rest = [{k: v for k, v in p.items() if k != "stack"} for p in (standard, own)]
  assert rest[0] == rest[1]


def test_the_block_is_called_with_the_draws_scale():
  """By hand: the layers of a path, one after another."""
  params = nn.unbox(jax.jit(PARALLEL.init)(jax.random.key(0)))
  batch = next(ToyDataset().batches(0))
  draws = as_executed(draw([0, 2]), "gather")

  @functools.partial(jax.jit, static_argnums=0)
  def logits(model, params, batch, draws):
    return model.logits(params, batch, draws)

  rows = jax.tree.map(lambda p: p[np.array([0, 2])], params["stack"])
  short = BertMaskedLM(make_model(num_layers=2).config, parallel.ParallelBlock)
  np.testing.assert_allclose(
    logits(PARALLEL, params, batch, draws),
    logits(short, params | {"stack": rows}, batch, full_paths(short.stacks)),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_language_models_take_blocks_too(family):
  config = families.make_model(family).config
  if family == "decoder":
    model = DecoderLM(config, block=parallel.ParallelDecoderBlock)
    own = ("stack",)
  else:
    block = parallel.ParallelEncoderBlock
    model = EncoderDecoderLM(config, encoder_block=block)
    own = ("encoder",)
  params, batch = families.random_params(model), families.make_batch(model)
  expected = families.random_params(families.make_model(family))
  for name in model.stacks:
    same = jax.tree.structure(params[name]) == jax.tree.structure(
      expected[name]
    )
    assert same == (name not in own)
  results = [
    families.loss_and_gradients(
      model, params, batch, families.random_draws(model, 0, execution)
    )
    for execution in ("gather", "cond")
  ]
  jax.tree.map(families.assert_close, *results)
  assert np.isfinite(results[0][0])


def test_a_decoder_writes_by_its_blocks_extend():
  config = families.make_model("decoder").config
  model = DecoderLM(config, block=parallel.ParallelDecoderBlock)
  params, paths = families.random_params(model), full_paths(model.stacks)
  batch = families.make_batch(model, [families.PAIRS[:1]], {"tokens": 5})
  whole = families.logits(model, params, batch, paths)[0]

  @jax.jit
  def write(params, tokens):
    lengths = jnp.full(1, 3)
    start, cache = model.start(params, tokens[:, :3], lengths, paths, 2)
    logits = [start]
    for place in (3, 4):
      found, cache = model.extend(params, tokens[:, place], cache, paths)
      logits.append(found)
    return logits

  got = np.concatenate(write(params, batch["tokens"]))
  np.testing.assert_allclose(got, whole[2:], rtol=1e-3, atol=1e-4)


def test_gin_selects_a_block():
  configure.parse(
    ["experiments/quickstart_bert_raptr.gin", "parallel.gin"],
    ["--gin.MODEL_DIR='unused'"],
    search_paths=[str(BLOCKS)],
  )
  model = configure.build("MODEL")
  assert issubclass(model.block, parallel.ParallelBlock)
  config = model.config
  assert type(model.block(config, parent=None)) is parallel.ParallelBlock
  # Programs are shared between models that are built alike.
  again = configure.build("MODEL")
  assert model == again and hash(model) == hash(again)
  assert "block = @parallel.ParallelBlock" in configure.config_text()
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  own = jax.eval_shape(
    BertMaskedLM(config, parallel.ParallelBlock).init, jax.random.key(0)
  )
  assert shapes == nn.unbox(own)
