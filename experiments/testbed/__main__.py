"""`python -m experiments.testbed [--dotted.override value]...`: does it work, and where?

A language in which the true reward of every token is known, tiny Llamas that speak it, every loss and every kind of
token weights, eight seeds with errors and paired tests: the tables of docs/experiments.md, which also says how long
they take. Rows and tables that are there already are not computed again; `--tables methods` makes some of them.
`workers` settings or methods run at the same time, one keeps about one core busy.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from experiments.testbed import job
from experiments.testbed.config import Testbed, check
from tisdpo_jax.cli.options import read_arguments
from tisdpo_jax.config import build, describe, nest
from tisdpo_jax.errors import ConfigError, UserError

WHERE = "command line"


def main(arguments: Sequence[str]) -> int:
    """Makes the tables; a mistake is one line on stderr. Returns the exit code."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        for name, kind, default, doc in describe(Testbed):
            print(f"  --{name} <{kind}>\n        {doc} (default: {default!r})")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        file, overrides, _ = read_arguments(arguments)
        if file is not None:
            raise ConfigError(f"{file}: the testbed has no configuration files; give fields as --name value")
        job.run(check(build(Testbed, nest(overrides, where=WHERE), where=WHERE)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
