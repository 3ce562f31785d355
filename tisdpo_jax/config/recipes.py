"""Configurations: `recipe`, the first line of a file, says which of these dataclasses it fills."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tisdpo_jax.config import schema
from tisdpo_jax.estimators import ESTIMATORS, Estimator, Importance
from tisdpo_jax.objectives import OBJECTIVES, Dlma, Dpo, Objective, Reward, Sft, TisDpo, implicit_beta
from tisdpo_jax.options import option

OF_PAIRS = {
    name: kind for name, kind in OBJECTIVES.items() if kind().needs.sides == (0, 1) and kind().needs.reads == "logps"
}
PLAIN = {name: kind for name, kind in OF_PAIRS.items() if not kind().needs.columns}
WEIGHTED = {name: kind for name, kind in OF_PAIRS.items() if kind().needs.columns}

ScoresKept = Literal["cached", "online"]
StatesKept = Literal["live", "cached"]


class _AnyRecipe:
    """What is read whatever the recipe: a section that one has no field for is as it is here, and cannot be set."""

    verbs: ClassVar[tuple[str, ...]] = ()  # of the command
    seed: int = 0
    lora: schema.LoraSection = schema.LoraSection()
    data: schema.PromptData
    sft: schema.StageSection = schema.SftSection()
    contrast: schema.NoContrast = schema.NoContrast()
    sampling: schema.SamplingSection = schema.SamplingSection()
    dlma: schema.DlmaSection = schema.DlmaSection(rounds=0)
    weights: Estimator = Importance()
    loss: Objective = Sft()
    scores: ScoresKept = "cached"
    reference_states: StatesKept = "live"
    train: schema.TrainSection = schema.TrainSection()
    evaluation: schema.PairsMeasured = schema.MeasureSection()
    strengths: schema.StrengthsSection = schema.StrengthsSection()

    @property
    def beta(self) -> float:
        """Scale of the implicit reward."""
        return implicit_beta(self.loss)


@dataclasses.dataclass(frozen=True)
class Experiment(_AnyRecipe):
    """What every recipe has."""

    recipe: str = option("", "what is done")
    run_dir: str = option("runs/default", "is written to, and resumed from; else runs/NAME of the file", place="output")
    compile_cache: str | None = option(
        "~/.cache/tisdpo_jax/xla",
        "compiled programs, for the next start; null keeps none, and JAX_COMPILATION_CACHE_DIR goes before it",
    )
    model: schema.ModelSection = option(schema.ModelSection(), "the model and how it is computed")
    mesh: schema.MeshSection = option(schema.MeshSection(), "device mesh")
    logging: schema.LoggingSection = option(schema.LoggingSection(), "metrics")

    @property
    def trainings(self) -> dict[str, schema.StageSection]:
        """The trainings that there will be, by the names of their sections."""
        fields: Mapping[str, Any] = self.__dataclass_fields__
        named = {name: getattr(self, name) for name in ("train", "sft") if name in fields}
        if self.contrast.construction in ("sft", "dpo"):
            named["contrast.training"] = self.contrast.training
        return {name: section for name, section in named.items() if section.epochs > 0}


@dataclasses.dataclass(frozen=True)
class _Training(Experiment):
    """One policy is trained."""

    verbs: ClassVar[tuple[str, ...]] = ("run", "show", "train", "score", "evaluate", "export", "inspect", "plan")
    seed: int = option(0, "seed of adapter initialisation")
    lora: schema.LoraSection = option(schema.LoraSection(), "adapters")
    train: schema.TrainSection = option(schema.TrainSection(), "training of the policy")
    evaluation: schema.EvaluationSection = option(schema.EvaluationSection(), "held-out evaluation and the report")


@dataclasses.dataclass(frozen=True)
class _Referenced(_Training):
    reference_states: StatesKept = option(
        "live",
        "where the loss needs the KL, the reference's last hidden states: in every step, or once, to disk "
        "(one vector a response token; the KL stays exact)",
    )


@dataclasses.dataclass(frozen=True)
class _OnPairs(_Referenced):
    data: schema.DataSection = option(schema.DataSection(), "preference pairs")
    sft: schema.SftSection = option(schema.SftSection(), "supervised fine-tuning before anything else")
    scores: ScoresKept = option("cached", "log-likelihoods of reference, pi+ and pi-: once, to disk, or in every step")


@dataclasses.dataclass(frozen=True)
class SftRecipe(_Training):
    verbs: ClassVar[tuple[str, ...]] = ("run", "show", "train", "evaluate", "export", "inspect", "plan")
    recipe: Literal["sft"] = option("sft", "supervised fine-tuning on chosen responses")
    data: schema.DataSection = option(schema.DataSection(), "preference pairs")


@dataclasses.dataclass(frozen=True)
class DpoRecipe(_OnPairs):
    recipe: Literal["dpo"] = option("dpo", "a loss of pairs that takes no token weights, as DPO")
    loss: Objective = option(Dpo(), "objective of the policy", variants=PLAIN)


@dataclasses.dataclass(frozen=True)
class TisDpoRecipe(_OnPairs):
    recipe: Literal["tisdpo"] = option("tisdpo", "token weights, from two contrastive models or from the records")
    contrast: schema.ContrastSection = option(schema.ContrastSection(), "the two contrastive models")
    weights: Estimator = option(Importance(), "token importance weights", variants=ESTIMATORS)
    loss: Objective = option(TisDpo(), "objective of the policy", variants=WEIGHTED)


@dataclasses.dataclass(frozen=True)
class DlmaRecipe(_Referenced):
    verbs: ClassVar[tuple[str, ...]] = ("run", "show", "train", "score", "evaluate", "export", "plan")
    recipe: Literal["dlma"] = option("dlma", "pairs from prompts alone: rounds of sampling, scoring and training")
    data: schema.ResponseData = option(schema.ResponseData(), "how prompts and answers become tokens")
    sampling: schema.SamplingSection = option(schema.SamplingSection(), "answers to prompts")
    dlma: schema.DlmaSection = option(schema.DlmaSection(), "pairs from prompts alone")
    contrast: schema.PromptsSection = option(schema.PromptsSection(), "the two opposite prompts")
    weights: Estimator = option(Importance(), "token importance weights", variants=ESTIMATORS)
    loss: Objective = option(Dlma(), "objective of the policy", variants=OF_PAIRS)


@dataclasses.dataclass(frozen=True)
class RewardRecipe(Experiment):
    verbs: ClassVar[tuple[str, ...]] = ("run", "show", "train", "evaluate", "export", "inspect", "plan")
    recipe: Literal["reward"] = option("reward", "a reward model, from pairs with or without strengths")
    seed: int = option(0, "seed of adapter initialisation")
    lora: schema.LoraSection = option(schema.LoraSection(), "adapters; the head is trained whole")
    data: schema.DataSection = option(schema.DataSection(), "preference pairs")
    strengths: schema.StrengthsSection = option(schema.StrengthsSection(), "what the strengths of records mean")
    loss: Objective = option(Reward(), "objective of the reward model", variants={"reward": Reward})
    train: schema.RewardTraining = option(schema.RewardTraining(), "training of the reward model")
    evaluation: schema.PairsMeasured = option(schema.PairsMeasured(), "held-out evaluation and the report")


@dataclasses.dataclass(frozen=True)
class EvaluateRecipe(Experiment):
    verbs: ClassVar[tuple[str, ...]] = ("evaluate",)
    recipe: Literal["evaluate"] = option("evaluate", "models that are there, measured on pairs and by a judge")
    data: schema.PairsData = option(schema.PairsData(), "how pairs become tokens")
    evaluation: schema.MeasureSection = option(schema.MeasureSection(), "what is measured on what")
    beta: float = option(0.1, "scale of the implicit reward", above=0)


@dataclasses.dataclass(frozen=True)
class GenerateRecipe(Experiment):
    verbs: ClassVar[tuple[str, ...]] = ("generate",)
    recipe: Literal["generate"] = option("generate", "answers to prompts, and nothing else")
    data: schema.PromptData = option(schema.PromptData(), "how prompts become tokens")
    sampling: schema.GenerateSection = option(schema.GenerateSection(), "answers to prompts")
    contrast: schema.PromptsSection = option(schema.PromptsSection(), "the two opposite prompts")


RECIPES: dict[str, type[Experiment]] = {
    "sft": SftRecipe,
    "dpo": DpoRecipe,
    "tisdpo": TisDpoRecipe,
    "dlma": DlmaRecipe,
    "reward": RewardRecipe,
    "evaluate": EvaluateRecipe,
    "generate": GenerateRecipe,
}
"""What `recipe` chooses from."""
