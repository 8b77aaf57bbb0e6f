"""Train your own network on a fetched subset for a few seconds. Needs torch.

`mdc-device train` trains the manifest's network by its recipe; this example does it from scratch.

    mdc-device fetch http://127.0.0.1:8000 digits --k auto --storage 6k --to digits.mdc
    python examples/train_on_device.py digits.mdc --seconds 8 --test digits

`--test NAME` tests on the real test images of a named data set; it needs the whole package, a device does not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdc_device.decode import Subset, open_subset

BATCH = 64
WIDTH = 64


def network(channels: int, side: int, classes: int) -> nn.Sequential:
    """A small ConvNet: convolution, instance norm, ReLU and pool, two or three times; then a linear layer."""
    blocks: list[nn.Module] = []
    for block in range(3 if side >= 16 else 2):
        convolution = nn.Conv2d(channels if block == 0 else WIDTH, WIDTH, 3, padding=1)
        blocks += [convolution, nn.GroupNorm(WIDTH, WIDTH), nn.ReLU(), nn.AvgPool2d(2)]
        side //= 2
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(WIDTH * side * side, classes))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image (n, ch, H, H) by its own random offset of up to an eighth of its side, padding with zeros."""
    count, _, side, _ = images.shape
    reach = max(1, side // 8)
    padded = functional.pad(images, (reach,) * 4)
    y, x = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator)
    rows, columns = y + torch.arange(side), x + torch.arange(side)  # (n, H) each
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def normalised(images: Tensor, subset: Subset) -> Tensor:
    """Images in [0, 1], (n, ch, H, H), as the networks of this set expect them."""
    mean = torch.tensor(subset.info.mean).view(-1, 1, 1)
    std = torch.tensor(subset.info.std).view(-1, 1, 1)
    return (images - mean) / std


def train(subset: Subset, seconds: float, limit: int | None, seed: int) -> tuple[nn.Module, int]:
    """A network trained on the subset for `seconds`, or for `limit` steps, and the number of steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images = normalised(torch.from_numpy(subset.images()), subset)
    labels = torch.from_numpy(subset.labels())
    net = network(subset.info.channels, subset.info.image_size, len(subset.info.classes))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4)
    begin, steps = time.monotonic(), 0
    while (passed := steps / limit if limit else (time.monotonic() - begin) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - passed)  # decreases to 0 with the remaining time
        chosen = torch.randint(0, len(labels), (min(BATCH, len(labels)),), generator=generator)
        loss = functional.cross_entropy(net(shifted(images[chosen], generator)), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return net, steps


@torch.inference_mode()
def test_accuracy(net: nn.Module, subset: Subset, name: str, root: Path) -> float:
    """Share of the real test images of a named data set that the network labels correctly."""
    from mdc_core.data.load import load_named

    test = load_named(name, root).test
    if test.classes != subset.info.classes:
        raise SystemExit(f"{name} has the classes {test.classes}, but the subset {subset.info.classes}")
    right = 0
    for images, labels in zip(test.images.split(512), test.labels.split(512), strict=True):
        right += int((net(normalised(images / 255, subset)).argmax(1) == labels).sum())
    return right / len(test.labels)


def main() -> None:
    """Train, optionally test, and print the result."""
    parser = argparse.ArgumentParser(description="Train a small network on a fetched subset.")
    parser.add_argument("file", help="a subset fetched by mdc-device")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to train (default: 8)")
    parser.add_argument("--steps", type=int, help="train for this many steps instead")
    parser.add_argument("--test", metavar="NAME", help="test on this named data set, such as digits")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the named data sets")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed for the network and the order of images"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.seconds <= 0:
        parser.error(f"--seconds is {args.seconds}: give more than 0")

    subset = open_subset(args.file)
    net, steps = train(subset, args.seconds, args.steps, args.seed)
    accuracy = test_accuracy(net, subset, args.test, args.root) if args.test else None
    if args.json:
        print(
            json.dumps({"k": subset.k, "images": len(subset.labels()), "steps": steps, "accuracy": accuracy})
        )
        return
    print(f"trained on subset {subset.k} ({len(subset.labels())} images): {steps} steps")
    if accuracy is not None:
        print(f"accuracy on the real test images of {args.test}: {accuracy:.1%}")


if __name__ == "__main__":
    main()
