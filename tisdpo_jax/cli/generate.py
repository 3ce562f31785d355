"""`tisdpo generate`: answers to prompts, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from tisdpo_jax.cli import options
from tisdpo_jax.cli.missing import check_hub_names
from tisdpo_jax.errors import ConfigError


def generate_verb(arguments: Sequence[str]) -> int:
    """`tisdpo generate [CONFIG] [--model.path PATH] [--sampling.prompts FILE] [--dotted.field value]...`

    Writes responses.jsonl into the run directory; needs no training pairs. Stopped, it goes on from what is there.
    """
    file, overrides, _ = options.read_arguments(arguments)
    if file is None and not overrides:
        raise ConfigError(
            "name a configuration file, or model and prompts: "
            "tisdpo generate --model.path demo --sampling.prompts prompts.jsonl"
        )
    config = options.load_valid(file, overrides, "generate", trains=False)
    check_hub_names(config)
    if not config.sampling.prompts:
        raise ConfigError("sampling.prompts is empty; name a file of prompts, or `demo:prompts`")
    from tisdpo_jax import distributed

    distributed.initialize()
    from tisdpo_jax.recipes import generate as recipe

    recipe.generate(config)
    return 0
