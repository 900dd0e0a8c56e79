"""What models are trained on: sources of text, vocabularies, objectives.

Plain Python and NumPy: nothing here imports jax or `raptr_jax`, and only the
functions that need TensorFlow, seqio or tokenizers import them.
"""
