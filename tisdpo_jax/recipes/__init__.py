"""Whole jobs as stages that resume."""

from tisdpo_jax.recipes import generate, plan, show
from tisdpo_jax.recipes.job import perform
from tisdpo_jax.recipes.pictures import cached_columns, write_pictures

__all__ = ["cached_columns", "generate", "perform", "plan", "show", "write_pictures"]
