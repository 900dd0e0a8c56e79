"""The examples that exchange models with transformers run, at a small size."""

import contextlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

import raptr_jax
from tests.exchange_runs_test import KINDS, SMALL, place  # noqa: F401
from tests.fine_tuning_test import GRID, flags

ROOT = Path(__file__).resolve().parent.parent


def example(name):
  """An example as a module."""
  path = ROOT / "examples" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def further(place, tmp_path_factory):  # noqa: F811
  """The example of a BERT and the folder in which it has run."""
  folder = tmp_path_factory.mktemp("further")
  module = example("continue_bert")
  changes = {"EPOCHS": "1", "SEEDS": "1", "LEARNING_RATES": "(1e-3,)"}
  fine_tuning = {
    name: value
    for name, value in (GRID | changes).items()
    if name not in ("FINE_TUNING_TASK", "FINE_TUNING_LENGTH")
  }
  with contextlib.chdir(folder):
    shutil.copytree(place / "hf" / "bert", "downloaded")
    for split in ("train", "validation"):
      text = "sentence\tlabel\n" + "the king is\t1\nking the is\t0\n" * 12
      Path(f"cola-{split}.tsv").write_text(text, encoding="utf-8")
    arguments = ["downloaded", f"--text={place}/text", "--glue=.", "--out=out"]
    args = module.parser().parse_args([*arguments, "--steps=3"])
    args.flags = flags(fine_tuning)
    module.further(args)
  return module, folder / "out"


def test_a_bert_is_taken_further(further):
  _, out = further
  assert raptr_jax.load(out / "further").step == 3
  results = json.loads((out / "cola" / "results.json").read_text("utf-8"))
  assert results["task"] == "cola"
  assert (out / "exported" / "tokenizer.json").is_file()


def test_transformers_fill_with_what_was_exported(further):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  module, out = further
  assert "beginning" in module.use(str(out / "exported"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  """The example of a decoder and the folder in which it has run."""
  folder = tmp_path_factory.mktemp("served")
  module = example("serve_decoder")
  small = SMALL | KINDS["causal"][1] | {"TRAIN_STEPS": 2, "WARMUP_STEPS": 0}
  small |= {"COMPILATION_CACHE_DIR": None, "PATH_LENGTHS": (3, 4)}
  del small["TEXT_DIR"], small["records.fitted_vocabulary_size.at_most"]
  with contextlib.chdir(folder):
    module.train_and_export("out", *flags(small))
  return module, folder / "out"


def test_a_decoder_is_trained_and_exported(served):
  _, out = served
  assert raptr_jax.load(out / "decoder").model.stacks == {"stack": 4}
  assert all(
    (out / name / "config.json").is_file() for name in ("whole", "half")
  )


@pytest.mark.parametrize(("name", "layers"), [("whole", None), ("half", 3)])
def test_transformers_write_what_we_write(name, layers, served):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  module, out = served
  prompt = "And the king said"
  written = module.generate(str(out / name), prompt, max_new_tokens=5)
  run = raptr_jax.load(out / "decoder")
  ours = run.write(prompt, layers, max_new_tokens=5)
  assert written.split() == f"{prompt} {ours}".split()
