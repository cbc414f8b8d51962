"""Data sets for training: your own class, your own file, archives, and measured records."""

from ndeflow.data.archives import Archive
from ndeflow.data.base import DataModule
from ndeflow.data.digits import Digits
from ndeflow.data.elnino import ElNino
from ndeflow.data.files import Files, NewSeries, read_for
from ndeflow.data.images import Images
from ndeflow.data.long import Columns
from ndeflow.data.measured import Influenza, LynxHare
from ndeflow.data.notices import DataWarning, MissingData
from ndeflow.data.points import Checkerboard, NineGaussians, Points, Rings
from ndeflow.data.rates import Rates
from ndeflow.data.returns import Returns
from ndeflow.data.simulated import Spirals
from ndeflow.data.visibility import Everything, First, FirstFraction, Hidden, Visibility

__all__ = [
    "Archive",
    "Checkerboard",
    "Columns",
    "DataModule",
    "DataWarning",
    "Digits",
    "ElNino",
    "Everything",
    "Files",
    "First",
    "FirstFraction",
    "Hidden",
    "Images",
    "Influenza",
    "LynxHare",
    "MissingData",
    "NineGaussians",
    "Points",
    "NewSeries",
    "Rates",
    "Returns",
    "Rings",
    "Spirals",
    "Visibility",
    "read_for",
]
