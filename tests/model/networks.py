"""What the tests of qlab.model share: small networks, a hash of a model, every recipe without its least size."""

import hashlib
from dataclasses import replace

import torch
from torch import nn

import qlab


def recipe(name, **changes):
    return replace(qlab.RECIPES[name], min_size=0, **changes)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.LayerNorm(96), nn.Linear(96, 32)).eval()


class Cnn(nn.Module):
    """Convolutions of every sort, batch normalization, one and two dimensions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 4, (1, 3), padding="same")
        self.conv4, self.bn4 = nn.Conv1d(4, 6, 5, stride=2, padding=2), nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.conv3(x)).flatten(2)
        return self.linear(self.bn4(self.conv4(x)).mean(-1))


def cnn(seed=0):
    torch.manual_seed(seed)
    model = Cnn()
    for _ in range(3):
        model(torch.randn(16, 3, 16, 16) + 0.5)  # batch statistics worth folding
    return model.eval()


class Words(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.table, self.head = nn.Embedding(50, width, padding_idx=0), nn.Linear(width, 7)

    def forward(self, index):
        return self.head(self.table(index))


def words(seed=0):
    torch.manual_seed(seed)
    return Words().eval()


def state_hash(model):
    """The bytes of all tensors, the training flags, and how many hooks there are."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        digest.update(f"{name} {type(module).__name__} {module.training} {hooks}".encode())
    return digest.hexdigest()


def held_bytes(model):
    """Bytes of the tensors of a state dict, but for the text that says what they mean."""
    return sum(t.numel() * t.element_size() for name, t in model.state_dict().items() if not name.endswith("about"))


def decibels(wanted, found):
    """Signal to noise of what was found."""
    wanted, found = wanted.detach().double(), found.detach().double()
    noise = (wanted - found).square().sum().clamp(min=1e-30)
    return 10 * float(torch.log10(wanted.square().sum() / noise))
