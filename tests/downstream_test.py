"""Each downstream task on a hand-made set, with scores worked out by hand."""

import json
import shutil
from pathlib import Path

import pytest

from raptr_jax.tasks.downstream.majority import majority_scores
from raptr_jax.tasks.downstream.registry import SUITES, TASKS, select_tasks
from raptr_jax.tasks.downstream.shots import build_prompt, draw_shots
from raptr_jax.tasks.downstream.task import Answer, Example, GenerationTask

FIXTURES = Path(__file__).parent / "fixtures" / "downstream"
FOLDERS = {
  "boolq": "BoolQ", "cb": "CB", "copa": "COPA", "multirc": "MultiRC",
  "record": "ReCoRD", "rte": "RTE", "wic": "WiC", "wsc": "WSC",
}  # fmt: skip

# What a model answered, and the scores of that, in per cent.
CHOSEN = {
  "boolq": ([0, 1, 0, 0], {"accuracy": 75}),
  # Classes 0, 1, 2 are right 2, 1, 1 times, chosen 1, 2, 1 times, and both at
  # once 1, 1, 1 times: F1 = 2/3, 2/3, 1.
  "cb": ([0, 1, 2, 1], {"accuracy": 75, "f1": 100 * (2 / 3 + 2 / 3 + 1) / 3}),
  "copa": ([0, 0, 1, 1], {"accuracy": 50}),
  # Labels 1 0 1, 0 1, and 1 of three questions: 3 of 4 chosen are right, of 4;
  # only the first question is without a mistake.
  "multirc": ([1, 0, 1, 1, 1, 0], {"f1a": 75, "exact": 100 / 3}),
  # Entities: Lena Ortiz, New Harbor, Ortiz, the Harbor Museum. Both names are
  # right at first; "new harbor" has half of "harbor museum"; the third is
  # wrong; "otto falk" has half of "greta falk".
  "record": ([2, 1, 0, 1], {"f1": 100 * (1 + 1 / 2 + 0 + 1 / 2) / 4, "exact": 25}),
  "rte": ([0, 0, 1, 0], {"accuracy": 75}),
  "wic": ([1, 1, 1, 1], {"accuracy": 50}),
  "wsc": ([0, 0, 0, 0], {"accuracy": 50}),
}  # fmt: skip

WRITTEN = {
  # Three aliases match; "tallow" has one of the two words of "mount tallow":
  # F1 = 2 * 1 / (1 + 2).
  "trivia_qa": (
    [
      Answer(" The Blue-Heron \nquestion: Which"),
      Answer("Tallow"),
      Answer("St. Mary’s Bridge question: What"),
      Answer("In eighteen seventy one."),
    ],
    {"exact": 75, "f1": 100 * (1 + 2 / 3 + 1 + 1) / 4},
  ),
  # Finnish: right, and 1 word of 2; Swahili: 1 word of 2 by 2.
  "tydi_qa": (
    [Answer("1904"), Answer("Oulu!"), Answer("1923"), Answer("mto Ruaha")],
    {
      "exact_english": 100, "f1_english": 100,
      "exact_finnish": 50, "f1_finnish": 100 * (1 + 2 / 3) / 2,
      "exact_swahili": 0, "f1_swahili": 50,
      "exact": 25, "f1": 100 * (5 / 6 + 1 / 2) / 2,
      "exact_all": 50, "f1_all": 100 * (1 + 1 + 2 / 3 + 1 / 2) / 4,
    },
  ),
  # Answers: F1 = 2 * 2 / (4 + 2); none, rightly; right; one where there is
  # none; right. At the threshold 0 the third and the fourth are withheld, and
  # that is wrong and right. The best threshold, 1, withholds the fourth alone.
  "squad_v2": (
    [
      Answer("the River Tam, in spring title: Oakham", -2.0),
      Answer("Unanswerable.", 0.0),
      Answer("1862", 1.0),
      Answer("Oakham", 3.0),
      Answer("a ferry", -1.0),
    ],
    {
      "exact": 100 * 3 / 5, "f1": 100 * (2 / 3 + 1 + 0 + 1 + 1) / 5,
      "best_exact": 100 * 4 / 5, "best_f1": 100 * (2 / 3 + 4) / 5,
      "HasAns_exact": 100 * 1 / 3, "HasAns_f1": 100 * (2 / 3 + 0 + 1) / 3,
      "NoAns_exact": 100, "NoAns_f1": 100,
    },
  ),
}  # fmt: skip
PREDICTED = {**WRITTEN, **CHOSEN}


def _examples(name: str, split: str = "validation") -> list[Example]:
  return TASKS[name].examples_from_folder(str(FIXTURES), split)


@pytest.mark.parametrize("name", TASKS)
def test_scores(name):
  predictions, scores = PREDICTED[name]
  assert TASKS[name].score(_examples(name), predictions) == pytest.approx(
    scores
  )


