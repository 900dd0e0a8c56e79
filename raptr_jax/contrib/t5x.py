"""Our models and methods in t5x's own trainer, by t5x's own gin files.

t5x is on no package index: install it from its repository. Then `Model` is what
its `train` trains, and `Trainer` its `trainer_cls`, which draws the layers of
each step. Data, checkpoints, optimizers, learning rates and evaluation are
t5x's. `docs/from_python.md` has a gin file.

A step draws its layers in its compiled program, so that there is one program,
and a dropped layer is skipped by a conditional. Draws are a function of t5x's
seed and of the step alone: a run that is restored goes on with those that it
would have had, on any number of hosts and with any number of microbatches.
"""

from collections.abc import Mapping
from typing import Any

import clu.metrics
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning as flax_partitioning
from t5x import metrics as t5x_metrics
from t5x import models as t5x_models
from t5x import trainer as t5x_trainer

from raptr_jax.contracts import DeviceBatch, Draws, Params, Policy
from raptr_jax.contracts import Model as RaptrModel
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.generate import Generator, generate
from raptr_jax.methods.draws import stack_keys
from raptr_jax.models.masked_stack import full_paths

DRAW_STREAM = 1  # Separates the key of the draws from those of the steps.
# Our names of axes that t5x's rules have, too. Others get names of axes that the
# rules never split, and that Adafactor takes for outputs; each once in an array.
SHARED_AXES = ("embed", "heads", "layers", "mlp", "vocab")
OTHER_AXES = ("kv", "mlp_activations")


