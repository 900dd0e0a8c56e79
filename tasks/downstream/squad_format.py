"""SQuAD's file format, which TyDiQA-GoldP shares."""

from collections.abc import Iterator

from raptr_jax.tasks.downstream.task import Record


def to_records(document: Record) -> Iterator[Record]:
  """The records of a file, in TFDS's form.

  An answer that occurs several times in its passage is listed as often.
  """
  for article in document["data"]:
    for paragraph in article["paragraphs"]:
      for question in paragraph["qas"]:
        yield {
          "id": question["id"],
          "title": article.get("title", ""),
          "context": paragraph["context"],
          "question": question["question"],
          "answers": {
            name: [answer[name] for answer in question["answers"]]
            for name in ("text", "answer_start")
          },
        }
