"""What is refused at construction, what is derived, and the presets."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mdc_core.config.presets import NAMED, condense_config, default_side, evaluate_config, preset_for
from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig, NetworkConfig
from mdc_core.errors import ConfigError


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
        ({"accuracy_augment": ["crop", "crop"]}, "name every operation once"),
        ({"lr_base": float("inf")}, "finite"),
        ({"cutmix": 1.5}, "less than or equal to 1"),
        ({"lr_base": 0}, "greater than 0"),
        ({"method": "feature"}, "takes its networks from a pool: set pool to 1 or more"),
        ({"method": "feature", "pool": 1, "subset_metric": "gradient"}, "no gradients to compare"),
        (
            {"method": "feature", "pool": 1, "metric": "l1"},
            "metric is 'l1', but method 'feature' makes no use",
        ),
        ({"method": "feature", "pool": 1, "n_data": 5}, "n_data is 5, but method 'feature'"),
        ({"method": "feature", "pool": 1, "momentum": 0.9}, "momentum is 0.9, but method 'feature'"),
        ({"method": "feature", "pool": 1, "early": 1}, "early is 1, but method 'feature'"),
        ({"method": "feature", "pool": 1, "pool_noise": 2}, "pool_noise is 2.0, but method 'feature'"),
        ({"method": "feature", "pool": 1, "lr_image_size": 28}, "lr_image_size is 28, but method 'feature'"),
        (
            {"method": "feature", "pool": 1, "subset_loss": "none", "batch_syn_max": 5},
            "batch_syn_max is 5, but method 'feature'",
        ),
        ({"calibration": 0.2}, "calibration is 0.2, but method 'idc' makes no use of it: leave it out"),
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
    config = condense_config(preset, {})
    config.check_data(NAMED[preset])
    evaluate_config(preset, {}, ipc=config.ipc, factor=config.factor)


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


FULL = ("color", "crop", "cutout")
PLAIN = ("color", "crop", "scale", "rotate")
FLIPPED = ("color", "crop", "flip", "scale", "rotate")
IMAGENET = ("resized_crop", "flip", "jitter", "lighting")


@pytest.mark.parametrize(
    ("preset", "ipc", "factor", "condensing", "judging"),
    [
        ("cifar10", 10, 2, (2000, 2000, 0, FULL, 0.5), (1000, FLIPPED, 0.5)),
        ("cifar100", 1, 1, (2000, 2000, 0, FULL, 0.5), (1000, FLIPPED, 0.5)),
        ("svhn", 10, 2, (2000, 500, 0, FULL, 0.5), (1000, PLAIN, 0.5)),
        ("svhn", 1, 2, (2000, 500, 0, FULL, 0.5), (1000, PLAIN, 0.5)),
        ("svhn", 10, 1, (2000, 500, 0, FULL, 0.5), (1000, PLAIN, 0.5)),
        ("svhn", 1, 1, (2000, 500, 0, FULL, 0.5), (1000, (*PLAIN, "cutout"), 0.0)),
        ("mnist", 10, 2, (2000, 500, 0, ("color", "crop"), 0.0), (1000, PLAIN, 0.0)),
        ("mnist", 10, 1, (2000, 500, 0, FULL, 0.5), (1000, PLAIN, 0.5)),
        ("mnist", 1, 1, (2000, 500, 0, FULL, 0.5), (1000, PLAIN, 0.5)),
        ("fashion-mnist", 10, 2, (2000, 500, 0, FULL, 0.5), (1000, FLIPPED, 0.5)),
        ("fashion-mnist", 1, 1, (2000, 500, 0, FULL, 0.5), (1000, FLIPPED, 0.5)),
        ("imagenet-10", 10, 3, (500, 500, 10, FULL, 1.0), (1000, IMAGENET, 1.0)),
        ("imagenet-10", 1, 1, (500, 500, 10, FULL, 1.0), (3000, IMAGENET, 1.0)),
    ],
)
def test_presets_are_those_of_the_published_experiments(
    preset: str, ipc: int, factor: int, condensing: tuple[object, ...], judging: tuple[object, ...]
) -> None:
    """T, n_data, early, augmentation and CutMix; epochs, augmentation and CutMix of the evaluation."""
    config = condense_config(preset, {"ipc": ipc, "factor": factor})
    found = (config.outer_loops, config.n_data, config.early, config.augment, config.cutmix)
    assert found == condensing
    recipe = evaluate_config(preset, {}, ipc=ipc, factor=factor)
    assert (recipe.epochs, recipe.augment, recipe.cutmix) == judging
    common = (config.inner_iterations, config.momentum, config.batch_real, config.batch_network)
    assert common == (100, 0.5, 64, 64)
    assert (config.lr_network, recipe.lr, recipe.batch_size) == (0.01, 0.01, 64)
    # The metric `accuracy` trains as the evaluation does.
    assert (config.accuracy_epochs, config.accuracy_augment, config.accuracy_cutmix) == judging


def test_own_values_go_before_exceptions() -> None:
    changes = {"factor": 1, "cutmix": 0.25, "accuracy_cutmix": 0.75}
    config = condense_config("mnist", changes)
    assert (config.cutmix, config.accuracy_cutmix, config.augment) == (0.25, 0.75, FULL)
    recipe = evaluate_config("svhn", {"augment": ["color"]}, ipc=1, factor=1)
    assert (recipe.augment, recipe.cutmix) == (("color",), 0.0)


@pytest.mark.parametrize(
    ("ipc", "factor", "epochs"),
    [
        (1, 1, 3000), (2, 1, 2000), (10, 1, 2000), (1, 3, 2000), (11, 1, 1500), (2, 3, 1500), (50, 1, 1500),
        (51, 1, 1000), (10, 3, 1000), (20, 3, 1000), (50, 2, 1000), (201, 1, 500), (50, 3, 500), (500, 1, 500),
        (501, 1, 300), (100, 3, 300),
    ],
)  # fmt: skip
def test_imagenet_epochs_go_by_the_tiles_of_the_whole_set(ipc: int, factor: int, epochs: int) -> None:
    recipe = evaluate_config("imagenet-10", {"sizes": [1]}, ipc=ipc, factor=factor)
    assert recipe.epochs == epochs
    assert recipe.milestones() == (epochs * 2 // 3, epochs * 5 // 6)
    assert evaluate_config("imagenet-10", {"epochs": 7}, ipc=ipc, factor=factor).epochs == 7


def test_a_partial_network_keeps_the_presets_other_values() -> None:
    assert condense_config("digits", {"network": {"width": 16}}).network == NetworkConfig(depth=2, width=16)


@pytest.mark.parametrize("preset", sorted(NAMED))
def test_a_method_brings_its_own_schedule(preset: str) -> None:
    """What is of the data stays the preset's; what the method makes no use of is off; own values go before both."""
    published = condense_config(preset, {})
    config = condense_config(preset, {"method": "feature"})
    for name in ("network", "factor", "augment", "cutmix", "batch_real", "accuracy_epochs"):
        assert getattr(config, name) == getattr(published, name)
    schedule = config.outer_loops, config.inner_iterations, config.pool, config.pool_samples
    assert schedule == ((15, 10, 3, 4000) if preset == "digits" else (30, 10, 5, 100_000))
    assert (config.subset_loss, config.lr_base, config.calibration) == ("all", 0.01, 0.1)
    assert (config.n_data, config.early, config.pool_noise, config.metric) == (0, 0, 0.0, "mse")
    config.check_data(NAMED[preset])
    assert CondenseConfig.model_validate_json(config.model_dump_json()) == config
    own = condense_config(preset, {"method": "feature", "pool": 2, "subset_loss": "none", "ipc": 1})
    assert (own.pool, own.subset_loss, own.metric) == (2, "none", "mse")


