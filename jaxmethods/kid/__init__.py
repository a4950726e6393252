"""KID: a small model learns from a large one on gold SQL with its own mistakes in it.

Most training data is perfect, a student that decodes is not: it must go on from its own mistakes.
On-policy distillation shows it those, at the cost of generating. KID masks a fifth of the gold
response, fills the masks with the student's predictions in one pass, and compares student and
teacher on the result.

Zhong et al., "Learning from Imperfect Data: Towards Efficient Knowledge Distillation of
Autoregressive Language Models for Text-to-SQL", EMNLP 2024 Findings, arXiv 2410.11371.

    from jaxmethods import kid
    student, teacher = kid.of_decoder(config), kid.of_decoder(teacher_config)
    method = kid.distiller(student, teacher, optax.adamw(2e-4), kid.KIDConfig(), rows=16, init=init)
    state = method.init(key, kid.Data(examples, teacher_params))

`imperfect` makes the data, `loss` is a batch's, `method` the step, `model` what they need of a
network, `exposure` measures how a student stands its own mistakes, `world` is a place to try it
in. Other ways to distil are settings of the same step: `objectives` names them, `responses` lets
the student or the teacher write what is learned from. Divergences are in `language.divergences`,
SQL and its judge in `sql`; `jaxmethods run configs/kid/quickstart.yaml` runs it all.
"""

from __future__ import annotations

from jaxmethods.kid import exposure, imperfect, loss, objectives, responses, world
from jaxmethods.kid.config import DivergenceConfig as DivergenceConfig
from jaxmethods.kid.config import ImperfectConfig as ImperfectConfig
from jaxmethods.kid.config import KIDConfig as KIDConfig
from jaxmethods.kid.config import ReplayConfig as ReplayConfig
from jaxmethods.kid.config import SourceConfig as SourceConfig
from jaxmethods.kid.config import StudentConfig as StudentConfig
from jaxmethods.kid.loss import Batch as Batch
from jaxmethods.kid.loss import kid_loss
from jaxmethods.kid.method import Data as Data
from jaxmethods.kid.method import DistillState as DistillState
from jaxmethods.kid.method import distiller
from jaxmethods.kid.model import LanguageModel as LanguageModel
from jaxmethods.kid.model import of_decoder

__all__ = [
    "distiller",
    "exposure",
    "imperfect",
    "kid_loss",
    "loss",
    "objectives",
    "of_decoder",
    "responses",
    "world",
]
