"""Advantages: rewards of K responses to one prompt `[..., K]` become what a policy loss multiplies.

`leave_one_out` of `penalised` rewards is what MDLOO and RLOO take, the others are those of their peers. A reward of NaN
is a response without a score: its advantage is 0, and it has no part in what is subtracted from the others. Nothing
lets a gradient through; float32 inside. K below 2 is a ValueError, as is an argument of another shape, dtype or range,
when traced. Importing this loads jax and nothing else.
"""

from tisdpo_jax.advantages._dense import leave_one_out_by_position, prefix_baseline, prefix_coef, return_to_go
from tisdpo_jax.advantages._groups import (
    batch_normalised,
    group_mean,
    group_normalised,
    leave_one_out,
    penalised,
    trust_gamma,
)

__all__ = [
    "batch_normalised",
    "group_mean",
    "group_normalised",
    "leave_one_out",
    "leave_one_out_by_position",
    "penalised",
    "prefix_baseline",
    "prefix_coef",
    "return_to_go",
    "trust_gamma",
]
