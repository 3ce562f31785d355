"""`tisdpo`: parse, build, call. Exit codes: 0 done, 2 usage or configuration, 42 saved and resumable, 1 crash."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from tisdpo_jax._version import __version__
from tisdpo_jax.errors import ConfigError, UserError

DONE, USAGE, RESUMABLE = 0, 2, 42

VERBS = {
    "run": "the whole job: contrastive models, scores and weights, policy, evaluation, export, report",
    "generate": "answers to prompts: `sampling.prompts`, by this program or another; resumes",
    "train": "up to the trained policy",
    "score": "up to the cached scores that token weights are made of",
    "evaluate": "a run's policy, or any model, on pairs and by a judge; `tisdpo evaluate --help`",
    "export": "the policy for transformers and peft",
    "inspect": "what records become: tokens, mask, counts of a file; `--pictures DIR` draws the weights of a run",
    "plan": "memory, flops and time of a step on hardware that is not here: `--topology v5e:8x8`",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; a UserError is one line on stderr."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing is meant to be
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "orbax", "jax", "transformers", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return _main(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except _interrupted() as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr)
        return RESUMABLE


def _interrupted() -> type[BaseException]:
    """Only a run that got as far as importing the loop can raise it; `--help` need not wait for JAX."""
    module = sys.modules.get("tisdpo_jax.training.interrupt")
    return module.Interrupted if module is not None else KeyboardInterrupt


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return DONE if arguments else USAGE
    if arguments[0] in ("-V", "--version"):
        print(f"tisdpo_jax {__version__}")
        return DONE
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(VERBS)}"
        raise ConfigError(f"unknown verb {verb!r}; {hint}")
    from tisdpo_jax.cli import options

    if any(argument in ("-h", "--help") for argument in rest):
        print(f"{_usage(verb)}\n\nfields, as `--name value` or in the configuration file:\n{options.help_text()}")
        return DONE
    if verb == "inspect":
        from tisdpo_jax.cli.inspect import inspect

        return inspect(rest)
    if verb == "plan":
        from tisdpo_jax.cli.plan import plan

        return plan(rest)
    if verb == "evaluate":
        from tisdpo_jax.cli.evaluate import evaluate

        return evaluate(rest)
    if verb == "generate":
        from tisdpo_jax.cli.generate import generate

        return generate(rest)
    from tisdpo_jax.config import validate
    from tisdpo_jax.config.testbed import Testbed

    file, overrides, _ = options.read_arguments(rest)
    if file is None and not overrides:
        raise ConfigError(f"name a configuration file: tisdpo {verb} configs/quickstart.yaml")
    if options.is_testbed(file):
        return _testbed(verb, options.load_as(Testbed, file, overrides))
    config = validate(options.load(file, overrides))
    from tisdpo_jax import distributed

    distributed.initialize()
    from tisdpo_jax.recipes import perform

    perform(verb, config)
    return DONE


def _testbed(verb: str, config: Any) -> int:
    if verb != "run":
        raise ConfigError(f"tisdpo {verb}: a configuration of the testbed can only be run")
    from tisdpo_jax.recipes import testbed

    testbed.run(config)
    return DONE


def _usage(verb: str = "") -> str:
    if verb == "evaluate":
        from tisdpo_jax.cli.evaluate import USAGE as usage_of_evaluate

        return usage_of_evaluate
    verbs = "\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())
    usage = "usage: tisdpo VERB CONFIG.yaml [--dotted.field value]..."
    return f"{usage}\n\n{verbs}\n\n`tisdpo VERB --help` lists every field."
