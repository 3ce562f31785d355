"""What a training step will need, read from the compiled program, without the hardware."""

from tisdpo_jax.planning import topology, useful
from tisdpo_jax.planning.advice import advise
from tisdpo_jax.planning.compiled import Compiled, compile_step_program, memory_asked
from tisdpo_jax.planning.program import Program, dump_options, read_program
from tisdpo_jax.planning.report import StagePlan, plan_text, resident
from tisdpo_jax.planning.topology import Spec, Topology, open_topology

__all__ = [
    "Compiled",
    "Program",
    "Spec",
    "StagePlan",
    "Topology",
    "advise",
    "compile_step_program",
    "dump_options",
    "memory_asked",
    "open_topology",
    "plan_text",
    "read_program",
    "resident",
    "topology",
    "useful",
]
