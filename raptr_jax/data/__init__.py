"""Batches for training, prepared and streamed.

Batches of prepared records are a pure function of one integer, the number of
the batch. Example `batch * batch_size + i` does not depend on the number of
hosts, of which each gets a contiguous part of every batch: which task of a
mixture it comes from (`interleaving.py`), which row of that task it is
(`order.py`), and how the row is corrupted, are functions of its number and the
seed. A stream (`streaming.py`) has a place on each host instead.
"""
