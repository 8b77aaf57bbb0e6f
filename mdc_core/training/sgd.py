"""SGD with momentum, for one network or for many stacked ones."""

from __future__ import annotations

import torch
from torch import Tensor

from mdc_core.networks import Network

_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4


class Sgd:
    """The optimiser of every training here: momentum 0.9, weight decay 5e-4.

    Same numbers as torch's, up to rounding. Torch's loads a compiler first: some 150 MB and seconds in every process.
    """

    def __init__(self, net: Network) -> None:
        self._parameters: list[Tensor] = list(net.parameters())
        self.velocity = [torch.zeros_like(parameter) for parameter in self._parameters]

    def reset(self) -> None:
        """Set the velocity to zero."""
        torch._foreach_zero_(self.velocity)

    def step(self, loss: Tensor, lr: Tensor) -> None:
        """Descend on `loss`, a scalar, by step sizes (M,): one, or one for each of M stacked models."""
        grads = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            grads = torch._foreach_add(grads, self._parameters, alpha=_WEIGHT_DECAY)
            torch._foreach_mul_(self.velocity, _MOMENTUM)
            torch._foreach_add_(self.velocity, grads)
            for parameter, velocity in zip(self._parameters, self.velocity, strict=True):
                factor = lr.to(parameter.dtype).view(-1, *[1] * (parameter.ndim - 1))  # (M, 1, …)
                parameter.addcmul_(velocity, factor, value=-1)
