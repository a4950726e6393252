"""The predecessor's numbers, and a float64 implementation's of what it doesn't have.

The meaning of the arrays and the tolerances are in tests/golden/README.md.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.method import gradient_step
from jaxmethods.models import temporal_unet
from jaxmethods.models.temporal_unet import Convolution, TemporalNetworkConfig, convolve
from jaxmethods.offline_rl.scores import ReferenceReturns
from jaxmethods.vqcd import activation, diffusion, metrics
from jaxmethods.vqcd.config import AlignmentConfig, DiffusionConfig
from jaxmethods.vqcd.data import windows
from jaxmethods.vqcd.inverse_dynamics import inverse_dynamics, inverse_loss
from jaxmethods.vqcd.spaces import alignment, codebook
from jaxmethods.vqcd.torch_weights import dense_layers, from_torch, our_layout
from tests.golden_files import golden_files, read
from tests.vqcd.golden_arrays import module_of, network_of, partner, tree_of

WAYS = ("matmul", "lax")


def close(actual, expected, atol=0.0, rtol=0.0, name=""):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=name)


def close_trees(actual, expected, atol):
    """Every array of `expected` is close to that of the same name in `actual`."""
    for name, value in expected.items():
        if isinstance(value, dict):
            close_trees(actual[name], value, atol)
        else:
            close(actual[name], value, atol=atol, name=name)


@pytest.mark.parametrize("file", golden_files("vqcd", "schedule"))
def test_schedules(file):
    golden = read(file)
    for steps in {
        int(name.split(".")[0][1:]) for name in golden if name.startswith("K") and "." in name
    }:
        schedule = diffusion.cosine_schedule(steps)
        for name, actual in {
            "betas": schedule.betas,
            "alphas_cumprod": schedule.abar,
            "alphas_cumprod_prev": schedule.abar_prev,
            "sqrt_alphas_cumprod": schedule.signal,
            "sqrt_one_minus_alphas_cumprod": schedule.sigma,
            "sqrt_recip_alphas_cumprod": schedule.inverse_signal,
            "sqrt_recipm1_alphas_cumprod": schedule.inverse_snr,
            "posterior_variance": schedule.posterior_variance,
            "posterior_log_variance_clipped": schedule.posterior_log_variance,
            "posterior_mean_coef1": schedule.mean_coef1,
            "posterior_mean_coef2": schedule.mean_coef2,
        }.items():
            atol = 1e-4 if name.startswith("posterior_log") else 1e-6
            close(actual, golden[f"K{steps}.{name}"], atol, 1e-5, name)


@pytest.mark.parametrize("file", golden_files("vqcd", "schedule"))
def test_strided_tables(file):
    golden = read(file)
    for stride in {int(n.split(".")[0][4:]) for n in golden if n.startswith("ddim")}:
        tables = diffusion.strided(int(golden["K"]), stride)
        for name, actual in {
            "timesteps": tables.steps,
            "abar": tables.abar,
            "abar_prev": tables.abar_prev,
            "alpha": tables.alpha,
            "sigma_sq": tables.variance,
            "eps_coef": tables.noise_coef,
        }.items():
            close(actual, golden[f"ddim{stride}.{name}"], 1e-6, 1e-5, name)


@pytest.mark.parametrize("file", golden_files("vqcd", "blocks"))
def test_position_embedding(file):
    golden = read(file)
    for name in (n for n in golden if n.startswith("posemb") and n.endswith(".out")):
        expected = golden[name]
        steps = golden[name.replace(".out", ".t")]
        actual = temporal_unet.position_embedding(jnp.asarray(steps), expected.shape[1])
        close(actual, expected, 2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", ["resA", "resB"])
@pytest.mark.parametrize("file", golden_files("vqcd", "blocks"))
def test_residual_blocks(file, block, way):
    golden = read(file)
    params = tree_of(golden, f"{block}.w.")
    x, cotangent = (golden[f"{block}.{n}"].transpose(0, 2, 1) for n in ("x", "cot"))
    taps = golden[f"{block}.w.block0.conv.weight"].shape[2]
    config = TemporalNetworkConfig(kernel=taps, convolution=way)

    @jax.jit
    def run(params, x, embedding):
        return temporal_unet.residual_block(params, x, temporal_unet.mish(embedding), config)

    y, pull = jax.vjp(run, params, x, golden[f"{block}.emb"])
    close(y.transpose(0, 2, 1), golden[f"{block}.y"], 2e-5)
    gradient, to_x, to_embedding = pull(jnp.asarray(cotangent))
    close_trees(gradient, tree_of(golden, f"{block}.g."), 1e-4)
    close(to_x.transpose(0, 2, 1), golden[f"{block}.gx"], 1e-4)
    close(to_embedding, golden[f"{block}.gemb"], 1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["down", "up"])
@pytest.mark.parametrize("file", golden_files("vqcd", "blocks"))
def test_changes_of_length(file, name, way):
    golden = read(file)
    x, weight = golden[f"{name}.x"].transpose(0, 2, 1), golden[f"{name}.w"]
    changes = {"stride": 2} if name == "down" else {"up": 2}
    conv = Convolution(weight.shape[2], x.shape[1], **changes)
    layer = {"weight": our_layout(f"{name}sample", "weight", weight), "bias": golden[f"{name}.b"]}
    y = convolve(layer, x, conv, TemporalNetworkConfig(convolution=way))
    close(y.transpose(0, 2, 1), golden[f"{name}.y"], 2e-5)


@cache
def compiled_network():
    return jax.jit(temporal_unet.apply, static_argnums=1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", golden_files("vqcd", "unet"))
def test_network_and_guidance(file, way):
    golden = read(file)
    config = network_of(golden, convolution=way)
    params = from_torch(golden, config, "w.")
    x, k, returns, keep = (golden[n] for n in ("x", "t", "returns", "keep_mask"))
    run = compiled_network()
    for name, kept in {
        "cond": np.ones_like(keep),
        "uncond": np.zeros_like(keep),
        "masked": keep,
    }.items():
        close(run(params, config, x, k, returns, kept), golden[f"eps_{name}"], 5e-5, name=name)

    def predict(x, k, kept):
        asked = jnp.tile(returns, (x.shape[0] // returns.shape[0], 1))
        return run(params, config, x, k, asked, kept)

    both = diffusion.guided(predict, float(golden["guidance_w"]))
    close(both(x, jnp.asarray(k)), golden["eps_guided"], 5e-5)


@pytest.mark.parametrize("file", golden_files("vqcd", "unet"))
def test_weights_without_dead_taps_give_the_same_network(file):
    golden = read(file)
    config = network_of(golden, compact=True, convolution="matmul")
    params = from_torch(golden, config, "w.")
    arguments = (golden[n] for n in ("x", "t", "returns", "keep_mask"))
    close(compiled_network()(params, config, *arguments), golden["eps_masked"], 5e-5)


class Planning:
    """What the files of plans and losses share: the network of `unet`, the inverse model."""

    def __init__(self, file):
        self.golden = read(file)
        unet = read(partner(file, "unet"))
        self.config = network_of(unet, convolution="matmul")
        self.network = from_torch(unet, self.config, "w.")
        arrays = read(partner(file, "diffusion"))
        self.inverse = dense_layers(arrays, "inv.")

    def predict(self, x, k, keep, network=None):
        returns = jnp.asarray(self.golden["returns"])
        asked = jnp.tile(returns, (x.shape[0] // returns.shape[0], 1))
        params = self.network if network is None else network
        return compiled_network()(params, self.config, x, k, asked, keep)


def steps_of(file):
    """K: the `diffusion` files were made with that of `schedule`."""
    return int(read(partner(file, "schedule"))["K"])


@pytest.mark.parametrize("file", golden_files("vqcd", "diffusion"))
def test_single_steps_of_diffusion(file):
    planning, steps = Planning(file), steps_of(file)
    golden, schedule = planning.golden, diffusion.cosine_schedule(steps)
    x0, noise, k = (jnp.asarray(golden[n]) for n in ("x0", "noise", "t"))
    close(diffusion.q_sample(schedule, x0, k, noise), golden["q_sample"], 2e-5)
    found = diffusion.data_from_noise(schedule, x0, k, noise)
    close(found, golden["x_from_noise"], 2e-5, 1e-5)
    mean, log_variance = diffusion.posterior(schedule, x0, noise, k)
    close(mean, golden["q_posterior_mean"], 2e-5)
    close(log_variance, golden["q_posterior_logvar"], 1e-4)
    x, drawn = jnp.asarray(golden["p_xt"]), golden["p_noise"]
    at = jnp.full(x.shape[0], int(golden["p_t"]))
    both = diffusion.guided(planning.predict, float(golden["guidance_w"]))
    bounds = (float(golden["clip_lo"]), float(golden["clip_hi"]))
    stepped = diffusion.ancestral_step(schedule, both(x, at), x, at, drawn, bounds)
    close(stepped, golden["p_sample_out"], 2e-5)
    tables = diffusion.strided(steps, int(golden["ddim_stride"]))
    place = jnp.asarray(golden["ddim_step_i"])
    stepped = diffusion.strided_step(tables, golden["ddim_step_eps"], x, place, drawn)
    close(stepped, golden["ddim_step_out"], 2e-5)


@pytest.mark.parametrize("file", golden_files("vqcd", "diffusion"))
def test_a_whole_plan_and_its_actions(file):
    planning = Planning(file)
    golden = planning.golden
    weight, stride = float(golden["guidance_w"]), int(golden["ddim_stride"])
    config = DiffusionConfig(steps=steps_of(file), stride=stride, guidance=weight)
    noises = jnp.asarray(golden["loop_noise"])
    plan, trace = jax.jit(
        lambda start, present: diffusion.denoise(
            diffusion.guided(planning.predict, weight),
            config,
            start,
            present,
            (float(golden["clip_lo"]), float(golden["clip_hi"])),
            lambda number: noises[number],
        )
    )(golden["loop_init_noise"], golden["s0"])
    close(plan, golden["loop_final"], 3e-4)
    close(trace.transpose(1, 0, 2, 3), golden["loop_trace"], 3e-4)
    actions = inverse_dynamics(planning.inverse, plan[:, :-1], plan[:, 1:])
    close(actions, golden["inv_action"], 3e-4)


@pytest.mark.parametrize("file", golden_files("vqcd", "loss"))
def test_losses_and_gradients(file):
    planning = Planning(file)
    golden, schedule = planning.golden, diffusion.cosine_schedule(steps_of(file))
    channels = planning.config.channels
    states, actions = jnp.split(jnp.asarray(golden["traj"]), [channels], axis=-1)
    k, noise, keep = (jnp.asarray(golden[n]) for n in ("t", "noise", "keep_mask"))

    @jax.jit
    def total(network, inverse):
        def predict(x, k, keep):
            return planning.predict(x, k, keep, network)

        parts = (
            diffusion.diffusion_loss(predict, schedule, states, k, noise, keep, channels),
            inverse_loss(inverse, states, actions),
        )
        return sum(parts), parts

    (value, parts), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        planning.network, planning.inverse
    )
    offset = golden["pos0_offset"]
    close(parts[0], golden["diffusion_loss_reported"] - offset, rtol=1e-5)
    close(parts[1], golden["inv_loss"], rtol=1e-5)
    close(value, golden["total_loss"] - offset, rtol=1e-5)
    expected = tree_of(golden, "g.")
    close_trees(gradients[1], expected.pop("inv"), 1e-5)
    close_trees(gradients[0], expected, 1e-5)


class Module:
    """The alignment module of a `vq` file."""

    def __init__(self, file):
        golden = self.golden = read(file)
        self.params = module_of(golden, "w.")
        _, latents, width = golden["z_e"].shape
        self.config = AlignmentConfig(
            latents=latents,
            width=width,
            codes=golden["w.codebook"].shape[0],
            encoder=self.hidden("enc"),
            decoder=self.hidden("dec"),
            beta=float(golden["beta"]),
            rho=float(golden["rho"]),
            ema_decay=float(golden["ema.decay"]),
            ema_smoothing=float(golden["ema.eps"]),
        )

    def hidden(self, part):
        """Widths of the hidden layers."""
        layers = sum(n.startswith(f"w.{part}.") and n.endswith("bias") for n in self.golden)
        return tuple(len(self.golden[f"w.{part}.dense{i}.bias"]) for i in range(layers - 1))


@pytest.mark.parametrize("file", golden_files("vqcd", "vq"))
def test_alignment_forward_and_losses(file):
    module = Module(file)
    golden, config, params = module.golden, module.config, module.params
    x = golden["x"]
    encoded = alignment.encode(params, config, x)
    np.testing.assert_array_equal(encoded.index, golden["index"])
    close(encoded.z.reshape(golden["z_q"].shape), golden["z_q"], 1e-5)
    close(alignment.decode(params, config, encoded.z, x.shape[1]), golden["x_hat"], 1e-5)
    total, forward = alignment.loss(params, config, x)
    close(forward.encoded, golden["z_e"], 1e-5)
    for name, actual in {
        "rec_loss": forward.losses.reconstruction,
        "commit_loss": forward.losses.commitment,
        "codebook_loss": forward.losses.codebook,
        "total_loss": total,
    }.items():
        close(actual, golden[name], 1e-5, name=name)
    sums = alignment.loss(params, config.model_copy(update={"reduction": "sum"}), x)[1].losses
    close(sums.reconstruction, golden["rec_loss_sum"], 1e-5, 1e-6)
    close(sums.commitment, golden["commit_loss_sum"], 1e-5, 1e-6)


@pytest.mark.parametrize("file", golden_files("vqcd", "vq"))
def test_alignment_gradients_and_one_step(file):
    module = Module(file)
    golden, config, params = module.golden, module.config, module.params

    def value(params):
        return alignment.loss(params, config, golden["x"])[0]

    optimizer = optax.adam(float(golden["lr"]))

    @jax.jit
    def step(params):
        gradient = jax.grad(value)(params)
        return gradient, gradient_step(optimizer, gradient, optimizer.init(params), params)[0]

    gradient, after = step(params)
    after["codebook"] = codebook.clip(after["codebook"], config)
    close_trees(gradient, module_of(golden, "g."), 1e-5)
    close_trees(after, module_of(golden, "after."), 2e-5)


@pytest.mark.parametrize("file", golden_files("vqcd", "vq"))
def test_codebooks_that_are_moving_averages(file):
    module = Module(file)
    golden = module.golden
    before = codebook.Averages(golden["ema.count0"], golden["ema.sum0"])
    averages, codes = codebook.update_averages(
        before, jnp.asarray(golden["z_e"]), jnp.asarray(golden["index"]), module.config
    )
    close(averages.count, golden["ema.count1"], 1e-5)
    close(averages.total, golden["ema.sum1"], 1e-5)
    close(codes, golden["ema.codebook1"], 1e-5)


class Activation:
    """The two convolutions of a `swa` file."""

    def __init__(self, file):
        self.golden = golden = read(file)
        self.tasks, self.groups = int(golden["num_tasks"]), int(golden["gn_groups"])
        self.owner = {name: self.kernel(f"owner.{name}") for name in ("conv0", "conv1")}

    def kernel(self, name):
        return jnp.asarray(self.golden[name].transpose(2, 1, 0))

    def weights(self, prefix):
        return {name: self.kernel(f"{prefix}.{name}") for name in ("conv0", "conv1")}

    def forward(self, weights, task, x):
        masked = activation.apply_mask(weights, self.owner, task)
        x = x.transpose(0, 2, 1)
        config = TemporalNetworkConfig(convolution="matmul")
        for name in ("conv0", "conv1"):
            kernel = masked[name]
            taps, _, outputs = kernel.shape
            layer = {"weight": kernel, "bias": jnp.zeros(outputs)}
            x = convolve(layer, x, Convolution(taps, x.shape[1]), config)
            if name == "conv0":
                affine = {"weight": jnp.ones(outputs), "bias": jnp.zeros(outputs)}
                x = temporal_unet.mish(temporal_unet.group_norm(affine, x, self.groups))
        return x.transpose(0, 2, 1)

    def loss(self, weights, task):
        y = self.forward(weights, task, jnp.asarray(self.golden["x"])[task])
        return jnp.square(y - jnp.asarray(self.golden["target"])[task]).mean()


@pytest.mark.parametrize("file", golden_files("vqcd", "swa"))
def test_every_task_runs_its_own_weights(file):
    swa = Activation(file)
    weights = swa.weights("w0")
    for task in range(swa.tasks):
        y = swa.forward(weights, task, swa.golden["x"][task])
        close(y, swa.golden[f"task{task}.y"], 1e-5)
        value, gradient = jax.value_and_grad(swa.loss)(weights, task)
        close(value, swa.golden[f"task{task}.loss"], 1e-5)
        close_trees(gradient, swa.weights(f"task{task}.g"), 1e-5)
        for name, own in swa.owner.items():
            assert not np.any(np.asarray(gradient[name])[np.asarray(own != task)])


@pytest.mark.parametrize("file", golden_files("vqcd", "swa"))
def test_dense_updates_drift_and_are_assembled(file):
    swa = Activation(file)
    golden, optimizer = swa.golden, optax.adam(float(swa.golden["lr"]))

    @jax.jit
    def train(weights, moments, task):
        def step(_, carry):
            gradient = jax.grad(swa.loss)(carry[0], task)
            return gradient_step(optimizer, gradient, carry[1], carry[0])

        return jax.lax.fori_loop(0, int(golden["steps"]), step, (weights, moments))

    weights, checkpoints = swa.weights("w0"), []
    moments = optimizer.init(weights)
    for task in range(swa.tasks):
        weights, moments = train(weights, moments, task)
        close_trees(weights, swa.weights(f"ckpt{task}"), 5e-5)
        checkpoints.append(weights)
    assembled = activation.assemble(checkpoints, swa.owner)
    close_trees(assembled, swa.weights("assembled"), 5e-5)
    moved = max(
        float(jnp.abs(jnp.where(own == 0, weights[n] - checkpoints[0][n], 0)).max())
        for n, own in swa.owner.items()
    )
    close(moved, golden["drift"], 5e-5)


@pytest.mark.parametrize("file", golden_files("vqcd", "swa"))
def test_assembled_weights_and_pruning(file):
    swa = Activation(file)
    golden = swa.golden
    checkpoints = [swa.weights(f"ckpt{task}") for task in range(swa.tasks)]
    assembled = activation.assemble(checkpoints, swa.owner)
    for name, expected in swa.weights("assembled").items():
        np.testing.assert_array_equal(assembled[name], expected)
    for task in range(swa.tasks):
        x = golden["x"][task]
        close(swa.forward(assembled, task, x), golden[f"assembled.task{task}.y"], 1e-5)
        close(swa.forward(checkpoints[-1], task, x), golden[f"unassembled.task{task}.y"], 1e-5)
    pruned = activation.prune(assembled, swa.owner, float(golden["prune.threshold"]))
    for name, own in pruned.items():
        np.testing.assert_array_equal(own >= 0, swa.kernel(f"prune.keep.{name}"))


@pytest.mark.parametrize("file", golden_files("vqcd", "data_metrics"))
def test_returns_windows_and_statistics(file):
    golden = read(file)
    ends, rewards = golden["episode_ends"], jnp.asarray(golden["rewards"])
    last = jnp.zeros(len(rewards), bool).at[ends - 1].set(True)
    for name, discount in {"undiscounted": 1.0, "discounted": float(golden["gamma"])}.items():
        found = windows.returns_to_go(rewards, last, discount)
        close(found, golden[f"rtg_{name}"], rtol=1e-5, atol=1e-6)
        close(windows.min_max(found), golden[f"rtg_{name}_norm"], rtol=1e-5, atol=1e-6)
    starts, episode = windows.window_starts(ends, int(golden["seq_len"]))
    np.testing.assert_array_equal(episode, golden["window_episode"])
    begins = np.append(0, ends[:-1])
    np.testing.assert_array_equal(starts - begins[episode], golden["window_start"])
    norm = windows.statistics(golden["obs"])
    close(norm.shift, golden["obs_mean"], rtol=1e-5, atol=1e-6)
    close(norm.scale, golden["obs_std"], rtol=1e-5)
    close(windows.normalize(norm, golden["obs"]), golden["obs_normed"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file", golden_files("vqcd", "data_metrics"))
def test_continual_metrics(file):
    golden = read(file)
    matrix = golden["perf"]
    for name, actual in {
        "avg_performance": metrics.final_performance(matrix),
        "forgetting": metrics.forgetting(matrix),
        "forgetting_mean": metrics.mean_forgetting(matrix),
        "auc": metrics.area_under_curve(golden["curve"]),
        "auc_ref": metrics.area_under_curve(golden["curve_ref"]),
        "forward_transfer": metrics.forward_transfer(golden["curve"], golden["curve_ref"]),
        "d4rl_score": ReferenceReturns(golden["score_lo"], golden["score_hi"]).score(
            golden["raw_return"]
        ),
    }.items():
        close(actual, golden[name], rtol=1e-5, atol=1e-7, name=name)
