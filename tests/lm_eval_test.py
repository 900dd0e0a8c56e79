"""The model of lm-evaluation-harness, in the harness; skipped without it."""

import functools
import shlex

import numpy as np
import pytest

import raptr_jax
from raptr_jax.contrib.harness import rolling_windows
from raptr_jax.inference.answers import answer
from raptr_jax.tasks.downstream.registry import TASKS
from raptr_jax.tasks.downstream.task import Answer, RankTask
from tests.downstream_evaluation_test import trained_run
from tests.downstream_test import FIXTURES
from tests.readme_test import HARNESS_COMMANDS

lm_eval = pytest.importorskip("lm_eval")
datasets = pytest.importorskip("datasets")
ours = pytest.importorskip("raptr_jax.contrib.lm_eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run that no prompt is too long for."""
  return trained_run(
    tmp_path_factory.mktemp("harness"),
    TASK_FEATURE_LENGTHS="{'tokens': 512}",
  )


def examples_of(name):
  return TASKS[name].examples_from_folder(str(FIXTURES), "validation")


def harness_task(name):
  """One of our tasks, as a task of the harness with the same prompts."""
  task, examples = TASKS[name], examples_of(name)

  def of_example(field, doc):
    return getattr(examples[doc["number"]], field)

  config = {
    "task": name,
    "custom_dataset": lambda **_: {
      "validation": datasets.Dataset.from_list(
        [{"number": i} for i in range(len(examples))]
      )
    },
    "validation_split": "validation",
    "doc_to_text": functools.partial(of_example, "prompt"),
  }
  if isinstance(task, RankTask):
    return config | {
      "output_type": "multiple_choice",
      "doc_to_choice": lambda doc: list(of_example("choices", doc)),
      "doc_to_target": lambda doc: examples[doc["number"]].choices.index(
        of_example("answer", doc)
      ),
      "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
  return config | {
    "output_type": "generate_until",
    "doc_to_target": functools.partial(of_example, "answer"),
    "generation_kwargs": {
      "until": list(task.stop_strings),
      "max_gen_toks": task.max_new_tokens,
      "do_sample": False,
    },
    "metric_list": [{"metric": "exact_match"}],
  }


@pytest.fixture(scope="module")
def found(folder):
  """What the harness finds for all of our tasks."""
  return lm_eval.simple_evaluate(
    model="raptr_jax",
    model_args=f"folder={folder},batch_size=8",
    tasks=[
      lm_eval.api.task.ConfigurableTask(config=harness_task(name))
      for name in TASKS
    ],
    bootstrap_iters=0,
  )


@pytest.mark.parametrize("name", TASKS)
def test_our_tasks_score_alike_example_by_example(folder, found, name):
  task, examples = TASKS[name], examples_of(name)
  predictor = raptr_jax.load(folder).predictor(batch_size=8)
  own = answer(predictor, task, examples, [e.prompt for e in examples])
  samples = sorted(found["samples"][name], key=lambda s: s["doc_id"])
  assert len(samples) == len(examples)
  if isinstance(task, RankTask):
    theirs = [
      np.array([float(score) for ((score, _),) in sample["resps"]])
      for sample in samples
    ]
    for got, expected in zip(theirs, own.likelihoods):
      np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    chosen = [int(scores.argmax()) for scores in theirs]
    expected = own.scores(range(len(examples)))
    scores = task.score(examples, chosen)
    assert {metric: expected[metric] for metric in scores} == scores
    if "accuracy" in scores:
      theirs = found["results"][name]
      assert 100 * theirs["acc,none"] == pytest.approx(expected["accuracy"])
      assert 100 * theirs["acc_norm,none"] == pytest.approx(
        expected["accuracy_norm"]
      )
  else:
    texts = [sample["resps"][0][0] for sample in samples]
    assert texts == [given.text for given in own.answers]
    assert any(texts)
    assert task.score(examples, [Answer(text) for text in texts]) == (
      pytest.approx(
        task.score(examples, [Answer(given.text) for given in own.answers]),
        nan_ok=True,
      )
    )


def test_the_harness_knows_the_model_and_its_arguments(folder):
  assert lm_eval.api.registry.get_model("raptr_jax") is ours.RaptrLM
  made = ours.RaptrLM.create_from_arg_string(
    f"folder={folder},layers=2", {"batch_size": "auto", "device": None}
  )
  assert made.world_size == 1 and made.rank == 0
  with pytest.raises(ValueError, match=r"\['pretrained'\], expected folder"):
    ours.RaptrLM(str(folder), pretrained="x")


def test_perplexity_is_that_of_rolling_windows(folder):
  text = " ".join(e.prompt for e in examples_of("boolq")) * 3
  config = {
    "task": "perplexity",
    "custom_dataset": lambda **_: {
      "test": datasets.Dataset.from_list([{"text": text}])
    },
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}],
  }
  model = ours.RaptrLM(str(folder))
  found = lm_eval.simple_evaluate(
    model=model,
    tasks=[lm_eval.api.task.ConfigurableTask(config=config)],
    bootstrap_iters=0,
  )
  (score,) = model._model.loglikelihood_rolling([text])
  words = len(text.split())
  assert found["results"]["perplexity"]["word_perplexity,none"] == (
    pytest.approx(np.exp(-score / words), rel=1e-3)
  )


@pytest.mark.parametrize("length", [0, 1, 5, 6, 12, 31])
def test_rolling_windows_are_the_harness_s(length):
  tokens, size = list(range(length)), 6
  theirs = [
    lm_eval.utils.make_disjoint_window(pair)
    for pair in lm_eval.utils.get_rolling_token_windows(tokens, -1, size, 1)
  ]
  own = [
    (context or [-1], told) for context, told in rolling_windows(tokens, size)
  ]
  assert own == theirs


def test_cached_requests_have_the_same_answers(folder, tmp_path):
  model = ours.RaptrLM(str(folder))
  cached = lm_eval.api.model.CachingLM(model, str(tmp_path / "cache.db"))
  kinds = {
    "loglikelihood": [("In the", " beginning"), ("", "God")],
    "loglikelihood_rolling": [("In the beginning",)],
    "generate_until": [("In the", {"until": ["\n"], "max_gen_toks": 4})],
  }
  for kind, arguments in kinds.items():
    requests = [
      lm_eval.api.instance.Instance(kind, {}, own, number)
      for number, own in enumerate(arguments)
    ]
    expected = getattr(model, kind)(requests, disable_tqdm=True)
    assert getattr(cached, kind)(requests) == expected
    kept, model._model = (
      model._model,
      None,
    )  # The second time nothing is left to compute.
    assert getattr(cached, kind)(requests) == expected
    model._model = kept


@pytest.mark.parametrize("line", HARNESS_COMMANDS)
def test_the_documented_command_is_the_harness_s(line, folder, monkeypatch):
  program, option, module, *words = shlex.split(line)
  assert (program, option, module) == ("python", "-m", ours.__name__)
  monkeypatch.setattr("sys.argv", ["lm_eval", *words])
  arguments = lm_eval.__main__.HarnessCLI().parse_args()
  assert arguments.model == "raptr_jax" and arguments.tasks
  given = arguments.model_args
  if isinstance(given, str):
    given = lm_eval.utils.simple_parse_args_string(given)
  given |= {"folder": folder, "batch_size": arguments.batch_size, "layers": 1}
  assert ours.RaptrLM(**given)
