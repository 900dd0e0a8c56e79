"""The parameters that a run has trained."""

from raptr_jax.contracts import Params
from raptr_jax.training.checkpoint import restore_params
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.setup import abstract_state


def trained_params(
  experiment: Experiment, step: int | None = None
) -> tuple[Params, int]:
  """Parameters of all layers, on this machine's devices, and their step.

  Args:
    experiment: the run.
    step: of the checkpoint; None for the latest.

  Raises:
    FileNotFoundError: the run has no checkpoint, or none of this step.
    ValueError: the model had not grown to all its layers.
  """
  model_dir = experiment.model_dir
  found = restore_params(model_dir, abstract_state(experiment).params, step)
  if found is None:
    raise FileNotFoundError(
      f"MODEL_DIR = '{model_dir}' has no checkpoints: train first, or set"
      " --gin.MODEL_DIR to a trained run's folder."
    )
  params, step = found
  depths = experiment.depths(step - 1)
  for name, layers in experiment.model.stacks.items():
    if depths[name] < layers:
      raise ValueError(
        f"MODEL_DIR = '{model_dir}' is at step {step}, where the model's"
        f" {name} has grown to {depths[name]} of {layers} layers: continue"
        " training first."
      )
  return params, step
