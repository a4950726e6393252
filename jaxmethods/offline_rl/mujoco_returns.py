"""Returns of many policies at once in gymnasium's MuJoCo locomotion.

All students and episodes are stepped side by side with one batched policy call a step, on the
host. The policies are evaluated in NumPy: their products are small, and worker processes then need
no accelerator.

The environments are version 4, whose physics and rewards are those of the D4RL data; version 5
scores the same on Hopper and HalfCheetah and some percent less on Walker2d. MuJoCo's own version
matters little: the teachers' scores agree between 3.3 and 4.0 within their spread.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxmethods.config import nearest
from jaxmethods.errors import import_extra
from jaxmethods.offline_rl.policies import PolicyParams
from jaxmethods.offline_rl.types import Norm

ENVIRONMENTS = {
    "hopper": "Hopper-v4",
    "halfcheetah": "HalfCheetah-v4",
    "reacher": "Reacher-v5",
    "walker2d": "Walker2d-v4",
}
"""Name in a config to gymnasium's id."""
SPACES = {"hopper": (11, 3), "halfcheetah": (17, 6), "reacher": (10, 2), "walker2d": (17, 6)}
"""Numbers of observations and of actions."""
MAX_STEPS = {"hopper": 1000, "halfcheetah": 1000, "reacher": 50, "walker2d": 1000}
"""Length of an episode."""


def evaluate_returns(
    env_name: str,
    params: Any,
    norm: Norm,
    episodes: int = 10,
    ensemble: bool = False,
    seed: int = 0,
    residual: bool = False,
    processes: int = 1,
) -> np.ndarray:
    """Undiscounted returns of deterministic policies, one row a policy.

    Args:
        env_name: one of `ENVIRONMENTS`.
        params: `PolicyParams`, or the layers of a deterministic policy, with leading axis [K].
        norm: what raw observations are normalized with before the policies see them.
        episodes: E; episode e starts from the environment's seed `seed` + e for every policy.
        ensemble: act with the mean of the K policies' actions.
        residual: whether the policies have the residual connection.
        processes: the number of processes that episodes are spread over; results are the same.

    Returns:
        [K, E] float64; of the ensemble [E]. NaN of a policy with a parameter that isn't finite, and
        of an episode in which an action, an observation or the reward isn't.

    Raises:
        ValueError: unknown environment.
        MissingExtraError: gymnasium's MuJoCo environments are not installed.
    """
    check_mujoco(env_name)
    gaussian = isinstance(params, PolicyParams)
    layers = [(np.asarray(w), np.asarray(b)) for w, b in (params.layers if gaussian else params)]
    policies = (layers, gaussian, residual, np.asarray(norm.mean), np.asarray(norm.std))
    seeds = np.arange(seed, seed + episodes)
    shares = [share for share in np.array_split(seeds, processes) if len(share)]
    jobs = [(env_name, policies, share, ensemble) for share in shares]
    if len(jobs) == 1:
        returns = _play(*jobs[0])
    else:
        # A fresh interpreter: a forked one would inherit JAX's threads in an unknown state.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(jobs), mp_context=spawn) as pool:
            returns = np.concatenate(list(pool.map(_play, *zip(*jobs, strict=True))), axis=-1)
    # Actions may be finite where weights are not: tanh makes an infinite one a 1.
    whole = finite_policies(params)
    return np.where(whole.all() if ensemble else whole[:, None], returns, np.nan)


