"""Training-data attribution for people who work with scikit-learn."""

from .adapters import TrajectoryRecorder, as_final_model
from .attribution.call import attribute
from .attribution.result import Attribution
from .attributors.arnoldi_influence import ArnoldiInfluence
from .attributors.axil import AXIL
from .attributors.beta_shapley import BetaShapley
from .attributors.boost_in import BoostIn
from .attributors.cg_influence import CGInfluence
from .attributors.data_banzhaf import DataBanzhaf
from .attributors.data_inf import DataInf
from .attributors.data_oob import DataOOB
from .attributors.data_shapley import DataShapley
from .attributors.datamodel import Datamodel
from .attributors.distributional_influence import DistributionalInfluence
from .attributors.downsampling import Downsampling
from .attributors.ekfac_influence import EKFACInfluence
from .attributors.ensemble import EnsembleAttributor
from .attributors.exact_influence import ExactInfluence
from .attributors.further_training import FurtherTraining
from .attributors.further_training_curve import FurtherTrainingCurve, further_training_curve
from .attributors.grad_cos import GradCos
from .attributors.grad_dot import GradDot
from .attributors.hydra import Hydra
from .attributors.knn_shapley import KNNShapley
from .attributors.leaf_influence import LeafInfluence
from .attributors.leaf_kernel import LeafKernel
from .attributors.leaf_refit import LeafRefit
from .attributors.least_core import LeastCore
from .attributors.leave_one_out import LeaveOneOut
from .attributors.linearized_further_training import LinearizedFurtherTraining
from .attributors.lissa_influence import LiSSAInfluence
from .attributors.once_linearized_further_training import OnceLinearizedFurtherTraining
from .attributors.refined import RefinedAttributor
from .attributors.rep_sim import RepSim
from .attributors.source import SOURCE
from .attributors.trac_in import TracIn
from .attributors.train_ensemble import train_ensemble
from .attributors.train_on_subsets import train_on_subsets
from .attributors.trak import TRAK
from .attributors.trex import TREX
from .attributors.unrolled_differentiation import UnrolledDifferentiation
from .base import BaseAttributor
from .evaluation.agreement import AgreementCurve, agreement_curve
from .evaluation.ceiling import noise_ceiling
from .evaluation.comparison import MethodComparison, compare_methods
from .evaluation.distributional import DistributionalAgreement, distributional_agreement
from .evaluation.labels import (
    MislabelDetection,
    class_detection,
    flip_labels,
    mislabel_detection,
)
from .evaluation.lds import LinearDatamodelingScore, linear_datamodeling_score
from .evaluation.metric_influence import MetricInfluence, metric_influence
from .evaluation.removal import SubsetRemovalCurve, subset_removal_curve
from .evaluation.scorers import (
    AgreementScorer,
    AllRows,
    LinearDatamodelingScorer,
    MislabelScorer,
)
from .evaluation.significance import Significance, significant_scores
from .groups.comparison import GroupComparison, compare_group_influence
from .groups.flips import SmallestFlips, smallest_flip
from .groups.greedy import GreedyRemoval, greedy_removal
from .groups.influence import GroupInfluence, group_influence
from .model import FinalModel
from .plotting.outcomes import MeanVarianceDisplay, OutcomeDensityDisplay
from .plotting.results import (
    AgreementCurveDisplay,
    LinearDatamodelingScoreDisplay,
    MislabelDetectionDisplay,
    SubsetRemovalCurveDisplay,
)
from .plotting.scores import ScoreMapDisplay, SeedsNeededDisplay, SelfInfluenceDisplay
from .plotting.top_rows import TopRowsDisplay
from .selection.cv_plus import CVPlusRegressor
from .selection.jackknife_plus import JackknifePlusRegressor
from .selection.mislabels import MislabelDetector
from .selection.pruned import PrunedClassifier, PrunedRegressor
from .selection.pruning import InfluencePruner
from .top_rows import TopRows
from .training.ensemble import Ensemble
from .training.joint_distance import joint_distance
from .training.outcome_samples import OutcomeSamples
from .training.random_subsets import random_subsets
from .training.subset_outcomes import SubsetOutcomes
from .trajectory import Stage, Trajectory

__version__ = "0.1.0"

__all__ = [
    "AXIL",
    "SOURCE",
    "TRAK",
    "TREX",
    "AgreementCurve",
    "AgreementCurveDisplay",
    "AgreementScorer",
    "AllRows",
    "ArnoldiInfluence",
    "Attribution",
    "BaseAttributor",
    "BetaShapley",
    "BoostIn",
    "CGInfluence",
    "CVPlusRegressor",
    "DataBanzhaf",
    "DataInf",
    "DataOOB",
    "DataShapley",
    "Datamodel",
    "DistributionalAgreement",
    "DistributionalInfluence",
    "Downsampling",
    "EKFACInfluence",
    "Ensemble",
    "EnsembleAttributor",
    "ExactInfluence",
    "FinalModel",
    "FurtherTraining",
    "FurtherTrainingCurve",
    "GradCos",
    "GradDot",
    "GreedyRemoval",
    "GroupComparison",
    "GroupInfluence",
    "Hydra",
    "InfluencePruner",
    "JackknifePlusRegressor",
    "KNNShapley",
    "LeafInfluence",
    "LeafKernel",
    "LeafRefit",
    "LeastCore",
    "LeaveOneOut",
    "LiSSAInfluence",
    "LinearDatamodelingScore",
    "LinearDatamodelingScoreDisplay",
    "LinearDatamodelingScorer",
    "LinearizedFurtherTraining",
    "MeanVarianceDisplay",
    "MethodComparison",
    "MetricInfluence",
    "MislabelDetection",
    "MislabelDetectionDisplay",
    "MislabelDetector",
    "MislabelScorer",
    "OnceLinearizedFurtherTraining",
    "OutcomeDensityDisplay",
    "OutcomeSamples",
    "PrunedClassifier",
    "PrunedRegressor",
    "RefinedAttributor",
    "RepSim",
    "ScoreMapDisplay",
    "SeedsNeededDisplay",
    "SelfInfluenceDisplay",
    "Significance",
    "SmallestFlips",
    "Stage",
    "SubsetOutcomes",
    "SubsetRemovalCurve",
    "SubsetRemovalCurveDisplay",
    "TopRows",
    "TopRowsDisplay",
    "TracIn",
    "Trajectory",
    "TrajectoryRecorder",
    "UnrolledDifferentiation",
    "agreement_curve",
    "as_final_model",
    "attribute",
    "class_detection",
    "compare_group_influence",
    "compare_methods",
    "distributional_agreement",
    "flip_labels",
    "further_training_curve",
    "greedy_removal",
    "group_influence",
    "joint_distance",
    "linear_datamodeling_score",
    "metric_influence",
    "mislabel_detection",
    "noise_ceiling",
    "random_subsets",
    "significant_scores",
    "smallest_flip",
    "subset_removal_curve",
    "train_ensemble",
    "train_on_subsets",
]
