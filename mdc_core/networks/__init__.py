"""The networks that are matched and trained."""

from __future__ import annotations

import torch
from torch import nn

from mdc_core.config import NetworkConfig, check_network
from mdc_core.networks.base import Network
from mdc_core.networks.convnet import ConvNet
from mdc_core.networks.resnet_ap import ResNetAP

__all__ = ["Network", "build_network", "matched_weights", "reset_parameters"]


def build_network(
    config: NetworkConfig, *, channels: int, image_size: int, classes: int, generator: torch.Generator
) -> Network:
    """A freshly initialised network for images (B, channels, image_size, image_size); `ConfigError` if too deep."""
    check_network(config, image_size)
    net: Network
    if config.name == "convnet":
        net = ConvNet(channels, image_size, classes, config.depth, config.width)
    else:
        net = ResNetAP(channels, image_size, classes, config.width)
    reset_parameters(net, generator)
    return net


@torch.no_grad()
def reset_parameters(net: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight anew, as PyTorch's defaults do: U(-b, b) with b = 1 / √fan_in, affine norms 1 and 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters(recurse=False):
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()


def matched_weights(net: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients are matched: the convolutions' weights, the only 4-D ones."""
    return [parameter for parameter in net.parameters() if parameter.ndim == 4]
