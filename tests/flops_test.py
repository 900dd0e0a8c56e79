import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models import flops
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.masks import Mask
from tests.toy import ToyDataset


def test_a_block_by_hand():
  # B=2, T=3, D=4, F=16: projections 2*6*4*16, attention 2*2*2*3*3*4, MLP.
  expected = 768 + 288 + 2 * 6 * 4 * 32
  assert flops.block_flops(batch=2, length=3, width=4, mlp_dim=16) == expected


def test_a_step_is_three_forward_passes():
  step = flops.StepFlops(blocks={"stack": 10.0}, other=7.0)
  assert step.step({"stack": 4}) == 3 * 47


def unrolled_flops(config: BertConfig, batch) -> float:
  """XLA's count of a forward and backward pass without loops."""
  model = BertMaskedLM(config)
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  block = model.module

  def loss(params, batch):
    def blocks(module, batch):
      x = module.token_embedding(batch["tokens"])
      x = module.embedding_norm(x)
      mask = Mask(batch["segment_ids"], batch["segment_ids"])
      layers = params["stack"]["layers"]
      one = module.stack.make_block(parent=None)
      for i in range(config.num_layers):
        layer = jax.tree.map(lambda p, i=i: p[i], layers)
        scale = jnp.ones(())
        x = one.apply({"params": layer}, x, scale, mask, deterministic=True)
      return module.predict(x, batch["target_positions"]).sum()

    return block.apply({"params": params}, batch, method=blocks)

  compiled = jax.jit(jax.grad(loss)).lower(params, batch).compile()
  return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize(
  ("size", "length", "width", "heads"),
  [(4, 128, 256, 2), (8, 64, 512, 4), (2, 256, 384, 3)],
)
def test_counted_flops_are_those_of_xla(size, length, width, heads):
  config = BertConfig(
    vocab_size=1000,
    num_layers=2,
    embed_dim=width,
    num_heads=heads,
    norm="pre",
    activation="gelu_tanh",
    dropout_rate=0.0,
  )
  shape = jax.ShapeDtypeStruct
  names = ("tokens", "segment_ids", "positions")
  batch = {name: shape((size, length), np.int32) for name in names}
  batch |= {
    name: shape((size, 20), np.int32)
    for name in ("targets", "target_positions")
  }
  counted = BertMaskedLM(config).step_flops(batch).step({"stack": 2})
  assert counted == pytest.approx(unrolled_flops(config, batch), rel=0.02)


def test_utilisation_is_unknown_for_an_unknown_device():
  assert flops.utilisation(1e12) is None


def test_utilisation_of_a_known_device(monkeypatch):
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(flops.PEAK_FLOPS, kind, 1e12)
  assert flops.utilisation(4e12) == pytest.approx(4 / jax.device_count())


def test_predicted_positions_alone_are_counted_for_the_head():
  config = BertConfig(vocab_size=10, num_layers=1, embed_dim=4, num_heads=1)
  model = BertMaskedLM(config)
  shape = jax.ShapeDtypeStruct
  batch = {
    "tokens": shape((2, 8), np.int32),
    "targets": shape((2, 3), np.int32),
  }
  assert model.step_flops(batch).other == 2 * 6 * 4 * (4 + 10)


def test_dense_training_of_equal_flops_by_hand():
  model = BertMaskedLM(
    BertConfig(vocab_size=10, num_layers=12, embed_dim=4, num_heads=1)
  )
  dataset = ToyDataset()
  step = model.step_flops(dataset.batch_spec())
  steps = flops.equal_flop_steps(
    model=model, dataset=dataset, full_steps=1000, flop_factor=4 / 3
  )
  block = step.blocks["stack"]
  budget = 1000 * 3 * (9 * block + step.other)
  dense_step = 3 * (12 * block + step.other)
  assert abs(steps * dense_step - budget) <= dense_step / 2
  assert steps > 750  # The head costs every step of the method, too.
