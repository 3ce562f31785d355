"""Configurations: `recipe`, the first line of a file, says which of these dataclasses it fills."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tisdpo_jax.config.schema import (
    ContrastSection,
    DataSection,
    DlmaSection,
    EvaluationSection,
    GenerateSection,
    LoggingSection,
    LoraSection,
    MeasureSection,
    MeshSection,
    ModelSection,
    NoContrast,
    PairsData,
    PromptData,
    PromptsSection,
    ResponseData,
    SamplingSection,
    SftSection,
    StageSection,
    TrainSection,
)
from tisdpo_jax.estimators import ESTIMATORS, Estimator, Importance
from tisdpo_jax.objectives import OBJECTIVES, Dlma, Dpo, Objective, Sft, TisDpo, implicit_beta
from tisdpo_jax.options import option

OF_PAIRS = {name: kind for name, kind in OBJECTIVES.items() if kind().needs.sides == (0, 1)}
PLAIN = {name: kind for name, kind in OF_PAIRS.items() if not kind().needs.columns}
WEIGHTED = {name: kind for name, kind in OF_PAIRS.items() if kind().needs.columns}

Scores = Literal["cached", "online"]
States = Literal["live", "cached"]


class _AnyRecipe:
    """What is read whatever the recipe: a section that one has no field for is as it is here, and cannot be set."""

    verbs: ClassVar[tuple[str, ...]] = ()  # of the command
    seed: int = 0
    lora: LoraSection = LoraSection()
    data: PromptData
    sft: StageSection = SftSection()
    contrast: NoContrast = NoContrast()
    sampling: SamplingSection = SamplingSection()
    dlma: DlmaSection = DlmaSection(rounds=0)
    weights: Estimator = Importance()
    loss: Objective = Sft()
    scores: Scores = "cached"
    reference_states: States = "live"
    train: TrainSection = TrainSection()
    evaluation: MeasureSection = MeasureSection()

    @property
    def beta(self) -> float:
        """Scale of the implicit reward."""
        return implicit_beta(self.loss)


@dataclasses.dataclass(frozen=True)
class Experiment(_AnyRecipe):
    """What every recipe has."""

    recipe: str = option("", "what is done")
    run_dir: str = option(
        "runs/default",
        "directory that is written to, and resumed from; without it, runs/ and the name of the configuration file",
        place="output",
    )
    compile_cache: str | None = option(
        "~/.cache/tisdpo_jax/xla",
        "directory of compiled programs, so that another start of a run compiles nothing; null keeps none, and one "
        "that JAX_COMPILATION_CACHE_DIR names is taken instead",
    )
    model: ModelSection = option(ModelSection(), "the model and how it is computed")
    mesh: MeshSection = option(MeshSection(), "device mesh")
    logging: LoggingSection = option(LoggingSection(), "metrics")

    @property
    def trainings(self) -> dict[str, StageSection]:
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
    lora: LoraSection = option(LoraSection(), "adapters")
    train: TrainSection = option(TrainSection(), "training of the policy")
    evaluation: EvaluationSection = option(EvaluationSection(), "held-out evaluation and the report")


@dataclasses.dataclass(frozen=True)
class _Referenced(_Training):
    reference_states: States = option(
        "live",
        "where the loss needs the KL, the reference's last hidden states: in every step, or once, to disk "
        "(one vector a response token; the KL stays exact)",
    )


@dataclasses.dataclass(frozen=True)
class _OnPairs(_Referenced):
    data: DataSection = option(DataSection(), "preference pairs")
    sft: SftSection = option(SftSection(), "supervised fine-tuning on chosen responses before anything else")
    scores: Scores = option("cached", "log-likelihoods of reference, pi+ and pi-: once, to disk, or in every step")


@dataclasses.dataclass(frozen=True)
class SftRecipe(_Training):
    verbs: ClassVar[tuple[str, ...]] = ("run", "show", "train", "evaluate", "export", "inspect", "plan")
    recipe: Literal["sft"] = option("sft", "supervised fine-tuning on chosen responses")
    data: DataSection = option(DataSection(), "preference pairs")


@dataclasses.dataclass(frozen=True)
class DpoRecipe(_OnPairs):
    recipe: Literal["dpo"] = option("dpo", "a loss of pairs that takes no token weights, as DPO")
    loss: Objective = option(Dpo(), "objective of the policy", variants=PLAIN)


@dataclasses.dataclass(frozen=True)
class TisDpoRecipe(_OnPairs):
    recipe: Literal["tisdpo"] = option("tisdpo", "token weights, from two contrastive models or from the records")
    contrast: ContrastSection = option(ContrastSection(), "the two contrastive models")
    weights: Estimator = option(Importance(), "token importance weights", variants=ESTIMATORS)
    loss: Objective = option(TisDpo(), "objective of the policy", variants=WEIGHTED)


@dataclasses.dataclass(frozen=True)
class DlmaRecipe(_Referenced):
    verbs: ClassVar[tuple[str, ...]] = ("run", "show", "train", "score", "evaluate", "export", "plan")
    recipe: Literal["dlma"] = option("dlma", "pairs from prompts alone: rounds of sampling, scoring and training")
    data: ResponseData = option(ResponseData(), "how prompts and answers become tokens")
    sampling: SamplingSection = option(SamplingSection(), "answers to prompts")
    dlma: DlmaSection = option(DlmaSection(), "pairs from prompts alone")
    contrast: PromptsSection = option(PromptsSection(), "the two opposite prompts")
    weights: Estimator = option(Importance(), "token importance weights", variants=ESTIMATORS)
    loss: Objective = option(Dlma(), "objective of the policy", variants=OF_PAIRS)


@dataclasses.dataclass(frozen=True)
class EvaluateRecipe(Experiment):
    verbs: ClassVar[tuple[str, ...]] = ("evaluate",)
    recipe: Literal["evaluate"] = option("evaluate", "models that are there, measured on pairs and by a judge")
    data: PairsData = option(PairsData(), "how pairs become tokens")
    evaluation: MeasureSection = option(MeasureSection(), "what is measured on what")
    beta: float = option(0.1, "scale of the implicit reward", above=0)


@dataclasses.dataclass(frozen=True)
class GenerateRecipe(Experiment):
    verbs: ClassVar[tuple[str, ...]] = ("generate",)
    recipe: Literal["generate"] = option("generate", "answers to prompts, and nothing else")
    data: PromptData = option(PromptData(), "how prompts become tokens")
    sampling: GenerateSection = option(GenerateSection(), "answers to prompts")
    contrast: PromptsSection = option(PromptsSection(), "the two opposite prompts, of which sampling.show takes one")


RECIPES: dict[str, type[Experiment]] = {
    "sft": SftRecipe,
    "dpo": DpoRecipe,
    "tisdpo": TisDpoRecipe,
    "dlma": DlmaRecipe,
    "evaluate": EvaluateRecipe,
    "generate": GenerateRecipe,
}
"""What `recipe` chooses from."""
