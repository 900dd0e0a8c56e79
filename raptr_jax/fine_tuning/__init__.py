"""Fine-tuning: a pretrained model learns a task, over a grid and some seeds."""
