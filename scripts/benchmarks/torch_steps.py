"""Training steps of Hugging Face's models in PyTorch, as peers of ours.

A step is forward, backward, clipping by global norm and fused AdamW. Parameters
are float32, and are cast for the computation where ours are. The models are as
near to ours as they come, and have the advantage where they differ:

- attention is `scaled_dot_product_attention` without a mask but a causal one;
  ours reads the segment of each token.
- BERT computes logits only for the tokens that it predicts, like ours and
  unlike Hugging Face's own head.
- no accuracy is computed; ours counts it.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from benchmarks.programs import Workload
from raptr_jax.models.bert import BertConfig
from raptr_jax.models.decoder import DecoderConfig

Loss: TypeAlias = Callable[[], torch.Tensor]
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}


class TorchTrainer:
  """A model in training, and its steps, which share its state.

  Attributes:
    model: of Hugging Face.
  """

  def __init__(self, workload: Workload):
    config = workload.config
    self._device = "cuda" if torch.cuda.is_available() else "cpu"
    self._dtype = getattr(torch, config.dtype)
    torch.manual_seed(0)
    batch = {
      name: torch.from_numpy(x).to(self._device)
      for name, x in workload.batch_of(0).items()
    }
    with torch.device(self._device):
      if isinstance(config, BertConfig):
        self.model, self._loss = _bert(config, batch)
      else:
        self.model, self._loss = _llama(config, batch)
    by_decay: dict[float, list[torch.Tensor]] = {0.01: [], 0.0: []}
    for parameter in self.model.parameters():
      by_decay[0.01 if parameter.ndim > 1 else 0.0].append(parameter)
    self._optimizer = torch.optim.AdamW(
      [{"params": ps, "weight_decay": d} for d, ps in by_decay.items()],
      lr=1e-4,
      fused=True,
    )

  def loss(self) -> float:
    """Mean loss of the batch, in nats."""
    with torch.no_grad(), self._autocast():
      return float(self._loss())

  def step(self, *, compiled: bool) -> Callable[[], None]:
    """A function that runs a step, and waits for the device."""
    loss = torch.compile(self._loss) if compiled else self._loss

    def run() -> None:
      with self._autocast():
        mean = loss()
      mean.backward()
      torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
      self._optimizer.step()
      self._optimizer.zero_grad(set_to_none=True)
      if self._device == "cuda":
        torch.cuda.synchronize()

    return run

  def _autocast(self) -> torch.autocast:
    narrow = self._dtype != torch.float32
    return torch.autocast(self._device, self._dtype, enabled=narrow)


def peak_mb(step: Callable[[], None]) -> float | None:
  """Memory in use at most while a step runs, state included, on a GPU."""
  if not torch.cuda.is_available():
    return None
  torch.cuda.reset_peak_memory_stats()
  step()
  return torch.cuda.max_memory_allocated() / 1e6


def _bert(
  config: BertConfig, batch: Mapping[str, torch.Tensor]
) -> tuple[torch.nn.Module, Loss]:
  model = transformers.BertForMaskedLM(
    transformers.BertConfig(
      vocab_size=config.vocab_size,
      hidden_size=config.embed_dim,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      intermediate_size=config.mlp_width,
      hidden_act=ACTIVATIONS[config.activation],
      layer_norm_eps=config.layer_norm_epsilon,
      max_position_embeddings=config.max_length,
      hidden_dropout_prob=config.dropout_rate,
      attention_probs_dropout_prob=config.dropout_rate,
      attn_implementation="sdpa",
    )
  )
  tokens, positions = batch["tokens"].long(), batch["positions"].long()
  places = batch["target_positions"].long()[..., None]
  places = places.expand(-1, -1, config.embed_dim)
  targets = batch["targets"].long().flatten()

  def loss() -> torch.Tensor:
    hidden = model.bert(input_ids=tokens, position_ids=positions)[0]
    logits = model.cls(hidden.gather(1, places))
    return F.cross_entropy(logits.flatten(0, 1).float(), targets)

  return model, loss


def _llama(
  config: DecoderConfig, batch: Mapping[str, torch.Tensor]
) -> tuple[torch.nn.Module, Loss]:
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=config.vocab_size,
      hidden_size=config.embed_dim,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.kv_heads,
      head_dim=config.head_width,
      intermediate_size=config.mlp_dim,
      hidden_act=ACTIVATIONS[config.activation],
      rms_norm_eps=config.norm_epsilon,
      tie_word_embeddings=config.tied_head,
      attn_implementation="sdpa",
    )
  )
  tokens, targets = batch["tokens"].long(), batch["targets"].long().flatten()

  def loss() -> torch.Tensor:
    logits = model(input_ids=tokens, use_cache=False)[0]
    return F.cross_entropy(logits.flatten(0, 1).float(), targets)

  return model, loss


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """Parameters of a model by name."""
  return {
    name: parameter.detach().float().cpu().numpy()
    for name, parameter in model.named_parameters()
  }
