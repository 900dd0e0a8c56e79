"""Our models and those of `transformers` are the same, in both directions.

Runs where PyTorch and transformers are installed.
"""

import dataclasses
import functools
import types

import flax
import jax
import numpy as np
import pytest
import sentencepiece

from raptr_jax.exchange.hugging_face import FAMILIES, read_model
from raptr_jax.exchange.tokenizers import find_tokenizer, write_tokenizer
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.generate import generate
from raptr_jax.models.masked_stack import full_path, full_paths
from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.sources import KingJamesBible
from raptr_jax.tasks.text.vocabularies import open_vocabulary
from raptr_jax.tasks.text.vocabulary import AtMost
from tests.exchange_test import MODELS, exported

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSES = {
  "bert": "AutoModelForMaskedLM",
  "t5": "AutoModelForSeq2SeqLM",
  "llama": "AutoModelForCausalLM",
  "granite": "AutoModelForCausalLM",
}
TOKENS = np.random.default_rng(1).integers(1, 40, (2, 9)).astype(np.int32)
READ = np.random.default_rng(2).integers(1, 40, (2, 7)).astype(np.int32)
CLOSE = dict(rtol=1e-5, atol=2e-5)


def rows(like):
  """Positions and segments of one document in each row."""
  positions = np.broadcast_to(np.arange(like.shape[1]), like.shape)
  return positions.astype(np.int32), np.ones_like(like)


def apply(name, model, params):
  """Logits of ours."""
  positions, ones = rows(TOKENS)
  batch = {"tokens": TOKENS, "positions": positions, "segment_ids": ones}
  paths = full_paths(model.stacks)
  if name == "bert":
    batch |= {"target_positions": positions}
    paths = full_path(model.config.num_layers)
  if name == "t5":
    positions, ones = rows(READ)
    batch |= {"encoder_tokens": READ, "encoder_segment_ids": ones}
  return model.module.apply({"params": params}, jax.device_put(batch), paths)


def ours(name, model, params):
  compute = jax.jit(functools.partial(apply, name, model))
  return np.asarray(compute(params))


def theirs(name, model):
  tokens, read = (torch.tensor(x).long() for x in (TOKENS, READ))
  with torch.no_grad():
    if name == "t5":
      found = model(input_ids=read, decoder_input_ids=tokens)
    else:
      found = model(input_ids=tokens)
  return found.logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_there_and_back(tmp_path, name):
  model, params = exported(tmp_path / "ours", name, scale=0.1)
  kind = getattr(transformers, CLASSES[name])
  loaded = kind.from_pretrained(tmp_path / "ours").eval()
  logits = ours(name, model, params)
  assert np.abs(logits).max() > 0.1
  np.testing.assert_allclose(theirs(name, loaded), logits, **CLOSE)

  torch.manual_seed(0)
  fresh = type(loaded)(loaded.config).eval()
  with torch.no_grad():
    for parameter in fresh.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  fresh.save_pretrained(tmp_path / "theirs")
  found, read = read_model(tmp_path / "theirs")
  np.testing.assert_allclose(
    ours(name, found, read), theirs(name, fresh), **CLOSE
  )


def greedy_here(run, prompt, count):
  """Ids that a run of ours writes after those of a prompt."""
  lengths = np.full(len(prompt), prompt.shape[1], np.int32)
  found = generate(
    run.model,
    run.params,
    prompt,
    lengths,
    full_paths(run.model.stacks),
    decoding=Decoding(max_new_tokens=count),
    eos_id=3,
  )
  return np.asarray(found.tokens)


