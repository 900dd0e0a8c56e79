"""Fine-tuning, from a pretrained run to a page of scores."""

import json
import random

import jax
import numpy as np
import pytest

from raptr_jax import main
from raptr_jax.configuration import configure
from raptr_jax.fine_tuning.fine_tuned import load_fine_tuned
from raptr_jax.fine_tuning.fine_tuning import _Runner
from raptr_jax.fine_tuning.trial import BEST, Trial, TrialScorer
from raptr_jax.inference.run_config import configured_run
from raptr_jax.training.checkpoint import restore_params
from raptr_jax.training.setup import abstract_state

SMALL = {
  "NUM_LAYERS": "4",
  "TRAIN_STEPS": "2",
  "WARMUP_STEPS": "0",
  "EVAL_BATCHES": "1",
  "EVAL_PERIOD": "2",
  "BATCH_SIZE": "8",
  "bert.BertConfig.embed_dim": "16",
  "COMPILATION_CACHE_DIR": "None",
}
GRID = {
  "FINE_TUNING_TASK": "'sst2'",
  "FINE_TUNING_LENGTH": "16",
  "LEARNING_RATES": "(1e-2, 1e-9)",
  "BATCH_SIZES": "(16,)",
  "SEEDS": "2",
  "EPOCHS": "4",
  "COMPILATION_CACHE_DIR": "None",
}


def flags(values):
  return [f"--gin.{name}={value}" for name, value in values.items()]


