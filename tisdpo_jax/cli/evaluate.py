"""`tisdpo evaluate`: a run's policy, or any model that is there, on any pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tisdpo_jax.cli import options
from tisdpo_jax.cli.missing import check_hub_names
from tisdpo_jax.config import check_places
from tisdpo_jax.errors import ConfigError

SHORT = {
    "policy": "evaluation.policy",
    "reference": "evaluation.reference",
    "data": "evaluation.data",
    "subset": "evaluation.subset",
    "judge": "evaluation.judge.by",
    "models": "evaluation.judge.models",
    "prompts": "evaluation.judge.prompts",
}

USAGE = """usage: tisdpo evaluate CONFIG.yaml                 the policy of the run, on its held-out pairs
       tisdpo evaluate CONFIG.yaml --data FILE     the same policy, on other pairs
       tisdpo evaluate [CONFIG.yaml] --policy PATH --reference PATH --data FILE
                                                   any model: a directory, a .gguf file, or a PEFT adapter
       ... --judge JUDGE [--models '{NAME: PATH, ...}'] [--prompts FILE]
                                                   and compare the answers of all models, two by two

short for: """ + "\n           ".join(f"--{short:<10} --{name}" for short, name in SHORT.items())


def evaluate_verb(arguments: Sequence[str]) -> int:
    """`tisdpo evaluate [CONFIG] [--policy PATH] [--reference PATH] [--data FILE] [--dotted.field value]...`

    With --policy nothing is trained and no training pairs are needed. Prints tables and writes evaluation.json and a
    page, for a run's own pairs into its directory, else into evaluations/ there.
    """
    file, overrides, own = options.read_arguments(arguments, extra=tuple(SHORT))
    if file is None and not overrides and not own:
        raise ConfigError("name a configuration file, or a model: tisdpo evaluate --policy PATH --data FILE")
    for short, values in own.items():
        if SHORT[short] in overrides:
            raise ConfigError(f"--{short} and --{SHORT[short]} are the same; give one of them")
        overrides[SHORT[short]] = values[-1]
    config = check_places(options.load(file, overrides, "evaluate"))
    section = config.evaluation
    if section.policy and not config.model.path:
        check_hub_names(config)
        overrides["model.path"] = section.reference or _base(section.policy)
    config = options.load_valid(file, overrides, "evaluate", trains=not section.policy)
    from tisdpo_jax import distributed

    distributed.initialize()
    from tisdpo_jax.verbs import perform

    perform("evaluate", config)
    return 0


def _base(policy: str) -> str:
    """What an adapter stands on. Raises: ConfigError for a whole model, which does not say what it came from."""
    from tisdpo_jax.stages import adapter_base, is_adapter

    path = Path(policy).expanduser()
    base = adapter_base(path) if is_adapter(path) else ""
    if not base:
        raise ConfigError(f"--policy {policy}: name what it is measured against: --reference PATH")
    return base
