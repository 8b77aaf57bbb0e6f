"""What is refused at construction, what is derived, and the presets."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mdc_core.config import CondenseConfig, DataFacts, EvaluateConfig, NetworkConfig
from mdc_core.errors import ConfigError
from mdc_core.presets import NAMED, condense_config, default_side, evaluate_config, preset_for


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ipc": 0}, "greater than or equal to 1"),
        ({"factor": 0}, "greater than or equal to 1"),
        ({"ipc": 40, "batch_syn_max": 128}, "batch_syn_max is 128, .*= 160 tiles"),
        ({"subset_weights": [1.0] * 9}, "belongs to subset_loss 'all'"),
        ({"subset_loss": "all", "subset_weights": [1.0]}, r"1 values, .* sizes: 1\.\.9"),
        ({"subset_loss": "all", "subset_weights": [-1.0] * 9}, "greater than or equal to 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"metric": "euclid"}, "'mse', 'l1' or 'cos'"),
        ({"iterations": 3}, "Extra inputs are not permitted"),
        ({"augment": ["blur"]}, "'flip'"),
        ({"augment": ["crop", "crop"]}, "name every operation once"),
        ({"augment": ["color", "jitter"]}, "exclude each other"),
        ({"lr_base": float("inf")}, "finite"),
        ({"cutmix": 1.5}, "less than or equal to 1"),
        ({"lr_base": 0}, "greater than 0"),
    ],
)
def test_nonsense_is_refused_with_value_and_limit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CondenseConfig.model_validate(settings)


def test_a_small_synthetic_batch_is_allowed_without_subset_loss() -> None:
    config = CondenseConfig(ipc=40, batch_syn_max=128, subset_loss="none")
    assert config.tile_batch() == 128
    assert CondenseConfig(ipc=40).tile_batch() == 160


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ipc": 10, "factor": 9}, "8"),
        ({"ipc": 50, "factor": 2}, "= 200 of each class, .* with 139"),
        ({"ipc": 10, "start_index": 13}, "= 140 of each class"),
        ({"network": {"name": "resnet_ap"}}, "at least 16 pixels, these have 8"),
        ({"network": {"depth": 4}}, "network.depth is 4, .* 3 times"),
    ],
)
def test_impossible_on_this_data(overrides: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=message):
        condense_config("digits", overrides).check_data(NAMED["digits"])


def test_noise_needs_no_real_images() -> None:
    condense_config("digits", {"ipc": 50, "init": "noise"}).check_data(NAMED["digits"])


@pytest.mark.parametrize(
    ("preset", "image_size", "ipc", "expected"),
    [
        ("cifar10", 32, 1, 5e-4),
        ("cifar10", 32, 10, 5e-3),
        ("cifar10", 32, 50, 2.5e-2),
        ("mnist", 28, 10, 1e-4),
        ("fashion-mnist", 28, 10, 1e-4 * (28 / 32) ** 2),
        ("imagenet-10", 224, 10, 3e-3),
        ("imagenet-10", 112, 20, 1.5e-3),
    ],
)
def test_tile_lr_table(preset: str, image_size: int, ipc: int, expected: float) -> None:
    assert condense_config(preset, {"ipc": ipc}).tile_lr(image_size) == pytest.approx(expected)


@pytest.mark.parametrize("preset", sorted(NAMED))
def test_every_preset_is_valid_on_its_own_data(preset: str) -> None:
    condense_config(preset, {}).check_data(NAMED[preset])
    evaluate_config(preset, {})


def test_published_settings() -> None:
    cifar = condense_config("cifar10", {})
    assert (cifar.outer_loops, cifar.inner_iterations, cifar.mls_period, cifar.n_data) == (
        2000,
        100,
        100,
        2000,
    )
    assert (cifar.network, cifar.factor, cifar.metric) == (NetworkConfig(depth=3, width=128), 2, "mse")
    assert condense_config("mnist", {}).metric == "mse"
    assert condense_config("mnist", {"subset_loss": "none"}).metric == "l1"
    assert condense_config("mnist", {"ipc": 1}).metric == "l1"
    assert condense_config("mnist", {"subset_loss": "none", "metric": "cos"}).metric == "cos"
    assert condense_config("cifar10", {}).network_augment() == ("color", "crop")


def test_a_partial_network_keeps_the_presets_other_values() -> None:
    assert condense_config("digits", {"network": {"width": 16}}).network == NetworkConfig(depth=2, width=16)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'cifar'.*cifar10, cifar100"):
        condense_config("cifar", {})


@pytest.mark.parametrize(
    ("size", "channels", "classes", "expected"),
    [(8, 1, 10, "digits"), (28, 1, 5, "fashion-mnist"), (32, 3, 10, "cifar10"), (24, 3, 60, "cifar100"),
     (33, 3, 60, "photos"), (64, 1, 10, "photos"), (128, 3, 10, "photos"), (129, 3, 5, "imagenet-10")],
)  # fmt: skip
def test_preset_for_own_data(size: int, channels: int, classes: int, expected: str) -> None:
    facts = DataFacts(
        name="photos",
        channels=channels,
        image_size=size,
        classes=tuple(map(str, range(classes))),
        smallest_class=9,
    )
    assert preset_for(facts) == expected
    condense_config(expected, {}).check_data(facts.model_copy(update={"smallest_class": 5000}))


@pytest.mark.parametrize(
    ("own", "preset", "expected"),
    [(48, None, 48), (400, None, 64), (400, "photos", 64), (400, "cifar10", 64), (400, "imagenet-10", 224),
     (100, "imagenet-10", 100), (400, "no such preset", 64)],
)  # fmt: skip
def test_the_side_of_own_images_is_theirs_up_to_64_or_what_a_named_preset_is_made_for(
    own: int, preset: str | None, expected: int
) -> None:
    assert default_side(own, preset) == expected


def test_evaluation_milestones_and_sizes() -> None:
    assert EvaluateConfig().milestones() == (666, 833)
    assert EvaluateConfig().sizes_of(3) == (1, 2, 3)
    assert EvaluateConfig(sizes=(2, 5)).sizes_of(5) == (2, 5)
    assert EvaluateConfig(epochs=1).milestones() == (1, 1)
    with pytest.raises(ConfigError, match="name every k once"):
        EvaluateConfig(sizes=(3, 3)).sizes_of(4)
    with pytest.raises(ConfigError, match=r"k is 5, .* 1\.\.4"):
        EvaluateConfig(sizes=(2, 5)).sizes_of(4)


def test_configs_survive_json() -> None:
    config = condense_config("imagenet-10", {"subset_loss": "all", "subset_weights": (0.1,) * 9})
    assert CondenseConfig.model_validate_json(config.model_dump_json()) == config