def test_a_setting_without_use_is_refused_in_a_preset_too() -> None:
    with pytest.raises(ValidationError, match="n_data is 500, but method 'feature'"):
        condense_config("svhn", {"method": "feature", "n_data": 500})


@pytest.mark.parametrize("method", ["mtt", ["feature"], None])
def test_an_unknown_method_is_refused(method: object) -> None:
    with pytest.raises(ValidationError, match="'idc', 'dream' or 'feature'"):
        condense_config("digits", {"method": method})


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


def test_the_shrunk_baseline_belongs_to_the_random_one_and_to_several_tiles() -> None:
    assert EvaluateConfig().sources_of(2) == ("condensed", "random", "shrunk")
    assert EvaluateConfig().sources_of(1) == ("condensed", "random")
    assert EvaluateConfig(shrunk_baseline=False).sources_of(2) == ("condensed", "random")
    assert EvaluateConfig(random_baseline=False).sources_of(2) == ("condensed",)


def test_a_stored_evaluation_of_an_earlier_release_keeps_its_baselines() -> None:
    values = EvaluateConfig(epochs=7).model_dump(mode="json")
    assert EvaluateConfig.stored(values) == EvaluateConfig(epochs=7)
    del values["shrunk_baseline"]
    assert EvaluateConfig.stored(values) == EvaluateConfig(epochs=7, shrunk_baseline=False)


def test_configs_survive_json() -> None:
    config = condense_config("imagenet-10", {"subset_loss": "all", "subset_weights": (0.1,) * 9})
    assert CondenseConfig.model_validate_json(config.model_dump_json()) == config
