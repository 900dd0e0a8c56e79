"""ReCoRD (arXiv 1810.12885): which entity of a passage fills a gap.

A choice is the whole query with an entity in its gap. The likeliest choice's
entity is compared with the right ones as in SQuAD.
"""

from collections.abc import Iterator, Sequence

from raptr_jax.tasks.downstream import metrics, superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record, Scores

PROMPT = """\
{passage}
-"""
GAP = "@placeholder"
HIGHLIGHT = "\n@highlight\n"  # Before each point of a summary in the passage.


def to_records(row: Record) -> Iterator[Record]:
  """A record for each query about a passage.

  Ends of entities are inclusive. Entities and answers are sorted and unique.
  """
  text = row["passage"]["text"]
  spans = row["passage"]["entities"]
  entities = {text[span["start"] : span["end"] + 1] for span in spans}
  for query in row["qas"]:
    yield {
      "passage": text,
      "query": query["query"],
      "entities": sorted(entities),
      "answers": sorted({answer["text"] for answer in query["answers"]}),
    }


def to_example(record: Record) -> Example:
  """The passage of a record, and its query with each entity in the gap."""
  if not record["answers"]:
    raise ValueError(f"the query {record['query']!r} has no answers")
  passage = record["passage"].replace(HIGHLIGHT, "\n- ")
  query, entities = record["query"].strip(), record["entities"]
  return Example(
    prompt=PROMPT.format(passage=passage),
    answer=query.replace(GAP, record["answers"][0]),
    choices=tuple(query.replace(GAP, entity) for entity in entities),
    candidates=tuple(entities),
    references=tuple(record["answers"]),
  )


def compute_scores(
  examples: Sequence[Example], chosen: Sequence[int]
) -> Scores:
  """Exact match and F1 of the chosen entities, against the best answer."""
  exact, f1 = metrics.exact_and_f1(
    [example.candidates[choice] for example, choice in zip(examples, chosen)],
    [example.references for example in examples],
    normalize=metrics.normalize_squad,
  )
  return {"f1": 100 * f1, "exact": 100 * exact}


TASK = RankTask(
  name="record",
  tfds_name="super_glue/record:1.0.2",
  files=superglue.files("ReCoRD", "record"),
  to_records=to_records,
  to_example=to_example,
  metrics=("f1", "exact"),
  compute_scores=compute_scores,
)
