"""The networks that are matched and trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from mdc_core.compute.cuda_graph import to_device
from mdc_core.config.settings import NetworkConfig, check_network
from mdc_core.networks.base import Network
from mdc_core.networks.convnet import ConvNet
from mdc_core.networks.resnet_ap import ResNetAP

__all__ = ["Network", "build_network", "reset_parameters", "stacked"]


def build_network(
    config: NetworkConfig, *, channels: int, image_size: int, classes: int, generator: torch.Generator
) -> Network:
    """A freshly initialised network for images (B, channels, image_size, image_size).

    Raises:
        ConfigError: the images are too small for the network's pools.
    """
    check_network(config, image_size)
    net: Network
    if config.name == "convnet":
        net = ConvNet(channels, image_size, classes, config.depth, config.width)
    else:
        net = ResNetAP(channels, image_size, classes, config.width)
    reset_parameters(net, generator)
    return net


@torch.no_grad()
def reset_parameters(net: Network, generator: torch.Generator) -> None:
    """Draw every weight anew: U(-b, b) with b = 1 / √fan_in, PyTorch's default. Norms start with scale 1, shift 0.

    The convolutions of ResNet10-AP are drawn from N(0, 2 / fan_out), as in a ResNet (arXiv 1512.03385, 1502.01852).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            normal = isinstance(net, ResNetAP) and isinstance(module, nn.Conv2d)
            for parameter in module.parameters(recurse=False):
                drawn = torch.empty(parameter.shape)  # on the CPU: the same numbers for every device
                if normal:
                    drawn.normal_(0, (2 / parameter[:, 0].numel()) ** 0.5, generator=generator)
                else:
                    drawn.uniform_(-bound, bound, generator=generator)
                parameter.copy_(to_device(drawn, parameter.device))
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()


def stacked(nets: Sequence[Network]) -> Network:
    """S networks of one kind as one, for batches of S equal parts, one part per network.

    Every parameter gets a leading dimension S.
    """
    whole = copy.deepcopy(nets[0])
    names = [name for name, _ in whole.named_parameters()]
    for name, parameters in zip(names, zip(*(net.parameters() for net in nets), strict=True), strict=True):
        module, _, leaf = name.rpartition(".")
        setattr(whole.get_submodule(module), leaf, nn.Parameter(torch.stack(parameters).detach()))
    return whole
