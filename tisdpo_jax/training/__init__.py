"""Training: a pure step, and the loop that runs it."""

from tisdpo_jax.training import optim
from tisdpo_jax.training.interrupt import Interrupt, listening
from tisdpo_jax.training.loop import Job, train
from tisdpo_jax.training.metrics import MetricsLog, Progress
from tisdpo_jax.training.objective import StepSpec
from tisdpo_jax.training.passes import collect, one_pass
from tisdpo_jax.training.step import compile_step, evaluate_step, init_state, keep_on_disk, means, state_shardings

__all__ = [
    "Interrupt",
    "Job",
    "MetricsLog",
    "Progress",
    "StepSpec",
    "collect",
    "compile_step",
    "evaluate_step",
    "init_state",
    "keep_on_disk",
    "listening",
    "means",
    "one_pass",
    "optim",
    "state_shardings",
    "train",
]
