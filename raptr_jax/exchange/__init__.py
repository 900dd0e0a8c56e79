"""Models of Hugging Face become ours, and ours become theirs."""
