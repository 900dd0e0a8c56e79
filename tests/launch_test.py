"""Runs on several hosts are started, agree, stop and resume."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raptr_jax import main
from raptr_jax.configuration import configure
from raptr_jax.training import hosts
from tests.small_task import write_corpus

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "scripts" / "launch"
LEAF = "--gin_file=experiments/quickstart_bert_raptr.gin"
SMALL = (
  "--gin_file=data/bert_text.gin",
  "--gin.bert.BertConfig.embed_dim=16",
  "--gin.NUM_LAYERS=2",
  "--gin.PATH_LENGTHS=(2,)",
  "--gin.VOCABULARY_SIZE=600",
  "--gin.VOCABULARY_PATH=None",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32}",
  "--gin.BATCH_SIZE=4",
  "--gin.WARMUP_STEPS=1",
  "--gin.EVAL_BATCHES=1",
  "--gin.MIXTURE_OR_TASK_NAME='words'",
)
# The program `raptr`, whose steps may take longer.
RAPTR = """
import os, time
from raptr_jax import main
from raptr_jax.training import signals

before = signals.StopRequest.before

def slow(self, step):
  time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
  return before(self, step)

signals.StopRequest.before = slow
main.main()
"""
# Two tasks on one node, which get the signals that `srun` gets.
SRUN = """
import os, signal, subprocess, sys
tasks = [
  subprocess.Popen(sys.argv[1:], env=os.environ | {
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(number),
    "SLURM_LOCALID": str(number),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_NODES": "1",
  })
  for number in range(2)
]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """
import sys
print("scontrol", *sys.argv[1:])
"""


def environment() -> dict[str, str]:
  """That of a process with one device."""
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
  return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def free_port(ports=(0,)) -> int:
  """The first of these ports that nobody listens at; 0 means any."""
  for port in ports:
    with socket.socket() as probe:
      try:
        probe.bind(("", port))
      except OSError:
        continue
      return probe.getsockname()[1]
  raise OSError("no port is free")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Arguments of a small run on prepared text."""
  folder = tmp_path_factory.mktemp("data")
  text = write_corpus(folder / "text")
  argv = [
    LEAF,
    *SMALL,
    f"--gin.TEXT_DIR='{text}'",
    f"--gin.DATA_DIR='{folder / 'data'}'",
  ]
  others = ["--gin.MODEL_DIR='x'", "--gin.TRAIN_STEPS=4"]
  main.main([*argv, *others, "--run_mode=prepare"])
  return argv


@pytest.fixture
def slurm(tmp_path):
  """A function that submits the script, with stand-ins for SLURM's programs."""
  programs = tmp_path / "programs"
  programs.mkdir()
  for name, text in (("raptr", RAPTR), ("srun", SRUN), ("scontrol", SCONTROL)):
    (programs / name).write_text(f"#!{sys.executable}\n{text}")
    (programs / name).chmod(0o755)
  first = 65535 - 2**12 + 1  # JAX adds the job's number to it.
  started = []

  def submit(*argv, **variables) -> subprocess.Popen:
    job = free_port(range(first, 65536)) - first
    process = subprocess.Popen(
      ["bash", LAUNCH / "slurm.sh", *argv],
      cwd=tmp_path,
      env=environment()
      | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": str(job)}
      | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    return process

  yield submit
  for process in started:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def metrics(run: Path) -> list[tuple]:
  """What each entry of a run's metrics is about."""
  lines = (run / "metrics.jsonl").read_text().splitlines()
  entries = map(json.loads, lines)
  return [(e["split"], e["step"], e.get("layers")) for e in entries]


def test_slurm_starts_processes_that_complete_a_run(data, slurm, tmp_path):
  run = tmp_path / "run"
  argv = [*data, f"--gin.MODEL_DIR='{run}'", "--gin.TRAIN_STEPS=4"]
  process = slurm(*argv)
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  assert "scontrol" not in out
  assert json.loads((run / "summary.json").read_text())["steps"] == 4
  assert "TRAIN_STEPS = 4" in (run / "config.gin").read_text()
  # Written by one process alone.
  assert len(metrics(run)) == len(set(metrics(run))) > 0
  assert out.count("finished: see summary.md") == 1


def test_slurm_resumes_a_run_whose_time_was_over(data, slurm, tmp_path):
  run, steps = tmp_path / "run", 100
  argv = [*data, f"--gin.MODEL_DIR='{run}'", f"--gin.TRAIN_STEPS={steps}"]
  # The signal goes through JAX's coordinator, which takes a few of the steps.
  process = slurm(*argv, STEP_SECONDS="0.3")
  while not (run / "config.gin").exists() and process.poll() is None:
    time.sleep(0.1)
  process.terminate()  # The script alone.
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 143, out
  assert out.count("scontrol requeue ") == 1
  saved = [int(path.name) for path in (run / "checkpoints").iterdir()]
  assert len(saved) == 1
  assert 0 < saved[0] < steps
  assert not (run / "summary.json").exists()

  process = slurm(*argv)
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  assert "scontrol" not in out
  assert json.loads((run / "summary.json").read_text())["steps"] == steps
  assert len(metrics(run)) == len(set(metrics(run)))


def started(number: int, count: int, port: int, *argv) -> subprocess.Popen:
  """One of so many processes of a run."""
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "raptr_jax.main", LEAF),
      f"--coordinator=localhost:{port}",
      f"--num_processes={count}",
      f"--process_id={number}",
      *argv,
    ],
    env=environment(),
    stderr=subprocess.PIPE,
    text=True,
  )


