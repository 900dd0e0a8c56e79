"""Starts the real program, on runs of seconds."""

import contextlib
import functools
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 300  # A program that takes longer hangs.

# Three stages of eight steps; evaluations, checkpoints and entries fall
# together at some of their boundaries, and apart at others.
_RUN = {
  "TRAIN_STEPS": "24",
  "BATCH_SIZE": "8",
  "WARMUP_STEPS": "4",
  "EVAL_PERIOD": "6",
  "EVAL_BATCHES": "2",
  "CHECKPOINT_PERIOD": "5",
  "VOCABULARY_SIZE": "320",
  "FLOP_FACTOR": "None",
  "experiment.Experiment.report_period": "2",
}
_BERT = {
  "TASK_FEATURE_LENGTHS": "{'inputs': 32}",
  "NUM_LAYERS": "4",
  "bert.BertConfig.embed_dim": "32",
}
_FILES = {
  "bert": ("quickstart_bert_raptr", "bert_text", None),
  "stacking": ("quickstart_bert_raptr", "bert_text", "gradual_stacking"),
  "ul2": ("quickstart_ul2_encdec_raptr", "ul2_text", None),
}
_BINDINGS = {
  "bert": {**_BERT, "PATH_LENGTHS": "(2, 3, 4)"},
  "stacking": {**_BERT, "STACKING_LENGTHS": "(2, 3, 4)"},
  "ul2": {
    "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 32}",
    "AT_END": "()",
    "encoder_decoder.EncoderDecoderConfig.embed_dim": "32",
    "encoder_decoder.EncoderDecoderConfig.mlp_dim": "32",
    "encoder_decoder.EncoderDecoderConfig.head_dim": "8",
  },
}
RUNS = tuple(_FILES)
TEXT = (
  "the of and to in he was that it his her you with had for she as not at but"
  " be on they have him which said me so all my this from were when would there"
  " been one could out no an if what who them more up than do like man then by"
)


class Program:
  """The program, with text and prepared data of its own.

  Args:
    folder: for the text, the data, and compiled programs.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self._text = folder / "text"
    self._text.mkdir(parents=True, exist_ok=True)
    words = random.Random(0)
    documents = [
      " ".join(words.choices(TEXT.split(), k=60)) for _ in range(400)
    ]
    text = "\n\n".join(documents)
    (self._text / "words.txt").write_text(text, encoding="utf-8")

  def flags(self, run: str, model_dir: Path, **bindings: str) -> list[str]:
    """The command line of a run, without the program.

    Args:
      run: one of `RUNS`.
      model_dir: its folder.
      **bindings: macros, or parameters with "__" for ".", and their values.
    """
    experiment, data, method = _FILES[run]
    files = [f"experiments/{experiment}.gin", f"data/{data}.gin"]
    if method:
      files.append(f"methods/{method}.gin")
    values = _RUN | _BINDINGS[run]
    values |= {
      "TEXT_DIR": repr(str(self._text)),
      "TEXT_DOCUMENTS": "'paragraph'",
      "DATA_DIR": repr(str(self.folder / "data" / run)),
      "COMPILATION_CACHE_DIR": repr(str(self.folder / "programs")),
      "MODEL_DIR": repr(str(model_dir)),
    }
    values |= {name.replace("__", "."): v for name, v in bindings.items()}
    return [
      *(f"--gin_file={file}" for file in files),
      *(f"--gin.{name}={value}" for name, value in values.items()),
    ]

  @functools.cached_property
  def prepared(self) -> Path:
    """A DATA_DIR with the data of the run "bert"."""
    folder = self.folder / "data" / "bert"
    flags = self.flags("bert", self.folder / "unused")
    self._finish([*flags, "--run_mode=prepare"])
    return folder

  @functools.cached_property
  def finished(self) -> Path:
    """The MODEL_DIR of a run "bert" that is complete; its data is prepared."""
    folder = self.folder / "finished"
    _ = self.prepared
    self._finish(self.flags("bert", folder))
    return folder

  def _finish(self, flags: Sequence[str]) -> None:
    """Runs the program, which must succeed."""
    ended = self.run(flags)
    if ended.returncode:
      raise RuntimeError(ended.stderr)

  @contextlib.contextmanager
  def started(
    self, flags: Sequence[str], **environment: str
  ) -> Iterator[subprocess.Popen[str]]:
    """The program while it runs; ended at the end, with all it has started."""
    process = subprocess.Popen(
      [sys.executable, "-m", "raptr_jax.main", *flags],
      cwd=self.folder,
      env=os.environ
      | {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "JAX_PLATFORMS": "cpu"}
      | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    try:
      yield process
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
      process.wait()
      for pipe in (process.stdout, process.stderr):
        if pipe is not None:
          pipe.close()

  def run(
    self, flags: Sequence[str], **environment: str
  ) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end, and returns what it printed."""
    with self.started(flags, **environment) as process:
      out, err = process.communicate(timeout=SECONDS)
      code = process.returncode
      return subprocess.CompletedProcess(process.args, code, out, err)
