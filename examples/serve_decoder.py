r"""Trains a small decoder with RaPTr, and serves it with transformers.

  python examples/serve_decoder.py --out=runs/served

The decoder learns the King James Bible in some minutes on two CPU cores. Its
export, whole or a path of half of its layers, is an ordinary Llama or Granite:
`transformers serve`, vLLM and others load it, too.
"""

import argparse

from raptr_jax import main

LEAF = "experiments/quickstart_causal_lm_raptr.gin"


def train_and_export(out: str, *flags: str) -> None:
  """Trains, and exports the whole model and a path of three layers."""
  model_dir = f"--gin.MODEL_DIR='{out}/decoder'"
  main.main([f"--gin_file={LEAF}", model_dir, *flags])
  main.main(["--run_mode=export", model_dir, f"--hf_dir={out}/whole"])
  half = "--gin.exchange.layers=3"
  main.main(["--run_mode=export", model_dir, half, f"--hf_dir={out}/half"])


def generate(folder: str, prompt: str, max_new_tokens: int = 24) -> str:
  """What transformers writes with the model in a folder, greedily.

  Its pipeline decodes what is new by itself, and so loses the space before it.
  """
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  read = tokenizer(prompt, return_tensors="pt")
  found = model.generate(**read, max_new_tokens=max_new_tokens, do_sample=False)
  return str(tokenizer.decode(found[0], skip_special_tokens=True))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--out", required=True, help="where all folders go")
  known, more = parser.parse_known_args()
  train_and_export(known.out, *more)
  for name in ("whole", "half"):
    print(f"{name}: {generate(f'{known.out}/{name}', 'And the king said')}")
