"""metapeft: bilevel meta-learning of parameter-efficient updates in PyTorch.

`import metapeft as mp` loads no more than torch itself: every name below is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from metapeft.base.version import __version__

if TYPE_CHECKING:
    from metapeft import (
        backbones,
        datasets,
        episodes,
        generators,
        heads,
        hypergradients,
        inner,
        methods,
        updates,
    )
    from metapeft.base.errors import DataError, NotFiniteInput, NumericalError, RunError
    from metapeft.base.machine.freed_memory import keep_freed_memory
    from metapeft.base.machine.torchvision_operators import import_torchvision
    from metapeft.datasets.by_name import load_dataset
    from metapeft.datasets.coloured_glyphs import read_coloured_glyphs
    from metapeft.datasets.few_shot_sets import read_cifar_fs, read_cub, read_fc100, read_tieredimagenet
    from metapeft.datasets.folder import read_folder
    from metapeft.datasets.functions import Functions, read_functions
    from metapeft.datasets.glyph_pairs import read_glyph_pairs
    from metapeft.datasets.glyphs import read_glyphs
    from metapeft.datasets.images import ImageData, Preprocess
    from metapeft.datasets.importing import import_dataset
    from metapeft.datasets.intents import read_banking77, read_clinc150
    from metapeft.datasets.miniimagenet import read_miniimagenet
    from metapeft.datasets.omniglot import read_omniglot
    from metapeft.datasets.omniglot_pairs import read_omniglot_pairs
    from metapeft.datasets.reading import SupportImages, read_images, read_support
    from metapeft.datasets.rotated import Rotated
    from metapeft.datasets.sinusoid import Sinusoid, read_sinusoid
    from metapeft.datasets.tensors import TensorData, data
    from metapeft.datasets.text_files import read_text
    from metapeft.datasets.texts import TextData
    from metapeft.episodes.augment import Augment
    from metapeft.episodes.episode import Episode, EpisodeBatch
    from metapeft.episodes.listing import dump, verify
    from metapeft.episodes.mixed import MixedSampler
    from metapeft.episodes.protocol import Protocol
    from metapeft.episodes.sampler import EpisodeSampler
    from metapeft.episodes.shift import Shift
    from metapeft.episodes.stream import EpisodeStream
    from metapeft.episodes.views import MetaBatches, TaskPairs
    from metapeft.experiments import report
    from metapeft.generators.attention_encoder import AttentionEncoder
    from metapeft.generators.class_encoder import ClassEncoder
    from metapeft.generators.control import Blind, OtherTask
    from metapeft.generators.generator import Generator
    from metapeft.generators.mapping_net import MappingNet
    from metapeft.generators.pair_encoder import PairEncoder
    from metapeft.generators.support import Support
    from metapeft.heads.centroids import Cosine, PrototypeInit, Prototypes
    from metapeft.heads.head import Head
    from metapeft.heads.layers import Learned, Zero
    from metapeft.heads.logistic import Logistic
    from metapeft.heads.neighbours import KNN
    from metapeft.heads.ridge import Ridge, WeightedRidge
    from metapeft.hypergradients.cg import CG
    from metapeft.hypergradients.direct import Direct
    from metapeft.hypergradients.envelope import Envelope
    from metapeft.hypergradients.exact import Exact
    from metapeft.hypergradients.finite_difference import AutoLoRA, FiniteDifference
    from metapeft.hypergradients.first_order import FirstOrder
    from metapeft.hypergradients.fixed_point import FixedPointImplicit
    from metapeft.hypergradients.forward import Forward
    from metapeft.hypergradients.implicit import IndefiniteHessian, NotConverged
    from metapeft.hypergradients.multi_step import MultiStep
    from metapeft.hypergradients.neumann import Neumann
    from metapeft.hypergradients.problem import Engine, Problem, Result, hypergradient, resolve
    from metapeft.hypergradients.recompute import Recompute
    from metapeft.hypergradients.reptile import Reptile
    from metapeft.hypergradients.soba import SOBA
    from metapeft.hypergradients.unroll import Truncated, Unroll
    from metapeft.learner.adapted_tasks import Adapted
    from metapeft.learner.learner import Learner
    from metapeft.training.calibration import calibrate
    from metapeft.training.center import fit_center
    from metapeft.training.evaluation import compare, evaluate
    from metapeft.training.finetuning.fit import finetune
    from metapeft.training.finetuning.fitted import Fitted
    from metapeft.training.finetuning.row_losses import next_token_cross_entropy
    from metapeft.training.pretraining import pretrain
    from metapeft.training.rank_search.found import RankSearch
    from metapeft.training.rank_search.methods import AutoLoRARanks, FisherRanks, PruneRanks
    from metapeft.training.rank_search.scoring import scores
    from metapeft.training.rank_search.search import search_ranks
    from metapeft.training.runs.learner_in_run import load, save
    from metapeft.training.trainer import BilevelTrainer
    from metapeft.updates.attach_model import attach
    from metapeft.updates.attached import AttachedModel
    from metapeft.updates.formats.cp import CP
    from metapeft.updates.formats.decomposition import decompose
    from metapeft.updates.formats.full import Full
    from metapeft.updates.formats.lora import LoRA
    from metapeft.updates.formats.ranking import ranks
    from metapeft.updates.formats.scores import Scores
    from metapeft.updates.formats.selection import Softmax, at_ranks, costs
    from metapeft.updates.formats.tensor_ring import TensorRing
    from metapeft.updates.layers.compiled.switch import use_compiled
    from metapeft.updates.peft_base import load_base
    from metapeft.updates.peft_export import export_peft
    from metapeft.updates.peft_import import from_peft, import_peft
    from metapeft.updates.peft_ranks import lora_config
    from metapeft.updates.singular_terms import canonical

# Folders that can be extended: the names in their tables are also names of this package.
_FOLDERS = ("updates", "episodes", "datasets", "heads", "generators", "hypergradients")
# Packages that are used through their own name: mp.inner.SGD, mp.methods.maml, mp.backbones.conv4.
_NAMESPACES = {name: name for name in ("inner", "methods", "backbones", *_FOLDERS)} | {
    "report": "experiments.report"
}
_NAMES = {
    "NumericalError": "base.errors",
    "NotFiniteInput": "base.errors",
    "DataError": "base.errors",
    "RunError": "base.errors",
    "keep_freed_memory": "base.machine.freed_memory",
    "import_torchvision": "base.machine.torchvision_operators",
    "use_compiled": "updates.layers.compiled.switch",
    "Learner": "learner.learner",
    "Adapted": "learner.adapted_tasks",
    "BilevelTrainer": "training.trainer",
    "pretrain": "training.pretraining",
    "calibrate": "training.calibration",
    "fit_center": "training.center",
    "evaluate": "training.evaluation",
    "finetune": "training.finetuning.fit",
    "Fitted": "training.finetuning.fitted",
    "next_token_cross_entropy": "training.finetuning.row_losses",
    "search_ranks": "training.rank_search.search",
    "RankSearch": "training.rank_search.found",
    "FisherRanks": "training.rank_search.methods",
    "PruneRanks": "training.rank_search.methods",
    "AutoLoRARanks": "training.rank_search.methods",
    "scores": "training.rank_search.scoring",
    "compare": "training.evaluation",
    "load": "training.runs.learner_in_run",
    "save": "training.runs.learner_in_run",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _NAMESPACES:
            return importlib.import_module(f"metapeft.{_NAMESPACES[name]}")
        if name in _NAMES:
            return getattr(importlib.import_module(f"metapeft.{_NAMES[name]}"), name)
        for folder in _FOLDERS:
            registry = importlib.import_module(f"metapeft.{folder}.table").registry
            if name in registry:
                return registry.attribute(name)
        raise AttributeError(f"module 'metapeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "CG",
    "CP",
    "KNN",
    "SOBA",
    "Adapted",
    "AttachedModel",
    "AttentionEncoder",
    "Augment",
    "AutoLoRA",
    "AutoLoRARanks",
    "BilevelTrainer",
    "Blind",
    "ClassEncoder",
    "Cosine",
    "DataError",
    "Direct",
    "Engine",
    "Envelope",
    "Episode",
    "EpisodeBatch",
    "EpisodeSampler",
    "EpisodeStream",
    "Exact",
    "FiniteDifference",
    "FirstOrder",
    "FisherRanks",
    "Fitted",
    "FixedPointImplicit",
    "Forward",
    "Full",
    "Functions",
    "Generator",
    "Head",
    "ImageData",
    "IndefiniteHessian",
    "Learned",
    "Learner",
    "LoRA",
    "Logistic",
    "MappingNet",
    "MetaBatches",
    "MixedSampler",
    "MultiStep",
    "Neumann",
    "NotConverged",
    "NotFiniteInput",
    "NumericalError",
    "OtherTask",
    "PairEncoder",
    "Preprocess",
    "Problem",
    "Protocol",
    "PrototypeInit",
    "Prototypes",
    "PruneRanks",
    "RankSearch",
    "Recompute",
    "Reptile",
    "Result",
    "Ridge",
    "Rotated",
    "RunError",
    "Scores",
    "Shift",
    "Sinusoid",
    "Softmax",
    "Support",
    "SupportImages",
    "TaskPairs",
    "TensorData",
    "TensorRing",
    "TextData",
    "Truncated",
    "Unroll",
    "WeightedRidge",
    "Zero",
    "__version__",
    "at_ranks",
    "attach",
    "backbones",
    "calibrate",
    "canonical",
    "compare",
    "costs",
    "data",
    "datasets",
    "decompose",
    "dump",
    "episodes",
    "evaluate",
    "export_peft",
    "finetune",
    "fit_center",
    "from_peft",
    "generators",
    "heads",
    "hypergradient",
    "hypergradients",
    "import_dataset",
    "import_peft",
    "import_torchvision",
    "inner",
    "keep_freed_memory",
    "load",
    "load_base",
    "load_dataset",
    "lora_config",
    "methods",
    "next_token_cross_entropy",
    "pretrain",
    "ranks",
    "read_banking77",
    "read_cifar_fs",
    "read_clinc150",
    "read_coloured_glyphs",
    "read_cub",
    "read_fc100",
    "read_folder",
    "read_functions",
    "read_glyph_pairs",
    "read_glyphs",
    "read_images",
    "read_miniimagenet",
    "read_omniglot",
    "read_omniglot_pairs",
    "read_sinusoid",
    "read_support",
    "read_text",
    "read_tieredimagenet",
    "report",
    "resolve",
    "save",
    "scores",
    "search_ranks",
    "updates",
    "use_compiled",
    "verify",
]
