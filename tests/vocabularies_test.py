import functools
import itertools
import re
import tempfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.sources import KingJamesBible
from raptr_jax.tasks.text.vocabularies import open_vocabulary

TOKENS = [
  "[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
  "the", "cat", "##s", "sat", ".", "[", "]", "mask", "e",
]  # fmt: skip


EXTRA_PIECES = (
  "[NLU]", "[S2S]", *(f"<extra_id_{i}>" for i in reversed(range(98))),
)  # fmt: skip


def _documents():
  return itertools.islice(KingJamesBible().documents("train"), 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "x.model"
  train_sentencepiece(_documents(), 700, path, extra_pieces=EXTRA_PIECES)
  return path


def test_training_twice_gives_the_same_bytes(model, tmp_path):
  again = tmp_path / "again.model"
  train_sentencepiece(_documents(), 700, again, extra_pieces=EXTRA_PIECES)
  assert again.read_bytes() == model.read_bytes()


def test_ids_of_a_trained_vocabulary(model):
  vocabulary = open_vocabulary(model)
  assert vocabulary.size == 700
  assert (vocabulary.pad_id, vocabulary.unk_id) == (0, 1)
  assert (vocabulary.cls_id, vocabulary.sep_id) == (2, 3)
  assert vocabulary.mask_id == 4
  # Sentinel k is V - 1 - k.
  assert vocabulary.special_ids == (*range(5), *range(600, 700))
  assert vocabulary.encode("<extra_id_0>")[-1] == 699
  assert vocabulary.sentinel_ids == tuple(range(699, 601, -1))
  assert vocabulary.eos_id == vocabulary.sep_id
  assert vocabulary.mode_ids("[S2S]") == (601,)
  # A mode that has no piece is text.
  spelt = vocabulary.mode_ids("[NLG]")
  assert vocabulary.decode(spelt) == "[NLG]"
  assert not set(spelt) & set(vocabulary.special_ids)


@pytest.fixture(scope="module")
def without_sentinels(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "x.model"
  train_sentencepiece(_documents(), 600, path)
  return path


def test_sentinels_are_appended_to_a_given_vocabulary(without_sentinels):
  given = open_vocabulary(without_sentinels)
  with pytest.raises(ValueError, match=r"no <extra_id_0>.*extra_ids=100"):
    _ = given.sentinel_ids
  vocabulary = open_vocabulary(without_sentinels, extra_ids=3)
  assert vocabulary.size == given.size + 3 == 603
  assert vocabulary.sentinel_ids == (602, 601, 600)
  assert vocabulary.special_ids == (*range(5), 600, 601, 602)
  text = "And God said <extra_id_1>, Let there be light"
  ids = vocabulary.encode(text)
  assert 601 in ids
  assert vocabulary.decode(ids) == text
  plain = "And God said, Let there be light"
  assert vocabulary.encode(plain) == given.encode(plain)


def test_sentinels_are_not_appended_twice_nor_to_word_pieces(model, tmp_path):
  with pytest.raises(ValueError, match=r"extra_ids=2 .*<extra_id_"):
    _ = open_vocabulary(model, extra_ids=2).size
  (tmp_path / "vocab.txt").write_text("\n".join(TOKENS))
  with pytest.raises(ValueError, match=r"extra_ids=2 .*SentencePiece"):
    open_vocabulary(tmp_path / "vocab.txt", extra_ids=2)


def test_sentinels_of_word_pieces_are_lines(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("\n".join([*TOKENS, "<extra_id_1>", "<extra_id_0>"]))
  vocabulary = open_vocabulary(path)
  assert vocabulary.sentinel_ids == (len(TOKENS) + 1, len(TOKENS))
  assert set(vocabulary.sentinel_ids) < set(vocabulary.special_ids)
  assert vocabulary.eos_id == vocabulary.sep_id == 4


@pytest.mark.parametrize(
  "text", ["And God said, Let there be light", "Gödel wrote 数学 – 42 €"]
)
def test_any_text_comes_back(model, text):
  vocabulary = open_vocabulary(model)
  ids = vocabulary.encode(text)
  assert vocabulary.decode(ids) == text
  assert not set(ids) & set(vocabulary.special_ids)


def test_names_of_special_tokens_are_plain_text(model):
  vocabulary = open_vocabulary(model)
  ids = vocabulary.encode("[PAD] [UNK] [CLS] [SEP] [MASK]")
  assert not set(ids) & set(vocabulary.special_ids)


@pytest.mark.parametrize(
  ("size", "limit"), [(60, "at least"), (100_000, "at most")]
)
def test_size_that_does_not_suit_the_text_is_refused(tmp_path, size, limit):
  path, extra = tmp_path / "x.model", ["<extra_id_1>", "<extra_id_0>"]
  documents = list(_documents())[:10]
  train = functools.partial(
    train_sentencepiece, documents, path=path, extra_pieces=extra
  )
  with pytest.raises(ValueError, match=f"VOCABULARY_SIZE={size} .*--gin") as e:
    train(size=size)
  assert "trainer_interface" not in str(e.value)
  assert not list(tmp_path.iterdir())
  found = int(re.search(rf"{limit} (\d+) ids", str(e.value))[1])
  beyond = found + (1 if limit == "at most" else -1)
  with pytest.raises(ValueError, match="does not suit"):
    train(size=beyond)
  train(size=found)
  assert open_vocabulary(path).size == found


def test_no_text_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no text"):
    train_sentencepiece(["", ""], 600, tmp_path / "x.model")


def test_path_must_be_there_and_of_a_known_kind(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"--gin.VOCABULARY_PATH"):
    open_vocabulary(tmp_path / "none.model")
  (tmp_path / "x.yaml").write_text("{}")
  with pytest.raises(ValueError, match=r"must end in \.model .*, \.txt"):
    open_vocabulary(tmp_path / "x.yaml")


@pytest.fixture
def word_pieces(tmp_path):
  pytest.importorskip("tokenizers")
  path = tmp_path / "vocab.txt"
  path.write_text("\n".join(TOKENS) + "\n")
  return path


def test_word_pieces_by_hand(word_pieces):
  vocabulary = open_vocabulary(word_pieces)
  # "dog" is unknown as a whole; case and accent are dropped.
  assert vocabulary.encode("Thé cats sat. Dog") == [6, 7, 8, 9, 10, 2]
  assert vocabulary.decode([6, 7, 8, 9, 10]) == "the cats sat."
  assert vocabulary.encode("[MASK]") == [11, 13, 12]
  assert vocabulary.size == len(TOKENS)
  assert vocabulary.special_ids == (0, 1, 2, 3, 4, 5)
  assert (vocabulary.pad_id, vocabulary.unk_id) == (0, 2)
  assert (vocabulary.cls_id, vocabulary.sep_id) == (3, 4)
  assert vocabulary.mask_id == 5


def test_special_tokens_are_spelt_by_name(model, word_pieces):
  vocabulary = open_vocabulary(model)
  ids = vocabulary.encode("And God said")
  spelt = [2, *ids, 4, 699, *ids, 3]
  assert vocabulary.spell(spelt) == (
    "[CLS] And God said [MASK] <extra_id_0> And God said [SEP]"
  )
  assert open_vocabulary(word_pieces).spell([3, 6, 5, 8]) == "[CLS] the [MASK]s"


def test_word_pieces_can_keep_case(word_pieces):
  assert open_vocabulary(word_pieces, False).encode("The the") == [2, 6]


def test_missing_special_token_is_named(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("[PAD]\n[UNK]\nthe\n")
  with pytest.raises(ValueError, match=r"no \[MASK\]"):
    _ = open_vocabulary(path).mask_id


def test_fingerprint_is_of_the_bytes(word_pieces):
  before = open_vocabulary(word_pieces).fingerprint()
  assert before == open_vocabulary(word_pieces).fingerprint()
  word_pieces.write_text("\n".join([*TOKENS, "more"]))
  assert before != open_vocabulary(word_pieces).fingerprint()


def test_a_line_separator_of_unicode_is_no_end_of_a_line(tmp_path):
  path = tmp_path / "vocab.txt"
  tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028x", "the"]
  path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
  vocabulary = open_vocabulary(str(path))
  assert vocabulary.size == 7
  assert vocabulary.mask_id == 4


def test_a_token_that_stands_twice_is_named(tmp_path):
  path = tmp_path / "vocab.txt"
  tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "the"]
  path.write_text("\n".join(tokens), encoding="utf-8")
  with pytest.raises(ValueError, match="'the' twice"):
    _ = open_vocabulary(str(path)).size


@hypothesis.settings(deadline=None, derandomize=True, max_examples=300)
@hypothesis.given(
  texts=st.lists(
    st.text(
      alphabet=st.one_of(
        st.sampled_from("the cats.\n\t \u00a0\u200b\u0301\x1c[MASK]數"),
        st.characters(exclude_categories=["Cs"]),
      ),
      max_size=40,
    ),
    max_size=4,
  ),
  lower_case=st.booleans(),
)
def test_words_that_are_remembered_change_nothing(texts, lower_case):
  pytest.importorskip("tokenizers")
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "vocab.txt"
    path.write_text("\n".join(TOKENS), encoding="utf-8")
    vocabulary = open_vocabulary(path, lower_case)
    encode = vocabulary._tokenizer.encode
    expected = [encode(text, add_special_tokens=False).ids for text in texts]
    assert [vocabulary.encode(text) for text in texts] == expected
    batch = vocabulary.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == expected


def test_a_batch_is_encoded_as_text_by_text(model):
  vocabulary = open_vocabulary(model)
  texts = [*_documents(), "", "ὈΔΥΣΣΕΎΣ \x00 <extra_id_3>"]
  batch = vocabulary.encode_batch(texts)
  assert all(ids.dtype == np.int32 for ids in batch)
  assert [ids.tolist() for ids in batch] == [*map(vocabulary.encode, texts)]
