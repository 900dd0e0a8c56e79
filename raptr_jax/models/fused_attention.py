"""The fused attention kernels of JAX, for our masks.

They keep no logits. Both come with JAX, so that they fit its version. Pallas
kernels are not partitioned by XLA: `splash` is mapped by hand over the shards
of the mesh that a program is traced for (see `Partitioner.on_mesh`).
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float

from raptr_jax.models.masks import Mask
from raptr_jax.models.remat import ATTENTION
from raptr_jax.models.shards import TENSOR_AXIS, automatic_axes, batch_axes

Kernel: TypeAlias = Callable[..., Array]
# Of rows of tokens: the lanes of a TPU's registers.
SPLASH_MULTIPLE = 128


def cudnn(
  query: Float[Array, "B H T K"],
  keys: Float[Array, "B G S K"],
  values: Float[Array, "B G S K"],
  mask: Mask,
  scale: float,
) -> Float[Array, "B H T K"]:
  """CuDNN's kernel, which takes a mask that the heads share: [B, 1, T, S]."""
  by_token = [jnp.moveaxis(x, 1, 2) for x in (query, keys, values)]
  shape = (query.shape[0], 1, query.shape[2], keys.shape[2])
  mixed = jax.nn.dot_product_attention(
    by_token[0],
    by_token[1],
    by_token[2],
    mask=jnp.broadcast_to(mask.allowed(), shape),
    # Blocks above the diagonal are left out.
    is_causal=mask.causal and mask.in_prefix is None,
    scale=scale,
    implementation="cudnn",
  )
  return jnp.moveaxis(mixed, 2, 1)


def splash(
  query: Float[Array, "B H T K"],
  keys: Float[Array, "B G S K"],
  values: Float[Array, "B G S K"],
  mask: Mask,
  scale: float,
) -> Float[Array, "B H T K"]:
  """The TPU kernel, on each shard of the mesh; interpreted elsewhere.

  Of inputs and targets, each has its own pass: inputs attend to the inputs of
  their segment, targets to what precedes them.
  """
  mesh = jax.sharding.get_abstract_mesh()
  # The kernel has no scale.
  query = (query.astype(jnp.float32) * scale).astype(query.dtype)
  batch = query.shape[0]
  mask = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, x.shape[1])), mask)
  run: Kernel = functools.partial(_shard, interpret=_platform(mesh) != "tpu")
  return _over_shards(run, mesh, keys.shape[1])(query, keys, values, mask)


def _shard(
  query: Float[Array, "B H T K"],
  keys: Float[Array, "B G S K"],
  values: Float[Array, "B G S K"],
  mask: Mask,
  interpret: bool,
) -> Float[Array, "B H T K"]:
  """`splash` on one device."""
  # Imported where it is needed, since it takes a moment.
  from jax.experimental.pallas.ops.tpu import splash_attention as pallas

  heads, length = query.shape[1:3]
  source_length = keys.shape[2]

  def kernel(causal: bool) -> Kernel:
    shape = (length, source_length)
    pattern = pallas.CausalMask(shape) if causal else pallas.FullMask(shape)
    q, kv = (max(b for b in (128, 256, 512) if size % b == 0) for size in shape)
    blocks = pallas.BlockSizes(
      block_q=q,
      block_kv=kv,
      block_q_dkv=q,
      block_kv_dkv=kv,
      use_fused_bwd_kernel=True,
    )
    single: Kernel = jax.vmap(
      pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([pattern] * heads),
        block_sizes=blocks,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
      )
    )
    return single

  segments = pallas.SegmentIds(mask.queries, mask.keys)
  mixed: Array = kernel(mask.causal)(query, keys, values, segments)
  if not mask.causal or mask.in_prefix is None:
    return mixed
  inputs = pallas.SegmentIds(
    mask.queries, jnp.where(mask.in_prefix, mask.keys, -1)
  )
  of_inputs = kernel(False)(query, keys, values, inputs)
  mixed = jnp.where(mask.in_prefix[:, None, :, None], of_inputs, mixed)
  return mixed


def _platform(mesh: AbstractMesh) -> str:
  """The kind of device that a mesh is made of, or that JAX runs on."""
  device = mesh.abstract_device
  return jax.default_backend() if device is None else str(device.platform)


def _over_shards(run: Kernel, mesh: AbstractMesh, groups: int) -> Kernel:
  """Maps attention over the devices that share a batch, and heads."""
  axes, automatic = batch_axes(), automatic_axes()
  if not automatic:
    return run
  tensor_shards = mesh.shape.get(TENSOR_AXIS, 1)
  split_heads = tensor_shards > 1 and groups % tensor_shards == 0
  by_head = PartitionSpec(axes, TENSOR_AXIS if split_heads else None)
  mapped: Kernel = jax.shard_map(
    run,
    in_specs=(by_head, by_head, by_head, PartitionSpec(axes)),
    out_specs=by_head,
    axis_names=automatic,
    check_vma=False,
  )
  return mapped
