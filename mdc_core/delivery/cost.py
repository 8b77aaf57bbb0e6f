"""What it costs to train a network on a set, and the analytic cost of a ConvNet. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from mdc_core.errors import ConfigError, FormatError, shown

FLOAT_BYTES = 4
LARGEST = 1e24
"""No quantity of a device comes near it; a bound keeps the arithmetic far from overflow."""
MOST_STEPS = 10**9
"""Most epochs, images per step and repeats."""
_WHOLE = ("parameters", "optimiser_states")


@dataclass(frozen=True)
class Cost:
    """Training one network: what a plan needs to predict memory, time and energy. float32 throughout."""

    parameters: int
    """P: trained numbers."""
    activation_bytes: float
    """A: bytes that the forward pass of one image keeps for the backward pass."""
    flops_per_image: float
    """F: floating point operations of a training step, per image (about 3 times the forward pass)."""
    optimiser_states: int = 1
    """s: numbers that the optimiser keeps per parameter; 1 for SGD with momentum, 2 for Adam."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = int if field.name in _WHOLE else int | float
            if isinstance(value, bool) or not isinstance(value, kind):
                what = "whole number" if kind is int else "number"
                raise ConfigError(f"cost.{field.name} is {shown(value)}: give a {what}")
            if not 0 <= value <= LARGEST:  # what is not a number fails the comparison too
                raise ConfigError(f"cost.{field.name} is {shown(value)}: give a number from 0 to {LARGEST:g}")

    def to_dict(self) -> dict[str, float]:
        """As JSON: field by field."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: object) -> Cost:
        """The cost that `to_dict` wrote; `FormatError` names a missing or impossible field."""
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


def convnet_cost(
    depth: int, width: int, channels: int, image_size: int, classes: int, *, optimiser_states: int = 1
) -> Cost:
    """Cost of ConvNet-D(depth): [conv 3×3 → instance norm → ReLU → 2×2 average pool] × depth, linear head.

    Counted are the multiply-adds (as 2 operations) of convolutions and of the head. The backward pass costs
    the forward pass twice, except that nothing is differentiated with respect to the image. Kept for it are
    the output of every convolution, of every ReLU and of every pool; the image itself is data. Images have
    `image_size`² pixels; a one-channel image of 28 pixels is padded to 32, as in the network.
    """
    side = 32 if (image_size, channels) == (28, 1) else image_size
    if side >> depth < 1:
        raise ConfigError(
            f"depth is {depth}, but images of {image_size} pixels can be halved {side.bit_length() - 1} times"
        )
    parameters, kept, forward, first = 0, 0, 0, 0
    inputs = channels
    for block in range(depth):
        weights = 9 * inputs * width
        parameters += weights + width + 2 * width  # convolution and its bias, scale and shift of the norm
        forward += 2 * weights * side**2
        first = forward if block == 0 else first
        kept += 2 * width * side**2
        side //= 2
        kept += width * side**2
        inputs = width
    features = width * side**2
    parameters += features * classes + classes
    forward += 2 * features * classes
    return Cost(
        parameters=parameters,
        activation_bytes=FLOAT_BYTES * kept,
        flops_per_image=3 * forward - first,
        optimiser_states=optimiser_states,
    )
