"""What models are trained on: sources of text, vocabularies, objectives.

This folder is the package `raptr_jax.tasks`, to which a link in `raptr_jax/`
leads; so nothing claims the name `tasks` in other people's environments.

Plain Python and NumPy: nothing here imports jax or the rest of `raptr_jax`, and
only the functions that need TensorFlow, seqio or tokenizers import them, except
in `seqio_tasks.py` and `seqio_features.py`, which nothing else imports.
"""

if __name__ == "tasks":
  raise ImportError("import raptr_jax.tasks: under two names it exists twice")
