"""What people see: tables as text, the report of a run as one HTML file, charts, heat maps of token weights, PNGs.

Pages are made by jinja2, charts by matplotlib, which is loaded when the first one is drawn.
"""

from tisdpo_jax.reporting.charts import distribution_png, histogram, line_chart
from tisdpo_jax.reporting.heatmap import SidePicture, TokenPicture, legend_html, pair_html, style_sheet
from tisdpo_jax.reporting.history import TITLES, read_metrics
from tisdpo_jax.reporting.measures import extreme_grid, preference_grids
from tisdpo_jax.reporting.paper import pair_png
from tisdpo_jax.reporting.pieces import decode_pieces
from tisdpo_jax.reporting.report import (
    UNFOLDED,
    DataCounts,
    Invalid,
    Report,
    Sample,
    Score,
    ShownAnswer,
    WeightSection,
    headlines,
    render_report,
    score_grid,
    write,
)
from tisdpo_jax.reporting.tables import Cell, Comparison, Grid, as_plain, grid_html, grid_text, table_text

__all__ = [
    "TITLES",
    "UNFOLDED",
    "Cell",
    "Comparison",
    "DataCounts",
    "Grid",
    "Invalid",
    "Report",
    "Sample",
    "Score",
    "ShownAnswer",
    "SidePicture",
    "TokenPicture",
    "WeightSection",
    "as_plain",
    "decode_pieces",
    "distribution_png",
    "extreme_grid",
    "grid_html",
    "grid_text",
    "headlines",
    "histogram",
    "legend_html",
    "line_chart",
    "pair_html",
    "pair_png",
    "preference_grids",
    "read_metrics",
    "render_report",
    "score_grid",
    "style_sheet",
    "table_text",
    "write",
]
