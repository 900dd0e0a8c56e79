"""Downstream tasks by prompt: no fine-tuning, k examples shown at most.

One file a task, with its prompt at the top. Prompts are our own, in the style
of GPT-3's (arXiv:2005.14165, App. G). Nothing here knows a model: a task gives
examples, and scores what a model chose or wrote for them.
"""
