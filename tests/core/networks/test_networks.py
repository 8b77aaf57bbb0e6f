"""Shapes, sizes and initial weights of the networks."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mdc_core.compute.streams import stream
from mdc_core.config.settings import NetworkConfig
from mdc_core.delivery.cost import convnet_cost
from mdc_core.errors import ConfigError
from mdc_core.networks import Network, build_network, convolution, stacked
from mdc_core.networks.cost import measure_cost


def build(name: str, channels: int, side: int, **size: int) -> Network:
    config = NetworkConfig.model_validate({"name": name} | size)
    return build_network(config, channels=channels, image_size=side, classes=10, generator=stream(0, "w"))


@pytest.mark.parametrize(
    ("name", "channels", "side", "size", "feature"),
    [
        ("convnet", 3, 32, {}, (128, 4, 4)),
        ("convnet", 1, 28, {}, (128, 4, 4)),
        ("convnet", 1, 8, {"depth": 2, "width": 8}, (8, 2, 2)),
        ("resnet_ap", 3, 160, {"width": 8}, (64, 5, 5)),
        ("resnet_ap", 3, 96, {"width": 8}, (64, 6, 6)),
        ("resnet_ap", 3, 64, {"width": 8}, (64, 8, 8)),
        ("resnet_ap", 3, 16, {"width": 8}, (64, 2, 2)),
    ],
)
def test_shapes(name: str, channels: int, side: int, size: dict[str, int], feature: tuple[int, ...]) -> None:
    net = build(name, channels, side, **size)
    images = torch.rand(2, channels, side, side)
    assert net.features(images).shape == (2, *feature)
    assert net(images).shape == (2, 10)


def test_convnet_d3_has_the_published_size() -> None:
    assert sum(p.numel() for p in build("convnet", 3, 32).parameters()) == 320_010


@pytest.mark.parametrize("name", ["convnet", "resnet_ap"])
def test_samples_do_not_see_each_other(name: str) -> None:
    """Group split needs norms per sample: a row's logits do not depend on the batch."""
    net = build(name, 3, 16, width=8, depth=2).double()
    images = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net(images)[2:3], net(images[2:3]))


@pytest.mark.parametrize("name", ["convnet", "resnet_ap"])
def test_weights_follow_the_generator(name: str) -> None:
    first, second = build(name, 3, 16, width=8, depth=2), build(name, 3, 16, width=8, depth=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_weights_have_the_default_bound() -> None:
    for weight in build("convnet", 3, 16, width=8, depth=2).parameters():
        if weight.ndim != 4:
            continue
        bound = weight[0].numel() ** -0.5
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("name", ["convnet", "resnet_ap"])
def test_stacked_networks_are_networks_side_by_side(name: str) -> None:
    """Outputs and gradients are those of each by itself."""
    config = NetworkConfig(name=name, width=8, depth=2)
    nets = [
        build_network(config, channels=3, image_size=16, classes=10, generator=stream(i, "w")).double()
        for i in range(3)
    ]
    images = torch.rand(3, 4, 3, 16, 16, dtype=torch.float64)
    whole = stacked(nets)
    logits = whole(images.flatten(0, 1)).view(3, 4, 10)
    grads = torch.autograd.grad(logits.square().sum(), list(whole.parameters()))
    for i, net in enumerate(nets):
        own = net(images[i])
        torch.testing.assert_close(logits[i], own)
        expected = torch.autograd.grad(own.square().sum(), list(net.parameters()))
        for grad, value in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad[i], value)


@pytest.mark.parametrize("models", [1, 2])
def test_a_bias_that_a_norm_takes_off_may_be_left_out(models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does: the logits and all grads but the bias's, which is 0 but for rounding."""
    nets = [build("convnet", 3, 8, depth=2, width=4).double() for _ in range(models)]
    net = stacked(nets) if models > 1 else nets[0]
    images = torch.randn(3 * models, 3, 8, 8, generator=stream(2, "images"), dtype=torch.float64)
    names, parameters = zip(*net.named_parameters(), strict=True)
    results = []
    for left_out in (False, True):
        monkeypatch.setattr(convolution, "_skips_bias", lambda _, it=left_out: it)
        logits = net(images)
        results.append((logits, torch.autograd.grad(logits.square().sum(), parameters)))
    (logits, grads), (fewer, fewer_grads) = results
    torch.testing.assert_close(fewer, logits)
    for name, one, other in zip(names, fewer_grads, grads, strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=1e-9, atol=1e-12)
        assert one.any() != (
            name.startswith("blocks.") and int(name.split(".")[1]) % 2 == 0 and "bias" in name
        )


def test_too_deep_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"depth is 4, but images of 8 pixels can be halved 3 times"):
        build("convnet", 1, 8, depth=4)


@pytest.mark.parametrize(
    ("channels", "side", "depth", "width"), [(3, 32, 3, 128), (1, 28, 3, 16), (1, 8, 2, 64)]
)
def test_counted_cost_equals_the_analytic_one(channels: int, side: int, depth: int, width: int) -> None:
    net = build("convnet", channels, side, depth=depth, width=width)
    counted = measure_cost(net, channels, side)
    analytic = convnet_cost(depth, width, channels, side, classes=10)
    assert counted.parameters == analytic.parameters
    assert counted.flops_per_image == pytest.approx(analytic.flops_per_image, rel=0.01)
    assert counted.activation_bytes == pytest.approx(analytic.activation_bytes, rel=0.1)


@pytest.mark.parametrize("name", ["convnet", "resnet_ap"])
def test_counted_operations_equal_those_of_torchs_counter(name: str, plain_pooling: None) -> None:
    net = build(name, 3, 64, width=8)
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, 64, 64)).sum().backward()
    assert measure_cost(net, 3, 64).flops_per_image == counter.get_total_flops()
