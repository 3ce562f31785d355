"""The command `tisdpo`."""

from tisdpo_jax.cli.main import command, main

__all__ = ["command", "main"]
