"""Masked pretraining, linear probes and neighbors in PyTorch, the way one would write them there.

The autoencoder is the published one's: all patches are embedded, then three quarters are dropped;
attention is fused, eager mode, float32. The probe is MAE's, one learning rate after the other, on
features that are kept.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A pre-norm block of timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Autoencoder(nn.Module):
    """MAE; positions are zeros, which costs the same."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        encoder, narrow = sizes.encoder, sizes.decoder_width
        width, patch, channels = encoder.width, encoder.patch, encoder.channels
        self.patch, self.ratio, self.tokens = patch, sizes.mask_ratio, encoder.tokens
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.positions = nn.Parameter(torch.zeros(1, self.tokens + 1, width), False)
        self.narrow_positions = nn.Parameter(torch.zeros(1, self.tokens + 1, narrow), False)
        blocks = [Block(width, encoder.heads) for _ in range(encoder.depth)]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width, 1e-6)
        self.narrow = nn.Linear(width, narrow)
        blocks = [Block(narrow, sizes.decoder_heads) for _ in range(sizes.decoder_depth)]
        self.decoder, self.last_norm = nn.Sequential(*blocks), nn.LayerNorm(narrow, 1e-6)
        self.pred = nn.Linear(narrow, patch * patch * channels)

    def embedded(self, images: Tensor) -> Tensor:
        """[B, L, D] tokens of [B, C, H, W]."""
        return self.embed(images).flatten(2).transpose(1, 2)

    def features(self, images: Tensor) -> Tensor:
        """[B, D] class tokens of [B, C, H, W]."""
        x = self.embedded(images) + self.positions[:, 1:]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        return self.norm(self.blocks(x))[:, 0]

    def loss(self, images: Tensor) -> Tensor:
        """The loss of standardized pixels of hidden patches."""
        x = self.embedded(images) + self.positions[:, 1:]
        order = torch.rand(x.shape[:2]).argsort(1)
        restore = order.argsort(1)
        kept = int(self.tokens * (1 - self.ratio))
        x = torch.gather(x, 1, order[:, :kept, None].expand(-1, -1, x.shape[2]))
        hidden = (restore >= kept).float()
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = self.narrow(self.norm(self.blocks(x)))
        masks = self.mask_token.expand(len(x), self.tokens - kept, -1)
        rest = torch.cat([x[:, 1:], masks], 1)
        rest = torch.gather(rest, 1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], rest], 1) + self.narrow_positions
        errors = self.errors(self.last_norm(self.decoder(x))[:, 1:], self.standard(images))
        return (errors * hidden).sum() / hidden.sum()

    def standard(self, images: Tensor) -> Tensor:
        """[B, L, C p p] pixels of patches, standardized."""
        target = functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        return (target - mean) / (var + 1e-6) ** 0.5

    def errors(self, tokens: Tensor, target: Tensor) -> Tensor:
        """[B, L] mean squared errors of patches."""
        return ((self.pred(tokens) - target) ** 2).mean(-1)


class GroupAutoencoder(Autoencoder):
    """SatMAE: an embedding and a head for each group of bands, all tokens in one sequence."""

    def __init__(self, sizes: Any) -> None:
        super().__init__(sizes)
        own, narrow = sizes.encoder, sizes.decoder_width
        self.groups = [list(group) for group in own.groups]
        self.embed = nn.ModuleList(
            nn.Conv2d(len(group), own.width, own.patch, own.patch) for group in self.groups
        )
        self.pred = nn.ModuleList(
            nn.Linear(narrow, len(group) * own.patch**2) for group in self.groups
        )

    def embedded(self, images: Tensor) -> Tensor:
        """[B, G L, D] tokens of [B, C, H, W], group by group."""
        parts = zip(self.embed, self.groups, strict=True)
        found = [embed(images[:, own]).flatten(2).transpose(1, 2) for embed, own in parts]
        return torch.cat(found, 1)

    def errors(self, tokens: Tensor, target: Tensor) -> Tensor:
        """[B, G L] mean squared errors of the groups' patches."""
        size = self.patch**2
        wide = target.reshape(*target.shape[:2], -1, size)  # [B, L, C, p p]
        parts = zip(self.pred, self.groups, tokens.chunk(len(self.groups), 1), strict=True)
        found = []
        for pred, own, x in parts:
            painted = pred(x).reshape(*x.shape[:2], len(own), size)
            found.append(((painted - wide[:, :, own]) ** 2).mean((2, 3)))
        return torch.cat(found, 1)


