"""What people see: tables as text, the report of a run as one HTML file, charts, heat maps of token weights, PNGs.

Pages are made by jinja2, charts by matplotlib, which is loaded when the first one is drawn.
"""

from tisdpo_jax.reporting.charts import Distribution, distribution_png, histogram
from tisdpo_jax.reporting.heatmap import SidePicture, TokenPicture
from tisdpo_jax.reporting.history import TITLES, read_metrics
from tisdpo_jax.reporting.paper import pair_png
from tisdpo_jax.reporting.report import (
    UNFOLDED,
    DataCounts,
    Report,
    Sample,
    Score,
    ShownAnswer,
    headlines,
    score_grid,
    write,
)
from tisdpo_jax.reporting.tables import (
    Comparison,
    Grid,
    as_plain,
    extreme_grid,
    grid_text,
    preference_grids,
    reward_grids,
    weight_grid,
)

__all__ = [
    "TITLES",
    "UNFOLDED",
    "Comparison",
    "DataCounts",
    "Distribution",
    "Grid",
    "Report",
    "Sample",
    "Score",
    "ShownAnswer",
    "SidePicture",
    "TokenPicture",
    "as_plain",
    "distribution_png",
    "extreme_grid",
    "grid_text",
    "headlines",
    "histogram",
    "pair_png",
    "preference_grids",
    "read_metrics",
    "reward_grids",
    "score_grid",
    "weight_grid",
    "write",
]
