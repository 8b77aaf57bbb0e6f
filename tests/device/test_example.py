"""The example of the documentation: it trains on a fetched file and learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdc_core.delivery import rankmajor

pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_on_device.py"


def test_it_learns_from_a_subset(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    data = pytest.importorskip("mdc_core.data.load")
    train = data.load_named("digits", tmp_path).train
    info = rankmajor.SetInfo(5, 1, train.classes, train.mean, train.std, 8, 1)
    images = np.stack([train.images[train.labels == label][:5].numpy() for label in range(10)], axis=1)
    path = tmp_path / "digits.mdc"
    path.write_bytes(rankmajor.pack(images[:, :, None], info))  # (N, C, 1, ch, H, H)
    command = [sys.executable, EXAMPLE, path, "--steps", "60", "--test", "digits", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    found = json.loads(done.stdout)
    assert (found["k"], found["images"]) == (5, 50)
    assert found["steps"] == 60
    assert found["accuracy"] > 0.25, found  # chance is 0.1
