"""Every implementation of attention computes the same."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from raptr_jax.models import attention
from raptr_jax.models.attention import Dropout, attend
from raptr_jax.models.masks import Mask
from raptr_jax.models.relative_positions import RelativeBias
from raptr_jax.training.partitioning import Partitioner

B, H, G, K = 2, 4, 2, 8

# Two packed examples and padding; the inputs of each come first.
SEGMENTS = np.zeros((B, 128), np.int32)
SEGMENTS[0, :50], SEGMENTS[0, 50:120], SEGMENTS[1, :90] = 1, 2, 1
INPUTS = np.zeros((B, 128), bool)
INPUTS[0, :20] = INPUTS[0, 50:90] = INPUTS[1, :70] = True
SOURCE = np.zeros((B, 256), np.int32)
SOURCE[0, :130], SOURCE[0, 130:200], SOURCE[1, :256] = 1, 2, 1

MASKS = {
  "packed": Mask(SEGMENTS, SEGMENTS),
  "causal": Mask(SEGMENTS, SEGMENTS, causal=True),
  "prefix": Mask(SEGMENTS, SEGMENTS, INPUTS, causal=True),
  "cross": Mask(SEGMENTS, SOURCE),
}
TABLE = np.random.default_rng(3).normal(0, 1, (H, 8)).astype(np.float32)


def normal(seed, *shape, dtype=jnp.float32):
  values = np.random.default_rng(seed).normal(0, 1, shape)
  return jnp.asarray(values, dtype)


def qkv(mask, dtype=jnp.float32, groups=G):
  length, source_length = mask.queries.shape[1], mask.keys.shape[1]
  return (
    normal(0, B, H, length, K, dtype=dtype),
    normal(1, B, groups, source_length, K, dtype=dtype),
    normal(2, B, groups, source_length, K, dtype=dtype),
  )


def output_and_gradients(mask, arrays, kernel, mesh=None, **kwargs):
  """Of the real tokens; those of padding are anything that is finite."""
  real = (mask.queries > 0)[:, None, :, None]
  direction = normal(4, *arrays[0].shape) * real

  def loss(arrays, kwargs):
    out = attend(*arrays, mask, scale=K**-0.5, kernel=kernel, **kwargs)
    wide = out.astype(jnp.float32)
    return (wide * direction).sum(), (wide * real, jnp.isfinite(wide).all())

  step = jax.grad(loss, (0, 1), has_aux=True, allow_int=True)
  if mesh is not None:
    step = mesh.on_mesh(step)
    arrays = jax.device_put(arrays, mesh.batch_sharding)
  # The library's kernels broadcast.
  with jax.numpy_rank_promotion("allow"):
    grads, (out, finite) = jax.jit(step)(arrays, kwargs)
  assert finite
  grads = [g for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0]
  return [out, *(g.astype(jnp.float32) for g in grads)]


def assert_agree(got, expected, tolerance):
  for a, b in zip(got, expected, strict=True):
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("groups", [G, H])
@pytest.mark.parametrize("kernel", ["chunked", "splash"])
@pytest.mark.parametrize("kind", MASKS)
def test_values_and_gradients_are_those_of_plain(
  monkeypatch, kind, kernel, groups
):
  monkeypatch.setattr(attention, "CHUNK", 48)  # Does not divide 128.
  mask = MASKS[kind]
  arrays = qkv(mask, groups=groups)
  expected = output_and_gradients(mask, arrays, "plain")
  got = output_and_gradients(mask, arrays, kernel)
  assert_agree(got, expected, 1e-5)


@pytest.mark.parametrize("kernel", ["plain", "chunked", "splash"])
def test_bfloat16_is_near_float32(monkeypatch, kernel):
  # In units of 2^-8, the rounding of one number, the largest errors seen are
  # 0.80 in values and 1.40 in gradients.
  monkeypatch.setattr(attention, "CHUNK", 48)
  mask = MASKS["prefix"]
  arrays = qkv(mask, jnp.bfloat16)
  wide = tuple(x.astype(jnp.float32) for x in arrays)
  expected = output_and_gradients(mask, wide, "plain")
  got = output_and_gradients(mask, arrays, kernel)
  assert_agree(got[:1], expected[:1], 2**-8)
  assert_agree(got[1:], expected[1:], 2 * 2**-8)


@pytest.mark.parametrize("kind", ["packed", "causal"])
def test_relative_positions_and_dropout_by_chunks(monkeypatch, kind):
  monkeypatch.setattr(attention, "CHUNK", 48)
  mask = MASKS[kind]
  arrays = qkv(mask)
  kwargs = dict(
    bias=RelativeBias(TABLE, 20, bidirectional=kind == "packed"),
    dropout=Dropout(jax.random.key(5), 0.3),
  )
  expected = output_and_gradients(mask, arrays, "plain", **kwargs)
  assert len(expected) == 5 and np.abs(expected[4]).max() > 0  # Of the table.
  got = output_and_gradients(mask, arrays, "chunked", **kwargs)
  assert_agree(got, expected, 1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
  weights = jnp.ones((2, 3, 40, 50))
  dropped = Dropout(jax.random.key(0), 0.25)(weights, 0)
  assert np.isclose((dropped == 0).mean(), 0.25, atol=0.02)
  np.testing.assert_allclose(dropped[dropped > 0], 1 / 0.75, rtol=1e-6)
  assert not np.array_equal(dropped[:, :, 0], dropped[:, :, 1])


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("kernel", ["chunked", "splash"])
def test_on_a_mesh(kernel, tensor):
  # With 4 shards, 2 heads of keys cannot be split.
  arrays = [jnp.concatenate([x] * 4) for x in qkv(MASKS["prefix"])]
  mask = jax.tree.map(lambda x: np.concatenate([x] * 4), MASKS["prefix"])
  expected = output_and_gradients(mask, arrays, "plain")
  mesh = Partitioner(tensor=tensor)
  got = output_and_gradients(mask, arrays, kernel, mesh=mesh)
  assert_agree(got, expected, 1e-5)


def test_a_mask_by_hand():
  queries = jnp.array([[1, 1, 1, 2, 2, 0]])
  inputs = jnp.array([[True, True, False, False, False, False]])
  packed = Mask(queries, queries).allowed()
  assert packed.shape == (1, 1, 6, 6)
  np.testing.assert_array_equal(
    Mask(queries, queries, inputs, causal=True).allowed()[0, 0],
    [
      [1, 1, 0, 0, 0, 0],
      [1, 1, 0, 0, 0, 0],
      [1, 1, 1, 0, 0, 0],
      [0, 0, 0, 1, 0, 0],
      [0, 0, 0, 1, 1, 0],
      [0, 0, 0, 0, 0, 1],
    ],
  )
  np.testing.assert_array_equal(
    Mask(queries, queries, causal=True).allowed(1, 2)[0, 0],
    [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]],
  )
  keys = jnp.array([[1, 2, 2]])
  np.testing.assert_array_equal(
    Mask(queries, keys).allowed()[0, 0],
    [[1, 0, 0]] * 3 + [[0, 1, 1]] * 2 + [[0, 0, 0]],
  )


def test_a_relative_bias_is_that_of_each_pair():
  bias = RelativeBias(TABLE, 20, bidirectional=True, shift=3)
  got = bias(2, 4, 11)
  for row, column in np.ndindex(4, 11):
    offset = column - (3 + 2 + row)
    expected = TABLE[:, int(bias.bucket(jnp.asarray(offset)))]
    np.testing.assert_array_equal(got[0, :, row, column], expected)


def temporary_bytes(kernel, length):
  segment_ids = jnp.ones((1, length), jnp.int32)
  x = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)

  def loss(query, keys, values):
    mask = Mask(segment_ids, segment_ids, causal=True)
    out = attend(query, keys, values, mask, scale=1.0, kernel=kernel)
    return out.sum()

  step = jax.jit(jax.grad(loss, (0, 1, 2)))
  return step.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes


def test_chunks_take_memory_for_the_keys_alone():
  # Four times the tokens: 16 times the pairs.
  assert temporary_bytes("chunked", 4096) < 5 * temporary_bytes("chunked", 1024)
  assert temporary_bytes("plain", 4096) > 10 * temporary_bytes("plain", 1024)


DEVICES = {
  "H100": AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"),
  "TPU": AbstractDevice("TPU v5 lite", 1, "tpu"),
  "CPU": AbstractDevice("cpu", None, "cpu"),
}


@pytest.mark.parametrize(
  ("device", "length", "dtype", "width", "kwargs", "expected"),
  [
    ("TPU", 512, "float32", 64, {}, "splash"),
    ("TPU", 500, "bfloat16", 64, {}, "chunked"),
    ("TPU", 128, "bfloat16", 64, {"dropout": 0.1}, "plain"),
    ("H100", 512, "bfloat16", 64, {}, "cudnn"),
    ("H100", 512, "float32", 64, {}, "chunked"),
    ("H100", 512, "bfloat16", 256, {}, "chunked"),
    ("H100", 512, "bfloat16", 64, {"dropout": 0.1}, "chunked"),
    ("H100", 512, "bfloat16", 64, {"bias": True}, "chunked"),
    ("H100", 1, "bfloat16", 64, {}, "plain"),
    ("CPU", 128, "float32", 64, {}, "plain"),
    ("CPU", 512, "bfloat16", 64, {}, "chunked"),
    (None, 512, "bfloat16", 64, {}, "chunked"),
  ],
)
def test_the_device_of_the_mesh_decides(
  monkeypatch, device, length, dtype, width, kwargs, expected
):
  called = []

  def record(name):
    def run(query, *_):
      called.append(name)
      return query

    return run

  for name in attention.IMPLEMENTATIONS:
    monkeypatch.setitem(attention.IMPLEMENTATIONS, name, record(name))
  query = jnp.zeros((1, 2, length, width), dtype)
  segment_ids = jnp.ones((1, length), jnp.int32)
  if "dropout" in kwargs:
    kwargs = {"dropout": Dropout(jax.random.key(0), kwargs["dropout"])}
  if "bias" in kwargs:
    kwargs = {"bias": RelativeBias(TABLE[:2], 20, True)}
  mesh = contextlib.nullcontext()
  if device is not None:
    mesh = jax.sharding.use_abstract_mesh(
      AbstractMesh((1,), ("data",), abstract_device=DEVICES[device])
    )
  mask = Mask(segment_ids, segment_ids)
  with mesh:
    attend(query, query, query, mask, scale=1.0, **kwargs)
  assert called == [expected]


@pytest.mark.parametrize(
  ("kwargs", "obstacle"),
  [
    ({"bias": RelativeBias(TABLE, 20, True)}, "relative positions"),
    ({"dropout": Dropout(jax.random.key(0), 0.1)}, "ATTENTION_DROPOUT_RATE"),
  ],
)
def test_what_a_fused_kernel_cannot_do_is_an_error(kwargs, obstacle):
  mask = MASKS["packed"]
  with pytest.raises(ValueError, match=f"ATTENTION_KERNEL.*{obstacle}"):
    attend(*qkv(mask), mask, scale=1.0, kernel="splash", **kwargs)
