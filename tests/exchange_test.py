"""Models go to folders of Hugging Face and come back."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from raptr_jax.exchange.hugging_face import read_model, write_model
from raptr_jax.exchange.tensor_map import ExchangeError
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.models.encoder_decoder import EncoderDecoderConfig
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM

DECODER = DecoderConfig(
  vocab_size=40,
  num_layers=3,
  embed_dim=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_dim=24,
  attention="causal",
)
MODELS = {
  "bert": BertMaskedLM(
    BertConfig(
      vocab_size=40,
      num_layers=3,
      embed_dim=16,
      num_heads=2,
      mlp_dim=24,
      max_length=12,
    )
  ),
  "t5": EncoderDecoderLM(
    EncoderDecoderConfig(
      vocab_size=40,
      num_encoder_layers=2,
      num_decoder_layers=3,
      embed_dim=16,
      num_heads=2,
      head_dim=6,
      mlp_dim=24,
      position_buckets=8,
    )
  ),
  "llama": DecoderLM(dataclasses.replace(DECODER, tied_head=False)),
  "granite": DecoderLM(DECODER),
}


def test_a_pooler_is_read_and_written(tmp_path):
  config = dataclasses.replace(MODELS["bert"].config, pooler=True)
  model = BertMaskedLM(config)
  params = random_params(model, 1.0)
  write_model(tmp_path / "m", model, params)
  found, read = read_model(tmp_path / "m")
  assert found.config.pooler
  jax.tree.map(np.testing.assert_array_equal, read, params)


def random_params(model, scale):
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(scale=scale, size=x.shape).astype(np.float32), shapes
  )


def exported(folder, name, *, scale=1.0, **options):
  model = MODELS[name]
  params = random_params(model, scale)
  write_model(folder, model, params, **options)
  return model, params


def assert_same(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard_bytes", [10**9, 5_000])
def test_a_model_comes_back_in_the_same_bits(tmp_path, name, shard_bytes):
  folder = tmp_path / "model"
  model, params = exported(folder, name, shard_bytes=shard_bytes)
  found, read = read_model(folder)
  assert dataclasses.replace(found.config, **compute(model)) == model.config
  assert_same(read, params)
  many = len(list(folder.glob("*.safetensors"))) > 1
  assert many == (shard_bytes == 5_000)
  assert not list(tmp_path.glob("*.partial"))
  modes = {path.stat().st_mode for path in folder.iterdir()}
  assert len(modes) == 1  # Whoever reads one can read all.


def compute(model):
  """What a config.json does not say."""
  names = ("attention_dropout_rate", "dropout_rate")
  return {name: getattr(model.config, name) for name in names}


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_layers_of_a_path_are_a_model(tmp_path, name):
  _, params = exported(tmp_path / "m", name, layers={"stack": [0, 2]})
  found, read = read_model(tmp_path / "m")
  assert found.stacks == {"stack": 2}
  rows = jax.tree.map(lambda x: x[np.array([0, 2])], params["stack"])
  assert_same(read["stack"], rows)
  assert_same(read["token_embedding"], params["token_embedding"])


def test_stacks_are_shortened_by_themselves(tmp_path):
  layers = {"encoder": [1], "decoder": [0, 1]}
  _, params = exported(tmp_path / "m", "t5", layers=layers)
  found, read = read_model(tmp_path / "m")
  assert found.stacks == {"encoder": 1, "decoder": 2}
  assert_same(read["encoder"], jax.tree.map(lambda x: x[1:], params["encoder"]))


@pytest.mark.parametrize("rows", [[], [2, 0], [0, 0], [0, 3], [-1]])
def test_layers_that_are_no_path_are_refused(tmp_path, rows):
  with pytest.raises(ExchangeError, match="expected some of 0 to 2"):
    exported(tmp_path / "m", "bert", layers={"stack": rows})
  assert not list(tmp_path.iterdir())


def test_names_of_older_files_are_read(tmp_path):
  _, params = exported(tmp_path / "m", "bert")
  path = tmp_path / "m" / "model.safetensors"
  tensors = load_file(path)
  old = {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): tensor
    for name, tensor in tensors.items()
  }
  assert old.keys() != tensors.keys()
  save_file(old, path)
  _, read = read_model(tmp_path / "m")
  assert_same(read, params)


@pytest.mark.parametrize(
  ("name", "head", "embedding"),
  [
    ("t5", "lm_head.weight", "shared.weight"),
    ("llama", "lm_head.weight", "model.embed_tokens.weight"),
  ],
)
def test_a_tied_head_becomes_an_array_of_its_own(
  tmp_path, name, head, embedding
):
  exported(tmp_path / "m", name)
  without(tmp_path / "m", head)
  change(tmp_path / "m", tie_word_embeddings=True, scale_decoder_outputs=False)
  _, read = read_model(tmp_path / "m")
  tensor = load_file(tmp_path / "m" / "model.safetensors")[embedding]
  np.testing.assert_array_equal(read["head"]["kernel"], tensor.T)


def test_the_first_t5_is_refused(tmp_path):
  exported(tmp_path / "m", "t5")
  change(tmp_path / "m", tie_word_embeddings=True)
  with pytest.raises(ExchangeError, match="multiplies its outputs"):
    read_model(tmp_path / "m")


def test_half_precision_is_read(tmp_path):
  _, params = exported(tmp_path / "m", "llama")
  path = tmp_path / "m" / "model.safetensors"
  half = {n: x.astype(jax.numpy.bfloat16) for n, x in load_file(path).items()}
  save_file(half, path)
  _, read = read_model(tmp_path / "m")
  norm = params["final_norm"]["scale"]
  np.testing.assert_array_equal(
    read["final_norm"]["scale"],
    norm.astype(jax.numpy.bfloat16).astype(np.float32),
  )


def change(folder, **fields):
  path = Path(folder) / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def without(folder, *names, **more):
  path = Path(folder) / "model.safetensors"
  tensors = {n: x for n, x in load_file(path).items() if n not in names}
  save_file(tensors | more, path)


NORM = "bert.encoder.layer.1.output.LayerNorm.weight"


@pytest.mark.parametrize(
  ("damage", "told"),
  [
    (lambda f: change(f, num_hidden_layers=2), r"no place for.*layer\.2\."),
    (lambda f: change(f, num_hidden_layers=4), r"no tensor .*layer\.3\."),
    (lambda f: change(f, vocab_size=41), r"word.*\[40, 16\], expected \[41, 1"),
    (lambda f: change(f, max_position_embeddings=9), r"position.*\[9, 16\]"),
    (lambda f: change(f, hidden_act="relu"), "hidden_act = 'relu', expected"),
    (lambda f: change(f, num_attention_heads=0), "num_attention_heads = 0"),
    (lambda f: change(f, num_attention_heads=3), "num_heads = 3"),
    (lambda f: change(f, is_decoder=True), "is_decoder = True"),
    (lambda f: change(f, architectures=["GPT2Model"]), "GPT2Model.*Bert"),
    (lambda f: without(f, NORM), f"no tensor {NORM}"),
    (lambda f: without(f, more=np.zeros(2)), "no place for the tensors more"),
    (lambda f: (f / "config.json").unlink(), "no config.json"),
    (lambda f: (f / "config.json").write_text("[" * 9999), "is damaged"),
    (lambda f: (f / "config.json").write_text("[1]"), "is damaged"),
    (lambda f: (f / "model.safetensors").unlink(), "has neither"),
  ],
)
def test_a_folder_that_does_not_fit_is_one_error(tmp_path, damage, told):
  folder = tmp_path / "m"
  exported(folder, "bert")
  damage(folder)
  with pytest.raises((ExchangeError, ValueError), match=told):
    read_model(folder)


@pytest.mark.parametrize(
  "content", [b"", b"\x10", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}x", None]
)
def test_damaged_tensors_are_one_error(tmp_path, content):
  exported(tmp_path / "m", "bert")
  path = tmp_path / "m" / "model.safetensors"
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2] if content is None else content)
  with pytest.raises(ExchangeError, match=r"safetensors cannot be read|tensor"):
    read_model(tmp_path / "m")


def test_a_pickle_is_refused(tmp_path):
  exported(tmp_path / "m", "bert")
  path = tmp_path / "m" / "model.safetensors"
  path.rename(path.with_name("pytorch_model.bin"))
  with pytest.raises(ExchangeError, match="a pickle, which can run code"):
    read_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd"])
def test_an_index_stays_in_its_folder(tmp_path, name):
  exported(tmp_path / "m", "bert", shard_bytes=5_000)
  index = tmp_path / "m" / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": name}}))
  with pytest.raises(ValueError, match="index.json"):
    read_model(tmp_path / "m")


def test_what_hugging_face_does_not_have_is_refused(tmp_path):
  pre = dataclasses.replace(MODELS["bert"].config, norm="pre")
  with pytest.raises(ExchangeError, match="norm = 'pre'"):
    write_model(tmp_path / "m", BertMaskedLM(pre), {})
  prefix = dataclasses.replace(DECODER, attention="prefix")
  with pytest.raises(ExchangeError, match="attention = 'prefix'"):
    write_model(tmp_path / "m", DecoderLM(prefix), {})
  other = BertMaskedLM(MODELS["bert"].config, block=nn.Dense)
  with pytest.raises(ExchangeError, match="with their own blocks"):
    write_model(tmp_path / "m", other, {})
  (tmp_path / "m").mkdir()
  with pytest.raises(FileExistsError, match="name a folder that does not"):
    write_model(tmp_path / "m", MODELS["bert"], {})
