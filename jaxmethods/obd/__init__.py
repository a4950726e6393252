"""OBD, Offline Behavior Distillation: a large offline dataset in a few hundred pairs.

A synthetic set D of N (state, action) pairs is learned so that a fresh policy, cloned from it in T
gradient steps, acts well:

    min_D H(theta_T(D)),    theta_{t+1} = theta_t - alpha grad l_BC(theta_t, D),    theta_0 random

H compares the clone with the data's actions (DBC), with those of a near-expert policy (PBC), or
with these weighted by their value q* (Av-PBC). The gradient goes through all T steps.

Lei, Zhang and Tao, "Offline Behavior Distillation", NeurIPS 2024, arXiv 2410.22728. Equations and
sections are named where they are implemented.

    from jaxmethods import obd
    data, norm = obd.load_offline("hopper.hdf5")
    source = obd.Source(data, norm, obd.load_teacher("teacher.npz"))
    method = obd.distiller(obd.OBDConfig(objective="avpbc"))
    state = method.init(jax.random.key(0), source)
    step = jax.jit(method.step, donate_argnums=0)
    state, metrics = step(state, source)  # ... some thousand times
    students = obd.train_students(jax.random.key(1), state.syn)

Each piece is usable alone: `policy` (students and critics as pytrees), `objectives` (the losses),
`meta_gradient` (the gradient, in every mode of `jaxmethods.bilevel`), `students` and `zoo`
(cloning with other optimizers and architectures), `offline_rl` (a teacher from the data alone),
`density` (state-density weights), `baselines`, `mujoco_returns` and `scores` (evaluation).
"""

from jaxmethods import offline_rl
from jaxmethods.obd import baselines, density, meta_gradient, objectives, students
from jaxmethods.obd.config import OBDConfig as OBDConfig
from jaxmethods.obd.config import StudentConfig as StudentConfig
from jaxmethods.obd.evaluate import EvaluationConfig as EvaluationConfig
from jaxmethods.obd.evaluate import judge_sets, measure_set
from jaxmethods.obd.method import Rates as Rates
from jaxmethods.obd.method import State as State
from jaxmethods.obd.method import distiller, used, with_rates
from jaxmethods.obd.recipes.distilled_files import Distilled as Distilled
from jaxmethods.obd.recipes.distilled_files import load, save
from jaxmethods.obd.recipes.teacher_files import load_corl_calql, load_teacher, save_teacher
from jaxmethods.obd.students import train_students
from jaxmethods.obd.types import Source as Source
from jaxmethods.obd.types import SynSet as SynSet
from jaxmethods.offline_rl import policies as policy
from jaxmethods.offline_rl import scores
from jaxmethods.offline_rl.dataset import load_offline, offline_data
from jaxmethods.offline_rl.mujoco_returns import evaluate_returns
from jaxmethods.offline_rl.policies import Policy as Policy
from jaxmethods.offline_rl.policies import PolicyParams as PolicyParams
from jaxmethods.offline_rl.policies import deterministic, tanh_gaussian
from jaxmethods.offline_rl.scores import normalized_score
from jaxmethods.offline_rl.types import Norm as Norm
from jaxmethods.offline_rl.types import OfflineData as OfflineData
from jaxmethods.offline_rl.types import Teacher as Teacher

__all__ = [
    "baselines",
    "density",
    "deterministic",
    "distiller",
    "evaluate_returns",
    "judge_sets",
    "load",
    "load_corl_calql",
    "load_offline",
    "load_teacher",
    "measure_set",
    "meta_gradient",
    "normalized_score",
    "objectives",
    "offline_data",
    "offline_rl",
    "policy",
    "save",
    "save_teacher",
    "scores",
    "students",
    "tanh_gaussian",
    "train_students",
    "used",
    "with_rates",
]