class Model(t5x_models.BaseModel):
  """A model of ours and its method, as t5x's `train` takes a model.

  Args:
    model: what is trained.
    policy: which layers run in a step: one policy for all stacks, which still
      draw independently, or a mapping with one for each.
    optimizer_def: one of t5x's.
    vocabulary: of the task, as seqio has it.
    feature_converter: of `tasks/seqio_features.py`, which makes the model's
      batches.
    max_new_tokens: that it writes to answer, where t5x asks for predictions.
  """

  def __init__(
    self,
    model: RaptrModel,
    policy: Policy | Mapping[str, Policy],
    optimizer_def: Any,
    vocabulary: Any,
    feature_converter: Any,
    max_new_tokens: int = 64,
  ):
    super().__init__(optimizer_def)
    self.model = model
    self.policies: Mapping[str, Policy] = (
      policy
      if isinstance(policy, Mapping)
      else dict.fromkeys(model.stacks, policy)
    )
    for name, layers in model.stacks.items():
      if self.policies[name].num_layers != layers:
        raise ValueError(
          f"The model's {name} has {layers} layers, but its policy is for"
          f" {self.policies[name].num_layers}: set NUM_LAYERS for both."
        )
    self.input_vocabulary = self.output_vocabulary = vocabulary
    self.FEATURE_CONVERTER_CLS = feature_converter
    self.max_new_tokens = max_new_tokens

  def draws(self, key: jax.Array, step: jax.Array) -> Draws:
    """The layers that run in a step.

    Args:
      key: t5x's for the whole run.
      step: traced or not.
    """
    keys = stack_keys(
      jax.random.fold_in(_typed(key), DRAW_STREAM), self.policies
    )
    return {
      name: policy(keys[name], step) for name, policy in self.policies.items()
    }

  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> Any:
    """Fresh parameters, and the names of their axes as t5x keeps them."""
    del input_shapes, input_types  # Our parameters do not depend on them.
    boxed = self.model.init(_typed(rng))
    return flax.core.freeze(
      {"params": nn.unbox(boxed), "params_axes": _axes(boxed)}
    )

  def loss_fn(
    self,
    params: Params,
    batch: DeviceBatch,
    dropout_rng: jax.Array | None,
    draws: Draws | None = None,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The loss, summed over targets, and t5x's metrics.

    Args:
      params: parameters.
      batch: of the model's task.
      dropout_rng: None switches dropout off.
      draws: the layers that run; None for all, as t5x's evaluation has it.
    """
    key = None if dropout_rng is None else _typed(dropout_rng)
    full = full_paths(self.model.stacks)
    loss, found = self.model.loss_fn(params, batch, draws or full, key)
    mean = clu.metrics.Average
    metrics = {
      "loss": t5x_metrics.AveragePerStep(total=loss),
      "loss_per_target": mean(total=found["loss"], count=found["weight"]),
      "accuracy": mean(total=found["accuracy"], count=found["weight"]),
    }
    for name, layers in self.model.stacks.items():
      kept = (draws or full)[name].kept_mask(layers).sum()
      metrics[f"layers/{name}"] = mean(
        total=kept.astype(jnp.float32), count=jnp.ones(())
      )
    return loss, metrics

  def score_batch(
    self,
    params: Params,
    batch: DeviceBatch,
    return_intermediates: bool = False,
  ) -> jax.Array:
    """Log-likelihood of each example's targets, in nats."""
    del return_intermediates  # There are none.
    paths = full_paths(self.model.stacks)
    return self.model.score_batch(params, batch, paths)

  def predict_batch_with_aux(
    self,
    params: Params,
    batch: DeviceBatch,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What an encoder-decoder writes greedily for its inputs.

    Raises:
      ValueError: the model does not write, or reads no inputs of their own.
    """
    del rng
    if not isinstance(self.model, Generator) or "encoder_tokens" not in batch:
      raise ValueError(
        f"{type(self.model).__name__} makes no predictions in t5x, which only"
        " our encoder-decoders do: evaluate it by its loss."
      )
    written = generate(
      self.model,
      params,
      batch["encoder_tokens"],
      (batch["encoder_segment_ids"] > 0).sum(-1),
      full_paths(self.model.stacks),
      decoding=Decoding(max_new_tokens=self.max_new_tokens),
      eos_id=self.output_vocabulary.eos_id,
    )
    return written.tokens, {}


class Trainer(t5x_trainer.Trainer):
  """t5x's trainer, which draws the layers of each step.

  Evaluation is of the full model. In gin, bind `num_microbatches` and
  `learning_rate_fn` of this class: those of `trainer.Trainer` are not its own.
  """

  @t5x_trainer.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(train_state: Any, batch: DeviceBatch) -> Any:
      step = train_state.step
      return t5x_trainer.train_with_lr(
        train_state,
        batch,
        learning_rate=self._learning_rate_fn(step),
        dropout_rng=self._get_step_rng(step),
        model=_OnPath(self._model, self._model.draws(self._base_rng, step)),
        num_microbatches=self._num_microbatches,
        weight_metrics_computer=self._weight_metrics_computer,
        data_partition_spec=self._partitioner.data_partition_spec,
      )

    data = self._partitioner.data_partition_spec
    return self._partitioner.partition(
      train_step,
      in_axis_resources=(self._train_state_axes, data),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )


class _OnPath:
  """A model in one step: what t5x's step asks for its loss."""

  def __init__(self, model: Model, draws: Draws):
    self._model, self._draws = model, draws

  def loss_fn(
    self, params: Params, batch: DeviceBatch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, dict[str, Any]]:
    return self._model.loss_fn(params, batch, dropout_rng, self._draws)


def _typed(key: jax.Array) -> jax.Array:
  """t5x's keys, which are arrays of numbers, as JAX has them today."""
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  kind = {2: "threefry2x32", 4: "unsafe_rbg"}[key.shape[-1]]
  return jax.random.wrap_key_data(key, impl=kind)


def _axes(boxed: Params) -> Any:
  """Names of the axes of parameters, where and as t5x looks for them."""

  def names(box: Any) -> Any:
    found = box.names if isinstance(box, nn.Partitioned) else [None] * box.ndim
    others = iter(OTHER_AXES)
    known = (x if x in SHARED_AXES else next(others) for x in found)
    return flax_partitioning.AxisMetadata(tuple(known))

  tree = jax.tree.map(
    names, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )
  flat = flax.traverse_util.flatten_dict(tree)
  return flax.traverse_util.unflatten_dict(
    {(*path[:-1], f"{path[-1]}_axes"): axes for path, axes in flat.items()}
  )
