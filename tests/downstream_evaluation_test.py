"""Evaluation of trained runs, and how answers of a model are scored."""

import contextlib
import itertools
import json
import math

import numpy as np
import pytest

import raptr_jax
from raptr_jax import main
from raptr_jax.inference import prompting
from raptr_jax.inference.answers import (
  Chosen,
  answer,
  num_texts,
  scores_and_errors,
)
from raptr_jax.inference.evaluation import Evaluation
from raptr_jax.methods import policies
from raptr_jax.methods.growth import GrowthPlan
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.tasks.downstream.registry import TASKS
from raptr_jax.tasks.downstream.task import Example, RankTask
from raptr_jax.training import setup
from tests.downstream_test import CHOSEN, FIXTURES, PREDICTED, WRITTEN
from tests.small_task import make_task, write_corpus
from tests.toy import VOCAB, make_experiment

EVALUATE = "--gin_file=runs/evaluate.gin"
LEAF = "--gin_file=experiments/quickstart_ul2_decoder_raptr.gin"
SMALL = {
  "NUM_LAYERS": "2",
  "decoder.DecoderConfig.embed_dim": "16",
  "decoder.DecoderConfig.mlp_dim": "24",
  "decoder.DecoderConfig.num_heads": "2",
  "VOCABULARY_SIZE": "600",
  "TASK_FEATURE_LENGTHS": "{'tokens': 64}",
  "BATCH_SIZE": "8",
  "TRAIN_STEPS": "2",
  "WARMUP_STEPS": "1",
  "EVAL_PERIOD": "2",
  "EVAL_BATCHES": "2",
  "MIXTURE_OR_TASK_NAME": "'words'",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return trained_run(tmp_path_factory.mktemp("evaluated"))


def trained_run(folder, **overrides):
  """The folder of a run on a folder of text, trained for two steps."""
  overrides = (
    SMALL
    | overrides
    | {
      "TEXT_DIR": f"'{write_corpus(folder / 'text')}'",
      "DATA_DIR": f"'{folder / 'data'}'",
      "MODEL_DIR": f"'{folder / 'run'}'",
    }
  )
  argv = [
    LEAF,
    "--gin_file=data/ul2_text.gin",
    "--gin_file=methods/dense.gin",
    *(f"--gin.{name}={value}" for name, value in overrides.items()),
  ]
  main.prepare_main(argv)
  main.main(argv)
  return folder / "run"


def evaluate(run, **overrides):
  """What results.json holds after the documented command."""
  overrides = {
    "DOWNSTREAM_DIR": f"'{FIXTURES}'",
    "evaluation.Evaluation.batch_size": "8",
    "DOWNSTREAM_PROMPT_TOKENS": "40",
    **overrides,
  }
  flags = [f"--gin.{name}={value}" for name, value in overrides.items()]
  main.main([f"--gin_file={run / 'config.gin'}", EVALUATE, *flags])
  return results(run)


def results(run):
  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  text = (run / "results.json").read_text("utf-8")
  return json.loads(text, parse_constant=refuse)


@contextlib.contextmanager
def one_clear_error(message, capsys):
  """Exits with code 2 after one line with this message."""
  with pytest.raises(SystemExit) as info:
    yield
  assert info.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and message in line


def test_all_tasks_of_a_trained_run(run, capsys):
  found = evaluate(run, DOWNSTREAM_TASKS="('all',)", DOWNSTREAM_SHOTS="(0, 1)")
  assert found["step"] == 2 and found["hardware"]

  summary = json.loads((run / "summary.json").read_text())
  held_out = found["held_out"]
  assert held_out["loss"] == pytest.approx(summary["final_eval_loss"])
  assert held_out["loss_by_example_kind"] == pytest.approx(
    summary["loss_by_example_kind"]
  )
  assert list(held_out["loss_by_path_length"]) == ["1", "2"]
  lines = (run / "metrics.jsonl").read_text().splitlines()
  by_length = {
    str(row["layers"]): row["loss"]
    for row in map(json.loads, lines)
    if row["split"] == "eval" and isinstance(row["layers"], int)
  }
  assert held_out["loss_by_path_length"] == pytest.approx(by_length)

  vocabulary = raptr_jax.load(run).vocabulary
  rows = found["downstream"]
  names = [(row["task"], row["shots"]) for row in rows]
  assert names == list(itertools.product(TASKS, (0, 1)))
  for row in rows:
    task = TASKS[row["task"]]
    assert row["examples"] == len(
      task.examples_from_folder(str(FIXTURES), "validation")
    )
    assert row["metrics"] == list(task.metrics)
    assert set(task.metrics) <= set(row["scores"]) & set(row["majority"])
    assert set(row["shown"]) <= set(row["scores"])
    assert all(0 <= score <= 100 for score in row["scores"].values())
    assert set(row["standard_errors"]) == set(row["scores"])
    lines = check_predictions(run / row["predictions"], row)
    sizes = [len(vocabulary.encode(line["prompt"])) for line in lines]
    assert row["shortened_prompts"] == sum(size > 40 for size in sizes)
  for shots, mean in found["downstream_mean"].items():
    assert mean["score"] == pytest.approx(
      np.mean(
        [
          np.mean([row["scores"][metric] for metric in row["metrics"]])
          for row in rows
          if row["shots"] == int(shots)
        ]
      )
    )
    errors = [
      r["standard_errors"]["mean"] for r in rows if r["shots"] == int(shots)
    ]
    if None in errors:
      assert mean["standard_error"] is None
    else:
      assert mean["standard_error"] == pytest.approx(
        np.sqrt(np.square(errors).sum()) / len(errors)
      )
  out = capsys.readouterr().out
  for text in ("S 25%", "paths of 1 layers", "1-shot", "mean", *TASKS):
    assert text in out
  for text in ("majority", "f1_english", "NoAns_f1", "accuracy_norm", "±"):
    assert text in out


def check_predictions(path, row):
  """The lines of a file are the examples, and their scores the row's."""
  task = TASKS[row["task"]]
  examples = task.examples_from_folder(str(FIXTURES), "validation")
  lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
  assert [line["index"] for line in lines] == [*range(len(examples))]
  for line, example in zip(lines, examples):
    assert (line["task"], line["shots"]) == (task.name, row["shots"])
    assert line["prompt"].endswith(example.prompt)
    if isinstance(task, RankTask):
      best = int(np.argmax(line["log_likelihoods"]))
      assert line["choices"][best] == line["prediction"]
      right = line["prediction"] in line["answers"]
      assert line["scores"] == {"accuracy": 100.0 * right}
  if "accuracy" in row["scores"]:
    mean = np.mean([line["scores"]["accuracy"] for line in lines])
    assert mean == pytest.approx(row["scores"]["accuracy"])
  if task.name == "trivia_qa":
    mean = np.mean([line["scores"]["f1"] for line in lines])
    assert mean == pytest.approx(row["scores"]["f1"])
  return lines


def test_an_evaluation_that_is_stopped_leaves_what_it_has_found(
  run, monkeypatch, capsys
):
  calls = []

  class Stopped(Exception):
    pass

  def stop(*args, **kwargs):
    if calls:
      raise Stopped
    calls.append(1)
    return answer(*args, **kwargs)

  monkeypatch.setattr(prompting, "answer", stop)
  with pytest.raises(Stopped):
    # The first question is English: the official score leaves English out.
    evaluate(
      run,
      DOWNSTREAM_TASKS="('tydi_qa', 'boolq')",
      DOWNSTREAM_SHOTS="(0,)",
      DOWNSTREAM_EXAMPLES="1",
    )
  (row,) = results(run)["downstream"]
  assert row["task"] == "tydi_qa" and row["examples"] == 1
  assert row["scores"]["f1"] is None and row["scores"]["f1_all"] == 0
  undefined = {"score": None, "standard_error": None}
  assert results(run)["downstream_mean"] == {"0": undefined}
  assert "f1 n/a" in capsys.readouterr().out


def test_a_run_of_ul2_ends_with_filled_blanks(run):
  page = (run / "infills.md").read_text("utf-8")
  assert page.count("- model: ") == page.count("- truth: ") == 3
  assert "[1]" in page


def test_a_run_without_a_generator_is_evaluated_on_held_out_text(
  tmp_path, capsys
):
  experiment = make_experiment(tmp_path)
  state = setup.fresh_state(experiment, setup.abstract_state(experiment))
  with experiment.checkpointer.open(tmp_path) as checkpoints:
    checkpoints.save(state, 7, {})
  task = make_task(tmp_path)
  found = Evaluation(
    experiment=experiment, task=task, data_dir="data", feature_lengths={}
  ).run()
  assert found["step"] == 7 and "downstream" not in found
  held_out = found["held_out"]
  assert held_out["loss"] == pytest.approx(math.log(VOCAB), rel=0.1)
  assert held_out["loss_by_example_kind"] == {}
  losses = held_out["loss_by_path_length"]
  assert list(losses) == ["2", "3", "4"]
  assert losses["4"] == pytest.approx(held_out["loss"]) != losses["2"]
  assert "paths of 3 layers" in capsys.readouterr().out


def test_a_model_that_is_still_growing_is_not_evaluated(tmp_path):
  schedule = stage_schedule(path_lengths=(2, 4), total_steps=12, num_layers=4)
  experiment = make_experiment(
    tmp_path,
    policy=policies.stacked(schedule=schedule),
    growth=GrowthPlan(schedule, new_layers="repeated"),
  )
  state = setup.fresh_state(experiment, setup.abstract_state(experiment))
  with experiment.checkpointer.open(tmp_path) as checkpoints:
    checkpoints.save(state, 6, {})
  task = make_task(tmp_path)
  evaluation = Evaluation(
    experiment=experiment, task=task, data_dir="data", feature_lengths={}
  )
  with pytest.raises(ValueError, match="stack has grown to 2 of 4 layers"):
    evaluation.run()


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"DOWNSTREAM_TASKS": "('glue',)"}, "'glue' is not one of the tasks"),
    ({"DOWNSTREAM_TASKS": "('boolq')"}, "DOWNSTREAM_TASKS = 'boolq', expected"),
    ({"DOWNSTREAM_SHOTS": "5"}, "DOWNSTREAM_SHOTS = 5, expected"),
    (
      {"DOWNSTREAM_TASKS": "('rte',)", "DOWNSTREAM_SHOTS": "()"},
      "DOWNSTREAM_SHOTS = ()",
    ),
    (
      {"DOWNSTREAM_TASKS": "('squad_v2',)", "DOWNSTREAM_SHOTS": "(0, 9)"},
      "squad_v2 has 2 examples to draw from",
    ),
    (
      {
        "DOWNSTREAM_TASKS": "('rte',)",
        "DOWNSTREAM_SHOTS": "(0,)",
        "DOWNSTREAM_PROMPT_TOKENS": "63",
      },
      "DOWNSTREAM_PROMPT_TOKENS = 63, expected 1 to 62, as the model was trained"
      " with TASK_FEATURE_LENGTHS = {'tokens': 64}",
    ),
    (
      {"evaluation.Evaluation.batch_size": "12"},
      "Evaluation.batch_size = 12, expected a multiple of the 8",
    ),
    (
      {"DOWNSTREAM_TASKS": "('rte',)", "DOWNSTREAM_DIR": "'no/where'"},
      "none of no/where/RTE/train.jsonl, no/where/rte.jsonl exists",
    ),
    ({"MODEL_DIR": "'no/where'"}, "MODEL_DIR = 'no/where' has no checkpoints"),
  ],
)
def test_mistakes_get_one_clear_error(
  run, overrides, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  with one_clear_error(message, capsys):
    evaluate(run, **overrides)
  assert not list(tmp_path.iterdir())


def test_a_masked_language_model_does_not_answer(capsys):
  with one_clear_error("MaskedLM: set --gin.DOWNSTREAM_TASKS", capsys):
    main.main(
      [
        "--gin_file=experiments/quickstart_bert_raptr.gin",
        EVALUATE,
        "--gin.MODEL_DIR='x'",
        "--gin.DOWNSTREAM_TASKS=('copa',)",
        "--gin.evaluation.Evaluation.batch_size=8",
      ]
    )


def test_a_tuple_of_one_needs_its_comma(tmp_path):
  experiment, task = make_experiment(tmp_path), make_task(tmp_path)
  for field, value in (("downstream_tasks", "boolq"), ("shots", 5)):
    with pytest.raises(ValueError, match=r"expected a tuple: set .*,\)"):
      Evaluation(
        experiment=experiment,
        task=task,
        data_dir="data",
        feature_lengths={},
        **{field: value},
      )


class Script:
  """A reader who answers as it is written; prompts are numbers of examples."""

  def __init__(self, name):
    self._answers, self.expected = PREDICTED[name]
    self._no_answer = TASKS[name].no_answer if name in WRITTEN else None

  def score(self, prompts, continuations, *, watch):
    watch(len(prompts))
    if self._no_answer is None:
      chosen = [self._choices[int(p)][self._answers[int(p)]] for p in prompts]
      return np.array([float(a == b) for a, b in zip(chosen, continuations)])
    # What it wrote has a log-likelihood of -7.
    return np.array(
      [
        -7 + self._answers[int(p)].no_answer_score * (c == self._no_answer)
        for p, c in zip(prompts, continuations)
      ]
    )

  def write(self, prompts, decoding, *, watch):
    watch(len(prompts))
    assert decoding.stop_strings[0] == "\n"
    return [self._answers[int(prompt)].text for prompt in prompts]

  def answer(self, task, watch):
    examples = task.examples_from_folder(str(FIXTURES), "validation")
    self._choices = [example.choices for example in examples]
    prompts = [str(number) for number in range(len(examples))]
    return answer(self, task, examples, prompts, watch=watch), examples


@pytest.mark.parametrize("name", TASKS)
def test_answers_score_as_worked_out_by_hand(name):
  reader, read = Script(name), []
  assert isinstance(TASKS[name], RankTask) == (name in CHOSEN)
  answers, examples = reader.answer(TASKS[name], read.append)
  scores, errors = scores_and_errors(answers)
  expected = reader.expected
  assert {metric: scores[metric] for metric in expected} == pytest.approx(
    expected
  )
  official = [expected[metric] for metric in TASKS[name].metrics]
  assert scores["mean"] == pytest.approx(np.mean(official))
  assert sum(read) == num_texts(TASKS[name], examples)
  assert not any(math.isnan(score) for score in scores.values())
  if expected.keys() == {"accuracy"}:
    p, n = expected["accuracy"] / 100, len(examples)
    error = 100 * np.sqrt(p * (1 - p) / (n - 1))
    assert errors["accuracy"] == pytest.approx(error)
  assert len(list(answers.predictions())) == len(examples)


def test_long_choices_may_win_per_character():
  choices = ("a cat that sleeps", "a cat")
  example = Example(prompt="It is", answer=choices[0], choices=choices, label=0)
  answers = Chosen(
    task=TASKS["copa"],
    examples=[example] * 2,
    likelihoods=[np.array([-10.0, -4.0]), np.array([-16.0, -4.0])],
  )
  assert answers.scores([0]) == {"accuracy": 0, "accuracy_norm": 100}
  assert answers.scores([1]) == {"accuracy": 0, "accuracy_norm": 0}
