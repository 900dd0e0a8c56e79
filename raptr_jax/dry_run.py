"""Prints a plan: what a run would do and cost, and nothing is trained."""

import jax
from rich.console import Console
from rich.table import Table

from raptr_jax import execution, plan as plans
from raptr_jax.experiment import Experiment
