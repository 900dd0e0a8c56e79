"""What models are trained on: sources of text, vocabularies, objectives.

Everything here is plain Python and NumPy. Neither jax nor `raptr_jax` is
imported, and TensorFlow, seqio and their kin only inside the functions that
need them.
"""
