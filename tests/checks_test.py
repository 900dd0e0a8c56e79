"""What a model says of a wrong batch, draw or key, in one sentence."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.models import checks

ROOT = Path(__file__).parent.parent
AXES = {"tokens": "B T", "positions": "B T", "targets": "B P"}
SHAPES = {"tokens": (2, 6), "positions": (2, 6), "targets": (2, 3)}
STACKS = {"encoder": 3, "decoder": 4}


class Reader:
  pass


def arrays(**shapes):
  found = SHAPES | shapes
  return {
    name: np.zeros(shape, np.int32)
    for name, shape in found.items()
    if shape is not None
  }


def mask(size, *, scales=None):
  return LayerDraw(np.ones(size, bool), np.ones(scales or size, np.float32))


def path(*indices, scales=None):
  size = len(indices) if scales is None else scales
  return LayerPath(np.asarray(indices, np.int32), np.ones(size, np.float32))


def check_batch(batch):
  checks.check_batch(batch, AXES, Reader())


def check_draws(draws):
  checks.check_draws(draws, STACKS)


def check_paths(paths):
  checks.check_paths(paths, STACKS)


def test_what_is_right_passes():
  check_batch(arrays(example_kind=(2, 1)))
  shapes = {n: jax.ShapeDtypeStruct(s, jnp.int32) for n, s in SHAPES.items()}
  check_batch(shapes)
  check_draws({"encoder": mask(3), "decoder": path(0, 3)})
  check_paths({"encoder": path(), "decoder": path(0, 1, 2, 3)})
  checks.check_dropout_key(None)
  checks.check_dropout_key(jax.random.key(0))


@pytest.mark.parametrize(
  ("batch", "message"),
  [
    (
      {"inputs": np.zeros((2, 6))},
      r"\['inputs'\], but Reader reads tokens, positions, targets: it lacks"
      " tokens, positions, targets",
    ),
    (arrays(positions=None), "it lacks positions"),
    (arrays(tokens=(6,)), r"tokens has the shape \(6,\), .* axes \[B, T\]"),
    (arrays(targets=(2, 3, 1)), r"targets .* axes \[B, P\]"),
    (
      arrays(targets=(4, 3)),
      r"targets has the shape \(4, 3\), expected B = 2 .* as in tokens",
    ),
    (arrays(positions=(2, 5)), "positions .* T = 6 .* as in tokens"),
  ],
)
def test_a_wrong_batch(batch, message):
  with pytest.raises(ValueError, match=message):
    check_batch(batch)


ENCODER = {"encoder": mask(3)}


@pytest.mark.parametrize(
  ("draws", "error", "message"),
  [
    (path(0, 1), TypeError, "draws are a LayerPath, expected a mapping .*'enc"),
    (
      {"stack": mask(3)},
      ValueError,
      r"for the stacks \['stack'\], but the model has \['decoder', 'encoder'\]",
    ),
    (ENCODER, ValueError, r"for the stacks \['encoder'\]"),
    (ENCODER | {"decoder": [0, 1]}, TypeError, "'decoder' is a list"),
    (ENCODER | {"decoder": mask(3)}, ValueError, r"mask .*\(3,\).*\(4,\)"),
    (
      ENCODER | {"decoder": mask(4, scales=3)},
      ValueError,
      r"scales of the shape \(3,\), expected \(4,\) for both",
    ),
    (
      ENCODER | {"decoder": mask((5, 4))},
      ValueError,
      r"mask of the shape \(5, 4\)",
    ),
    (
      ENCODER | {"decoder": path(0, 4)},
      ValueError,
      r"layers \[0, 4\], expected ascending numbers from 0 to 3",
    ),
    (ENCODER | {"decoder": path(-1, 1)}, ValueError, r"layers \[-1, 1\]"),
    (ENCODER | {"decoder": path(2, 1)}, ValueError, r"\[2, 1\].* ascending"),
    (ENCODER | {"decoder": path(1, 1)}, ValueError, r"\[1, 1\].* ascending"),
    (
      ENCODER | {"decoder": path(*range(5))},
      ValueError,
      r"indices of the shape \(5,\) .* at most 4 layers",
    ),
    (
      ENCODER | {"decoder": path(0, 1, scales=1)},
      ValueError,
      r"scales of the shape \(1,\)",
    ),
  ],
)
def test_wrong_draws(draws, error, message):
  with pytest.raises(error, match=message):
    check_draws(draws)
  with pytest.raises(error, match=message):
    check_paths(draws)


def test_writing_needs_paths():
  draws = ENCODER | {"decoder": path(0, 1)}
  check_draws(draws)
  with pytest.raises(TypeError, match=r"'encoder' is a LayerDraw.*path\(\)"):
    check_paths(draws)


def test_values_are_left_alone_while_a_program_is_traced():
  @jax.jit
  def run(draws):
    check_draws(draws)
    return draws["decoder"].indices.sum()

  assert run({"encoder": path(0), "decoder": path(0, 9)}) == 9
  with pytest.raises(ValueError, match="at most 4 layers"):
    run({"encoder": path(0), "decoder": path(*range(5))})


@pytest.mark.parametrize(
  ("key", "error", "message"),
  [
    (jax.random.PRNGKey(0), TypeError, r"uint32\[2\], expected a key"),
    (0, TypeError, "is int, expected a key"),
    (jax.random.split(jax.random.key(0), 3), ValueError, r"shape \(3,\)"),
  ],
)
def test_a_wrong_key(key, error, message):
  with pytest.raises(error, match=message):
    checks.check_dropout_key(key)


DOORS = """
import jax, numpy as np
from raptr_jax.contracts import LayerDraw
from raptr_jax.models.masked_stack import full_paths
from tests import families, bert_test

