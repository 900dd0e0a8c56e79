"""Batches for training, as a pure function of the position in the data.

The position is one integer, the number of the next batch. Example
`batch * batch_size + i` does not depend on the number of hosts, of which each
gets a contiguous part of every batch: which task of a mixture it comes from
(`interleaving.py`), which row of that task it is (`order.py`), and how the row
is corrupted, are functions of its number and the seed. Unshuffled, the seqio
stream gives the same batches as prepared records, bit for bit.
"""
