"""Causal language modelling: the next token of every document."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.objectives.causal_lm import CausalLM
from raptr_jax.tasks.objectives.objective import (
  GenerativeObjective,
  InfillingObjective,
)
from raptr_jax.tasks.objectives.packing import pack

CLS, SEP = 2, 3


class Vocabulary:
  pad_id, cls_id, sep_id, eos_id = 0, CLS, SEP, SEP


def _rows(objective, documents, length):
  return list(
    pack(
      documents,
      framing=objective.framing(Vocabulary()),
      length=objective.row_length({"tokens": length}),
    )
  )


def _example(objective, documents, length):
  (row,) = _rows(objective, documents, length)
  corrupt = objective.corruption(Vocabulary(), {"tokens": length})
  example = corrupt(row, np.random.default_rng(0))
  features = objective.features({"tokens": length})
  assert {k: (len(x), x.dtype) for k, x in example.items()} == features
  return {key: value.tolist() for key, value in example.items()}


def test_example_by_hand():
  assert _example(CausalLM(), [[11, 12, 13], [21], []], 8) == {
    "tokens": [CLS, 11, 12, 13, CLS, 21, 0, 0],
    "targets": [11, 12, 13, SEP, 21, SEP, 0, 0],
    "target_weights": [1] * 6 + [0] * 2,
    "segment_ids": [1] * 4 + [2] * 2 + [0] * 2,
    "positions": [0, 1, 2, 3, 0, 1, 0, 0],
  }


def test_without_masks_a_row_is_one_text():
  objective = CausalLM(document_masks=False)
  assert _example(objective, [[11, 12, 13], [21]], 8) == {
    "tokens": [CLS, 11, 12, 13, SEP, 21, 0, 0],
    "targets": [11, 12, 13, SEP, 21, SEP, 0, 0],
    "target_weights": [1] * 6 + [0] * 2,
    "segment_ids": [1] * 6 + [0] * 2,
    "positions": [0, 1, 2, 3, 4, 5, 0, 0],
  }


def test_each_token_is_predicted_once_and_only_documents_end():
  documents = [[*range(100, 123)], [*range(200, 205)]]
  objective = CausalLM()
  corrupt = objective.corruption(Vocabulary(), {"tokens": 8})
  predicted = []
  for row in _rows(objective, documents, 8):
    example = corrupt(row, np.random.default_rng(0))
    used = example["target_weights"] > 0
    predicted += example["targets"][used].tolist()
    if len(row.segment_lengths) == 1 and len(row.tokens) == 9:
      assert used.all()  # A piece of a long document fills its row.
  assert sorted(predicted) == sorted([*documents[0], *documents[1], SEP, SEP])


def test_a_model_reads_no_later_token_and_no_other_document():
  config = DecoderConfig(300, 2, 16, 2, 32, attention="causal")
  model = DecoderLM(config)
  params = jax.tree.map(
    lambda box: box.value,
    model.init(jax.random.key(0)),
    is_leaf=lambda x: hasattr(x, "names"),
  )
  objective = CausalLM()
  corrupt = objective.corruption(Vocabulary(), {"tokens": 16})
  (row,) = _rows(objective, [[*range(100, 106)], [*range(200, 206)]], 16)
  batch = {k: jnp.array(x[None]) for k, x in corrupt(row, None).items()}
  paths = full_paths(model.stacks)

  def logits(tokens):
    changed = dict(batch, tokens=tokens)
    return model.module.apply({"params": params}, changed, paths)

  before = logits(batch["tokens"])
  # In the first document.
  tokens = batch["tokens"].at[0, 4].set(250)
  moved = np.abs(logits(tokens) - before).max(-1)[0]
  assert (moved[:4] == 0).all() and (moved[7:14] == 0).all()
  assert (moved[4:7] > 0).all()
  with pytest.raises(ValueError, match=r"lacks in_prefix.*DECODER_ATTENTION"):
    DecoderLM(dataclasses.replace(config, attention="prefix")).loss_fn(
      params, batch, paths, None
    )


def test_it_teaches_to_write_and_not_to_fill_blanks():
  objective, vocabulary = CausalLM(), Vocabulary()
  assert isinstance(objective, GenerativeObjective)
  assert not isinstance(objective, InfillingObjective)
  assert objective.continuation([7, 8], vocabulary).tolist() == [CLS, 7, 8]
  assert objective.lead(vocabulary) == ()
  assert objective.written_text([7, 8, SEP, 9], vocabulary) == [7, 8]


def test_other_features_are_refused():
  with pytest.raises(ValueError, match=r"'inputs': 8.*--gin.TASK_FEATURE"):
    CausalLM().features({"inputs": 8})