def write_sentiment(folder, split, count, seed):
  """Sentences whose label is that of their only adjective."""
  rng = random.Random(seed)
  lines = ["sentence\tlabel"]
  for _ in range(count):
    label = rng.randrange(2)
    word = ("wicked", "righteous")[label]
    noun = rng.choice(("king", "man", "people", "house"))
    lines.append(f"and the {noun} was {word}\t{label}")
  text = "".join(f"{line}\n" for line in lines)
  (folder / f"sst2-{split}.tsv").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a pretrained run, and the files of a task."""
  folder = tmp_path_factory.mktemp("fine_tuning")
  write_sentiment(folder, "train", 70, seed=0)
  write_sentiment(folder, "validation", 33, seed=1)
  paths = {"MODEL_DIR": f"'{folder}/bert'", "DATA_DIR": f"'{folder}/data'"}
  main.main(["--gin_file=tables/bert_tiny.gin", *flags(SMALL | paths)])
  return folder


def argv(place, name, **changes):
  paths = {
    "PRETRAINED": f"'{place}/bert'",
    "FINE_TUNING_DIR": f"'{place}'",
    "MODEL_DIR": f"'{place}/{name}'",
  }
  return ["--gin_file=runs/fine_tune.gin", *flags(GRID | paths | changes)]


@pytest.fixture(scope="module")
def done(place):
  """A grid that has been run."""
  write_sentiment(place, "test", 5, seed=2)
  path = place / "sst2-test.tsv"
  lines = path.read_text(encoding="utf-8").splitlines()[1:]
  rows = [f"{i}\t{line.split(chr(9))[0]}\n" for i, line in enumerate(lines)]
  path.write_text("index\tsentence\n" + "".join(rows), encoding="utf-8")
  main.main(argv(place, "done"))
  return place / "done"


def test_it_learns_and_the_grid_decides(done):
  results = json.loads((done / "results.json").read_text(encoding="utf-8"))
  assert results["scores"]["validation"]["accuracy"]["mean"] == 100
  assert [r["learning_rate"] for r in results["grid"]] == [1e-2, 1e-9]
  assert [r["learning_rate"] for r in results["seeds"]] == [1e-2] * 2
  assert [r["seed"] for r in results["seeds"]] == [0, 1]
  assert 40 < results["baseline"]["accuracy"] < 70
  page = (done / "fine_tuning.md").read_text(encoding="utf-8")
  assert "| accuracy | 100.0 ± 0.0 |" in page


def test_predictions_are_kept(done, place):
  trial = done / "lr_0.01_batch_16" / "seed_0"
  lines = (trial / "validation.jsonl").read_text("utf-8").splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 33
  assert all(row["prediction"] == row["label"] for row in rows)
  text = (done / "submission" / "SST-2.tsv").read_text(encoding="utf-8")
  head, *lines = text.splitlines()
  assert head == "index\tprediction"
  words = (place / "sst2-test.tsv").read_text("utf-8").splitlines()[1:]
  expected = [f"{i}\t{int('righteous' in w)}" for i, w in enumerate(words)]
  assert lines == expected


def test_the_best_model_answers(done):
  judge = load_fine_tuned(done)
  assert repr(judge) == "FineTuned('sst2', BertClassifier)"
  assert judge.predict("and the woman was righteous") == "1"
  texts = [("and the king was wicked",), ("and the man was righteous",)]
  assert judge.predict_all(texts) == ["0", "1"]
  with pytest.raises(ValueError, match="2 texts, expected 1: sentence"):
    judge.predict("one", "two")


def test_what_has_not_finished_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="that has finished"):
    load_fine_tuned(tmp_path)


def test_finished_trials_are_not_run_again(done, place, monkeypatch):
  before = (done / "results.json").read_bytes()
  monkeypatch.setattr("raptr_jax.fine_tuning.fine_tuning.train", None)
  main.main(argv(place, "done"))
  assert (done / "results.json").read_bytes() == before


@pytest.mark.parametrize(
  "changes",
  [{"EPOCHS": "5"}, {"FROM_SCRATCH": "True"}, {"FINE_TUNING_EXAMPLES": "9"}],
)
def test_finished_trials_are_those_of_the_same_run(
  changes, done, place, capsys
):
  before = (done / "results.json").read_bytes()
  with pytest.raises(SystemExit) as stopped:
    main.main(argv(place, "done", **changes))
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert next(iter(changes)) in error and "there" in error
  assert (done / "results.json").read_bytes() == before


def test_a_grid_may_be_extended(done, place, monkeypatch):
  """What is there stays; here nothing new is to be run."""
  monkeypatch.setattr("raptr_jax.fine_tuning.fine_tuning.train", None)
  main.main(argv(place, "done", SEEDS="1", LEARNING_RATES="(1e-2,)"))
  results = json.loads((done / "results.json").read_text(encoding="utf-8"))
  assert len(results["seeds"]) == 1
  main.main(argv(place, "done"))


def runner_of(place, *more, **changes):
  """The parts of a grid, without running it."""
  main.configure([*argv(place, "built", **changes), *more])
  config, grid = configure.config_text(), configure.build("RUN")
  return _Runner(grid, grid._form(configured_run(grid.pretrained)), config)


def test_the_encoder_starts_pretrained_and_the_head_afresh(place):
  runner = runner_of(place)
  trial = Trial(str(place / "start"), 1e-3, 16, 1)
  experiment = runner.experiment(trial)
  abstract = abstract_state(experiment).params
  with experiment.checkpointer.open(experiment.model_dir) as checkpoints:
    params = checkpoints.restore_initial(abstract)
  assert abstract.keys() - params.keys() == {"label_head", "pooler"}
  run = configured_run(str(place / "bert"))
  shapes = abstract_state(run.experiment).params
  theirs, _ = restore_params(str(place / "bert"), shapes)
  for name, part in params.items():
    jax.tree.map(np.testing.assert_array_equal, part, theirs[name])


def test_from_scratch_reads_no_parameters(place):
  runner = runner_of(place, FROM_SCRATCH="True")
  experiment = runner.experiment(Trial(str(place / "x"), 1e-3, 16, 1))
  assert experiment.checkpointer.initial_checkpoint is None


def test_a_method_draws_paths_while_it_fine_tunes(place):
  runner = runner_of(
    place, "--gin_file=methods/raptr.gin", "--gin.PATH_LENGTHS=(2, 4)"
  )
  experiment = runner.experiment(Trial(str(place / "x"), 1e-3, 16, 0))
  assert experiment.total_steps == 18  # 70 examples, 4 epochs, batches of 16.
  policy = experiment.policies["stack"]
  key = jax.random.key(0)
  lengths = [int(policy(key, step).mask.sum()) for step in (0, 17)]
  assert lengths == [2, 4]


def test_the_best_evaluation_is_kept(place, tmp_path):
  runner = runner_of(place)
  form = runner.form
  experiment = runner.experiment(Trial(str(tmp_path), 1e-3, 16, 0))
  truth = [example.source.label for example in form.examples("validation")]
  wrong = [1 - label for label in truth]
  # What is predicted at steps 1, 2 and 3, each of which has its own parameters.
  answers = {1: wrong, 2: truth, 3: wrong}
  params = {
    step: jax.tree.map(
      lambda x, step=step: np.full(x.shape, step, x.dtype),
      abstract_state(experiment).params,
    )
    for step in answers
  }

  def predict(given, examples):
    return answers[int(np.ravel(jax.tree.leaves(given)[0])[0])]

  scorer = TrialScorer(form, predict, str(tmp_path / "trial"))
  (tmp_path / "trial").mkdir()
  for step in (1, 2, 2, 3):  # A resumed run evaluates a step again.
    found = scorer(step, experiment.partitioner.put_replicated(params[step]))
  assert found["validation_accuracy"] == 0
  best = json.loads((tmp_path / "trial" / "best.json").read_text("utf-8"))
  assert best["step"] == 2 and best["scores"]["validation"]["accuracy"] == 100
  kept, step = restore_params(
    str(tmp_path / "trial" / BEST), abstract_state(experiment).params
  )
  assert step == 2 and np.all(np.asarray(jax.tree.leaves(kept)[0]) == 2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"PRETRAINED": "'nowhere'"}, "PRETRAINED = 'nowhere' has no checkpoints"),
    ({"FINE_TUNING_TASK": "'mood'"}, "one of those for BERT: cola, sst2"),
    ({"FINE_TUNING_DIR": "'nowhere'"}, "FINE_TUNING_DIR"),
    ({"FINE_TUNING_LENGTH": "65"}, "positions for 64 tokens"),
    ({"SEEDS": "0"}, "SEEDS = 0, expected at least 1"),
    ({"LEARNING_RATES": "()"}, r"LEARNING_RATES = \(\)"),
  ],
)
def test_bad_input_ends_in_one_line(place, changes, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    main.main(argv(place, "bad", **changes))
  assert stopped.value.code == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and message.replace("\\", "") in error
  assert not (place / "bad").exists()


def test_a_model_that_writes_learns_answers(place, tmp_path):
  small = SMALL | {
    "NUM_LAYERS": "2",
    "PATH_LENGTHS": "(2,)",
    "FLOP_FACTOR": "None",
    "MODEL_DIR": f"'{tmp_path}/writer'",
    "DATA_DIR": f"'{tmp_path}/data'",
    "TASK_FEATURE_LENGTHS": "{'tokens': 32}",
    "decoder.DecoderConfig.embed_dim": "16",
    "decoder.DecoderConfig.mlp_dim": "16",
    "decoder.DecoderConfig.num_heads": "2",
  }
  del small["bert.BertConfig.embed_dim"]
  leaf = "experiments/quickstart_causal_lm_raptr.gin"
  main.main([f"--gin_file={leaf}", *flags(small)])
  changes = {
    "PRETRAINED": f"'{tmp_path}/writer'",
    "LEARNING_RATES": "(1e-2,)",
    "SEEDS": "1",
    "EPOCHS": "8",
  }
  main.main(argv(place, "writer_sst2", **changes))
  text = (place / "writer_sst2" / "results.json").read_text(encoding="utf-8")
  assert json.loads(text)["scores"]["validation"]["accuracy"]["mean"] == 100
  judge = load_fine_tuned(place / "writer_sst2")
  assert judge.predict("and the king was righteous") == "positive"
