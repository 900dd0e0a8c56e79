"""Checkpoints of T5X, in both of their forms, as ours."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from raptr_jax.exchange.hugging_face import read_model, write_model
from raptr_jax.exchange.t5x_checkpoints import read_t5x
from raptr_jax.exchange.tensor_map import ExchangeError
from raptr_jax.models.encoder_decoder import EncoderDecoderConfig
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM
from tests.exchange_test import random_params

CONFIG = EncoderDecoderConfig(
  vocab_size=40,
  num_encoder_layers=2,
  num_decoder_layers=3,
  embed_dim=16,
  num_heads=2,
  head_dim=6,
  mlp_dim=24,
  activation="gelu_tanh",
  position_buckets=8,
)


def released(rng):
  """Arrays under the names and in the shapes of T5 v1.1's release."""
  width, inner, mlp = 16, 12, 24

  def array(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  def attention():
    return {
      **{n: {"kernel": array(width, inner)} for n in ("query", "key", "value")},
      "out": {"kernel": array(inner, width)},
    }

  def layer(*branches):
    norms = {
      "attention": "pre_attention_layer_norm",
      "self_attention": "pre_self_attention_layer_norm",
      "encoder_decoder_attention": "pre_cross_attention_layer_norm",
    }
    return {
      **{name: attention() for name in branches},
      **{norms[name]: {"scale": array(width)} for name in branches},
      "pre_mlp_layer_norm": {"scale": array(width)},
      "mlp": {
        "wi_0": {"kernel": array(width, mlp)},
        "wi_1": {"kernel": array(width, mlp)},
        "wo": {"kernel": array(mlp, width)},
      },
    }

  def stack(name, count, *branches):
    layers = {f"layers_{i}": layer(*branches) for i in range(count)}
    return {
      **layers,
      "relpos_bias": {"rel_embedding": array(2, 8)},
      f"{name}_norm": {"scale": array(width)},
    }

  decoder = stack("decoder", 3, "self_attention", "encoder_decoder_attention")
  return {
    "token_embedder": {"embedding": array(40, width)},
    "encoder": stack("encoder", 2, "attention"),
    "decoder": decoder | {"logits_dense": {"kernel": array(width, 40)}},
  }


def leaves(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def write_zarr(folder, tree):
  """The older form: a folder of zarr for each array."""
  folder.mkdir()
  for name, array in leaves(tree).items():
    path = folder / f"target.{name.replace('/', '.')}"
    spec = {
      "driver": "zarr",
      "kvstore": {"driver": "file", "path": str(path)},
      "create": True,
    }
    store = tensorstore.open(
      spec, dtype=array.dtype, shape=array.shape
    ).result()
    store.write(array).result()


def write_orbax(folder, tree):
  """The present form, with an optimizer's state."""
  state = {"target": tree, "state": {"step": np.asarray(3)}}
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(folder / "state", state)


WRITERS = {"zarr": write_zarr, "orbax": write_orbax}


@pytest.fixture(scope="module")
def tree():
  return released(np.random.default_rng(0))


@pytest.mark.parametrize("form", WRITERS)
def test_sizes_and_arrays_are_those_of_the_checkpoint(form, tree, tmp_path):
  WRITERS[form](tmp_path / "checkpoint_9", tree)
  model, params = read_t5x(tmp_path / "checkpoint_9")
  assert model == EncoderDecoderLM(CONFIG)
  layer = params["decoder"]["layers"]
  theirs = tree["decoder"]["layers_1"]
  query = layer["cross_attention"]["query"]["kernel"][1]
  np.testing.assert_array_equal(
    query.reshape(16, 12),
    theirs["encoder_decoder_attention"]["query"]["kernel"],
  )
  np.testing.assert_array_equal(
    layer["mlp"]["wi"]["kernel"][1][:, 1], theirs["mlp"]["wi_1"]["kernel"]
  )
  np.testing.assert_array_equal(
    layer["cross_attention_norm"]["scale"][1],
    theirs["pre_cross_attention_layer_norm"]["scale"],
  )
  np.testing.assert_array_equal(
    params["encoder_positions"]["embedding"],
    tree["encoder"]["relpos_bias"]["rel_embedding"],
  )
  np.testing.assert_array_equal(
    params["head"]["kernel"], tree["decoder"]["logits_dense"]["kernel"]
  )


def test_every_array_arrives_once(tree, tmp_path):
  """By what leaves for Hugging Face, where each has a tensor of its own."""
  write_zarr(tmp_path / "t5x", tree)
  model, params = read_t5x(tmp_path / "t5x")
  write_model(tmp_path / "hf", model, params)
  _, back = read_model(tmp_path / "hf")
  jax.tree.map(np.testing.assert_array_equal, back, params)
  theirs = np.sort(np.concatenate([x.ravel() for x in leaves(tree).values()]))
  ours = np.sort(np.concatenate([x.ravel() for x in jax.tree.leaves(params)]))
  np.testing.assert_array_equal(theirs, ours)


def without(tree, *path):
  """The tree without what is at a path."""
  if len(path) == 1:
    return {name: x for name, x in tree.items() if name != path[0]}
  head, *rest = path
  return tree | {head: without(tree[head], *rest)}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: without(t, "token_embedder"), "no array token_embedder"),
    (
      lambda t: without(t, "decoder", "layers_2", "mlp", "wo"),
      "DenseReluDense.wo.weight",
    ),
    (
      lambda t: t | {"adapter": {"scale": np.ones(3, np.float32)}},
      "no place for the tensors adapter/scale",
    ),
    (
      lambda t: (
        t
        | {
          "encoder": t["encoder"] | {"layers_0": {"mlp": {"wi": {"kernel": 0}}}}
        }
      ),
      "first T5",
    ),
  ],
)
def test_what_is_not_t5_1_1_is_named(change, message, tree, tmp_path):
  changed = jax.tree.map(np.asarray, change(tree))
  write_orbax(tmp_path / "c", changed)
  with pytest.raises(ExchangeError, match=message):
    read_t5x(tmp_path / "c")


def test_damage_and_other_folders_are_named(tree, tmp_path):
  with pytest.raises(ExchangeError, match="expected a checkpoint of T5X"):
    read_t5x(tmp_path)
  write_zarr(tmp_path / "c", tree)
  broken = tmp_path / "c" / "target.token_embedder.embedding" / ".zarray"
  broken.write_text("{")
  with pytest.raises(ExchangeError, match="token_embedder/embedding cannot be"):
    read_t5x(tmp_path / "c")


def test_random_parameters_have_the_same_shapes(tree, tmp_path):
  write_zarr(tmp_path / "c", tree)
  _, params = read_t5x(tmp_path / "c")
  fresh = random_params(EncoderDecoderLM(CONFIG), 1.0)
  shapes = [jax.tree.map(np.shape, x) for x in (params, fresh)]
  assert shapes[0] == shapes[1]
