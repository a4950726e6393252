"""Wrong lines in remote sensing, see `tests/mutations.py`."""

MUTATIONS = [
    (
        "pretraining/masking.py",
        "return int(tokens * (1 - ratio))",
        "return round(tokens * (1 - ratio))",
        "as many tokens are kept as rounding says",
        "pretraining/test_mae.py::test_as_many_tokens_are_hidden_as_the_ratio_says",
    ),
    (
        "pretraining/masking.py",
        "own = ids[:, None] + step * steps",
        "own = ids[:, None] + 0 * step * steps",
        "all groups keep the tokens of the first",
        "pretraining/test_mae.py::test_a_shared_mask_hides_the_same_places_of_all_groups",
    ),
    (
        "pretraining/targets.py",
        "squares / jnp.maximum(count - 1, 1)",
        "squares / jnp.maximum(count, 1)",
        "the variance of a patch is biased",
        "pretraining/test_mae.py::"
        "test_the_variance_is_unbiased_over_a_patch_or_over_each_of_its_bands",
    ),
    (
        "pretraining/satmae.py",
        'if config.pairing == "published":\n        if len(order)',
        'if config.pairing != "published":\n        if len(order)',
        "bands are compared in the order of the file",
        "pretraining/test_mae.py::test_groups_compare_every_band_with_itself",
    ),
    (
        "pretraining/scale_mae.py",
        "return Pyramid(targets - blurred,",
        "return Pyramid(targets,",
        "low frequencies are painted twice",
        "pretraining/test_scale_mae.py::test_a_constant_image_has_no_high_frequencies",
    ),
    (
        "pretraining/views.py",
        "gsd = None if gsd is None else gsd * sides",
        "gsd = None if gsd is None else gsd / sides",
        "an enlarged crop has larger pixels",
        "pretraining/test_method.py::test_a_crop_has_smaller_pixels",
    ),
    (
        "evaluation/neighbors.py",
        "shift = -0.5 * jnp.sum(jnp.square(features), axis=1)",
        "shift = -1.0 * jnp.sum(jnp.square(features), axis=1)",
        "long features are further away than they are",
        "evaluation/test_neighbors.py::test_distances_are_those_of_numpy_wherever_the_features_are",
    ),
    (
        "../numerics/softmax_path.py",
        "own[:, None] * penalized",
        "2 * own[:, None] * penalized",
        "the penalty is twice what it says",
        "../numerics/test_linear_probe.py::test_the_optimum_is_scikit_learns",
    ),
    (
        "evaluation/measures/segmentation.py",
        "union = true + named - hits",
        "union = true + named",
        "the intersection counts twice in the union",
        "test_golden.py::test_classes_of_pixels",
    ),
    (
        "evaluation/tiles.py",
        "blended = total / weights",
        "blended = total",
        "overlapping windows are added and not averaged",
        "evaluation/test_tiles.py::test_a_model_that_returns_its_input_returns_the_scene",
    ),
    (
        "evaluation/measures/retrieval.py",
        "nearer = jnp.sum(similarity > best, axis=1, dtype=jnp.int32)",
        "nearer = jnp.sum(similarity >= best, axis=1, dtype=jnp.int32)",
        "equal similarities count against a match",
        "evaluation/test_retrieval.py::test_equals_count_in_favor_of_a_match",
    ),
    (
        "pretraining/learners.py",
        "views.images, noise, 2 * views.gsd)",
        "views.images, noise, views.gsd)",
        "an image of half the resolution has pixels of the same size",
        "pretraining/test_learners.py::"
        "test_scale_mae_encodes_half_the_resolution_with_pixels_twice_as_large",
    ),
    (
        "location/regression.py",
        "residual / (free + jnp.sum(own**2 * left, axis=1))[:, None]",
        "residual",
        "the penalty is chosen by places that were learned from",
        "location/test_regression.py::test_the_penalty_predicts_left_out_places_best",
    ),
]