def error_line(process: subprocess.Popen) -> str:
  """The only error of a process, which ends with code 2."""
  try:
    _, text = process.communicate(timeout=200)
  finally:
    process.kill()
  assert process.returncode == 2, text
  (line,) = (x for x in text.splitlines() if x.startswith("error: "))
  assert "Traceback" not in text
  return line


def test_processes_with_other_configurations_end(tmp_path):
  port, folder = free_port(), f"--gin.MODEL_DIR='{tmp_path / 'run'}'"
  processes = [
    started(number, 2, port, folder, f"--gin.LEARNING_RATE={rate}")
    for number, rate in enumerate(("0.001", "0.002"))
  ]
  lines = [error_line(process) for process in processes]
  for line in lines:
    assert "process 1" in line
    assert "configuration" in line
  assert "process 0 has 'LEARNING_RATE = 0.001'" in lines[1]
  assert "process 1 has 'LEARNING_RATE = 0.002'" in lines[1]
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("number", "missing"),
  [(0, "missing: process 1."), (1, "missing: process 0, which does not ans")],
)
def test_a_missing_process_is_named(number, missing):
  argv = ("--gin.MODEL_DIR='x'", "--join_timeout=2")
  line = error_line(started(number, 2, free_port(), *argv))
  assert f"process {number} (" in line
  assert "waited 2 s for all 2 processes" in line
  assert missing in line


@pytest.mark.parametrize("number", [0, 1])
def test_of_several_those_are_missing_that_print_nothing(number, monkeypatch):
  state = hosts.distributed.global_state
  for name, value in (
    ("process_id", number),
    ("num_processes", 3),
    ("coordinator_address", "node0:29400"),
  ):
    monkeypatch.setattr(state, name, value)
  line = hosts._missing(met=True, timeout=5)
  assert f"process {number} (" in line
  assert "missing: whichever of the others do not print a line like" in line
  assert ("process 0 answers at node0:29400" in line) == (number == 1)


def test_each_difference_is_told():
  facts = dict(zip(hosts.NAMES, ("hash", "1.0", "0.1", 8)))
  other = facts | {"jax": "1.1", "local devices": 4}
  text = hosts._disagreement([facts, facts, other, other], 2, "a", "a")
  assert "jax of process 2, 3 (1.1, 1.0 in process 0)" in text
  assert "local devices of process 2, 3 (4, 8 in process 0)" in text
  assert "configuration" not in text


def run_of(words: list[str], tmp_path, monkeypatch):
  """Configures what a command runs; its flags."""
  monkeypatch.chdir(tmp_path)
  program, *argv = words
  assert program == "raptr"
  flags = main.configure(argv)
  assert configure.build("RUN").train_dataset.batch_spec()
  return flags


def test_the_command_of_the_jobset_configures_a_run(tmp_path, monkeypatch):
  jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text("utf-8"))
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  assert run_of(container["command"], tmp_path, monkeypatch).multihost
  mounts = {mount["name"] for mount in container["volumeMounts"]}
  assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
  ("script", "program", "multihost"),
  [
    ("one_machine.sh", "raptr", False),
    ("slurm.sh", "srun", True),
    ("tpu_slice.sh", "gcloud", True),
  ],
)
def test_the_command_of_a_script_configures_a_run(
  script, program, multihost, tmp_path, monkeypatch
):
  """As its last program is given it, with further arguments passed on."""
  stand_in = tmp_path / program
  stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
  stand_in.chmod(0o755)
  names = ["slice", "zone"] if program == "gcloud" else []
  out = subprocess.run(
    ["bash", LAUNCH / script, *names, "--gin.BATCH_SIZE=512"],
    env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  words = out[1:] if program == "srun" else ["raptr", *out[1:]]
  if program == "gcloud":
    (command,) = (x for x in out if x.startswith("--command="))
    words = shlex.split(command.removeprefix("--command="))
  assert run_of(words, tmp_path, monkeypatch).multihost == multihost
  assert "--gin.BATCH_SIZE=512" in words