def report(function, *args):
  try:
    jax.eval_shape(function, *args)
  except (TypeError, ValueError) as error:
    print(str(error).partition("\\n")[0])
  else:
    print("nothing")

models = [bert_test.BertMaskedLM(bert_test.TINY)]
models += map(families.make_model, families.FAMILIES)
for model in models:
  params = jax.eval_shape(model.init, jax.random.key(0))
  batch = (
    bert_test.make_batch() if len(models) and model is models[0]
    else families.make_batch(model)
  )
  paths, short = full_paths(model.stacks), {"inputs": batch["tokens"]}
  first = next(iter(paths.values()))
  masks = {
    name: LayerDraw(np.ones(size, bool), np.ones(size, np.float32))
    for name, size in model.stacks.items()
  }
  old = jax.random.PRNGKey(0)
  report(lambda p: model.loss_fn(p, short, paths, None), params)
  report(lambda p: model.loss_fn(p, batch, first, None), params)
  report(lambda p: model.loss_fn(p, batch, paths, old), params)
  report(lambda p: model.score_batch(p, short, paths), params)
  report(lambda p: model.score_batch(p, batch, {"x": first}), params)
  if model is models[0]:
    continue
  tokens, lengths = np.ones((2, 3), np.int32), np.ones(2, np.int32)
  report(lambda p: model.start(p, tokens, lengths, masks, 4), params)
  report(lambda p: model.start(p, tokens, lengths[:1], paths, 4), params)
  report(lambda p: model.extend(p, lengths, {}, masks), params)
  report(lambda p: model.extend(p, tokens, {}, paths), params)
"""


def test_every_family_has_the_checks_at_its_door():
  """In a process without the checks of annotations, as users have it."""
  result = subprocess.run(
    [sys.executable, "-c", DOORS],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  lines = result.stdout.splitlines()
  expected = [
    "it lacks", "expected a mapping with one", "uint32[2]", "it lacks",
    "for the stacks ['x']",
  ]  # fmt: skip
  writing = [
    "is a LayerDraw, but writing", "lengths has the shape (1,), expected B = 2",
    "is a LayerDraw, but writing", "tokens has the shape (2, 3)",
  ]  # fmt: skip
  for line, part in zip(
    lines, expected + (expected + writing) * 2, strict=True
  ):
    assert part in line
