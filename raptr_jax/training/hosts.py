"""Joins the processes of a run on several hosts, and checks that they agree."""

import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax._src import distributed

from raptr_jax import __version__
from raptr_jax.configuration.errors import ConfigurationError

# JAX ends a process that waited too long by an abort with a stack trace. So we
# give up first, and JAX is given more time.
SPARE_SECONDS = 60
AGREEMENT = "raptr_jax/agreement"
# What all processes must have in common, in the words of an error.
NAMES = ("configuration", "jax", "raptr_jax", "local devices")


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout: int = 300,
) -> None:
  """Joins the other processes; ends this one with code 2 if some are missing.

  Without a coordinator, JAX asks the cluster (TPUs, GKE, SLURM, Open MPI).
  With one, this process has all devices of its host.

  Args:
    coordinator: HOST:PORT at which process 0 can be reached.
    num_processes: of the run.
    process_id: of this one.
    timeout: seconds to wait for the others.

  Raises:
    ConfigurationError: if JAX finds no cluster, or cannot use the address.
  """
  joined = threading.Event()
  # A thread, since JAX does not come back from waiting in vain.
  watch = threading.Thread(target=_watch, args=(joined, timeout), daemon=True)
  watch.start()
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method="deactivate" if coordinator else None,
      initialization_timeout=timeout + SPARE_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise ConfigurationError(_cannot_join(coordinator, error)) from error
  finally:
    joined.set()


def agree(config: str) -> None:
  """Raises an error in all processes unless they would do the same.

  Args:
    config: text of the configuration.

  Raises:
    ConfigurationError: if configurations, versions or numbers of devices
      differ; names the processes, and the first line that differs.
  """
  mine = dict(
    zip(
      NAMES,
      (
        hashlib.sha256(config.encode()).hexdigest(),
        jax.__version__,
        __version__,
        jax.local_device_count(),
      ),
    )
  )
  all_facts, first_config = _exchange(mine, config)
  if all(facts == all_facts[0] for facts in all_facts):
    return
  number = jax.process_index()
  raise ConfigurationError(
    _disagreement(all_facts, number, config, first_config)
  )


def _exchange(
  mine: Mapping[str, Any], config: str
) -> tuple[list[Mapping[str, Any]], str]:
  """The facts of all processes, and the configuration of process 0."""
  # JAX's store of keys and values has no public name; Orbax uses this one, too.
  client: Any = distributed.global_state.client
  number, milliseconds = jax.process_index(), 1000 * SPARE_SECONDS
  if number == 0:
    client.key_value_set(f"{AGREEMENT}/config", config)
  client.key_value_set(f"{AGREEMENT}/{number}", json.dumps(mine))
  texts = [
    client.blocking_key_value_get(f"{AGREEMENT}/{other}", milliseconds)
    for other in range(jax.process_count())
  ]
  first_config = client.blocking_key_value_get(
    f"{AGREEMENT}/config", milliseconds
  )
  return [json.loads(text) for text in texts], first_config


def _disagreement(
  all_facts: Sequence[Mapping[str, Any]],
  number: int,
  config: str,
  first_config: str,
) -> str:
  """What an error says of facts that are not all those of process 0."""
  parts = []
  for name in NAMES:
    first = all_facts[0][name]
    others = {
      i: facts[name]
      for i, facts in enumerate(all_facts)
      if facts[name] != first
    }
    if not others:
      continue
    who = f"process {', '.join(map(str, others))}"
    if name == "configuration":
      parts.append(f"the configuration of {who}")
    else:
      values = ", ".join(map(str, dict.fromkeys(others.values())))
      parts.append(f"{name} of {who} ({values}, {first} in process 0)")
  text = f"processes differ from process 0 in {' and in '.join(parts)}"
  if config != first_config:
    here, there = _first_difference(config, first_config)
    text += f"; process {number} has {here!r}, process 0 has {there!r}"
  return f"{text}: start the same command, code and devices on every host."


def _first_difference(text: str, other: str) -> tuple[str, str]:
  """The first line in which two unequal texts differ, of each of them."""
  lines, others = text.splitlines(), other.splitlines()
  length = max(len(lines), len(others))
  lines += ["(nothing)"] * (length - len(lines))
  others += ["(nothing)"] * (length - len(others))
  for line, another in zip(lines, others):
    if line != another:
      return line, another
  return "another end of lines", "the same lines"


def _watch(joined: threading.Event, timeout: int) -> None:
  """Ends the program with code 2 unless it has joined the others in time."""
  state, met = distributed.global_state, False
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline:
    if joined.wait(1):
      return
    # Process 0 may give up first, so whether it answers is asked before.
    address = state.coordinator_address
    met = met or (address is not None and _answers(address))
  if not joined.is_set():
    print(f"error: {_missing(met, timeout)}", file=sys.stderr, flush=True)
    os._exit(2)


def _missing(met: bool, timeout: int) -> str:
  """What is known of the processes that did not come.

  Who has come is known to JAX's coordinator, which does not tell; its store of
  keys ends a process that uses it before all have joined. But each that has
  come and waits in vain prints a line.

  Args:
    met: whether process 0 answered.
    timeout: seconds waited.
  """
  state = distributed.global_state
  address, count = state.coordinator_address, state.num_processes
  if address is None:
    return (
      f"the cluster named no coordinator within {timeout} s: set --coordinator,"
      " --num_processes and --process_id, or a longer --join_timeout."
    )
  if not met:
    who = f"process 0, which does not answer at {address}"
  elif count == 2:
    who = f"process {1 - state.process_id}"
  else:
    who = "whichever of the others do not print a line like this"
    if state.process_id:
      who += f"; process 0 answers at {address}"
  return (
    f"process {state.process_id} ({socket.gethostname()}) waited {timeout} s"
    f" for all {count} processes; missing: {who}. Start every process, let"
    " them reach each other, or set a longer --join_timeout."
  )


def _answers(address: str) -> bool:
  """Whether somebody listens at HOST:PORT."""
  host, _, port = address.rpartition(":")
  try:
    with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
      return True
  except OSError:
    return False


def _cannot_join(coordinator: str | None, error: Exception) -> str:
  """What an error says if JAX cannot begin to join."""
  if coordinator is None and isinstance(error, ValueError):
    return (
      "--multihost: JAX finds no cluster here (SLURM, Open MPI, TPUs,"
      " Kubernetes): set --coordinator=HOST:PORT, --num_processes=N and"
      " --process_id=I."
    )
  reason = " ".join(str(error).split())
  return (
    f"cannot join the other processes ({reason}): set another --coordinator."
  )
