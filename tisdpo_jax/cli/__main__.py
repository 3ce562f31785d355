"""`python -m tisdpo_jax.cli`, the same as `tisdpo`."""

from tisdpo_jax.cli.main import command

command()
