"""Trains a small BERT with RaPTr on the text files in books/, without gin.

python examples/train_without_gin.py

The same command resumes, and runs/books has the result. To use the model:

  run = rj.Run.restore(experiment, **data)
  run.fill("In the [MASK] God created", layers=4)
"""

import raptr_jax as rj

# Little text gives a smaller vocabulary; `prepare` returns the task that fits.
text = dict(source=rj.TextFolder("books"), vocabulary_size=rj.AtMost(2048))
task = rj.TextTask(name="books", objective=rj.MaskedLM(), **text)
data = dict(feature_lengths={"inputs": 64}, data_dir="data")
data["task"] = task = rj.prepare(task=task, **data)
batch = dict(batch_size=32, seed=0)
stages = rj.stage_schedule(path_lengths=(4, 6), total_steps=300, num_layers=6)
bert = rj.BertConfig(task.vocabulary_size, 6, 128, 2, norm="pre")
experiment = rj.Experiment(
  model=rj.BertMaskedLM(bert),
  policy=rj.policies.raptr(schedule=stages),
  train_dataset=rj.PreparedDataset(**data, **batch),
  eval_dataset=rj.PreparedDataset(**data, **batch, split="validation"),
  optimizer=rj.optim.adamw(learning_rate=1e-3),
  model_dir="runs/books",
  total_steps=300,
)
rj.train(experiment)
