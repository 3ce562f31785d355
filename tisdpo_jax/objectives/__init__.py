"""Training objectives, one file a method: the options it has, what it needs, and its loss of a batch."""

from tisdpo_jax.objectives.dlma import Dlma, DlmaTisDpo
from tisdpo_jax.objectives.dpo import Dpo
from tisdpo_jax.objectives.ipo import Ipo
from tisdpo_jax.objectives.kto import Kto
from tisdpo_jax.objectives.objective import Inputs, Loss, Needs, Objective, implicit_beta
from tisdpo_jax.objectives.orpo import Orpo
from tisdpo_jax.objectives.reward import Reward
from tisdpo_jax.objectives.sft import Sft
from tisdpo_jax.objectives.simpo import SimPo
from tisdpo_jax.objectives.tdpo import Tdpo
from tisdpo_jax.objectives.tisdpo import TisDpo

OBJECTIVES: dict[str, type] = {
    kind.name: kind for kind in (TisDpo, Dpo, Ipo, Tdpo, Kto, Dlma, DlmaTisDpo, SimPo, Orpo, Sft, Reward)
}
"""What `loss.name` chooses from."""

__all__ = [
    "OBJECTIVES",
    "Dlma",
    "DlmaTisDpo",
    "Dpo",
    "Inputs",
    "Ipo",
    "Kto",
    "Loss",
    "Needs",
    "Objective",
    "Orpo",
    "Reward",
    "Sft",
    "SimPo",
    "Tdpo",
    "TisDpo",
    "implicit_beta",
]
