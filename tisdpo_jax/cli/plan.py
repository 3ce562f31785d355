"""`tisdpo plan`: what a job will need on hardware that is not here."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tisdpo_jax.cli import options
from tisdpo_jax.errors import ConfigError

LENGTHS = ("data", "hh", "full")


def plan_verb(arguments: Sequence[str]) -> int:
    """`tisdpo plan CONFIG --topology v5e:8x8 [--topology ...] [--lengths data|hh|full] [--stage ...] [--json]`

    Needs no weights, no data and no accelerator; for TPUs it needs libtpu (extra `tpu`). Says what fits and what does
    not; a plan that was made is a success either way.
    """
    rest, topologies, as_json = _own(arguments)
    file, overrides, own = options.read_arguments(rest, extra=("lengths", "stage"))
    if file is None and not overrides:
        raise ConfigError("name a configuration file: tisdpo plan configs/llama2_7b_hh_dpo.yaml --topology v5e:8x8")
    if not topologies:
        raise ConfigError("name a topology: --topology v5e:8x8, v5p:4x4x4, v4:4x4x4, v6e:8x8, cpu:8 or gpu:8")
    lengths = own.get("lengths", "")
    if lengths not in ("", *LENGTHS):
        raise ConfigError(f"--lengths is {lengths!r}; it must be one of {', '.join(LENGTHS)}")
    from tisdpo_jax.planning import topology

    config = options.load_valid(file, overrides, "plan")
    specs = [topology.parse_topology(name) for name in topologies]
    topology.prepare_topology(specs)
    from tisdpo_jax.planning import plan_text
    from tisdpo_jax.recipes import plan as recipe

    plans = recipe.plan(config, specs, lengths=lengths, stage=own.get("stage", "policy"))  # type: ignore[arg-type]
    print(json.dumps([found.as_json() for found in plans], indent=2) if as_json else plan_text(plans))
    return 0


def _own(arguments: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """What is left for the configuration, the topologies, and whether JSON is wanted."""
    rest: list[str] = []
    topologies: list[str] = []
    given = list(arguments)
    while given:
        argument = given.pop(0)
        if argument == "--json":
            continue
        if argument == "--topology" or argument.startswith("--topology="):
            value = argument.partition("=")[2] or (given.pop(0) if given and not given[0].startswith("--") else "")
            if not value:
                raise ConfigError("--topology needs a value: --topology v5e:8x8")
            topologies.append(value)
        else:
            rest.append(argument)
    return rest, topologies, "--json" in arguments