def _model(sizes: Any, device: str) -> Autoencoder:
    kind = GroupAutoencoder if sizes.encoder.groups else Autoencoder
    return kind(sizes).to(device)


def mae_step(sizes: Any, batch: int, device: str) -> Callable[[], Any]:
    """One update by AdamW on the same random images.

    Args:
        sizes: an `MAEConfig`.
        batch: images.
        device: PyTorch's name.

    Returns:
        The call that is timed.
    """
    model = _model(sizes, device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.05)
    images = torch.randn(batch, sizes.encoder.channels, *[sizes.encoder.image_size] * 2)
    images = images.to(device)

    def step() -> None:
        optimizer.zero_grad()
        model.loss(images).backward()
        optimizer.step()

    return step


def encode(sizes: Any, batch: int, device: str) -> Callable[[], Any]:
    """Class tokens of the same random images.

    Args:
        sizes: an `MAEConfig`.
        batch: images.
        device: PyTorch's name.

    Returns:
        The call that is timed.
    """
    model = _model(sizes, device).eval()
    images = torch.randn(batch, sizes.encoder.channels, *[sizes.encoder.image_size] * 2)
    images = images.to(device)

    def call() -> Tensor:
        with torch.no_grad():
            return model.features(images)

    return call


def sequential_probes(
    features: Any,
    labels: Any,
    rates: Sequence[float],
    decays: Sequence[float],
    epochs: int,
    batch: int,
    device: str,
) -> Callable[[], Any]:
    """A linear probe by momentum for each rate and decay, one after the other.

    Args:
        features: [N, D] on the host.
        labels: [N].
        rates: learning rates.
        decays: weight decays.
        epochs: of each.
        batch: images of a step.
        device: PyTorch's name.

    Returns:
        The call that is timed.
    """
    x = torch.tensor(features).to(device)
    y = torch.tensor(labels).long().to(device)
    steps = len(x) // batch

    def call() -> None:
        for rate in rates:
            for decay in decays:
                head = nn.Linear(x.shape[1], int(y.max()) + 1).to(device)
                optimizer = torch.optim.SGD(head.parameters(), rate, 0.9, weight_decay=decay)
                for _ in range(epochs):
                    order = torch.randperm(len(x), device=x.device)
                    for place in range(steps):
                        rows = order[place * batch : (place + 1) * batch]
                        optimizer.zero_grad()
                        functional.cross_entropy(head(x[rows]), y[rows]).backward()
                        optimizer.step()

    return call


def sequential_optima(
    features: Any, labels: Any, lams: Sequence[float], tolerance: float, device: str
) -> Callable[[], Any]:
    """The optimum of a linear probe for each penalty by L-BFGS, one after the other.

    Args:
        features: [N, D] on the host.
        labels: [N].
        lams: penalties.
        tolerance: of the largest entry of the gradient.
        device: PyTorch's name.

    Returns:
        The call that is timed.
    """
    x = torch.tensor(features).to(device)
    y = torch.tensor(labels).long().to(device)

    def fit(lam: float) -> None:
        head = nn.Linear(x.shape[1], int(y.max()) + 1).to(device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.LBFGS(
            head.parameters(),
            max_iter=5000,
            tolerance_grad=tolerance,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(head(x), y) + lam / 2 * head.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    def call() -> None:
        for lam in lams:
            fit(lam)

    return call


def neighbors(features: Any, labels: Any, queries: Any, k: int, device: str) -> Callable[[], Any]:
    """Weighted votes of the k nearest, a row of one-hot labels for each as in the published code.

    Args:
        features: [N, D] on the host.
        labels: [N].
        queries: [Q, D].
        k: neighbors.
        device: PyTorch's name.

    Returns:
        The call that is timed.
    """
    x, q = (functional.normalize(torch.tensor(own)).to(device) for own in (features, queries))
    y = torch.tensor(labels).long().to(device)
    classes = int(y.max()) + 1

    def call() -> Tensor:
        near, places = (q @ x.T).topk(k)
        votes = functional.one_hot(y[places], classes) * (near / 0.07).exp()[..., None]
        return votes.sum(1)

    return call
