"""Trained runs as a notebook has them."""

import contextlib
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import raptr_jax
from raptr_jax.configuration import configure
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.run import Run, load
from raptr_jax.methods import policies
from raptr_jax.methods.growth import GrowthPlan
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.tasks.objectives.packing import pack
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.training import setup
from tests.small_task import make_task, write_corpus
from tests.toy import make_experiment

SMALL = {
  "TEXT_DIR": "'text'",
  "DATA_DIR": "'data'",
  "NUM_LAYERS": 3,
  "records.fitted_vocabulary_size.at_most": 600,
  "TRAIN_STEPS": 8,
  "WARMUP_STEPS": 1,
  "BATCH_SIZE": 8,
}
KINDS = {
  "decoder": (
    ["experiments/quickstart_ul2_decoder_raptr.gin", "data/ul2_text.gin"],
    {
      "PATH_LENGTHS": (2, 3),
      "decoder.DecoderConfig.embed_dim": 16,
      "decoder.DecoderConfig.mlp_dim": 24,
      "decoder.DecoderConfig.num_heads": 2,
      "TASK_FEATURE_LENGTHS": {"tokens": 64},
      "MIXTURE_OR_TASK_NAME": "'words'",
    },
  ),
  "bert": (
    ["experiments/quickstart_bert_raptr.gin", "data/bert_text.gin"],
    {
      "NUM_LAYERS": 4,
      "PATH_LENGTHS": (2, 4),
      "bert.BertConfig.embed_dim": 16,
      "TASK_FEATURE_LENGTHS": {"inputs": 32},
    },
  ),
}
TEXTS = (
  "And the king said unto the people, and they went up into the city.",
  "In the beginning God created the heaven and the earth.",
)


