"""What the compiled step does on four devices, see `tests/program_facts.py`.

They share the batch, and the parameters are split over them as well. In the
program "heads" pairs of them share the batch, and split heads and MLPs.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program_facts import LAYERS, SHORT

ROOT = Path(__file__).resolve().parent.parent
# Nothing runs: XLA optimises the program as always, LLVM its code as little as
# it can.
XLA_FLAGS = (
  "--xla_force_host_platform_device_count=4"
  " --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
)
TARGETS = {
  "cpu": ("jax", "short", "full", "cond", "heads"),
  "v5e:2x2": ("libtpu", "short", "cond"),
  "h200:4": ("jax_cuda12_plugin", "short", "cond", "heads"),
}
# Elements of the largest parameter of a layer, keys and values [D, 2, G, K];
# its inputs on a device have 12 x 128 x 128.
LARGEST_PARAMETER = 128 * 2 * 128


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request):
  """The facts of each program, and the name of the target."""
  package, *names = TARGETS[request.param]
  if not importlib.util.find_spec(package):
    pytest.skip(f"{package} is not installed")
  result = subprocess.run(
    [sys.executable, "-m", "tests.program_facts", request.param, *names],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": XLA_FLAGS},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  facts = json.loads(result.stdout.splitlines()[-1])
  return facts | {"target": request.param}


def test_only_cond_has_conditionals(compiled):
  # One in the forward pass, and one in the backward pass.
  assert compiled["cond"]["conditionals"] == 2
  assert compiled["short"]["conditionals"] == 0


def test_a_path_neither_copies_nor_adds_whole_stacks_in_its_loops(compiled):
  assert compiled["short"]["whole_stacks"] == []


def test_only_kept_layers_are_gathered(compiled):
  for found in compiled["short"]["collectives"]:
    assert all(axes[:1] != [LAYERS] for axes in found["axes"]), found
    if found["loops"]:
      assert found["times"] == SHORT
      # Parameters and their gradients move, not examples.
      sizes = map(math.prod, found["axes"])
      assert max(sizes) <= LARGEST_PARAMETER, found


def test_collectives_do_not_depend_on_which_layers_are_kept(compiled):
  assert compiled["is_one_program"]


def test_a_longer_path_only_repeats_the_collectives(compiled):
  if "full" not in compiled:
    pytest.skip("not compiled for this target")

  def moved(name):
    found = compiled[name]["collectives"]
    return sorted(
      (
        x["kind"],
        x["axes"],
        x["times"] // {"short": SHORT, "full": LAYERS}[name]
        if x["loops"]
        else 1,
      )
      for x in found
    )

  assert moved("short") == moved("full")


def test_split_parameters_stay_where_they_are(compiled):
  if "heads" not in compiled:
    pytest.skip("not compiled for this target")
  moved = {x["kind"] for x in compiled["heads"]["collectives"] if x["loops"]}
  assert moved == {"all-reduce"}


def test_attention_is_the_fused_kernel(compiled):
  kernel = {"v5e:2x2": "splash", "h200:4": "fmha"}.get(compiled["target"])
  if kernel is None:
    pytest.skip("the target has no fused kernel")
  for name in compiled.keys() & {"short", "cond", "heads"}:
    assert any(kernel in found for found in compiled[name]["kernels"]), name


def test_memory_is_that_of_the_kept_layers(compiled):
  """A quarter of the layers needs a quarter of the memory, and 10 % more."""
  if "full" not in compiled:
    pytest.skip("not compiled for this target")
  whole = compiled["full"]["temporary"]
  assert compiled["short"]["temporary"] <= (SHORT / LAYERS + 0.1) * whole