@pytest.mark.parametrize("name", ["llama", "granite", "t5"])
def test_both_write_the_same_text(tmp_path, name):
  model, params = exported(tmp_path / "m", name, scale=0.3)
  kind = getattr(transformers, CLASSES[name])
  loaded = kind.from_pretrained(tmp_path / "m").eval()
  read = READ if name == "t5" else TOKENS
  run = types.SimpleNamespace(model=model, params=params)
  ours = greedy_here(run, read, 12)
  options = dict(max_new_tokens=12, do_sample=False, eos_token_id=3)
  # Its cache has as many layers as the encoder, even for a deeper decoder.
  options["use_cache"] = name != "t5"
  found = loaded.generate(
    torch.tensor(read).long(), pad_token_id=0, **options
  ).numpy()
  skipped = 1 if name == "t5" else read.shape[1]
  found = found[:, skipped:]
  np.testing.assert_array_equal(ours[:, : found.shape[1]], found)
  assert not ours[:, found.shape[1] :].any()
  assert len(np.unique(ours)) > 1


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_both_search_beams_alike(tmp_path, early_stopping, length_penalty):
  model, params = exported(tmp_path / "m", "llama", scale=0.3)
  kind = transformers.AutoModelForCausalLM
  loaded = kind.from_pretrained(tmp_path / "m").eval()
  options = dict(
    num_beams=3, early_stopping=early_stopping, length_penalty=length_penalty
  )
  ends = set()
  for eos_id in range(1, 16, 2):
    found = generate(
      model,
      params,
      TOKENS,
      np.full(len(TOKENS), TOKENS.shape[1], np.int32),
      full_paths(model.stacks),
      decoding=Decoding(max_new_tokens=10, **options),
      eos_id=np.int32(eos_id),
    )
    written = loaded.generate(
      torch.tensor(TOKENS).long(),
      max_new_tokens=10,
      do_sample=False,
      eos_token_id=eos_id,
      pad_token_id=0,
      **options,
    ).numpy()[:, TOKENS.shape[1] :]
    for tokens, length, theirs in zip(found.tokens, found.lengths, written):
      count = int(length)  # They fill up with the end.
      np.testing.assert_array_equal(tokens[:count], theirs[:count])
      assert set(theirs[count:].tolist()) <= {eos_id}
    ends |= set(found.lengths.tolist())
  assert len(ends) > 1


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same(tmp_path, name):
  model, params = exported(tmp_path / "m", name, scale=0.1)
  kind = getattr(transformers, CLASSES[name])
  loaded = kind.from_pretrained(tmp_path / "m").eval()
  weights = np.random.default_rng(3).normal(size=(*TOKENS.shape, 40))

  def weighted(params):
    return (apply(name, model, params) * weights.astype(np.float32)).sum()

  tree = jax.jit(jax.grad(weighted))(params)
  tokens, read = (torch.tensor(x).long() for x in (TOKENS, READ))
  inputs = dict(input_ids=tokens)
  if name == "t5":
    inputs = dict(input_ids=read, decoder_input_ids=tokens)
  loss = (loaded(**inputs).logits * torch.tensor(weights).float()).sum()
  loss.backward()
  theirs = {n: p.grad.numpy() for n, p in loaded.named_parameters()}
  family = next(f for f in FAMILIES if isinstance(model, f.kind))
  for entry in family.entries(model):
    array = flax.traverse_util.flatten_dict(tree, sep="/")[entry.ours]
    part = np.asarray(array[entry.index])
    # A parameter of ours is theirs times a factor, so gradients are over it.
    expected = theirs[entry.theirs] / np.float32(entry.factor)
    found = dataclasses.replace(entry, factor=1.0).to_theirs(part)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(
      found / scale,
      expected / scale,
      rtol=1e-5,
      atol=1e-5,
      err_msg=entry.theirs,
    )


BIBLE = list(KingJamesBible().documents("validation"))[:30]
SAMPLES = ("And the king said!", "  two  spaces ", "café ﬁne 東京 😀", *BIBLE)


@pytest.mark.parametrize("name", ["bert", "t5", "granite"])
def test_an_exported_run_has_its_tokenizer(tmp_path, name):
  """A vocabulary that was trained here, in each family's frame."""
  path = tmp_path / "trained.model"
  extra = ("<extra_id_1>", "<extra_id_0>")
  train_sentencepiece(iter(BIBLE), AtMost(500), path, extra_pieces=extra)
  vocabulary = open_vocabulary(path)
  exported(tmp_path / "m", name)
  frames = {"bert": ([2], [3]), "t5": ([], [3]), "granite": ([2], [])}
  begin, end = frames[name]
  write_tokenizer(tmp_path / "m", vocabulary, before=begin, after=end)
  loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
  for text in SAMPLES:
    assert loaded(text).input_ids == [*begin, *vocabulary.encode(text), *end]
  assert len(loaded) == vocabulary.size
  assert (loaded.pad_token_id, loaded.mask_token_id) == (0, 4)


def test_their_bert_tokenizer_and_ours_agree(tmp_path):
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  words += ["and", "the", "king", "!", "c", "##a", "##f", "##e"]
  (tmp_path / "vocab.txt").write_text("\n".join(words))
  theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
  found = find_tokenizer(tmp_path, len(words), has_sentinels=False)
  ours = found.vocabulary()
  for text in SAMPLES:
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)


def test_their_t5_tokenizer_and_ours_agree(tmp_path):
  """A file without sentinels, such as T5's, which gets a hundred."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(BIBLE),
    model_prefix=str(tmp_path / "spiece"),
    vocab_size=300,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
  ours = find_tokenizer(tmp_path, 512, has_sentinels=True).vocabulary()
  for text in (*BIBLE, "  two  spaces "):
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
  assert theirs.convert_tokens_to_ids("<extra_id_0>") == ours.sentinel_ids[0]
  assert len(theirs) == ours.size
