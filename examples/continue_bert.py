r"""Takes a BERT of Hugging Face further, and gives it back.

  python examples/continue_bert.py downloads/bert-base-uncased \
    --text=books --glue=glue --out=runs/further --steps=10000

It is imported, pretrained further with RaPTr on a folder of text, fine-tuned on
CoLA, and exported to a folder that transformers loads. BERT-Base wants a GPU;
each step can also be run by itself, by the commands that are printed.
"""

import argparse
import shlex

from raptr_jax import load, main


def further(args: argparse.Namespace) -> None:
  """Runs all steps; each goes on where it was stopped."""
  out = args.out
  raptr("--run_mode=import", f"--hf_dir={args.folder}", dir_of(out, "bert"))
  bert = load(f"{out}/bert")
  vocabulary = bert.vocabulary
  (depth,) = bert.model.stacks.values()
  lengths = (depth // 2, 3 * depth // 4, depth)  # Paths, in three stages.
  raptr(
    f"--gin_file={out}/bert/config.gin",
    "--gin_file=data/bert_text.gin",
    "--gin_file=methods/raptr.gin",
    f"--gin.checkpoint.Checkpointer.initial_checkpoint='{out}/bert'",
    f"--gin.VOCABULARY_PATH='{vocabulary.path}'",
    f"--gin.VOCABULARY_SIZE={vocabulary.size}",
    f"--gin.TASK_FEATURE_LENGTHS={bert.feature_lengths}",
    f"--gin.PATH_LENGTHS={lengths}",
    f"--gin.TEXT_DIR='{args.text}'",
    f"--gin.DATA_DIR='{out}/data'",
    f"--gin.TRAIN_STEPS={args.steps}",
    "--gin.LEARNING_RATE=5e-5",
    "--gin.OPTIMIZER=@optim.adamw()",
    dir_of(out, "further"),
  )
  raptr(
    "--gin_file=runs/fine_tune.gin",
    f"--gin.PRETRAINED='{out}/further'",
    "--gin.FINE_TUNING_TASK='cola'",
    f"--gin.FINE_TUNING_DIR='{args.glue}'",
    f"--gin.FINE_TUNING_LENGTH={min(64, *bert.feature_lengths.values())}",
    *args.flags,
    dir_of(out, "cola"),
  )
  raptr("--run_mode=export", dir_of(out, "further"), f"--hf_dir={out}/exported")


def use(folder: str) -> str:
  """The exported model in transformers: a sentence, with its mask filled."""
  import transformers

  fill = transformers.pipeline("fill-mask", model=folder, tokenizer=folder)
  text = f"In the beginning God {fill.tokenizer.mask_token} the heaven."
  best = fill(text)[0]["sequence"]
  return str(best)


def raptr(*flags: str) -> None:
  """Prints a command of the program, and runs it."""
  print("$ raptr", shlex.join(flags), flush=True)
  main.main(flags)


def dir_of(out: str, name: str) -> str:
  """The flag that names a run's folder."""
  return f"--gin.MODEL_DIR='{out}/{name}'"


def parser() -> argparse.ArgumentParser:
  """The arguments; further ones, --gin.NAME=VALUE, go to the fine-tuning."""
  found = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  found.add_argument("folder", help="a BERT: config.json, safetensors, vocab")
  found.add_argument("--text", required=True, help="folder of text")
  found.add_argument("--glue", required=True, help="folder with CoLA's files")
  found.add_argument("--out", required=True, help="where all runs go")
  found.add_argument("--steps", type=int, default=10_000)
  return found


if __name__ == "__main__":
  known, more = parser().parse_known_args()
  known.flags = more
  further(known)
  print(use(f"{known.out}/exported"))
