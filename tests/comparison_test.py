"""What has changed between two configurations."""

import gin
import pytest

from raptr_jax.configuration.comparison import changes
from raptr_jax.configuration.configure import config_text
from raptr_jax.main import configure


def text(*overrides):
  gin.clear_config()
  configure(
    [
      "--gin_file=experiments/quickstart_bert_raptr.gin",
      "--gin.MODEL_DIR='x'",
      *(f"--gin.{override}" for override in overrides),
    ]
  )
  return config_text()


@pytest.fixture(autouse=True)
def clear():
  yield
  gin.clear_config()


# The first two are set by none of our files: one of a class, one of a function.
@pytest.mark.parametrize(
  ("override", "name", "old", "new"),
  [
    ("masked_lm.MaskedLM.mask_rate=0.3", "mask_rate", "0.15", "0.3"),
    ("optim.adamw.b2=0.9", "b2", "0.999", "0.9"),
    ("RANDOM_SEED=7", "RANDOM_SEED", "0", "7"),
  ],
)
def test_a_change_is_found_both_ways(override, name, old, new):
  plain, changed = text(), text(override)
  (found,) = changes(changed, text())
  assert (found.old, found.new) == (new, old)
  text(override)
  (found,) = changes(plain, changed)
  assert found.name.endswith(name)
  assert (found.old, found.new) == (old, new)


def test_a_default_that_is_written_is_no_change():
  plain = text()
  assert changes(plain, text("masked_lm.MaskedLM.mask_rate=0.15")) == []