def save(experiment, *steps):
  """Saves fresh parameters as those after so many steps."""
  abstract = setup.abstract_state(experiment)
  state = setup.fresh_state(experiment, abstract)
  with experiment.checkpointer.open(experiment.model_dir) as checkpoints:
    for step in steps:
      checkpoints.save(state, step, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder in which two runs were started, with relative paths."""
  folder = tmp_path_factory.mktemp("notebook")
  write_corpus(folder / "text")
  with contextlib.chdir(folder):
    for kind, (files, bindings) in KINDS.items():
      settings = SMALL | bindings | {"MODEL_DIR": f"'runs/{kind}'"}
      configure.parse(
        files, [f"--gin.{name}={value}" for name, value in settings.items()]
      )
      prepare(
        task=configure.build("TASK"),
        feature_lengths=configure.build("TASK_FEATURE_LENGTHS"),
        data_dir="data",
      )
      save(configure.build("RUN"), 4, 8)
      text = configure.config_text()
      Path(f"runs/{kind}/config.gin").write_text(text, encoding="utf-8")
  return folder


@pytest.fixture(scope="module")
def runs(folder):
  """Both runs, loaded into one process, from another folder."""
  return {kind: load(folder / "runs" / kind) for kind in KINDS}


def test_two_runs_are_loaded_side_by_side(runs, folder):
  decoder, bert = runs["decoder"], runs["bert"]
  assert decoder.model.stacks == {"stack": 3}
  assert bert.model.stacks == {"stack": 4}
  assert decoder.step == bert.step == 8
  assert decoder.config["PATH_LENGTHS"] == (2, 3)
  assert decoder.config["TASK_FEATURE_LENGTHS"] == {"tokens": 64}
  assert bert.config["MODEL_DIR"] == "runs/bert"
  assert bert.config["OPTIMIZER"] == "@optim.adamw()"
  assert bert.plan.total_steps == decoder.plan.total_steps == 8
  assert bert.plan.num_layers == 4
  bert.experiment.open()  # Its data is found, too.
  assert Path(bert.experiment.model_dir) == folder / "runs" / "bert"


def test_runs_and_plans_are_shown_in_a_line(runs, folder):
  run = runs["decoder"]
  size = sum(x.size for x in jax.tree.leaves(run.params))
  place = str(folder / "runs" / "decoder")
  assert repr(run) == (
    f"Run({place!r}, DecoderLM, 3 layers, {size:,} parameters, step 8)"
  )
  factor = run.plan.flop_factor_nominal
  assert repr(run.plan) == (
    f"Plan(8 steps, 2 stages, 3 layers, FLOP factor {factor:.3f})"
  )


def test_a_name_relative_to_the_current_folder_will_do(folder, monkeypatch):
  monkeypatch.chdir(folder / "runs")
  assert raptr_jax.load("bert", step=4).step == 4


def test_a_run_that_was_moved_needs_its_data_dir(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  moved = tmp_path / "moved"
  (folder / "runs" / "bert").rename(moved)
  try:
    message = (
      r"vocabulary of bert_text is not in '.*data': pass data_dir=.*'data'"
    )
    with pytest.raises(FileNotFoundError, match=message):
      load(moved)
    with pytest.raises(FileNotFoundError, match="pass data_dir="):
      load(moved, data_dir=tmp_path)
    assert load(moved, data_dir=folder / "data").step == 8
    monkeypatch.chdir(folder)  # Where the run was started.
    assert load(moved).step == 8
  finally:
    moved.rename(folder / "runs" / "bert")


def test_what_is_no_run_is_told_in_a_sentence(folder, tmp_path):
  with pytest.raises(FileNotFoundError, match="nothing' does not exist"):
    load(tmp_path / "nothing")
  with pytest.raises(FileNotFoundError, match="is a file"):
    load(folder / "runs" / "bert" / "config.gin")
  with pytest.raises(FileNotFoundError, match=r"has no config\.gin"):
    load(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"of step 5, .* \[4, 8\]"):
    load(folder / "runs" / "bert", step=5)
  (tmp_path / "config.gin").write_text("", encoding="utf-8")
  message = r"not set RUN, TASK, .*: call raptr_jax\.Run\.restore"
  with pytest.raises(ValueError, match=message):
    load(tmp_path)
  config = (folder / "runs" / "bert" / "config.gin").read_text("utf-8")
  (tmp_path / "config.gin").write_text(config, encoding="utf-8")
  with pytest.raises(FileNotFoundError, match="has no checkpoints"):
    load(tmp_path, data_dir=folder / "data")


def test_a_model_that_is_still_growing_is_no_trained_run(folder, tmp_path):
  schedule = stage_schedule(path_lengths=(2, 4), total_steps=8, num_layers=4)
  experiment = make_experiment(
    tmp_path,
    total_steps=8,
    policy=policies.stacked(schedule=schedule),
    growth=GrowthPlan(schedule, "last", "reset"),
  )
  save(experiment, 4, 5)
  restore = functools.partial(
    Run.restore,
    experiment,
    task=make_task(folder / "text", name="bert_text"),
    feature_lengths={"inputs": 8},
    data_dir=str(folder / "data"),
  )
  with pytest.raises(ValueError, match="stack has grown to 2 of 4 layers"):
    restore(step=4)
  assert restore().step == 5


def loss_by_hand(run, text, layers, repeats):
  """Mean loss of a text of one row, by the model's own loss."""
  objective, vocabulary = run.task.objective, run.vocabulary
  (row,) = pack(
    [vocabulary.encode(text)],
    framing=objective.framing(vocabulary),
    length=objective.row_length(run.feature_lengths),
  )
  corrupt = objective.corruption(vocabulary, run.feature_lengths)
  rows = [
    corrupt(row, np.random.default_rng([0, 0, repeat]))
    for repeat in range(repeats)
  ]
  batch = {name: np.stack([r[name] for r in rows]) for name in rows[0]}
  loss = jax.jit(run.model.loss_fn)
  metrics = loss(run.params, batch, run.path(layers), None)[1]
  return float(metrics["loss"] / metrics["weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_on_texts_is_the_models(kind, runs):
  run = runs[kind]
  each = run.losses(TEXTS)
  for text, loss in zip(TEXTS, each):
    by_hand = loss_by_hand(run, text, None, repeats=4)
    assert loss == pytest.approx(by_hand, rel=1e-5)
    assert run.loss(text) == pytest.approx(loss, rel=1e-6)
  assert min(each) < run.loss(TEXTS) < max(each)
  # A text's loss depends on no other text, and is the same in every call.
  np.testing.assert_allclose(run.losses(TEXTS[::-1])[::-1], each, rtol=1e-6)
  assert run.loss(TEXTS, seed=1) != run.loss(TEXTS)
  assert run.loss(TEXTS, repeats=2) != run.loss(TEXTS)
  # An initial model is about as good as guessing.
  assert run.loss(TEXTS) == pytest.approx(np.log(600), rel=0.2)


def test_the_loss_of_a_path_is_that_of_its_layers(runs):
  run = runs["bert"]
  by_hand = loss_by_hand(run, TEXTS[0], [0, 3], repeats=4)
  by_number = run.loss(TEXTS[0], layers=2)
  assert by_number == pytest.approx(by_hand, rel=1e-5)
  for layers in ([0, 3], {"stack": 2}, run.path(2)):
    assert run.loss(TEXTS[0], layers) == by_number
  assert by_number != run.loss(TEXTS[0])
  with pytest.raises(ValueError, match="layers = 5, expected 1 to 4"):
    run.loss(TEXTS[0], layers=5)


def test_a_long_text_is_cut_and_an_empty_one_has_no_loss(runs):
  run = runs["bert"]
  losses = run.losses(["", " ".join(TEXTS * 4), TEXTS[0]])
  assert np.isnan(losses[0]) and np.isfinite(losses[1:]).all()
  with pytest.raises(ValueError, match="no token to predict"):
    run.loss(["", ""])
  with pytest.raises(ValueError, match="texts is empty"):
    run.loss([])


def test_what_is_no_text_is_told_in_a_sentence(runs):
  for kind, method, name in (
    ("bert", "loss", "texts"),
    ("bert", "losses", "texts"),
    ("decoder", "write", "prompt"),
  ):
    for given in (3, [b"In the"], [TEXTS]):
      with pytest.raises(TypeError, match=f"^{name} = .*, expected a text"):
        getattr(runs[kind], method)(given)
  with pytest.raises(TypeError, match=r"text = \['In the.*expected one text"):
    runs["bert"].fill(["In the [MASK]"])


def test_a_decoder_writes_with_any_of_its_layers(runs):
  run = runs["decoder"]
  one = run.write(TEXTS[0], max_new_tokens=6)
  both = run.write(TEXTS, max_new_tokens=6)
  assert isinstance(one, str) and both[0] == one and len(both) == 2
  assert both[0] and both[0] != both[1]
  predictor = run.predictor(2)
  expected = predictor.write(TEXTS, Decoding(max_new_tokens=6))
  assert run.write(TEXTS, layers=2, max_new_tokens=6) == expected != both
  assert run.write(TEXTS, layers=[0, 2], max_new_tokens=6) == expected


def test_what_is_drawn_depends_on_the_seed_alone(runs):
  drawn = functools.partial(
    runs["decoder"].write, max_new_tokens=12, temperature=3.0
  )
  prompts = [TEXTS[0]] * 2
  texts = drawn(prompts)
  assert texts == drawn(prompts) != drawn(prompts, seed=1)
  assert texts[0] != texts[1]
  assert drawn(TEXTS[0]) == texts[0]
  with pytest.raises(ValueError, match=r"Decoding\.top_p = 2"):
    drawn(prompts, top_p=2)
  for count in (0, -3):
    with pytest.raises(ValueError, match=rf"max_new_tokens = {count}, .* 1"):
      drawn(prompts, max_new_tokens=count)


def test_a_bert_fills_masks_and_does_not_write(runs):
  run = runs["bert"]
  with pytest.raises(ValueError, match="BERT fills masks; it does not write"):
    run.write("In the beginning")
  text = "In the [MASK] God [MASK] the heaven."
  first, second = run.fill(text, top=600)
  for slot in (first, second):
    chances = [chance for _, chance in slot]
    assert sum(chances) == pytest.approx(1, rel=1e-4)
    assert chances == sorted(chances, reverse=True)
  assert run.fill(text, top=2) == [first[:2], second[:2]]
  assert run.fill(text, layers=2, top=600)[0] != first
  # The start of a word, and special tokens, have no text of their own.
  words = [word for word, _ in first]
  assert "" not in words and {"▁", "[MASK]", "the"} < set(words)
  for top in (0, 601):
    with pytest.raises(ValueError, match=f"top = {top}, expected 1 to 600"):
      run.fill(text, top=top)
  with pytest.raises(ValueError, match=r"has no \[MASK\]"):
    run.fill("In the beginning")
  with pytest.raises(ValueError, match=r"DecoderLM does not fill \[MASK\]"):
    runs["decoder"].fill(text)


def test_masks_are_filled_by_what_the_model_reads_around_them(runs):
  run = runs["bert"]
  vocabulary = run.vocabulary
  words = [*vocabulary.encode("In the"), vocabulary.mask_id]
  words += vocabulary.encode("God created")
  tokens = np.array([[vocabulary.cls_id, *words, vocabulary.sep_id]], np.int32)
  row = {
    "tokens": tokens,
    "segment_ids": np.ones_like(tokens),
    "positions": np.arange(tokens.size)[None],
    "target_positions": np.argwhere(tokens == vocabulary.mask_id)[:, 1:],
    "target_weights": np.ones((1, 1), np.float32),
  }
  batch = {name: np.repeat(x, 600, axis=0) for name, x in row.items()}
  batch["targets"] = np.arange(600, dtype=np.int32)[:, None]
  scores = jax.jit(run.model.score_batch)(run.params, batch, run.path())
  ((best, chance),) = run.fill("In the [MASK] God created", top=1)[0]
  assert best == vocabulary.decode([int(scores.argmax())])
  assert chance == pytest.approx(float(np.exp(scores.max())), rel=1e-4)
