"""Cases of folders and files that cannot be used."""

import json
from pathlib import Path
from typing import Any

from chaos_suites.case import Case, gin

TASK = "data/bert_text"
NEW = gin("TEXT_DIR='HERE/text'", "DATA_DIR='HERE/new'")


def _text(content: bytes | None) -> dict[str, Any]:
  """A folder of text with one file, or with none, for a `Case`."""

  def arrange(here: Path) -> None:
    (here / "text").mkdir()
    if content is not None:
      (here / "text" / "words.txt").write_bytes(content)

  return {"flags": NEW, "arrange": arrange}


def _vocabulary(name: str, content: bytes) -> dict[str, Any]:
  """A file that is given as the vocabulary, for a `Case`."""
  given = gin(f"VOCABULARY_PATH='HERE/{name}'", "DATA_DIR='HERE/new'")
  return {
    "flags": given,
    "arrange": lambda here: (here / name).write_bytes(content),
  }


def _shard(here: Path) -> Path:
  return here / TASK / "train-00000.array_record"


def _halve(path: Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _halve_checkpoints(here: Path) -> None:
  """Cuts every file of all checkpoints; of one, the run would pass it over."""
  for path in (here / "run" / "checkpoints").rglob("*"):
    if path.is_file():
      _halve(path)
  _unfinish(here)


def _unfinish(here: Path) -> None:
  """Leaves the run as if it had been killed."""
  (here / "run" / "summary.json").unlink()


def _large_ids(here: Path) -> None:
  """Adds 5000 to all ids of the held-out rows, which a run reads first."""
  from raptr_jax.tasks.prepared import records

  path = here / TASK / "validation-00000.array_record"
  rows = [
    row._replace(tokens=row.tokens + 5_000) for row in records.read_shard(path)
  ]
  records.write_shard(path, rows)


def _swap_metadata(here: Path) -> None:
  path = here / TASK / "metadata.json"
  found = json.loads(path.read_text())
  del found["splits"]["train"]
  path.write_text(json.dumps(found))


INITIAL = "checkpoint.Checkpointer.initial_checkpoint"
DAMAGE = (
  # Text.
  Case("no text folder", NEW, ("HERE/text", "TEXT_DIR")),
  Case("empty text folder", words=("HERE/text", "TEXT_DIR"), **_text(None)),
  Case(
    "binary text",
    words=("HERE/text", "TEXT_DIR"),
    **_text(bytes(range(256)) * 99),
  ),
  Case(
    "text in Latin-1",
    words=("HERE/text", "TEXT_DIR"),
    **_text("für Äpfel ".encode("latin-1") * 999),
  ),
  Case(
    "one line of 30 MB",
    words=("HERE/new", "--run_mode=prepare"),
    **_text(b"and the light " * 2_200_000),
  ),
  Case("a few words", words=("320", "VOCABULARY_SIZE"), **_text(b"two words")),
  # Vocabularies.
  Case(
    "no vocabulary",
    gin("VOCABULARY_PATH='HERE/v.model'", "DATA_DIR='HERE/new'"),
    ("HERE/v.model", "VOCABULARY_PATH"),
  ),
  Case(
    "no SentencePiece model",
    words=("HERE/v.model", "VOCABULARY_PATH"),
    **_vocabulary("v.model", b"no vocabulary"),
  ),
  Case(
    "no WordPiece tokens",
    words=("HERE/v.txt", "3 ids", "--gin.VOCABULARY_SIZE=3"),
    **_vocabulary("v.txt", b"the\nof\nand\n"),
  ),
  Case(
    "a binary vocab.txt",
    words=("HERE/v.txt", "VOCABULARY_PATH"),
    **_vocabulary("v.txt", bytes(range(256))),
  ),
  Case(
    "a vocabulary by ending",
    words=("HERE/v.json", "VOCABULARY_PATH"),
    **_vocabulary("v.json", b"{}"),
  ),
  # Prepared records.
  Case(
    "a truncated shard",
    (),
    ("train-00000", "--run_mode=prepare"),
    lambda here: _halve(_shard(here)),
    has_data=True,
  ),
  Case(
    "an empty shard",
    (),
    ("train-00000", "--run_mode=prepare"),
    lambda here: _shard(here).write_bytes(b""),
    has_data=True,
  ),
  Case(
    "a missing shard",
    (),
    ("train-00000", "--run_mode=prepare"),
    lambda here: _shard(here).unlink(),
    has_run=True,
  ),
  Case(
    "ids beyond the vocabulary",
    (),
    ("validation-00000", "expected 0 to 319", "--run_mode=prepare"),
    _large_ids,
    has_data=True,
  ),
  Case(
    "metadata cut short",
    (),
    ("metadata.json", "prepare"),
    lambda here: _halve(here / TASK / "metadata.json"),
    has_data=True,
  ),
  Case(
    "metadata of another kind",
    (),
    ("metadata.json", "prepare"),
    lambda here: (here / TASK / "metadata.json").write_text("[1, 2]"),
    has_data=True,
  ),
  Case(
    "metadata without a split",
    (),
    ("metadata.json", "prepare"),
    _swap_metadata,
    has_data=True,
  ),
  Case(
    "damaged token counts",
    (),
    ("unigram_counts.npy", "prepare"),
    lambda here: _halve(here / TASK / "unigram_counts.npy"),
    has_data=True,
  ),
  Case(
    "another vocabulary",
    (),
    ("vocabulary.model", "DATA_DIR"),
    lambda here: _halve(here / TASK / "vocabulary.model"),
    has_data=True,
  ),
  Case(
    "other lengths",
    gin("TASK_FEATURE_LENGTHS={'inputs': 16}"),
    ("'inputs': 16", "DATA_DIR"),
    has_data=True,
  ),
  # Runs and their checkpoints.
  Case(
    "no initial checkpoint",
    gin(f"{INITIAL}='HERE/none'"),
    ("HERE/none", INITIAL),
    has_data=True,
  ),
  Case(
    "initial checkpoint of another model",
    gin(f"{INITIAL}='HERE/other'", "bert.BertConfig.embed_dim=64"),
    ("HERE/other", INITIAL, "64"),
    lambda here: (here / "run").rename(here / "other"),
    has_run=True,
  ),
  Case(
    "another model in the folder",
    gin("bert.BertConfig.embed_dim=64"),
    ("64", "MODEL_DIR"),
    _unfinish,
    has_run=True,
  ),
  Case(
    "cut checkpoints",
    (),
    ("MODEL_DIR", "HERE/run", "[15, 20, 24]"),
    _halve_checkpoints,
    has_run=True,
  ),
  Case(
    "evaluation without a run",
    ("--run_mode=eval",),
    ("HERE/run",),
    has_data=True,
  ),
  Case(
    "configuration of no run",
    gin("MODEL_DIR='HERE/run'"),
    ("HERE/run", "--gin.MODEL_DIR"),
    alone=True,
  ),
  Case(
    "unknown downstream task",
    ("--run_mode=eval", *gin("DOWNSTREAM_TASKS=('nonsense',)")),
    ("nonsense", "DOWNSTREAM_TASKS"),
    has_run=True,
  ),
  # Places.
  Case(
    "MODEL_DIR is a file",
    gin("MODEL_DIR='HERE/file'"),
    ("HERE/file", "MODEL_DIR"),
    lambda here: (here / "file").touch(),
    has_data=True,
  ),
  Case(
    "MODEL_DIR below a file",
    gin("MODEL_DIR='HERE/file/run'"),
    ("HERE/file", "MODEL_DIR"),
    lambda here: (here / "file").touch(),
    has_data=True,
  ),
  Case(
    "MODEL_DIR in proc",
    gin("MODEL_DIR='/proc/run'"),
    ("/proc/run", "MODEL_DIR"),
    has_data=True,
  ),
  Case(
    "DATA_DIR in proc",
    gin("DATA_DIR='/proc/data'"),
    ("/proc/data", "DATA_DIR"),
    has_data=True,
  ),
  Case(
    "DATA_DIR is a file",
    gin("DATA_DIR='HERE/file'"),
    ("HERE/file", "DATA_DIR"),
    lambda here: (here / "file").touch(),
    has_data=True,
  ),
  Case(
    "an unknown address",
    gin("MODEL_DIR='nowhere://bucket/run'"),
    ("nowhere://bucket/run", "MODEL_DIR"),
  ),
)
