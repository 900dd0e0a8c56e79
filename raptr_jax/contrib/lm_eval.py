r"""Our runs as the model `raptr_jax` of lm-evaluation-harness.

  python -m raptr_jax.contrib.lm_eval --model raptr_jax \
    --model_args folder=runs/decoder --tasks boolq

This is the harness's own program, to which the model is known. In Python,
import this module before `lm_eval.simple_evaluate(model="raptr_jax", ...)`.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from raptr_jax.contrib.harness import HarnessModel
from raptr_jax.inference.run import load


class RaptrLM(LM):
  """A run that answers the harness's requests.

  Args:
    folder: the MODEL_DIR of a trained run.
    layers: number of layers of the path that runs; None for all.
    step: of the checkpoint; None for the latest.
    data_dir: folder of all prepared tasks, for the vocabulary.
    batch_size: texts at once; None or "auto" for `Run`'s own.
    **ignored: what the harness passes to every model. JAX chooses the device.
  """

  def __init__(
    self,
    folder: str,
    *,
    layers: int | None = None,
    step: int | None = None,
    data_dir: str | None = None,
    batch_size: int | str | None = None,
    **ignored: Any,
  ):
    super().__init__()
    unknown = ignored.keys() - {"device", "max_batch_size"}
    if unknown:
      raise ValueError(
        f"--model_args has {sorted(unknown)}, expected folder, layers, step,"
        " data_dir or batch_size."
      )
    size = None if batch_size in (None, "auto") else int(batch_size)
    run = load(folder, step=step, data_dir=data_dir)
    self._model = HarnessModel.of_run(run, layers, batch_size=size)

  def loglikelihood(
    self, requests: Sequence[Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """See `HarnessModel.loglikelihood`."""
    with tqdm(total=len(requests), disable=disable_tqdm) as bar:
      return self._model.loglikelihood(
        [request.args for request in requests], watch=bar.update
      )

  def loglikelihood_rolling(
    self, requests: Sequence[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """See `HarnessModel.loglikelihood_rolling`."""
    with tqdm(disable=disable_tqdm, unit="window") as bar:
      return self._model.loglikelihood_rolling(
        [request.args[0] for request in requests], watch=bar.update
      )

  def generate_until(
    self, requests: Sequence[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    """See `HarnessModel.generate_until`."""
    with tqdm(total=len(requests), disable=disable_tqdm) as bar:
      return self._model.generate_until(
        [request.args for request in requests], watch=bar.update
      )


register_model("raptr_jax")(RaptrLM)

if __name__ == "__main__":
  cli_evaluate()
