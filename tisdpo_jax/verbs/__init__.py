"""What the command does: each verb goes through the graph of a recipe, or looks at what one has left."""

from tisdpo_jax.verbs import generate, plan, show
from tisdpo_jax.verbs.pictures import cached_columns, write_pictures
from tisdpo_jax.verbs.run import perform

__all__ = ["cached_columns", "generate", "perform", "plan", "show", "write_pictures"]
