"""What a run is when little is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mdc_core.config.defaults import METHODS, OF_IDC, SCHEDULE, choose, depth_for, sentences
from mdc_core.config.presets import NAMED, PRESETS, condense_config
from mdc_core.config.settings import CondenseConfig, DataFacts
from mdc_core.errors import ConfigError


def own(side: int = 64, smallest: int = 500) -> DataFacts:
    return DataFacts(
        name="photos", channels=3, image_size=side, classes=tuple("0123456789"), smallest_class=smallest
    )


def chosen(facts: DataFacts, preset: str | None = None, **overrides: Any) -> CondenseConfig:
    return choose(facts, preset, overrides, is_own=facts.name not in NAMED).condense


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_data_keep_their_published_settings(name: str) -> None:
    config = chosen(NAMED[name])
    if PRESETS[name].method == "idc":
        assert config == condense_config(name, {})
        assert (config.method, config.subset_loss) == ("idc", "mls")
    else:
        assert config == condense_config(name, {"method": "feature"})
        assert name == "digits"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_published_preset_that_is_named_means_itself_for_own_data(name: str) -> None:
    config = chosen(own(128), name)
    assert (config.method == "idc") == (PRESETS[name].method == "idc") == (name not in {"digits", "photos"})
    if config.method == "idc":
        assert config == condense_config(name, {})


@pytest.mark.parametrize("facts", [own(), own(8), own(300), NAMED["digits"]])
def test_own_data_and_digits_are_matched_by_features(facts: DataFacts) -> None:
    assert chosen(facts).method == "feature"


def test_settings_of_gradient_matching_mean_it() -> None:
    values = chosen(own(), method="idc").model_dump()
    for name in sorted(OF_IDC):
        config = chosen(own(), **{name: values[name]})
        assert config == condense_config("photos", {})
    assert chosen(own(), subset_loss="none").method == "idc"
    assert chosen(own(), subset_loss="all").method == "feature"
    for name in ("ipc", "seed", "outer_loops", "pool", "calibration"):
        overrides: dict[str, Any] = {name: 2}
        assert chosen(own(), **overrides).method == "feature"


def test_a_word_names_the_method_before_all_else() -> None:
    assert set(METHODS) == {"dream", "feature", "idc", "mdc"}
    assert chosen(own(), method="mdc") == condense_config("photos", {})
    assert chosen(NAMED["digits"], method="mdc") == condense_config("digits", {})
    assert chosen(NAMED["cifar10"], method="feature") == condense_config("cifar10", {"method": "feature"})
    assert chosen(own(), "cifar10", method="feature") == condense_config("cifar10", {"method": "feature"})
    assert chosen(own(), method="idc", subset_loss="none").metric == "mse"


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        (None, {"method": "mtt"}, "method is 'mtt': choose one of feature, idc, dream, mdc"),
        (None, {"method": "mdc", "subset_loss": "none"}, "method 'mdc' has subset_loss 'mls', but subset_loss is"),
        (None, {"method": "feature", "n_data": 5}, "n_data is 5, but method 'feature' makes no use of it"),
        (None, {"n_data": 5, "calibration": 3.0}, "calibration is 3.0, but method 'idc' makes no use of it"),
        ("cifar10", {"calibration": 3.0}, "calibration is 3.0, but method 'idc' makes no use of it"),
        (None, {"method": ["mdc"]}, "'idc', 'dream' or 'feature'"),
        ("mine", {}, "there is no preset 'mine'"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(preset: str | None, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=message):
        chosen(own(), preset, **overrides)


@pytest.mark.parametrize(
    ("side", "depth"), [(4, 2), (8, 2), (16, 2), (28, 3), (32, 3), (48, 4), (64, 4), (128, 5), (224, 6), (1024, 8)]
)  # fmt: skip
def test_the_depth_follows_the_side(side: int, depth: int) -> None:
    assert depth_for(side) == depth
    chosen(own(side)).check_data(own(side))


@pytest.mark.parametrize(
    ("side", "smallest", "overrides", "expected"),
    [
        (64, 500, {}, (10, 2, 64)),
        (16, 500, {}, (10, 1, 32)),
        (64, 39, {}, (10, 1, 39)),
        (64, 40, {}, (10, 2, 40)),
        (64, 7, {}, (7, 1, 7)),
        (64, 7, {"ipc": 3}, (3, 1, 7)),
        (64, 7, {"start_index": 1}, (3, 1, 7)),
        (64, 7, {"init": "noise"}, (10, 2, 7)),
        (64, 39, {"factor": 2, "ipc": 9}, (9, 2, 39)),
        (64, 20, {"batch_real": 64}, (10, 1, 64)),
    ],
)
def test_settings_suit_the_shape_of_own_data(
    side: int, smallest: int, overrides: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    facts = own(side, smallest)
    choice = choose(facts, None, overrides, is_own=True)
    config = choice.condense
    config.check_data(facts)
    assert (config.ipc, config.factor, config.batch_real) == expected
    assert (choice.lowered is not None) == (config.ipc < 10 and "ipc" not in overrides)


def test_nothing_is_lowered_against_what_was_said() -> None:
    facts = own(64, 7)
    for overrides in ({"ipc": 10}, {"factor": 1}):
        with pytest.raises(ConfigError, match="a class with 7: lower ipc or factor"):
            choose(facts, None, overrides, is_own=True).condense.check_data(facts)
    told = choose(facts, None, {}, is_own=True).lowered
    assert told == "The default ipc is lowered to 7 from 10, as a class has 7 training images"


def test_own_pictures_of_any_side_get_a_plain_network() -> None:
    assert chosen(own(224)).network.name == "convnet"
    assert chosen(own(224), network={"name": "resnet_ap"}).network.name == "resnet_ap"


def time_of(
    facts: DataFacts, preset: str | None = None, minutes: float | None = None, **given: Any
) -> float | None:
    return choose(facts, preset, given, is_own=facts.name not in NAMED, minutes=minutes).minutes


def test_own_data_get_ten_minutes_unless_a_schedule_is_given() -> None:
    assert time_of(own()) == time_of(own(), "photos") == 10
    assert time_of(own(), ipc=3, seed=5, network={"width": 16}) == 10
    assert time_of(own(), minutes=3) == time_of(NAMED["digits"], minutes=3) == 3
    assert time_of(NAMED["cifar10"], minutes=3, method="feature") == 3
    assert time_of(NAMED["digits"]) is time_of(own(), "cifar10") is time_of(own(), method="mdc") is None
    assert time_of(own(), "cifar10", method="feature") is None
    for name in SCHEDULE:
        given: dict[str, Any] = {name: 3}
        assert time_of(own(), **given) is None


@pytest.mark.parametrize(
    ("preset", "minutes", "overrides", "message"),
    [
        (None, 5, {"outer_loops": 3, "pool": 2}, "minutes chooses outer_loops, pool by itself"),
        ("cifar10", 5, {}, "preset 'cifar10' is a published schedule"),
        ("cifar10", 5, {"method": "feature"}, "preset 'cifar10' is a published schedule"),
        (None, 5, {"method": "mdc"}, "but this run is of method 'idc'"),
        (None, 5, {"n_data": 3}, "but this run is of method 'idc'"),
        (None, 0, {}, "minutes is 0: it must be more than 0"),
        (None, float("inf"), {}, "minutes is inf: it must be more than 0 and at most 525600"),
        (None, float("nan"), {}, "minutes is nan"),
    ],
)  # fmt: skip
def test_a_time_beside_a_schedule_is_refused(
    preset: str | None, minutes: float, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(own(), preset, overrides, is_own=True, minutes=minutes)


def test_a_width_that_is_named_is_kept() -> None:
    assert choose(own(), None, {}, is_own=True).widths == (128, 64, 32, 16)
    assert choose(own(), None, {"network": {"width": 20}}, is_own=True).widths == (20,)
    assert choose(own(), None, {"network": {"name": "resnet_ap"}}, is_own=True).widths == (64, 32, 16, 8)


def test_networks_may_see_tiles_as_they_are_where_these_are_large_enough() -> None:
    assert choose(own(), None, {}, is_own=True).may_shrink == (own().image_size >= 32)
    for side, may in ((8, False), (24, False), (32, True), (128, True)):
        facts = own().model_copy(update={"image_size": side, "smallest_class": 100})
        assert choose(facts, None, {}, is_own=True).may_shrink == may
        assert not choose(facts, None, {"at_tile_side": False}, is_own=True).may_shrink
        assert not choose(facts, None, {"factor": 1}, is_own=True).may_shrink


def test_sentences_are_put_together() -> None:
    assert sentences("One", None, "two") == "One. two"
    assert sentences(None, None) is None
