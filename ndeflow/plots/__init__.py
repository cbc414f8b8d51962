"""What a person wants to look at: each function gives a labelled matplotlib Figure, without pyplot's global state.

matplotlib is imported when the first figure is drawn.
"""

from ndeflow.plots.paths import sampled_paths
from ndeflow.plots.points import points
from ndeflow.plots.scores import calibration, confusion_matrix
from ndeflow.plots.series import phase_portrait, predictions
from ndeflow.plots.solves import trace
from ndeflow.plots.training import evaluations, learning_curves

__all__ = [
    "calibration",
    "confusion_matrix",
    "evaluations",
    "learning_curves",
    "phase_portrait",
    "points",
    "predictions",
    "sampled_paths",
    "trace",
]
