"""The objective of UL2 (arXiv:2205.05131): a mixture of denoisers.

Each row is corrupted by one denoiser, drawn by its weight, and its pieces one
by one. Departures: so much text is taken that inputs and targets fill their
features, whatever the denoiser; nothing is ever cut off afterwards.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.corruption import Costs, corrupt_row, costs
from tasks.denoising import UL2_DENOISERS, Denoiser
from tasks.forms import Decoder, EncoderDecoder, Form
from tasks.packing import Framing
from tasks.task import Corruption
from tasks.vocabulary import Vocabulary, sentinel

FORMS: Mapping[str, Form] = {
  "decoder": Decoder(),
  "encoder_decoder": EncoderDecoder(),
}
MOST_SENTINELS = 100  # T5's number.
DOWN, UP = 0.0, 1 - 1e-9  # How sizes are rounded, see `Denoiser.sizes`.


@dataclasses.dataclass(frozen=True)
class UL2:
  """The mixture of denoisers, for a decoder or for an encoder and a decoder.

  The decoder's feature is "tokens", those of an encoder and a decoder are
  "inputs" and "targets". Of these two a denoiser fills the one that it needs
  more of: its ratio of inputs to targets is what it is.

  Attributes:
    form: "decoder" or "encoder_decoder", see `tasks.forms`.
    weights: how often each denoiser is drawn, in proportion.
    denoisers: what is drawn from.
    mode_tokens: whether inputs begin with the denoiser's mode.
  """

  form: str = "decoder"
  weights: tuple[float, ...] = (0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.2)
  denoisers: tuple[Denoiser, ...] = UL2_DENOISERS
  mode_tokens: bool = True

  def __post_init__(self):
    if self.form not in FORMS:
      raise ValueError(
        f"UL2_FORM={self.form!r} must be one of {sorted(FORMS)}: set "
        "--gin.UL2_FORM"
      )
    if (
      len(self.weights) != len(self.denoisers)
      or min(self.weights) < 0
      or not sum(self.weights) > 0
    ):
      raise ValueError(
        f"UL2_WEIGHTS={self.weights} must be {len(self.denoisers)} numbers, "
        f"none negative and not all 0, for {self.kinds}: set --gin.UL2_WEIGHTS"
      )

  @property
  def kinds(self) -> tuple[str, ...]:
    """Names of the denoisers."""
    return tuple(denoiser.name for denoiser in self.denoisers)

  @property
  def packing(self) -> Form:
    """How the model takes inputs and targets."""
    return FORMS[self.form]

  def mode_ids(
    self, denoiser: Denoiser, vocabulary: Vocabulary
  ) -> tuple[int, ...]:
    """What the inputs of a denoiser begin with.

    A mode that the vocabulary has no token for is spelt as text, as UL2 does.
    """
    return vocabulary.mode_ids(denoiser.mode) if self.mode_tokens else ()

  def continuation(
    self, tokens: Sequence[int], vocabulary: Vocabulary
  ) -> np.ndarray:
    """Inputs int32[...] whose targets go on where `tokens` end.

    They are those of S, the denoiser with one span at the end, or, if there
    is none, of the last denoiser.
    """
    prefix = (d for d in self.denoisers if d.mean_span is None)
    mode = self.mode_ids(next(prefix, self.denoisers[-1]), vocabulary)
    return np.array([*mode, *tokens, vocabulary.sentinel_ids[0]], np.int32)

  def framing(self, vocabulary: Vocabulary) -> Framing:
    """Nothing: ends are added when a row is corrupted."""
    del vocabulary
    return Framing()

  def row_length(self, feature_lengths: Mapping[str, int]) -> int:
    """The most tokens that any of the denoisers takes.

    Raises:
      ValueError: the features are not those of the form, or too short.
    """
    return max(most for _, most in self._solved(feature_lengths, DOWN))

  def extra_pieces(self, feature_lengths: Mapping[str, int]) -> tuple[str, ...]:
    """Mode tokens, if they are used, then sentinels, the first one last."""
    spans = max(
      int(table.spans[most])
      for table, most in self._solved(feature_lengths, UP)
    )
    modes = dict.fromkeys(denoiser.mode for denoiser in self.denoisers)
    return (
      *(modes if self.mode_tokens else ()),
      *map(sentinel, reversed(range(min(spans, MOST_SENTINELS)))),
    )

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """Those of the form, see `tasks.forms`, and kind: int32[1]."""
    self._check(feature_lengths)
    features = self.packing.features(feature_lengths)
    return {**features, "kind": (1, np.int32)}

  def corruption(
    self, vocabulary: Vocabulary, feature_lengths: Mapping[str, int]
  ) -> Corruption:
    """The function (row, rng) -> example, `corrupt_row`.

    Raises:
      ValueError: the features are not those of the form, or too short, or
        the vocabulary has no sentinels or no end.
    """
    self.row_length(feature_lengths)
    if vocabulary.pad_id != 0:
      raise ValueError(
        f"the vocabulary {vocabulary.path} has padding at id "
        f"{vocabulary.pad_id}, and must have it at 0, where a decoder starts: "
        "choose another --gin.VOCABULARY_PATH, or None to train one"
      )
    return functools.partial(
      corrupt_row,
      form=self.packing,
      feature_lengths=dict(feature_lengths),
      denoisers=self.denoisers,
      weights=np.array(self.weights) / math.fsum(self.weights),
      mode_ids=[self.mode_ids(d, vocabulary) for d in self.denoisers],
      sentinel_ids=np.array(vocabulary.sentinel_ids, np.int32),
      pad_id=vocabulary.pad_id,
      eos_id=vocabulary.eos_id,
    )

  def _solved(
    self, feature_lengths: Mapping[str, int], rounding: float
  ) -> list[tuple[Costs, int]]:
    """Costs and most tokens of each denoiser that is drawn at all."""
    self._check(feature_lengths)
    form = self.packing
    room = [feature_lengths[name] for name in form.feature_names]
    tables = [
      costs(
        denoiser,
        np.full(2, rounding),
        form=form,
        num_tokens=sum(room),
        num_sentinels=sum(room),  # As many as there may be.
        num_mode_ids=int(self.mode_tokens),
      )
      for denoiser, weight in zip(self.denoisers, self.weights)
      if weight > 0
    ]
    solved = [(table, table.most(room)) for table in tables]
    if min(most for _, most in solved) < 2:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={dict(feature_lengths)} leaves no room for two "
        "tokens of text: set greater --gin.TASK_FEATURE_LENGTHS"
      )
    return solved

  def _check(self, feature_lengths: Mapping[str, int]) -> None:
    names = self.packing.feature_names
    if set(feature_lengths) != set(names):
      example = dict.fromkeys(names, 512)
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={dict(feature_lengths)}: the form {self.form!r} "
        f"of UL2 has the features {names}: set "
        f'--gin.TASK_FEATURE_LENGTHS="{example}"'
      )
