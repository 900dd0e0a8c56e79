"""Means over seeds, and differences between methods with the same seeds."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean of n values.

  Attributes:
    mean: of the values.
    sd: their standard deviation (n - 1); NaN if n is 1.
    n: how many there are.
  """

  mean: float
  sd: float
  n: int

  @property
  def half_width(self) -> float:
    """Of the mean's 95 % interval by Student's t; NaN if n is 1."""
    if self.n < 2:
      return math.nan
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)
    return float(quantile * self.sd / math.sqrt(self.n))

  @property
  def interval(self) -> tuple[float, float]:
    return self.mean - self.half_width, self.mean + self.half_width


def estimate(values: Sequence[float]) -> Estimate | None:
  """Mean and spread; None if there are no values."""
  if not values:
    return None
  sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
  return Estimate(float(np.mean(values)), sd, len(values))


def paired_difference(
  values: Mapping[int, float], reference: Mapping[int, float]
) -> Estimate | None:
  """`values` less `reference`, seed by seed; None without a common seed."""
  common = sorted(values.keys() & reference.keys())
  return estimate([values[seed] - reference[seed] for seed in common])


def median_ratio(
  values: Mapping[int, float], reference: Mapping[int, float]
) -> float | None:
  """Median of `reference` over `values`; None without a common seed."""
  common = values.keys() & reference.keys()
  if not common:
    return None
  return float(np.median([reference[seed] / values[seed] for seed in common]))
