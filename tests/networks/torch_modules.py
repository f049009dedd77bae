"""Small PyTorch modules of twelve architectures: name -> the module and the shape of its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as fn


def _cbr(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """A residual block with a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_cbr(inputs, outputs, 3, stride), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fn.relu(self.body(x) + self.short(x))


def resnet() -> nn.Module:
    body = [_cbr(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1), Residual(8, 16, 2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Inverted(nn.Module):
    """MobileNet v3's block: depthwise, squeeze and excite, hard swish."""

    def __init__(self, width: int) -> None:
        super().__init__()
        mid = 3 * width
        self.wide = nn.Sequential(nn.Conv2d(width, mid, 1), nn.BatchNorm2d(mid), nn.Hardswish())
        self.deep = nn.Sequential(
            nn.Conv2d(mid, mid, 5, 1, 2, groups=mid), nn.BatchNorm2d(mid), nn.Hardswish()
        )
        gate = nn.Conv2d(mid, 8, 1), nn.ReLU(), nn.Conv2d(8, mid, 1), nn.Hardsigmoid()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *gate)
        self.narrow = nn.Conv2d(mid, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.deep(self.wide(x))
        return x + self.narrow(y * self.gate(y))


def mobilenet() -> nn.Module:
    return nn.Sequential(
        _cbr(3, 8, 3, 2), Inverted(8), Inverted(8), nn.Conv2d(8, 16, 1), nn.SiLU(), nn.ReLU6()
    )


class UNet(nn.Module):
    """One step down and up again, by a transposed convolution and by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up = _cbr(3, 8), _cbr(8, 16), nn.ConvTranspose2d(16, 8, 2, 2)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        low = self.down(fn.avg_pool2d(first, 2))
        small = fn.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(torch.cat([self.up(low) + small[:, :8], first], 1)).softmax(1)


class DenseShuffle(nn.Module):
    """DenseNet's concatenations and ShuffleNet's turned channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grow = _cbr(3, 8), nn.ModuleList([_cbr(8, 8, 3, 1, 2), _cbr(16, 8, 3, 1, 4)])
        self.norm, self.wide = nn.GroupNorm(4, 24), nn.Conv2d(24, 12, 3, dilation=2, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.grow:
            x = torch.cat([x, layer(x)], 1)
        n, c, h, w = x.shape
        x = x.reshape(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return fn.pixel_shuffle(fn.leaky_relu(self.wide(self.norm(x)), 0.1), 2)


class ViT(nn.Module):
    """Patches, a class token, two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.zeros(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16) / 10)
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.body(x)[:, 0])


class Gpt(nn.Module):
    """Causal attention over a sequence of features."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.norm, self.out = nn.Linear(12, 36), nn.LayerNorm(12), nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.turn(self.norm(x)).reshape(1, 10, 3, 3, 4).permute(2, 0, 3, 1, 4)
        y = fn.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return (x + self.out(y.transpose(1, 2).reshape(1, 10, 12))).log_softmax(-1)


class Recurrent(nn.Module):
    """A convolution over time, two LSTM directions, a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(4, 8, 3, padding=1), nn.LSTM(8, 6, 2, True, True, bidirectional=True)
        self.gru, self.head = nn.GRU(12, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made, _ = self.lstm(fn.elu(self.conv(x)).transpose(1, 2))
        made, _ = self.gru(made)
        return self.head(made).sigmoid()


class Detector(nn.Module):
    """A pyramid of two levels, boxes decoded, the best scores picked."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.head = _cbr(3, 8, 3, 2), _cbr(8, 8, 3, 2), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.low(x)
        high = self.high(low)
        low = low + fn.interpolate(high, scale_factor=2, mode="nearest")
        found = torch.cat([self.head(level).flatten(2) for level in (low, high)], 2).transpose(1, 2)
        boxes = torch.cat([found[..., :2].sigmoid() * 2 - 0.5, (found[..., 2:4].sigmoid() * 2) ** 2], -1)
        best, places = found[..., 4].topk(7)
        return boxes.gather(1, places[..., None].expand(-1, -1, 4)), best


class Text(nn.Module):
    """An embedding and means over what is not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        kept = (ids != 0).unsqueeze(-1).to(torch.float32)
        mean = (self.table(ids) * kept).sum(1) / kept.sum(1).clamp(min=1)
        return self.head(fn.gelu(mean, approximate="tanh"))


class Swin(nn.Module):
    """Windows that are rolled, with norms over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.mix = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 8)
        self.merge = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patch(x).permute(0, 2, 3, 1))
        x = torch.roll(x, (-1, -1), (1, 2))
        n, h, w, c = x.shape
        windows = x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        scores = torch.einsum("nqc,nkc->nqk", windows, windows).softmax(-1)
        windows = self.mix(scores @ windows).reshape(n, h // 2, w // 2, 4 * c)
        return self.merge(windows)


class ConvNext(nn.Module):
    """Depthwise convolutions with norms over the channels, scaled into the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)
        self.deep, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8, 1e-6)
        self.wide, self.narrow = nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(fn.gelu(self.wide(y)))
        return self.last(x + y.permute(0, 3, 1, 2)).mean((2, 3))


class Bert(nn.Module):
    """Embeddings of words and places, attention that leaves padding out, a pooled first token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(50, 12), nn.Embedding(9, 12), nn.LayerNorm(12)
        self.turn, self.out, self.after = nn.Linear(12, 36), nn.Linear(12, 12), nn.LayerNorm(12)
        self.wide, self.narrow, self.pool = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        n, length = ids.shape
        x = self.norm(self.words(ids) + self.places(torch.arange(length)))
        unseen = (ids == 0)[:, None, None, :].to(torch.float32) * -1e4
        query, key, value = self.turn(x).reshape(n, length, 3, 3, 4).permute(2, 0, 3, 1, 4)
        seen = (query @ key.transpose(-1, -2) / 2 + unseen).softmax(-1) @ value
        x = self.after(x + self.out(seen.transpose(1, 2).reshape(n, length, 12)))
        return torch.tanh(self.pool((x + self.narrow(fn.gelu(self.wide(x))))[:, 0]))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (resnet, (1, 3, 32, 32)), "mobilenet": (mobilenet, (1, 3, 32, 32)),
    "unet": (UNet, (2, 3, 16, 16)), "dense_shuffle": (DenseShuffle, (1, 3, 12, 12)),
    "vit": (ViT, (1, 3, 32, 32)), "gpt": (Gpt, (1, 10, 12)),
    "recurrent": (Recurrent, (1, 4, 9)), "detector": (Detector, (1, 3, 32, 32)), "text": (Text, (3, 12)),
    "swin": (Swin, (1, 3, 32, 32)), "convnext": (ConvNext, (2, 3, 32, 32)), "bert": (Bert, (2, 9)),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The module in inference, its batch norms with statistics of their own, and an input."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    module = make()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
    whole = name in ("text", "bert")
    return module.eval(), torch.randint(0, 50, shape, dtype=torch.int32) if whole else torch.randn(shape)
