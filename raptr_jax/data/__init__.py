"""Batches for training, as a pure function of the position in the data.

The position is one integer, the number of the next batch. Prepared records and
the seqio stream share one order and one source of randomness, a function of
seed, epoch and row (see `tasks/prepared/order.py`), so the same rows give the
same batches, bit for bit. Example `batch * batch_size + i` does not depend on
the number of hosts; each host gets a contiguous part of every batch.

A mixture joins the batches of its parts, which keep separate positions. Its
shares, and the order within a batch, depend on the number of hosts.
"""
