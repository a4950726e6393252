"""Sampling without replacement, moves and windows on a grid."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxmethods.envs.team import grid


def test_codes_decode_to_every_ordered_tuple_exactly_once():
    codes = np.array(list(itertools.product(range(6), range(5), range(4))), np.int32)
    tuples = np.asarray(jax.vmap(grid.distinct_from_codes)(codes))
    expected = sorted(itertools.permutations(range(6), 3))
    assert sorted(map(tuple, tuples.tolist())) == expected


def test_sampled_cells_are_uniform_over_ordered_tuples():
    keys = jax.random.split(jax.random.key(3), 50_400)
    cells = jax.jit(jax.vmap(lambda key: grid.sample_cells(key, 3, 3)))(keys)
    number = np.asarray(cells[..., 0] * 3 + cells[..., 1])
    tuples, counts = np.unique(number, axis=0, return_counts=True)
    assert len(tuples) == 9 * 8 * 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_full_board_gives_every_cell_once():
    cells = np.asarray(jax.jit(lambda key: grid.sample_cells(key, 16, 4))(jax.random.key(0)))
    assert sorted(map(tuple, cells.tolist())) == list(itertools.product(range(4), range(4)))


def test_the_last_cell_of_the_largest_grid_is_reached():
    keys = jax.random.split(jax.random.key(1), 50_000)
    cells = jax.jit(jax.vmap(lambda key: grid.sample_cells(key, 2, grid.MAX_DIM)))(keys)
    assert cells.min() == 0
    assert cells.max() == grid.MAX_DIM - 1


def test_moves_follow_the_compass_and_stop_at_walls():
    center, corner = jnp.full((7, 2), 1), jnp.zeros((7, 2), jnp.int32)
    actions = jnp.arange(7)
    expected = [[0, 1], [1, 2], [2, 1], [1, 0], [1, 1], [1, 1], [1, 1]]
    np.testing.assert_array_equal(grid.move(center, actions, 3), expected)
    expected = [[0, 0], [0, 1], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    np.testing.assert_array_equal(grid.move(corner, actions, 3), expected)


def test_windows_count_what_stands_on_each_cell_of_a_padded_board():
    dim, vision = 4, 2
    rng = np.random.default_rng(0)
    centers, things = rng.integers(0, dim, (5, 2)), rng.integers(0, dim, (9, 2))
    board = np.zeros((dim + 2 * vision,) * 2, int)
    np.add.at(board, tuple((things + vision).T), 1)
    side = 2 * vision + 1
    expected = [board[r : r + side, c : c + side].ravel() for r, c in centers]
    rows, columns = grid.window_cells(jnp.asarray(centers), vision)
    counts = grid.window_counts(rows, columns, jnp.asarray(things))
    np.testing.assert_array_equal(counts, expected)


def test_what_is_no_move_stays():
    actions = jnp.array([-1, -2, -5, 4, 5, 9])
    places = jnp.full((len(actions), 2), 2)
    np.testing.assert_array_equal(grid.move(places, actions, 5), places)
