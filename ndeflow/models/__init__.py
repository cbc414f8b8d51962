"""Models: families to subclass, and ready ones."""

from ndeflow.models.base import Model
from ndeflow.models.classifiers import CDEClassifier, ODEClassifier, SDEClassifier
from ndeflow.models.critic import CDECritic
from ndeflow.models.diffusion import ScalarDiffusion
from ndeflow.models.driven import NeuralCDE, path_channels
from ndeflow.models.epidemic import HybridSIR
from ndeflow.models.flow import NormalizingFlow
from ndeflow.models.forecasters import ODEForecaster, ODEInterpolator, SDEForecaster
from ndeflow.models.generator import SDEGenerator
from ndeflow.models.hybrid import HybridODE
from ndeflow.models.latent import LatentODE, LatentSDE
from ndeflow.models.points import PointClassifier, PointSDEClassifier
from ndeflow.models.score import NeuralPotential, NeuralScore, ScoreModel
from ndeflow.models.spiral import SpiralSDE
from ndeflow.models.trajectory import NeuralODE, NeuralSDE

__all__ = [
    "CDEClassifier",
    "CDECritic",
    "HybridODE",
    "HybridSIR",
    "LatentODE",
    "LatentSDE",
    "Model",
    "NeuralCDE",
    "NeuralODE",
    "NeuralPotential",
    "NeuralSDE",
    "NeuralScore",
    "NormalizingFlow",
    "ODEClassifier",
    "ODEForecaster",
    "ODEInterpolator",
    "PointClassifier",
    "PointSDEClassifier",
    "SDEClassifier",
    "SDEForecaster",
    "SDEGenerator",
    "ScalarDiffusion",
    "ScoreModel",
    "SpiralSDE",
    "path_channels",
]
