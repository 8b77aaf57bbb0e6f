"""The cost of training a network, counted from its shapes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from mdc_core.errors import ConfigError, FormatError, shown
from mdc_core.geometry import Geometry, convnet

FLOAT_BYTES = 4
LARGEST = 1e24
"""Upper limit of any quantity: no device comes near it, and arithmetic stays far from overflow."""
MOST_STEPS = 10**9
"""Upper limit of epochs, images per step and repeats."""
_WHOLE = ("parameters", "optimiser_states")


@dataclass(frozen=True)
class Cost:
    """What a plan needs to predict memory, time and energy of training a network. float32 throughout."""

    parameters: int
    """P: trained parameters."""
    activation_bytes: float
    """A: bytes that the forward pass keeps per image for the backward pass."""
    flops_per_image: float
    """F: floating point operations of a training step per image, about 3 times the forward pass."""
    optimiser_states: int = 1
    """s: states that the optimiser keeps per parameter; 1 for SGD with momentum, 2 for Adam."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = int if field.name in _WHOLE else int | float
            if isinstance(value, bool) or not isinstance(value, kind):
                what = "whole number" if kind is int else "number"
                raise ConfigError(f"cost.{field.name} is {shown(value)}: give a {what}")
            if not 0 <= value <= LARGEST:  # NaN fails the comparison too
                raise ConfigError(f"cost.{field.name} is {shown(value)}: give a number from 0 to {LARGEST:g}")

    def to_dict(self) -> dict[str, float]:
        """The fields as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: object) -> Cost:
        """Parse what `to_dict` wrote; `FormatError` names a missing or invalid field."""
        if not isinstance(document, Mapping):
            raise FormatError(f"a cost is {shown(document)}: it should be an object with {_FIELDS}")
        missing = [field.name for field in fields(cls) if field.name not in document]
        if missing:
            raise FormatError(f"a cost has no {', '.join(missing)}: it should have {_FIELDS}")
        try:
            return cls(**{field.name: document[field.name] for field in fields(cls)})
        except ConfigError as error:
            raise FormatError(str(error)) from None


_FIELDS = ", ".join(field.name for field in fields(Cost))


def cost_of(network: Geometry) -> Cost:
    """Cost of training a network, counted from its shapes.

    Operations are the multiply-adds of convolutions and of the head, 2 each. The backward pass costs the forward pass
    twice; only the first convolution has no gradient for its input, the image.
    """
    return Cost(
        parameters=network.parameters,
        activation_bytes=FLOAT_BYTES * network.activations,
        flops_per_image=3 * network.flops - network.first_flops,
    )


def convnet_cost(depth: int, width: int, channels: int, image_size: int, classes: int) -> Cost:
    """Cost of ConvNet-D(depth) (`geometry.convnet`) on images of `image_size`² pixels.

    Raises:
        ConfigError: the image cannot be halved `depth` times.
    """
    return cost_of(convnet(depth, width, channels, image_size, classes))
