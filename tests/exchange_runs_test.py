"""Runs go to Hugging Face's folders and come back."""

import contextlib
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece

import raptr_jax
from raptr_jax import main
from raptr_jax.configuration import configure
from raptr_jax.exchange.exported_run import export_run
from raptr_jax.exchange.imported_run import import_run
from raptr_jax.exchange.tensor_map import ExchangeError
from raptr_jax.exchange.tokenizers import find_tokenizer, write_tokenizer
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text.tokenizer_json import TokenizerJsonVocabulary
from raptr_jax.tasks.text.vocabularies import open_vocabulary
from tests.run_test import save
from tests.small_task import write_corpus

pytest.importorskip("tokenizers")

SMALL = {
  "TEXT_DIR": "'text'",
  "DATA_DIR": "'data'",
  "records.fitted_vocabulary_size.at_most": 600,
  "TRAIN_STEPS": 8,
  "WARMUP_STEPS": 1,
  "BATCH_SIZE": 8,
  "EVAL_BATCHES": 1,
  "NUM_LAYERS": 4,
}
KINDS = {
  "bert": (
    ["experiments/quickstart_bert_raptr.gin", "data/bert_text.gin"],
    {
      "bert.BertConfig.embed_dim": 16,
      "bert.BertConfig.norm": "'post'",
      "TASK_FEATURE_LENGTHS": {"inputs": 32},
      "PATH_LENGTHS": (2, 4),
    },
  ),
  "encdec": (
    ["experiments/quickstart_ul2_encdec_raptr.gin", "data/ul2_text.gin"],
    {
      "encoder_decoder.EncoderDecoderConfig.embed_dim": 16,
      "encoder_decoder.EncoderDecoderConfig.mlp_dim": 24,
      "encoder_decoder.EncoderDecoderConfig.num_heads": 2,
      "encoder_decoder.EncoderDecoderConfig.head_dim": 8,
      "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 32},
      "PATH_LENGTHS": (2, 4),
    },
  ),
  "causal": (
    ["experiments/quickstart_causal_lm_raptr.gin", "data/causal_lm_text.gin"],
    {
      "decoder.DecoderConfig.embed_dim": 16,
      "decoder.DecoderConfig.mlp_dim": 24,
      "decoder.DecoderConfig.num_heads": 2,
      "TASK_FEATURE_LENGTHS": {"tokens": 32},
      "PATH_LENGTHS": (2, 4),
    },
  ),
}
TEXTS = (
  "And the king said unto the people, 12 days?",
  "  two  spaces, naïve café ﬁne ½",
  "日本語 <extra_id_0> [MASK] 🙂",
  "",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a run of each kind, and its export in hf/."""
  folder = tmp_path_factory.mktemp("exchange")
  write_corpus(folder / "text")
  with contextlib.chdir(folder):
    for kind, (files, bindings) in KINDS.items():
      settings = SMALL | bindings | {"MODEL_DIR": f"'runs/{kind}'"}
      settings |= {"MIXTURE_OR_TASK_NAME": f"'{kind}'"}
      configure.parse(
        files, [f"--gin.{name}={value}" for name, value in settings.items()]
      )
      prepare(
        task=configure.build("TASK"),
        feature_lengths=configure.build("TASK_FEATURE_LENGTHS"),
        data_dir="data",
      )
      save(configure.build("RUN"), 8)
      text = configure.config_text()
      Path(f"runs/{kind}/config.gin").write_text(text, encoding="utf-8")
      export_run(f"runs/{kind}", f"hf/{kind}")
  return folder


@pytest.fixture(scope="module")
def imports(place):
  """The imports of the exports, as runs."""
  with contextlib.chdir(place):
    for kind in KINDS:
      import_run(f"hf/{kind}", f"back/{kind}")
    return {kind: raptr_jax.load(f"back/{kind}") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_same_bit_for_bit(kind, place, imports):
  run = raptr_jax.load(place / "runs" / kind)
  back = imports[kind]
  jax.tree.map(np.testing.assert_array_equal, back.params, run.params)
  for text in TEXTS:
    assert back.vocabulary.encode(text) == run.vocabulary.encode(text)
  with contextlib.chdir(place):
    export_run(f"back/{kind}", f"again/{kind}")
  for name in ("model.safetensors", "config.json", "tokenizer.json"):
    first, second = (place / x / kind / name for x in ("hf", "again"))
    assert first.read_bytes() == second.read_bytes(), name


def test_an_import_fills_and_writes(place, imports):
  run = raptr_jax.load(place / "runs" / "bert")
  text = "In the [MASK] God created"
  assert imports["bert"].fill(text) == run.fill(text)
  for kind in ("encdec", "causal"):
    run = raptr_jax.load(place / "runs" / kind)
    # An imported T5 reads a prompt without a mode token.
    run = dataclasses.replace(run, task=imports[kind].task)
    prompt = "In the beginning"
    written = imports[kind].write(prompt, max_new_tokens=8)
    assert written == run.write(prompt, max_new_tokens=8) != ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_has_the_same_ids_as_ours(kind, place):
  run = raptr_jax.load(place / "runs" / kind)
  path = place / "hf" / kind / "tokenizer.json"
  found = TokenizerJsonVocabulary(str(path))
  plain = [text for text in TEXTS if "<extra" not in text]
  for text in plain:
    assert found.encode(text) == run.vocabulary.encode(text)
    ids = run.vocabulary.encode(text)
    assert found.decode(ids) == run.vocabulary.decode(ids)
  assert found.cls_id == run.vocabulary.cls_id
  assert found.eos_id == run.vocabulary.eos_id
  assert found.pad_id == run.vocabulary.pad_id
  assert found.size == run.vocabulary.size


def test_texts_are_framed_as_the_model_reads_them(place):
  import tokenizers

  frames = {}
  for kind in KINDS:
    path = str(place / "hf" / kind / "tokenizer.json")
    ids = tokenizers.Tokenizer.from_file(path).encode("king").ids
    plain = raptr_jax.load(place / "runs" / kind).vocabulary.encode("king")
    begin = ids.index(plain[0])
    frames[kind] = (ids[:begin], ids[begin + len(plain) :])
  assert frames == {
    "bert": ([2], [3]),
    "encdec": ([], [3]),
    "causal": ([2], []),
  }


def test_a_path_is_a_model_by_itself(place):
  with contextlib.chdir(place):
    line = export_run("runs/causal", "hf/half", 2)
    import_run("hf/half", "back/half")
  half = raptr_jax.load(place / "back" / "half")
  whole = raptr_jax.load(place / "runs" / "causal")
  assert half.model.stacks == {"stack": 2}
  np.testing.assert_allclose(
    half.losses(TEXTS[:2]), whole.losses(TEXTS[:2], layers=2), rtol=1e-6
  )
  assert "of all layers" in line and "of the path" in line
  card = (place / "hf" / "half" / "README.md").read_text(encoding="utf-8")
  assert "- stack: 0, 3 of 4" in card
  assert "| the path |" in card and "@policies.raptr()" in card


def test_the_command_line_imports_and_exports(place, capsys, monkeypatch):
  monkeypatch.chdir(place)
  model_dir = "--gin.MODEL_DIR='runs/bert'"
  flags = ["--run_mode=export", model_dir, "--gin.exchange.layers=(0, 2, 3)"]
  main.main([*flags, "--hf_dir=hf/three"])
  assert "hf/three has 3 layers" in capsys.readouterr().out
  main.main(
    ["--run_mode=import", "--gin.MODEL_DIR='back/three'", "--hf_dir=hf/three"]
  )
  assert "BertMaskedLM" in capsys.readouterr().out
  assert raptr_jax.load("back/three").model.stacks == {"stack": 3}


def test_an_import_is_sound(place, imports, monkeypatch, capsys):
  monkeypatch.chdir(place)
  model_dir = "--gin.MODEL_DIR='back/causal'"
  main.main(["--run_mode=prepare", model_dir])
  main.main(["--run_mode=verify", model_dir])
  assert "can be resumed from step 0 of 1" in capsys.readouterr().out


def test_an_imported_run_is_the_start_of_another(place, imports, monkeypatch):
  monkeypatch.chdir(place)
  size = imports["bert"].vocabulary.size
  name = f"back/bert/data/imported/vocabulary{SUFFIX}"
  values = {
    "MODEL_DIR": "'runs/more'",
    "TEXT_DIR": "'text'",
    "DATA_DIR": "'data'",
    "MIXTURE_OR_TASK_NAME": "'more'",
    "VOCABULARY_PATH": f"'{name}'",
    "VOCABULARY_SIZE": size,
    "TASK_FEATURE_LENGTHS": {"inputs": 32},
    "PATH_LENGTHS": (2, 4),
    "TRAIN_STEPS": 2,
    "BATCH_SIZE": 8,
    "EVAL_BATCHES": 1,
    "COMPILATION_CACHE_DIR": None,
    "checkpoint.Checkpointer.initial_checkpoint": "'back/bert'",
  }
  files = ("back/bert/config.gin", "data/bert_text.gin", "methods/raptr.gin")
  main.main(
    [
      *(f"--gin_file={file}" for file in files),
      *(f"--gin.{name}={value}" for name, value in values.items()),
    ]
  )
  assert raptr_jax.load("runs/more").step == 2


SUFFIX = ".model"


def test_t5_has_more_rows_than_tokens(place, tmp_path):
  """Its file lacks the sentinels, and rows are left over."""
  model = place / "data" / "causal" / "vocabulary.model"
  (tmp_path / "spiece.model").write_bytes(model.read_bytes())
  plain = open_vocabulary(model)
  found = find_tokenizer(tmp_path, plain.size + 128, has_sentinels=True)
  assert found.extra_ids == 100
  assert found.vocabulary().size == plain.size + 100
  assert found.vocabulary().sentinel_ids[0] == plain.size + 99
  with pytest.raises(ExchangeError, match="rows: expected the model's own"):
    find_tokenizer(tmp_path, plain.size + 99, has_sentinels=True)


def test_a_llama_has_a_sentencepiece_model_of_merges(place, tmp_path):
  """Its control pieces are <s> and </s>, and it has none for padding."""
  text = [path.read_text("utf-8") for path in (place / "text").iterdir()]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text),
    model_prefix=str(tmp_path / "tokenizer"),
    model_type="bpe",
    vocab_size=600,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  found = find_tokenizer(tmp_path, 600, has_sentinels=False)
  vocabulary = found.vocabulary()
  assert (vocabulary.cls_id, vocabulary.eos_id) == (1, 2)
  assert vocabulary.pad_id == vocabulary.eos_id
  out = tmp_path / "out"
  out.mkdir()
  write_tokenizer(out, vocabulary, before=[1])
  written = TokenizerJsonVocabulary(str(out / "tokenizer.json"))
  for sample in (*text[:30], *TEXTS[:2], "日本語 🙂", ""):
    ids = vocabulary.encode(sample)
    assert written.encode(sample) == ids
    assert written.decode(ids) == vocabulary.decode(ids)


@pytest.mark.parametrize("lower_case", [True, False])
def test_vocab_txt_there_and_back(lower_case, tmp_path):
  words = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "king",
    "King",
    "##s",
    "the",
    ",",
    "é",
  ]
  file = tmp_path / "vocab.txt"
  file.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
  vocabulary = open_vocabulary(file, lower_case)
  out = tmp_path / "out"
  out.mkdir()
  write_tokenizer(out, vocabulary, before=[2], after=[3])
  assert (out / "vocab.txt").read_bytes() == file.read_bytes()
  found = find_tokenizer(out, len(words), has_sentinels=False)
  assert found.file.name == "vocab.txt" and found.lower_case == lower_case
  text = TokenizerJsonVocabulary(str(out / "tokenizer.json"))
  for sample in ("The Kings, é é", "king[MASK]", "[MASK]"):
    assert text.encode(sample) == vocabulary.encode(sample)


def test_a_byte_level_tokenizer_json_is_read(tmp_path):
  import tokenizers

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(["and the king said " * 20], trainer)
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  found = find_tokenizer(tmp_path, 300, has_sentinels=False).vocabulary()
  for text in TEXTS:
    assert found.decode(found.encode(text)) == text
  assert (found.cls_id, found.eos_id, found.pad_id) == (0, 1, 1)
  assert found.special_ids == (0, 1)
  # What a text spells out is plain text.
  assert not {0, 1} & set(found.encode("<|end_of_text|>"))
  pieces = [found.encode(text) for text in TEXTS]
  assert [list(x) for x in found.encode_batch(TEXTS)] == pieces


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda f: (f / "config.json").unlink(), "has no config.json"),
    (lambda f: [p.unlink() for p in f.glob("tok*")], "has no tokenizer"),
    (
      lambda f: (f / "tokenizer.model").write_bytes(b"no"),
      "tokenizer.model is damaged",
    ),
    (
      lambda f: (f / "tokenizer_config.json").write_text("{"),
      "tokenizer_config.json is damaged",
    ),
    (
      lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:-9]
      ),
      "model.safetensors",
    ),
    (lambda f: field(f, num_hidden_layers=3), "layer"),
    (lambda f: field(f, architectures=["Mamba"]), "architectures = ['Mamba']"),
    (
      lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
      "pickle",
    ),
  ],
)
def test_bad_folders_end_in_one_line(change, message, place, tmp_path, capsys):
  folder = tmp_path / "hf"
  folder.mkdir()
  for path in (place / "hf" / "bert").iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  change(folder)
  target = tmp_path / "run"
  with pytest.raises(SystemExit) as stopped:
    main.main(
      [
        "--run_mode=import",
        f"--gin.MODEL_DIR='{target}'",
        f"--hf_dir={folder}",
      ]
    )
  assert stopped.value.code == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and message in error
  assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def field(folder, **values):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--run_mode=import", "--hf_dir=x"], "needs --gin.MODEL_DIR"),
    (["--run_mode=import", "--gin.MODEL_DIR='x'"], "--hf_dir=FOLDER goes with"),
    (["--hf_dir=x", "--gin.MODEL_DIR='x'"], "--hf_dir=FOLDER goes with"),
    (
      ["--run_mode=export", "--hf_dir=x", "--gin.MODEL_DIR=x"],
      "expected a literal",
    ),
    (
      ["--run_mode=export", "--hf_dir=x", "--gin.MODEL_DIR='nowhere'"],
      "nowhere' does not exist",
    ),
    (
      ["--run_mode=import", "--hf_dir=x", "--gin.MODEL_DIR='x'", "--gin.A=1"],
      "takes only --gin.MODEL_DIR",
    ),
    (
      ["--run_mode=import", "--hf_dir=x", "--gin_file=y"],
      "takes no --gin_file",
    ),
  ],
)
def test_bad_flags_end_in_one_line(
  flags, message, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stopped:
    main.main(flags)
  assert stopped.value.code == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("layers", "message"),
  [((0, 9), "9"), ((3, 0), "ascending"), (0, "0")],
)
def test_layers_that_do_not_exist_are_named(layers, message, place):
  with (
    contextlib.chdir(place),
    pytest.raises(ValueError, match=message),
  ):
    export_run("runs/causal", "hf/none", layers)
  assert not (place / "hf" / "none").exists()


def test_existing_folders_are_left_alone(place):
  with contextlib.chdir(place):
    with pytest.raises(FileExistsError, match="hf/bert exists"):
      export_run("runs/bert", "hf/bert")
    with pytest.raises(FileExistsError, match="runs/bert exists"):
      import_run("hf/bert", "runs/bert")
