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
    file, overrides, own = options.read_arguments(arguments, extra=("topology", "lengths", "stage"), flags=("json",))
    if file is None and not overrides:
        raise ConfigError("name a configuration file: tisdpo plan configs/llama2_7b_hh_dpo.yaml --topology v5e:8x8")
    if not any(own.get("topology", ())):
        raise ConfigError("name a topology: --topology v5e:8x8, v5p:4x4x4, v4:4x4x4, v6e:8x8, cpu:8 or gpu:8")
    lengths, stage = (own.get(name, [default])[-1] for name, default in (("lengths", ""), ("stage", "policy")))
    if lengths not in ("", *LENGTHS):
        raise ConfigError(f"--lengths is {lengths!r}; it must be one of {', '.join(LENGTHS)}")
    from tisdpo_jax.planning import topology

    config = options.load_valid(file, overrides, "plan")
    specs = [topology.parse_topology(name) for name in own["topology"]]
    topology.prepare_topology(specs)
    from tisdpo_jax.planning import plan_text
    from tisdpo_jax.verbs import plan as recipe

    plans = recipe.plan(config, specs, lengths=lengths, stage=stage)  # type: ignore[arg-type]  # checked above
    print(json.dumps([one.as_json() for one in plans], indent=2) if "json" in own else plan_text(plans))
    return 0
