"""Batch normalization by the statistics of all processes' batches together, while a network is trained.

    mean = sum(x) / n        variance = sum((x - mean)^2) / n        sums and n over all processes
    y = gamma (x - mean) / sqrt(variance + eps) + beta

It is what a model asks for by ``nn.SyncBatchNorm.convert_sync_batchnorm``. PyTorch has it on a GPU only; here it is done on a
CPU too, in two sums, so that a mean far from zero costs no digits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SyncedNorm"]


class SyncedNorm(_BatchNorm):
    """What `nn.SyncBatchNorm` does, on a CPU too, where PyTorch's is refused by itself and by DistributedDataParallel.

    Parameters
    ----------
    norm : nn.SyncBatchNorm
        With running statistics. Its parameters, statistics, process group and mode are taken over.

    Notes
    -----
    Processes may have different numbers of rows. Tolerance: statistics are sums of floats, in another order for other shares;
    gradients flow through them to all processes. Ioffe and Szegedy, "Batch normalization", 2015. Book: chapter 14.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.qat_norm import SyncedNorm
    >>> norm = SyncedNorm(torch.nn.SyncBatchNorm(1, eps=1e-30))
    >>> norm(torch.tensor([[-3.0], [3.0]])).tolist()  # one process: nothing to wait for
    [[-1.0], [1.0]]
    """

    def __init__(self, norm: nn.SyncBatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.process_group = norm.process_group
        self.train(norm.training)

    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of shape (n, channels, *rest), normalized; in train mode, update the running statistics."""
        if x.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        others = [axis for axis in range(x.ndim) if axis != 1]
        along = [-1] + [1] * (x.ndim - 2)  # the shape of numbers of channels
        count = torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64)
        total = self._sum_of_all(torch.cat([x.sum(others, dtype=torch.float64), count]))  # (channels + 1,)
        count = total[-1].detach()
        mean = total[:-1] / count
        centered = x.to(wide) - mean.to(wide).reshape(along)
        variance = self._sum_of_all(centered.square().sum(others, dtype=torch.float64)) / count
        self._update(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        y = centered * torch.rsqrt(variance + self.eps).to(wide).reshape(along)
        if self.weight is not None:
            y = y * self.weight.reshape(along)
        if self.bias is not None:
            y = y + self.bias.reshape(along)
        return y.to(x.dtype)

    def _sum_of_all(self, share: Tensor) -> Tensor:
        total: Tensor = _SumOfAll.apply(share, self.process_group)  # type: ignore[no-untyped-call]
        return total

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's; without a momentum, they are the mean over all batches."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.add_((now - running) * share)


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes of a group; the gradient of each share is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = share.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        distributed.all_reduce(total, group=ctx.group)
        return total, None
