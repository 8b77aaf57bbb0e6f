"""The cost of training any network, measured by running it on one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdc_core.delivery.cost import Cost
from mdc_core.networks.base import Network


def measure_cost(net: Network, channels: int, image_size: int) -> Cost:
    """Count a training step on one image (1, channels, image_size, image_size), on the device of `net`.

    Operations are those of convolutions and matrix products, 2 per multiply-add. The weights' gradient and the input's
    gradient each take as many as the forward pass; the first layer needs no input gradient. Bytes are those of the
    distinct tensors that autograd saves, without the parameters.
    """
    device = next(net.parameters()).device
    forward: list[int] = []
    hooks = [
        module.register_forward_hook(lambda layer, _, output: forward.append(_flops(layer, output)))
        for module in net.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    saved: dict[int, Tensor] = {}  # by address; holding the tensors keeps their addresses from being reused

    def remember(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        net(torch.zeros(1, channels, image_size, image_size, device=device))
    for hook in hooks:
        hook.remove()
    parameters = {parameter.data_ptr() for parameter in net.parameters()}
    return Cost(
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        activation_bytes=sum(t.nbytes for address, t in saved.items() if address not in parameters),
        flops_per_image=3 * sum(forward) - forward[0],
    )


def _flops(layer: nn.Module, output: Tensor) -> int:
    """Operations of one layer's forward pass: every output value is a dot product with one row of the weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return 2 * output.numel() * weight[0].numel()
