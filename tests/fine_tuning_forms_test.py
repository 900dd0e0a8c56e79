"""How models read tasks, and how their answers are found."""

import dataclasses
import json

import numpy as np
import pytest

from raptr_jax.fine_tuning.bert_spans import (
  BertSpans,
  Span,
  answer_of,
  best_span,
)
from raptr_jax.fine_tuning.forms import form_of
from raptr_jax.fine_tuning.prompted import ByPrompt, InWords
from raptr_jax.fine_tuning.text_answers import TextAnswers
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.tasks.downstream import registry
from raptr_jax.tasks.downstream.task import Answer
from raptr_jax.tasks.labelled import glue, squad
from raptr_jax.tasks.labelled.task import LabelledExample
from raptr_jax.tasks.objectives.causal_lm import CausalLM

BERT = BertMaskedLM(
  BertConfig(
    vocab_size=300, num_layers=2, embed_dim=16, num_heads=2, max_length=40
  )
)


class Letters:
  """A vocabulary of letters; upper-case ones have two tokens."""

  pad_id, cls_id, sep_id, eos_id = 0, 2, 3, 3

  def encode(self, text):
    ids = [[ord(x)] if x.islower() else [1, ord(x.lower())] for x in text]
    return [i for part in ids for i in part]

  def encode_batch(self, texts):
    return [np.array(self.encode(text), np.int32) for text in texts]


PASSAGE = "Mary (born 1850) met John."


def write_squad(folder, questions, passage=PASSAGE, version="v1.1"):
  """Files of both splits, with questions (text, answer or None)."""
  qas = [
    {
      "id": f"q{number}",
      "question": text,
      "answers": []
      if answer is None
      else [{"text": answer, "answer_start": passage.index(answer)}],
    }
    for number, (text, answer) in enumerate(questions)
  ]
  paragraphs = [{"context": passage, "qas": qas}]
  text = json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]})
  for split in ("train", "dev"):
    (folder / f"{split}-{version}.json").write_text(text, encoding="utf-8")


def spans_of(folder, name="squad", length=40):
  return BertSpans(
    task=squad.TASKS[name],
    pretrained=BERT,
    vocabulary=Letters(),
    length=length,
    folder=str(folder),
  )


@pytest.mark.parametrize("pooler", [True, False])
def test_a_pretrained_pooler_is_kept(pooler):
  config = dataclasses.replace(BERT.config, pooler=pooler)
  form = made("cola", BertMaskedLM(config), None)
  fresh = {"label_head"} if pooler else {"label_head", "pooler"}
  assert set(form.fresh_parts) == fresh


def test_an_answer_is_a_span_of_the_row(tmp_path):
  write_squad(tmp_path, [("who", "John")])
  form = spans_of(tmp_path)
  (window,) = form.examples("train")
  row = form.features(window)
  first, last = row["targets"]
  tokens = row["tokens"][first : last + 1].tolist()
  assert tokens == Letters().encode("John")
  assert row["token_types"][first] == 1
  # The likeliest span is the answer as it stands in the passage.
  outputs = np.zeros((40, 2), np.float32)
  outputs[first, 0] = outputs[last, 1] = 5
  span = best_span(window, outputs)
  assert span == Span("John", 10, 0)


def test_punctuation_is_not_part_of_a_word(tmp_path):
  write_squad(tmp_path, [("when", "1850")])
  form = spans_of(tmp_path)
  (window,) = form.examples("train")
  first, last = window.target
  begin, end = window.places[first][0], window.places[last][1]
  assert PASSAGE[begin:end] == "1850"


