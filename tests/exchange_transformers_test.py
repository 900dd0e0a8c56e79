"""Our models and those of `transformers` are the same, in both directions.

Runs where PyTorch and transformers are installed.
"""

import jax
import numpy as np
import pytest

from raptr_jax.exchange.hugging_face import read_model
from raptr_jax.models.masked_stack import full_path, full_paths
from tests.exchange_test import MODELS, exported

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSES = {
  "bert": "AutoModelForMaskedLM",
  "t5": "AutoModelForSeq2SeqLM",
  "llama": "AutoModelForCausalLM",
  "granite": "AutoModelForCausalLM",
}
TOKENS = np.random.default_rng(1).integers(1, 40, (2, 9)).astype(np.int32)
READ = np.random.default_rng(2).integers(1, 40, (2, 7)).astype(np.int32)
CLOSE = dict(rtol=1e-5, atol=2e-5)


def rows(like):
  """Positions and segments of one document in each row."""
  positions = np.broadcast_to(np.arange(like.shape[1]), like.shape)
  return positions.astype(np.int32), np.ones_like(like)


def ours(name, model, params):
  positions, ones = rows(TOKENS)
  batch = {"tokens": TOKENS, "positions": positions, "segment_ids": ones}
  paths = full_paths(model.stacks)
  if name == "bert":
    batch |= {"target_positions": positions}
    paths = full_path(model.config.num_layers)
  if name == "t5":
    positions, ones = rows(READ)
    batch |= {"encoder_tokens": READ, "encoder_segment_ids": ones}
  apply = jax.jit(model.module.apply)
  return np.asarray(apply({"params": params}, batch, paths))


def theirs(name, model):
  tokens, read = (torch.tensor(x).long() for x in (TOKENS, READ))
  with torch.no_grad():
    if name == "t5":
      found = model(input_ids=read, decoder_input_ids=tokens)
    else:
      found = model(input_ids=tokens)
  return found.logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_there_and_back(tmp_path, name):
  model, params = exported(tmp_path / "ours", name, scale=0.1)
  kind = getattr(transformers, CLASSES[name])
  loaded = kind.from_pretrained(tmp_path / "ours").eval()
  logits = ours(name, model, params)
  assert np.abs(logits).max() > 0.1
  np.testing.assert_allclose(theirs(name, loaded), logits, **CLOSE)

  torch.manual_seed(0)
  fresh = type(loaded)(loaded.config).eval()
  with torch.no_grad():
    for parameter in fresh.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  fresh.save_pretrained(tmp_path / "theirs")
  found, read = read_model(tmp_path / "theirs")
  np.testing.assert_allclose(
    ours(name, found, read), theirs(name, fresh), **CLOSE
  )
