import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from raptr_jax import main
from raptr_jax.models.flops import PEAK_FLOPS
from raptr_jax.training import targets
from raptr_jax.training.partitioning import Partitioner

LEAF = "--gin_file=experiments/quickstart_bert_raptr.gin"


def error_of(target):
  with pytest.raises((ValueError, ModuleNotFoundError)) as info:
    targets.described_devices(target)
  return str(info.value)


@pytest.mark.parametrize(
  "target",
  ["gpu", "h200", "h200:0", "h200:x", "b200:1", "v5e", "v5e:4", "v5e:4x0",
   "v7:2x2", "v5e:2x2x2x2", "cpu:2"],
)  # fmt: skip
def test_an_unknown_target_is_an_error_that_names_the_known_ones(target):
  assert error_of(target).startswith(f"TARGET = {target!r}, expected cpu, h200")


@pytest.mark.parametrize(
  ("target", "message"),
  [
    ("v5e:2x2x2", "expected 2 axes"),
    ("v5p:2x2", "expected 3 axes"),
    ("h100:12", "up to 8 GPUs, or hosts that have 8 each"),
  ],
)
def test_devices_that_do_not_exist_are_an_error(target, message):
  assert message in error_of(target)


@pytest.mark.parametrize(
  ("target", "package", "extra"),
  [("v5e:2x2", "libtpu", "tpu"), ("h200:1", "jax_cuda13_plugin", "cuda13")],
)
def test_without_its_plugin_a_target_says_what_to_install(
  target, package, extra, monkeypatch, tmp_path, capsys
):
  find_spec = importlib.util.find_spec
  plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: name not in plugins and find_spec(name, *rest),
  )
  with pytest.raises(SystemExit) as info:
    argv = [LEAF, "--dry_run", f"--gin.MODEL_DIR='{tmp_path}'"]
    main.main([*argv, f"--target={target}"])
  assert info.value.code == 2
  assert capsys.readouterr().err == (
    f"error: TARGET = '{target}' needs {package}, which is not installed: pip"
    f" install 'raptr_jax[{extra}]'\n"
  )


def test_only_a_plan_has_a_target(tmp_path, capsys):
  with pytest.raises(SystemExit) as info:
    main.main([LEAF, f"--gin.MODEL_DIR='{tmp_path}'", "--target=cpu"])
  assert info.value.code == 2
  assert "add --run_mode=plan" in capsys.readouterr().err


def test_the_cpu_is_that_of_this_machine():
  assert targets.described_devices("cpu") == tuple(jax.devices("cpu"))


def test_each_chip_has_a_peak_and_each_gpu_a_chip():
  assert targets.CHIPS.keys() <= PEAK_FLOPS.keys()
  assert {gpu.kind for gpu in targets.GPUS.values()} <= targets.CHIPS.keys()


def test_a_partitioner_uses_the_devices_it_is_given():
  devices = jax.devices()[:4]
  partitioner = Partitioner(tensor=2, devices=devices)
  assert partitioner.num_devices == 4
  assert partitioner.mesh.devices.shape == (2, 1, 2)
  assert set(partitioner.mesh.devices.flat) == set(devices)
  with pytest.raises(ValueError, match="a divisor of the 4 devices"):
    Partitioner(tensor=8, devices=devices)


class Described:
  """Stands for a device of a host that is not here."""

  platform = "gpu"

  def __init__(self, host):
    self.process_index = host


def test_described_hosts_count():
  devices = [Described(host) for host in (0, 0, 1, 1)]
  Partitioner(tensor=2, devices=devices)
  with pytest.raises(ValueError, match=r"several of the 2 hosts.* at most 2"):
    Partitioner(tensor=4, devices=devices)


@pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)
def test_tpus_are_described():
  """In a process of its own, since libtpu prints and stays."""
  program = (
    "from raptr_jax.training import targets; import jax;"
    "targets.stay_on_host();"
    "found = [targets.described_devices(t) for t in"
    " ('v4:2x2x1', 'v5e:4x4', 'v5p:2x2x2', 'v6e:1x1')];"
    "print([(d[0].device_kind, len(d)) for d in found],"
    " jax.devices()[0].platform)"
  )
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=Path(__file__).resolve().parent.parent,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout == (
    "[('TPU v4', 4), ('TPU v5 lite', 16), ('TPU v5', 8), ('TPU v6 lite', 1)]"
    " cpu\n"
  )