def test_long_passages_are_read_in_windows(tmp_path):
  write_squad(tmp_path, [("who", "John")])
  form = spans_of(tmp_path, length=20)
  windows = form.examples("train")
  whole = spans_of(tmp_path).examples("train")[0].tokens.tolist()
  assert len(windows) > 1
  room = 20 - 3 - 3
  for number, window in enumerate(windows):
    begin = number * (room // 2)
    assert window.tokens.tolist() == whole[begin : begin + room]
  assert windows[-1].tokens.tolist()[-1] == whole[-1]
  assert [window.target is not None for window in windows][-1]
  # Where the answer is not, [CLS] stands for it.
  assert form.features(windows[0])["targets"].tolist() == [0, 0]


def test_a_span_ends_after_it_begins_and_inside_the_passage(tmp_path):
  write_squad(tmp_path, [("who", "John")])
  (window,) = spans_of(tmp_path).examples("train")
  outputs = np.zeros((40, 2), np.float32)
  outputs[1, 0] = outputs[-1, 1] = 50  # In the question, and in the padding.
  outputs[window.offset + 3, 0] = 5
  outputs[window.offset + 1, 1] = 4  # Before the first token.
  outputs[window.offset + 4, 1] = 3
  assert best_span(window, outputs).score == 8


def test_the_best_window_answers_unless_nothing_is_likelier():
  spans = [Span("a", 3.0, 1.0), Span("b", 5.0, 4.0)]
  assert answer_of(spans, must_answer=False) == "b"
  spans = [Span("a", 3.0, 6.0), Span("b", 5.0, 5.5)]
  assert answer_of(spans, must_answer=False) == ""
  assert answer_of(spans, must_answer=True) == "b"


def test_new_questions_are_read_as_those_of_the_task(tmp_path):
  write_squad(tmp_path, [("who", "John")])
  form = spans_of(tmp_path, length=20)
  known = form.examples("train")
  read = form.read(("who", PASSAGE), 3)
  assert [w.tokens.tolist() for w in read] == [w.tokens.tolist() for w in known]
  spans = [Span("a", 1.0, 0.0)] * (len(read) - 1) + [Span("b", 2.0, 0.0)]
  assert form.shown(read, spans) == ["b"]
  with pytest.raises(ValueError, match="question, passage"):
    form.read(("who",), 0)


def test_squad_is_scored_by_question(tmp_path):
  questions = [("who", "John"), ("why", None)]
  write_squad(tmp_path, questions, version="v2.0")
  form = spans_of(tmp_path, "squad_v2", length=20)
  windows = form.examples("validation")
  perfect = [
    Span("john!", 2.0, 1.0) if w.example.answers else Span("x", 0.0, 1.0)
    for w in windows
  ]
  assert form.scores("validation", perfect)["exact"] == 100
  assert form.baseline() == {"exact": 50, "f1": 50, "score": 50}
  assert [line["prediction"] for line in form.lines("validation", perfect)] == [
    "john!",
    "",
  ]


def test_an_answer_that_is_not_in_its_place_is_named(tmp_path):
  write_squad(tmp_path, [("who", "John")])
  path = tmp_path / "train-v1.1.json"
  path.write_text(path.read_text().replace('"John"', '"Jack"', 1), "utf-8")
  with pytest.raises(ValueError, match="does not have 'Jack'"):
    spans_of(tmp_path).examples("train")


WRITER = DecoderLM(
  DecoderConfig(
    vocab_size=300, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=16
  )
)


def answers_of(source, **changes):
  fields = {
    "source": source,
    "model": WRITER,
    "objective": CausalLM(),
    "vocabulary": Letters(),
    "length": 20,
  }
  return TextAnswers(**{**fields, **changes})


def write_cola(folder):
  for split in ("train", "validation"):
    path = folder / f"cola-{split}.tsv"
    path.write_text("sentence\tlabel\nab\t1\nabc\t0\n", encoding="utf-8")


def test_only_the_answer_counts_in_the_loss(tmp_path):
  write_cola(tmp_path)
  form = answers_of(InWords(glue.TASKS["cola"], str(tmp_path), None))
  example = form.examples("train")[0]
  assert (example.prompt, example.answer) == ("cola sentence: ab", "acceptable")
  row = form.features(example)
  used = row["target_weights"] > 0
  expected = [*Letters().encode("acceptable"), Letters.eos_id]
  assert row["targets"][used].tolist() == expected
  shapes = {
    x.shape for e in form.examples("train") for x in form.features(e).values()
  }
  assert len(shapes) == 1


def test_of_a_long_prompt_the_end_is_read(tmp_path):
  write_cola(tmp_path)
  source = InWords(glue.TASKS["cola"], str(tmp_path), None)
  form = answers_of(source, length=2)
  row = form.features(form.examples("train")[0])
  prompt = row["tokens"][: int(np.argmax(row["target_weights"])) + 1]
  assert prompt.tolist() == [Letters.cls_id, ord("a"), ord("b")]


def test_numbers_are_chosen_from_multiples_of_a_fifth():
  source = InWords(glue.TASKS["stsb"], None, None)
  assert source.choices[:3] == ("0.0", "0.2", "0.4")
  assert source.choices[-1] == "5.0" and len(source.choices) == 26
  found = source._example(LabelledExample(("a", "b"), 3.71, 0))
  assert found.answer == "3.8"
  assert found.prompt == "stsb sentence1: a sentence2: b"
  others = [found, dataclasses.replace(found, references=("1.0",))]
  assert source.scores(others, [19, 3])["pearson"] == pytest.approx(100)


def test_tasks_by_prompt_are_learned_as_they_are_evaluated():
  source = ByPrompt(registry.TASKS["cb"], "tests/fixtures/downstream", None)
  form = answers_of(source, length=400)
  examples = form.examples("validation")
  truth = [example.label for example in examples]
  scores = form.scores("validation", truth)
  assert scores["score"] == 100 and set(form.metrics) <= set(scores)
  assert 0 < form.baseline()["accuracy"] < 100


def test_squad_in_words(tmp_path):
  write_squad(tmp_path, [("who", "John")])
  form = answers_of(ByPrompt(squad.IN_WORDS, str(tmp_path), None), length=90)
  (example,) = form.examples("validation")
  assert example.prompt == f"question: who context: {PASSAGE}"
  assert form.scores("validation", [Answer("the John")])["exact"] == 100
  assert form.baseline() == {}


@pytest.mark.parametrize(
  ("name", "model", "objective", "kind"),
  [
    ("cola", BERT, None, "BertLabels"),
    ("squad", BERT, None, "BertSpans"),
    ("squad_v2", BERT, None, "BertSpans"),
    ("cola", WRITER, CausalLM(), "TextAnswers"),
    ("superglue/rte", WRITER, CausalLM(), "TextAnswers"),
    ("squad", WRITER, CausalLM(), "TextAnswers"),
  ],
)
def test_each_task_has_a_form(name, model, objective, kind):
  assert type(made(name, model, objective)).__name__ == kind


@pytest.mark.parametrize(
  ("name", "model", "objective", "message"),
  [
    ("boolq", BERT, None, "expected one of those for BERT: cola"),
    (
      "mood",
      WRITER,
      CausalLM(),
      "expected one of those for models that write",
    ),
    ("cola", WRITER, object(), "expected a BERT, or a model that writes"),
  ],
)
def test_what_does_not_suit_is_named(name, model, objective, message):
  with pytest.raises(ValueError, match=message):
    made(name, model, objective)


def made(name, model, objective):
  task = type("Task", (), {"objective": objective})()
  return form_of(
    name,
    model=model,
    text_task=task,
    vocabulary=Letters(),
    length=40,
    folder=None,
    tfds_data_dir=None,
    num_examples=None,
  )
