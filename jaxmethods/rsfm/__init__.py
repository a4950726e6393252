"""Remote-sensing foundation models: masked pretraining, and evaluations that can be compared.

Xiao et al., "Foundation Models for Remote Sensing and Earth Observation: A Survey", IEEE GRSM 2025,
arXiv 2410.16602. The survey has no method of its own: what is here are those of the models that it
compares, and the protocols by which they are compared.

    from jaxmethods import rsfm
    params = rsfm.mae.init(key, config)                                  # config: rsfm.MAEConfig
    painted = rsfm.mae.forward(params, config, images, noise)            # loss, pixels, masks
    scores = rsfm.neighbor_scores(train, labels, test, classes=10)       # frozen features
    probe = rsfm.probe_lbfgs(train, labels, lams, classes=10)            # all penalties at once

Encoders and their checkpoints: `jaxmethods.models.geovit`; places: `jaxmethods.models.location`.
`pretraining` has MAE, SatMAE, Scale-MAE and contrasts, `evaluation` neighbors, probes, the named
protocols, bootstrap intervals, baselines, maps of whole scenes and measures.
"""

from jaxmethods.models.clip.contrastive import clip_loss, infonce
from jaxmethods.numerics.linear_probe import probe_lbfgs, standardizer
from jaxmethods.rsfm import evaluation, pretraining, schedules
from jaxmethods.rsfm.config import ContrastConfig as ContrastConfig
from jaxmethods.rsfm.config import ImageTextConfig as ImageTextConfig
from jaxmethods.rsfm.config import MAEConfig as MAEConfig
from jaxmethods.rsfm.config import OptimizerConfig as OptimizerConfig
from jaxmethods.rsfm.config import PretrainConfig as PretrainConfig
from jaxmethods.rsfm.config import ScaleMAEConfig as ScaleMAEConfig
from jaxmethods.rsfm.evaluation.neighbors import neighbor_scores
from jaxmethods.rsfm.evaluation.probes import probe_sgd
from jaxmethods.rsfm.pretraining import mae, satmae, scale_mae
from jaxmethods.rsfm.pretraining.method import pretrainer

__all__ = [
    "clip_loss",
    "evaluation",
    "infonce",
    "mae",
    "neighbor_scores",
    "pretrainer",
    "pretraining",
    "probe_lbfgs",
    "probe_sgd",
    "satmae",
    "scale_mae",
    "schedules",
    "standardizer",
]