def finite_policies(params: Any) -> np.ndarray:
    """[K] bool: the policies whose parameters are all finite."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    each = [np.isfinite(leaf.reshape(len(leaf), -1)).all(1) for leaf in leaves]
    return np.logical_and.reduce(each)


def check_mujoco(env_name: str) -> None:
    """Raises what `evaluate_returns` says of an environment that cannot be played in."""
    if env_name not in ENVIRONMENTS:
        raise ValueError(
            f"env_name: unknown MuJoCo environment {env_name!r}{nearest(env_name, ENVIRONMENTS)}"
        )
    import_extra("mujoco", "rl")
    import_extra("gymnasium.envs.mujoco", "rl")


def _play(name: str, policies: tuple, seeds: np.ndarray, ensemble: bool) -> np.ndarray:
    """Returns [K, E], or [E] of the ensemble, of one episode from each of the seeds [E]."""
    mujoco = import_extra("mujoco", "rl")
    teams = 1 if ensemble else policies[0][0][0].shape[0]
    count = teams * len(seeds)
    with quiet():
        # One model serves all episodes: compiling it takes longer than playing one of them.
        env = make_environment(name)
        places = [mujoco.MjData(env.model) for _ in range(count)]
        flat = np.zeros((count, *env.observation_space.shape), np.float32)
        for index, (env.data, seed) in enumerate(zip(places, [*seeds] * teams, strict=True)):
            flat[index] = env.reset(seed=int(seed))[0]
        observations = flat.reshape(teams, len(seeds), -1)
        returns, running = np.zeros(count), np.ones(count, bool)
        for _ in range(MAX_STEPS[name]):
            with np.errstate(invalid="ignore", over="ignore"):  # a broken policy's episodes are NaN
                actions = _actions(policies, observations)
            actions = actions.mean(0) if ensemble else actions.reshape(count, -1)
            for index in np.flatnonzero(running):
                # MuJoCo answers an action of NaN with its last state or a fresh one, and goes on.
                sound = np.isfinite(actions[index]).all()
                if sound:
                    env.data = places[index]
                    flat[index], reward, failed, _, _ = env.step(actions[index])
                    sound = np.isfinite(flat[index]).all() and np.isfinite(reward)
                returns[index] += reward if sound else np.nan
                running[index] = sound and not failed
            if not running.any():
                break
    return returns if ensemble else returns.reshape(teams, len(seeds))


def _actions(policies: tuple, observations: np.ndarray) -> np.ndarray:
    """Deterministic actions [K, E, A] of raw observations [K or 1, E, S]."""
    layers, gaussian, residual, mean, std = policies
    hidden, first = (observations - mean) / std, None
    for weights, biases in layers[:-1]:
        hidden = np.maximum(hidden @ weights + biases[:, None], 0.0)
        first = hidden if first is None else first
    if residual and first is not None:
        hidden = hidden + first
    weights, biases = layers[-1]
    heads = hidden @ weights + biases[:, None]
    return np.tanh(heads[..., : heads.shape[-1] // 2] if gaussian else heads)


class MujocoEpisodes:
    """Episodes of one environment, side by side: one model, and the data of every episode."""

    def __init__(self, name: str, count: int, seed: int) -> None:
        """Makes the simulator.

        Args:
            name: one of `ENVIRONMENTS`.
            count: of episodes.
            seed: episode e starts from the environment's seed `seed` + e.
        """
        mujoco = import_extra("mujoco", "rl")
        self.limit = MAX_STEPS[name]
        self._environment = make_environment(name)
        self._places = [mujoco.MjData(self._environment.model) for _ in range(count)]
        self._seed = seed

    def reset(self) -> np.ndarray:
        """[E, S] float32: the first observations."""
        found = []
        for index, place in enumerate(self._places):
            self._environment.data = place
            found.append(self._environment.reset(seed=self._seed + index)[0])
        return np.stack(found).astype(np.float32)

    def step(self, index: int, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Takes a step of one episode.

        Args:
            index: of the episode.
            action: [A] in [-1, 1].

        Returns:
            The observation [S] float32, the reward, and whether the episode has ended.
        """
        self._environment.data = self._places[index]
        observation, reward, failed, _, _ = self._environment.step(action)
        return np.asarray(observation, np.float32), float(reward), bool(failed)


def make_environment(name: str) -> Any:
    """An environment of `ENVIRONMENTS` without the wrappers that count steps and check types."""
    gymnasium = import_extra("gymnasium", "rl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # version 4 says that version 5 exists
        return gymnasium.make(ENVIRONMENTS[name], disable_env_checker=True).unwrapped


@contextmanager
def quiet() -> Iterator[None]:
    """MuJoCo's warnings (old-fashioned XML, a simulation that a wild policy made unstable and that
    was reset) go nowhere: by default they are printed, and logged in the working directory."""
    mujoco = import_extra("mujoco", "rl")
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
