"""Trains a small BERT with RaPTr on the text files in books/, without gin.

python examples/train_without_gin.py

The same command resumes, and runs/books has the result. To use the model:

  run = rj.Run.restore(experiment, **data)
  run.fill("In the [MASK] God created", layers=4)
"""

import raptr_jax as rj

books = rj.TextFolder("books")
task = rj.TextTask(
  name="books", source=books, objective=rj.MaskedLM(), vocabulary_size=2048
)
data = dict(task=task, feature_lengths={"inputs": 64}, data_dir="data")
rj.prepare(**data)
batch = dict(batch_size=32, seed=0)
stages = rj.stage_schedule(path_lengths=(4, 6), total_steps=300, num_layers=6)
experiment = rj.Experiment(
  model=rj.BertMaskedLM(rj.BertConfig(2048, 6, 128, 2, norm="pre")),
  policy=rj.policies.raptr(schedule=stages),
  train_dataset=rj.PreparedDataset(**data, **batch),
  eval_dataset=rj.PreparedDataset(**data, **batch, split="validation"),
  optimizer=rj.optim.adamw(learning_rate=1e-3),
  model_dir="runs/books",
  total_steps=300,
)
rj.train(experiment)