@pytest.mark.parametrize("name", TASKS)
def test_right_answers_score_100(name):
  examples = _examples(name)
  if isinstance(TASKS[name], GenerationTask):
    right = [Answer(example.answer) for example in examples]
  else:
    right = [example.choices.index(example.answer) for example in examples]
  scores = TASKS[name].score(examples, right)
  assert set(TASKS[name].metrics) <= set(scores)
  assert set(scores.values()) == {100.0}


def test_tydi_qa_in_english_alone_has_no_official_score():
  scores = TASKS["tydi_qa"].score(_examples("tydi_qa")[:1], [Answer("1904")])
  assert scores["f1_all"] == 100
  assert scores["f1"] != scores["f1"]  # NaN.


@pytest.mark.parametrize("name", ["boolq", "trivia_qa"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_prediction_for_each_example(name, count):
  predictions = PREDICTED[name][0][: 2 * count]
  with pytest.raises(ValueError, match=r"expected one for each"):
    TASKS[name].score(_examples(name)[:count], predictions)


RIGHT = {  # As the labels of the files say it.
  "boolq": ["no", "yes", "yes", "no"],
  "cb": ["true", "false", "neither", "true"],
  "multirc": ["yes", "no", "yes", "no", "yes", "yes"],
  "rte": ["true", "false", "false", "true"],
  "wic": ["no", "yes", "no", "yes"],
  "wsc": ["yes", "no", "no", "yes"],
}


@pytest.mark.parametrize("name", RIGHT)
def test_choices_say_what_labels_mean(name):
  examples = _examples(name)
  assert [example.answer for example in examples] == RIGHT[name]
  assert [e.choices[e.label] for e in examples] == RIGHT[name]


def test_copa_makes_one_sentence():
  first, second = _examples("copa")[:2]
  assert first.prompt == "The kettle whistled because"
  assert first.choices == ("the water boiled.", "the cup was empty.")
  assert second.prompt == "The ladder slipped on the ice so"
  assert second.choices[1] == "I fell into the snow."


def test_wsc_marks_the_pronoun():
  third = _examples("wsc")[2]
  assert third.prompt == (
    "The goat followed the boy, and soon the cook called for *him*.\n"
    'question: Does "him" stand for "The goat" here?\n'
    "answer:"
  )


def test_record_fills_the_gap_with_each_entity_once():
  example = _examples("record")[2]
  assert example.prompt.endswith("\n- Nine years of work came to an end\n-")
  assert example.candidates == (
    "Lena Ortiz", "New Harbor", "Ortiz", "the Harbor Museum",
  )  # fmt: skip
  assert example.choices[1] == "The mayor of New Harbor cut the ribbon"
  assert example.answer == example.choices[1]


def test_squad_shots_say_that_there_is_no_answer():
  task = TASKS["squad_v2"]
  answered, unanswered = _examples("squad_v2")[:2]
  assert answered.references == ("The River Tam", "River Tam")
  assert unanswered.answer == task.no_answer
  assert task.no_answer in unanswered.prompt
  assert answered.prompt.startswith("title: River Tam\npassage: The River")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_next_question_ends_the_answer(name):
  task = TASKS[name]
  (first, second) = _examples(name)[:2]
  assert second.prompt.startswith(task.next_cue)
  written = f" {first.answer}\n\n{second.prompt}"
  assert task.answer_in(written) == first.answer
  assert task.answer_in(" ".join(written.split())) == first.answer
  assert task.answer_in(f"\n{first.answer} \nAnd so on.") == first.answer


@pytest.mark.parametrize("name", FOLDERS)
def test_official_folders_come_first(name, tmp_path):
  lines = (FIXTURES / f"{name}.jsonl").read_text("utf-8").splitlines(True)
  official = tmp_path / FOLDERS[name]
  official.mkdir()
  (official / "train.jsonl").write_text("".join(lines[1:]), "utf-8")
  (official / "val.jsonl").write_text(lines[0] + "\n", "utf-8")
  shutil.copy(FIXTURES / f"{name}.jsonl", tmp_path)
  train, validation = (
    TASKS[name].examples_from_folder(str(tmp_path), split)
    for split in ("train", "validation")
  )
  assert validation and validation + train == _examples(name)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"--gin\.DOWNSTREAM_DIR") as info:
    TASKS["boolq"].examples_from_folder(str(tmp_path), "validation")
  assert str(tmp_path / "BoolQ" / "val.jsonl") in str(info.value)
  assert str(tmp_path / "boolq.jsonl") in str(info.value)


def test_splits_without_labels_are_refused():
  with pytest.raises(ValueError, match=r"'test' is not one of"):
    TASKS["rte"].examples_from_folder(str(FIXTURES), "test")


GOOD = {"premise": "p", "hypothesis": "h", "idx": 0}


@pytest.mark.parametrize(
  "line",
  [GOOD, GOOD | {"label": "neutral"}, GOOD | {"label": -1}, {"label": 0}],
)
def test_lines_without_what_it_takes_are_refused(line, tmp_path):
  (tmp_path / "rte.jsonl").write_text(json.dumps(line), "utf-8")
  with pytest.raises(ValueError, match=r"rte\.jsonl is not a file of rte"):
    TASKS["rte"].examples_from_folder(str(tmp_path), "validation")


@pytest.mark.parametrize(
  ("text", "problem"),
  [("", "has no examples"), ("{'a': 1}", "is not a file of rte")],
)
def test_other_files_are_refused(text, problem, tmp_path):
  (tmp_path / "rte.jsonl").write_text(text, "utf-8")
  with pytest.raises(ValueError, match=problem):
    TASKS["rte"].examples_from_folder(str(tmp_path), "validation")


def test_suites():
  assert len(SUITES["superglue"]) == 8 and len(SUITES["qa"]) == 3
  assert set(SUITES["all"]) == set(TASKS) == {*FOLDERS, *WRITTEN}
  names = [task.name for task in select_tasks(["wic", "superglue", "wic"])]
  assert names[0] == "wic" and sorted(names) == sorted(FOLDERS)
  with pytest.raises(ValueError, match=r"'glue' is not one of the tasks"):
    select_tasks(["glue"])


def _pool(size: int) -> list[Example]:
  return [Example(prompt=f"{n} + 1 =", answer=str(n + 1)) for n in range(size)]


def test_shots_are_drawn_by_seed_and_prompt():
  pool = _pool(50)
  drawn = [draw_shots(pool, e, num_shots=5, seed=7) for e in pool]
  again = [draw_shots(pool, e, num_shots=5, seed=7) for e in reversed(pool)]
  assert drawn == again[::-1]
  other = [draw_shots(pool, e, num_shots=5, seed=8) for e in pool]
  assert sum(a == b for a, b in zip(drawn, other)) <= 1
  assert len({tuple(shot.prompt for shot in shots) for shots in drawn}) >= 49
  fewer = [draw_shots(pool, e, num_shots=2, seed=7) for e in pool]
  assert fewer == [shots[:2] for shots in drawn]
  # Exact draws, so that results stay what they were.
  assert [shot.answer for shot in drawn[0]] == ["31", "45", "39", "30", "24"]


def test_shots_differ_and_leave_the_question_out():
  pool = _pool(6)
  for example in pool:
    shots = draw_shots(pool, example, num_shots=5, seed=0)
    assert {shot.prompt for shot in [*shots, example]} == {
      other.prompt for other in pool
    }
  with pytest.raises(ValueError, match=r"only 5 other examples"):
    draw_shots(pool, pool[0], num_shots=6, seed=0)


def test_shots_are_equally_likely():
  pool, asked = (
    _pool(10),
    [Example(prompt=f"{n}?", answer="") for n in range(2_000)],
  )
  places = [
    [int(shot.answer) - 1 for shot in draw_shots(pool, e, num_shots=3, seed=1)]
    for e in asked
  ]
  for drawn in zip(*places):
    counts = [drawn.count(number) for number in range(10)]
    # 200 in the mean, standard deviation 13.4.
    assert max(abs(count - 200) for count in counts) < 5 * 13.4


def test_prompts_drop_the_first_shots():
  first, second, example = _pool(3)

  def prompt(max_tokens: int) -> str:
    return build_prompt(
      example,
      [first, second],
      max_tokens=max_tokens,
      count_tokens=lambda text: len(text.split()),
    )

  assert prompt(14) == "0 + 1 = 1\n\n1 + 1 = 2\n\n2 + 1 ="
  assert prompt(13) == prompt(9) == "1 + 1 = 2\n\n2 + 1 ="
  assert prompt(1) == "2 + 1 ="


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    # Half of the labels are 1: of equally frequent ones, the first counts.
    ("boolq", {"accuracy": 50}),
    ("cb", {"accuracy": 50, "f1": 100 * (2 / 3) / 3}),
    # Four of six candidates are right; one of three questions has no wrong one.
    ("multirc", {"f1a": 80, "exact": 100 / 3}),
    # "The 1923" is right once, and no word of it anywhere else.
    ("trivia_qa", {"exact": 25, "f1": 25}),
  ],
)
def test_the_majority_answers_all_alike(name, expected):
  assert majority_scores(TASKS[name], _examples(name)) == pytest.approx(
    expected
  )


def test_the_majority_of_squad_abstains():
  task = TASKS["squad_v2"]
  examples = [e for e in _examples("squad_v2") if not e.references] * 2
  examples += [e for e in _examples("squad_v2") if e.references]
  scores = majority_scores(task, examples)
  assert (scores["NoAns_f1"], scores["HasAns_f1"]) == (100, 0)
  assert scores["exact"] == pytest.approx(100 * 4 / 7)
