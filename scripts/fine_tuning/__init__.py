"""The table of fine-tuned models: its runs and its page."""
