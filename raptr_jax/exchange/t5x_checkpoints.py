"""Checkpoints of T5X as ours: T5 v1.1 in the layout of its release.

The layout: kernels are [inputs, outputs] with heads and their width in one
axis, and each layer has arrays of its own, such as
`target.encoder.layers_0.attention.query.kernel`. The older form has a folder of
zarr for each array; the present one, which Orbax writes, has them in `state/`.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raptr_jax.contracts import Model, Params
from raptr_jax.exchange.hugging_face import read_tensors
from raptr_jax.exchange.t5 import T5
from raptr_jax.exchange.tensor_map import ExchangeError, Tensors
from raptr_jax.models.encoder_decoder import EncoderDecoderConfig
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM

TARGET = "target"  # What T5X calls parameters, beside the optimizer's state.
# Names there by patterns of those at Hugging Face, whose entries we share.
NAMES = (
  (r"shared\.weight", "token_embedder/embedding"),
  (r"lm_head\.weight", "decoder/logits_dense/kernel"),
  (
    r"(\w+)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
    r"\1/relpos_bias/rel_embedding",
  ),
  (r"(\w+)\.final_layer_norm\.weight", r"\1/\1_norm/scale"),
  (
    r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.(\w)\.weight",
    r"encoder/layers_\1/attention/\2",
  ),
  (
    r"decoder\.block\.(\d+)\.layer\.0\.SelfAttention\.(\w)\.weight",
    r"decoder/layers_\1/self_attention/\2",
  ),
  (
    r"decoder\.block\.(\d+)\.layer\.1\.EncDecAttention\.(\w)\.weight",
    r"decoder/layers_\1/encoder_decoder_attention/\2",
  ),
  (
    r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight",
    r"encoder/layers_\1/pre_attention_layer_norm/scale",
  ),
  (
    r"decoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight",
    r"decoder/layers_\1/pre_self_attention_layer_norm/scale",
  ),
  (
    r"decoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight",
    r"decoder/layers_\1/pre_cross_attention_layer_norm/scale",
  ),
  (
    r"(\w+)\.block\.(\d+)\.layer\.\d\.DenseReluDense\.(\w+)\.weight",
    r"\1/layers_\2/mlp/\3/kernel",
  ),
  (
    r"(\w+)\.block\.(\d+)\.layer\.\d\.layer_norm\.weight",
    r"\1/layers_\2/pre_mlp_layer_norm/scale",
  ),
)
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}


def read_t5x(folder: str | os.PathLike[str]) -> tuple[Model, Params]:
  """Our model of a checkpoint of T5X, and its parameters as NumPy arrays.

  Sizes come from the shapes; the activation is T5 v1.1's.

  Args:
    folder: of one checkpoint, such as `checkpoint_1000000`.

  Raises:
    ExchangeError: it is no checkpoint of T5X, of another architecture, or
      damaged.
  """
  path = Path(folder)
  try:
    arrays = T5XArrays(path)
    model = _model(arrays)
    tensors = _AtHuggingFace(arrays, T5.entries(model))
    return model, read_tensors(model, tensors)
  except ExchangeError as error:
    raise ExchangeError(f"{path}: {error}") from error


class T5XArrays(Mapping[str, np.ndarray]):
  """Parameters of a checkpoint by name; each is read when it is asked for.

  Args:
    folder: of the checkpoint.

  Raises:
    ExchangeError: it is in neither form.
  """

  def __init__(self, folder: Path):
    self._readers = {**_of_zarr(folder), **_of_orbax(folder)}
    if not self._readers:
      raise ExchangeError(
        f"expected a checkpoint of T5X, with folders {TARGET}.*, or a folder"
        " state/"
      )

  def __getitem__(self, name: str) -> np.ndarray:
    reader = self._readers[name]
    try:
      return reader()
    except Exception as error:  # Readers of damaged files raise all kinds.
      raise ExchangeError(f"{name} cannot be read ({_line(error)})") from error

  def __iter__(self) -> Iterator[str]:
    return iter(self._readers)

  def __len__(self) -> int:
    return len(self._readers)


class _AtHuggingFace(Mapping[str, np.ndarray]):
  """Arrays under the names and in the shapes that Hugging Face has."""

  def __init__(self, arrays: Mapping[str, np.ndarray], entries: Any):
    known = {_name_of(entry.theirs): entry.theirs for entry in entries}
    # What has no counterpart keeps its name, to be told.
    self._names = {known.get(name, name): name for name in arrays}
    self._arrays = arrays

  def __getitem__(self, name: str) -> np.ndarray:
    found = self._names[name]
    array = self._arrays[found]
    turned = found.endswith(("/kernel", "/rel_embedding"))
    return array.T if turned else array

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


def _name_of(theirs: str) -> str:
  """The name at T5X of a tensor of Hugging Face."""
  for pattern, name in NAMES:
    if match := re.fullmatch(pattern, theirs):
      found = match.expand(name)
      head, _, last = found.rpartition("/")
      if last in PROJECTIONS:
        return f"{head}/{PROJECTIONS[last]}/kernel"
      return found
  raise AssertionError(theirs)


def _of_zarr(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
  """Readers of the older form."""

  def reader(path: Path) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
      import tensorstore

      place = {"driver": "file", "path": str(path)}
      store = tensorstore.open({"driver": "zarr", "kvstore": place}).result()
      return np.asarray(store.read().result())

    return read

  return {
    path.name.removeprefix(f"{TARGET}.").replace(".", "/"): reader(path)
    for path in sorted(folder.glob(f"{TARGET}.*"))
    if path.is_dir()
  }


def _of_orbax(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
  """Readers of the form that Orbax writes."""
  state = folder / "state"
  if not state.is_dir():
    return {}
  import jax
  import orbax.checkpoint as ocp

  handler = ocp.PyTreeCheckpointHandler()
  try:
    tree = handler.metadata(state).tree
    leaves = jax.tree_util.tree_leaves_with_path(tree[TARGET])
  except Exception as error:
    raise ExchangeError(f"{state} is damaged ({_line(error)})") from error
  structure = jax.tree.structure(tree[TARGET])

  def reader(number: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
      only: list[Any] = [ocp.PLACEHOLDER] * len(leaves)
      only[number] = leaves[number][1]
      item = {TARGET: jax.tree.unflatten(structure, only)}
      restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        {TARGET: tree[TARGET]},
      )
      args = ocp.args.PyTreeRestore(
        item, restore_args=restore_args, partial_restore=True
      )
      found = jax.tree.leaves(handler.restore(state, args=args))
      return np.asarray(found[number])

    return read

  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): reader(number)
    for number, (path, _) in enumerate(leaves)
  }


def _line(error: Exception) -> str:
  """The beginning of what an error says."""
  return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _model(arrays: Tensors) -> EncoderDecoderLM:
  """Our model of the sizes that arrays have."""
  if any("/mlp/wi/" in name for name in arrays):
    raise ExchangeError(
      "it is of the first T5, whose MLP has no gate; this package has T5 v1.1"
    )
  heads, buckets = _array(arrays, "encoder/relpos_bias/rel_embedding").shape
  width, inner = _array(arrays, "encoder/layers_0/attention/query/kernel").shape
  vocabulary = _array(arrays, "token_embedder/embedding").shape[0]
  mlp_dim = _array(arrays, "encoder/layers_0/mlp/wi_0/kernel").shape[1]
  return EncoderDecoderLM(
    EncoderDecoderConfig(
      vocab_size=vocabulary,
      num_encoder_layers=_depth(arrays, "encoder"),
      num_decoder_layers=_depth(arrays, "decoder"),
      embed_dim=width,
      num_heads=heads,
      head_dim=math.ceil(inner / heads),
      mlp_dim=mlp_dim,
      activation="gelu_tanh",
      position_buckets=buckets,
    )
  )


def _array(arrays: Tensors, name: str) -> np.ndarray:
  if name not in arrays:
    raise ExchangeError(f"there is no array {name}, which T5 v1.1 has")
  return arrays[name]


def _depth(arrays: Tensors, stack: str) -> int:
  """Layers of a stack."""
  found = (re.match(rf"{stack}/layers_(\d+)/", name) for name in arrays)
  return 1 + max((int(match[1]) for match in found if match), default=-1)
