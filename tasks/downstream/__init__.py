"""Downstream tasks by prompt: k examples are shown, nothing is fine-tuned.

Each task is one file, with its prompt at the top. Prompts are our own, in the
style of GPT-3's (arXiv 2005.14165, App. G). Nothing here depends on a model: a
task provides examples, and scores what a model chose or wrote for them.
"""
