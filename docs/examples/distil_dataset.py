"""python docs/examples/distil_dataset.py: 500 rows of behavior become four pairs, seconds.

A student that is cloned from four learned pairs acts nearer to all of the data than one that is
cloned from four rows of it. Your own file: `data, norm = obd.load_offline("hopper.hdf5")`.
"""

import jax
import numpy as np

from jaxmethods import obd
from jaxmethods.data.offline import FlatDataset


def behavior(rows: int = 500):
    """A controller that pushes against position and speed, with noise."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(rows, 2)).astype(np.float32)
    actions = np.tanh(-states.sum(-1, keepdims=True) + 0.1 * rng.normal(size=(rows, 1)))
    rewards, never = np.zeros(rows, np.float32), np.zeros(rows, bool)
    ends = np.arange(rows) % 50 == 49
    flat = FlatDataset(states, actions.astype(np.float32), rewards, never, timeouts=ends)
    return obd.offline_data(flat)


def main(outer_steps: int = 60) -> tuple[float, float]:
    data, norm = behavior()
    student = obd.StudentConfig(hidden=16, n_layers=2)
    config = obd.OBDConfig(
        objective="dbc", n_syn=4, student=student, inner_steps=15, batch=128, inner_noise=0.0
    )
    method = obd.distiller(config)
    source = obd.Source(data, norm)
    begin = method.init(jax.random.key(0), source)

    @jax.jit
    def distil(state, source):
        return jax.lax.scan(lambda s, _: method.step(s, source), state, length=outer_steps)

    @jax.jit
    def distance(pairs, data):  # of ten fresh students, cloned from the pairs
        policy = obd.tanh_gaussian(n_layers=2, hidden=16)
        students = obd.train_students(jax.random.key(1), pairs, policy, steps=15, noise=0.0)
        actions = jax.vmap(policy.mode, (0, None))(students, data.states)
        return ((actions - data.actions) ** 2).mean()

    state, _ = distil(begin, source)
    before, after = (float(distance(obd.used(s), data)) for s in (begin, state))
    print(f"squared distance from the data: four rows {before:.3f}, four learned {after:.3f}")
    return before, after


if __name__ == "__main__":
    main()
