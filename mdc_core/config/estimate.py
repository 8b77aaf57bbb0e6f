"""What a condensation will take: operations, seconds and memory, by arithmetic alone. Knows no torch.

Operations are those of convolutions and matrix products, 2 per multiply-add, as in `delivery.cost`. Seconds follow from
two speeds of a machine and from what it takes to start a pass, because large networks wait for arithmetic, small
ones for memory, and the smallest for neither. Memory is the peak of the process: what is always there, and the largest
of the phases, which follow one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from mdc_core.config.settings import (
    UNUSED,
    CondenseConfig,
    DataFacts,
    EvaluateConfig,
    NetworkConfig,
)
from mdc_core.delivery.cost import FLOAT_BYTES, Cost, cost_of
from mdc_core.geometry import Geometry, convnet, resnet_ap
from mdc_core.system.memory import DATA_SHARE

BASE_BYTES = 720_000_000
"""A process that has loaded torch (with CUDA's libraries) and its convolution kernels, before any data."""
TEST_BATCH = 100
"""Images of one batch of an accuracy measurement."""
CPU_BATCH_BYTES = 24 * 2**20
"""On a CPU, what may be held by models that train side by side, or by classes that are matched at once."""
GPU_BASE_BYTES = 900_000_000
"""On a GPU, what a process holds before any data: its context and the libraries' kernels. Not measured yet."""
GPU_COPIES = 2
"""On a GPU, whatever is computed at once is held twice: by the calls that warm up, and by the pool of the graphs."""
_SECOND_TRAFFIC = 2.5
"""Memory traffic of an image's second derivative, in trainings of the image; fitted to measurements."""
_MATCHING_STARTS, _CLASS_STARTS = 5.0, 0.8
"""Training steps that take as long to start as the matching of some classes at once, and each of these; measured."""
_FEATURE_STARTS, _CLASS_FEATURE_STARTS = 6.0, 0.15
"""The same for matching features, which for many classes is one pass over all their images."""
_TILE_VIEWS, _REAL_VIEWS = 20, 8
"""Times that a tile's or a real image's pixels are gone over while it is augmented, and back; fitted likewise."""
_SECOND_ACTIVATIONS = 6.5
"""Activations that live during the second derivative, in those that a training keeps; fitted likewise."""
_GROUP_COPIES = 6
"""Tensors of the size of a group's gradients that live while they are compared, at the most."""
_FIRST_ACTIVATIONS = 2.0
"""The same for a first derivative: what is kept, and what the backward pass adds."""
_FORWARD_ACTIVATIONS = 1.3
"""And without a derivative: some of the widest that a training would keep."""
_FORWARD_TRAFFIC = 1 / 4
"""Memory traffic of an image's forward pass, in trainings of the image."""
_KMEANS_STARTS, _CHOICE_STARTS = 0.08, 0.03
"""Training steps that take as long to start as an iteration of k-means, and as the choice of one image."""
KMEANS_ITERATIONS = 20
"""Upper limit of a clustering; later iterations move hardly any point between clusters."""
_TEST_SHARE = 1 / 6
"""Share of test images where only the training images are known of."""


@dataclass(frozen=True)
class Speed:
    """How fast a machine computes; see `mdc_core.training.calibrate`."""

    flops: float
    """Operations per second in convolutions."""
    bandwidth: float
    """Bytes of activations per second in all that is not a convolution."""
    start: float
    """Seconds that a training step takes however small it is."""


@dataclass(frozen=True)
class Work:
    """An amount of computation."""

    flops: float = 0.0
    traffic: float = 0.0
    """Bytes of activations written and read again."""
    starts: float = 0.0
    """Training steps, or operations that take as long to start."""

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.traffic + other.traffic, self.starts + other.starts)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.traffic * times, self.starts * times)

    def seconds(self, speed: Speed) -> float:
        """Wall time on a machine of this speed, in seconds."""
        return self.flops / speed.flops + self.traffic / speed.bandwidth + self.starts * speed.start


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a run. Seconds are None if no machine's speed is known."""

    memory_bytes: int
    """Peak memory of the process."""
    flops: float
    """Operations of all outer loops and of the evaluation."""
    seconds_pool: float | None
    """Time to train all networks of a pool; 0 without a pool."""
    seconds_per_outer_loop: float | None
    """Time of an outer loop that measures no subset distances."""
    seconds_evaluation: float | None
    """Time of all trainings of the evaluation; 0 without one."""
    seconds_total: float | None
    """Time of the whole run."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON."""
        return asdict(self)


def estimate(
    config: CondenseConfig,
    facts: DataFacts,
    recipe: EvaluateConfig | None = None,
    *,
    speed: Speed | None = None,
    memory_limit: int | None = None,
    gpu: bool = False,
) -> Estimate:
    """Estimate the cost of condensing such data and, with a recipe, of the evaluation.

    Data that take more than half of `memory_limit` bytes are assumed to stay on disk. With `gpu`, `memory_limit` is the
    GPU's, and data that do not fit stay in the host's memory.
    """
    free = _gpu_free(config, facts, memory_limit) if gpu else None
    matched = matched_facts(config, facts)
    loop = outer_loop_work(config.matched(), matched, free)
    pool = pool_work(config.matched(), matched)
    condensing = loop * config.outer_loops + measuring_work(config.matched(), matched) + pool
    judging = Work() if recipe is None else evaluation_work(recipe, config, facts)
    total = condensing + judging
    return Estimate(
        memory_bytes=round(
            _memory(config, facts, recipe, memory_limit)
            if free is None
            else _gpu_memory(config, facts, recipe, memory_limit, free)
        ),
        flops=total.flops,
        seconds_pool=_seconds(pool, speed),
        seconds_per_outer_loop=_seconds(loop, speed),
        seconds_evaluation=_seconds(judging, speed),
        seconds_total=_seconds(total, speed),
    )


def matched_facts(config: CondenseConfig, facts: DataFacts) -> DataFacts:
    """The data as the networks of a condensation see them."""
    return facts.model_copy(update={"image_size": config.matched_side(facts.image_size)})


def outer_loop_work(config: CondenseConfig, facts: DataFacts, gpu_free: float | None = None) -> Work:
    """One outer loop: E times the matching of every class; E - 1 times the network's training, except with `feature`.

    `gpu_free`: see `items_that_fit`; what is matched together is started as one.
    """
    net = network_cost(config.network, facts)
    matching = _MATCHING[config.method](config, facts, classes_per_batch(config, facts, gpu_free))
    updates = matching * (len(facts.classes) * config.inner_iterations)
    if "cluster_period" not in UNUSED[config.method]:
        updates += _clustering(config, facts) * -(-config.inner_iterations // config.cluster_period)
    if "n_data" in UNUSED[config.method]:
        return updates
    early = _training(net, config.early * train_images(facts), config.batch_network)
    training = _training(net, config.n_data, config.batch_network)
    return updates + early + training * (config.inner_iterations - 1)


def pool_work(config: CondenseConfig, facts: DataFacts) -> Work:
    """Training every network of the pool, once."""
    net = network_cost(config.network, facts)
    return _training(net, config.pool_samples, config.batch_network) * config.pool


def _gradient_matching(config: CondenseConfig, facts: DataFacts, per_batch: int) -> Work:
    """Matching the gradients of one class, of so many that are matched at once."""
    net = network_cost(config.network, facts)
    forward, first, head = _forward(config.network, facts)
    # The gradients of the matched weights leave out the head's; see the table in docs/results/performance.md.
    gradient = net.flops_per_image - head
    second = 4 * (forward - head) - first + 2 * head
    tiles, real = config.tile_batch(), config.batch_real
    return Work(
        (real + tiles) * gradient + tiles * second,
        (real + tiles + tiles * _SECOND_TRAFFIC) * net.activation_bytes,
        _MATCHING_STARTS / per_batch + _CLASS_STARTS,
    )


def _feature_matching(config: CondenseConfig, facts: DataFacts, per_batch: int) -> Work:
    """Matching the features of one class, of so many that are matched at once: forward, and back to the images."""
    net = network_cost(config.network, facts)
    forward, _, head = _forward(config.network, facts)
    tiles, real = config.tile_batch(), config.batch_real
    passes = 2 if config.calibration else 1
    pixels = FLOAT_BYTES * facts.channels * facts.image_size**2
    return Work(
        (real + 2 * tiles) * (forward - head) + (2 * tiles * forward if config.calibration else 0),
        (real * _FORWARD_TRAFFIC + tiles * passes) * net.activation_bytes
        + (real * _REAL_VIEWS + tiles * _TILE_VIEWS) * pixels,
        _FEATURE_STARTS / per_batch + _CLASS_FEATURE_STARTS,
    )


def _clustering(config: CondenseConfig, facts: DataFacts) -> Work:
    """Clustering all classes once: a forward pass of every image, then k-means of the features."""
    net = network_cost(config.network, facts)
    forward, _, head = _forward(config.network, facts)
    images = train_images(facts)
    features = head / (2 * len(facts.classes))
    distances = 2 * config.batch_real * features * (KMEANS_ITERATIONS + 1)
    return Work(
        images * (forward - head + distances),
        images * (net.activation_bytes * _FORWARD_TRAFFIC + 2 * FLOAT_BYTES * features * KMEANS_ITERATIONS),
        len(facts.classes) * (KMEANS_ITERATIONS * _KMEANS_STARTS + config.batch_real * _CHOICE_STARTS),
    )


_MATCHING: Mapping[str, Callable[[CondenseConfig, DataFacts, int], Work]] = {
    "idc": _gradient_matching,
    "dream": _gradient_matching,
    "feature": _feature_matching,
}
"""By method: of one class, in one inner iteration."""


def measuring_work(config: CondenseConfig, facts: DataFacts) -> Work:
    """What choosing the MLS adds in the whole run: networks trained on every subset, for the metric `accuracy`."""
    if not config.uses_mls or config.subset_metric != "accuracy":
        return Work()  # the distances come with the gradients
    net = network_cost(config.network, facts)
    measured = config.outer_loops // config.mls_period + (config.mls_period > 1)
    recipe = EvaluateConfig(epochs=config.accuracy_epochs)
    images = [n * config.factor**2 * len(facts.classes) for n in range(1, config.ipc)]
    training = sum((_training(net, count, recipe.batch_size) for count in images), Work())
    tests = len(images) * train_images(facts) * 0.1  # the hold-out
    return (training * recipe.epochs + _test(net, tests)) * measured


def evaluation_work(recipe: EvaluateConfig, config: CondenseConfig, facts: DataFacts) -> Work:
    """Every training of the evaluation of a set with N images per class, each tested four times."""
    net = network_cost(recipe.network, facts)
    found, tests = Work(), _test(net, 4 * _test_images(facts))
    for source, k in product(recipe.sources_of(config.factor), recipe.sizes_of(config.ipc)):
        images = k * (1 if source == "random" else config.factor**2) * len(facts.classes)
        for epochs in recipe.epochs_of(source):
            found += _training(net, images, recipe.batch_size) * epochs + tests
    return found * recipe.repeats


def network_geometry(network: NetworkConfig, facts: DataFacts) -> Geometry:
    """The shapes of the network for such images and classes."""
    shape = facts.channels, facts.image_size, len(facts.classes)
    if network.name == "convnet":
        return convnet(network.depth, network.width, *shape)
    return resnet_ap(network.width, *shape)


def network_cost(network: NetworkConfig, facts: DataFacts) -> Cost:
    """Cost of training the network on one image, by arithmetic; `networks.cost` counts the same."""
    return cost_of(network_geometry(network, facts))


def what_to_lower(config: CondenseConfig, facts: DataFacts, recipe: EvaluateConfig | None, limit: int) -> str:
    """The settings to lower if the estimate is above `limit` bytes, the largest share first."""
    if limit < BASE_BYTES:
        return "nothing: use a larger worker"
    phases = _condense_phases(config.matched(), matched_facts(config, facts))
    shares = {f"condense.{name}": size for name, size in phases.items()}
    if recipe is not None:
        shares["evaluate.batch_size"] = _evaluation_bytes(recipe, config, facts)
    largest = max(shares.values())
    names = [name for name, size in sorted(shares.items(), key=lambda item: -item[1]) if size >= largest / 2]
    return ", ".join([*names, "condense.network.width"])


def items_that_fit(size: float, gpu_free: float | None = None) -> int:
    """How many items that hold `size` bytes each are computed as one: one at least.

    On a CPU (`gpu_free` is None) those that are small even together: what is saved there is the time that starting an
    operation takes. On a GPU with `gpu_free` bytes all that fit into half of them, each held `GPU_COPIES` times.
    """
    room = CPU_BATCH_BYTES if gpu_free is None else DATA_SHARE * gpu_free / GPU_COPIES
    return max(1, int(room / size))


def classes_per_batch(config: CondenseConfig, facts: DataFacts, gpu_free: float | None = None) -> int:
    """How many classes are matched together; `gpu_free`: see `items_that_fit`."""
    return min(len(facts.classes), items_that_fit(matching_bytes(config, facts), gpu_free))


def matching_bytes(config: CondenseConfig, facts: DataFacts) -> float:
    """Bytes that matching one class keeps: activations of its larger phase, and with `idc` its groups' gradients."""
    return max(_matching_phases(config, facts).values()) + _groups_bytes(config, facts)


def _matching_phases(config: CondenseConfig, facts: DataFacts) -> Mapping[str, float]:
    """Bytes of activations of one class, by the setting that decides them: of its tiles, and of its real images."""
    kept = network_cost(config.network, facts).activation_bytes
    of_tiles, of_real = _ACTIVATIONS[config.method]
    return {"ipc": of_tiles * kept * config.tile_batch(), "batch_real": of_real * kept * config.batch_real}


_ACTIVATIONS: Mapping[str, tuple[float, float]] = {
    "idc": (_SECOND_ACTIVATIONS, _FIRST_ACTIVATIONS),
    "dream": (_SECOND_ACTIVATIONS, _FIRST_ACTIVATIONS),
    "feature": (_FIRST_ACTIVATIONS, _FORWARD_ACTIVATIONS),
}
"""By method: activations that live, of a tile and of a real image, in those that a training keeps."""


def _groups_bytes(config: CondenseConfig, facts: DataFacts) -> float:
    """The gradients of every group of a class's ranks, with what is made of them; only with `idc`."""
    if "metric" in UNUSED[config.method]:  # no gradients are compared
        return 0.0
    every = config.subset_loss == "all" or (config.uses_mls and config.subset_metric == "gradient")
    groups = config.ipc if every else 2
    return _GROUP_COPIES * groups * network_cost(config.network, facts).parameters * FLOAT_BYTES


def training_bytes(recipe: EvaluateConfig, facts: DataFacts, images: int) -> float:
    """What one training on so many images holds: these, its weights, and what lives in a step."""
    net = network_cost(recipe.network, facts)
    pixels = FLOAT_BYTES * facts.channels * facts.image_size**2
    step = _FIRST_ACTIVATIONS * net.activation_bytes * min(images, recipe.batch_size)
    # In a batch of models there is a second copy of the images, and of weights and momentum.
    return 2 * pixels * images + 6 * net.parameters * FLOAT_BYTES + step


def data_bytes(facts: DataFacts) -> int:
    """Both splits as uint8."""
    return round((train_images(facts) + _test_images(facts)) * facts.channels * facts.image_size**2)


def _seconds(work: Work, speed: Speed | None) -> float | None:
    return None if speed is None else work.seconds(speed)


def _memory(
    config: CondenseConfig, facts: DataFacts, recipe: EvaluateConfig | None, limit: int | None
) -> float:
    """Peak bytes: the process, the data where they fit, weights and gradients, and the largest phase."""
    seen, matched = config.matched(), matched_facts(config, facts)
    phases = _condense_phases(seen, matched).values()
    judging = 0 if recipe is None else _evaluation_bytes(recipe, config, facts)
    return (
        BASE_BYTES
        + _held_data(facts, limit)
        + _weight_bytes(seen, matched)
        + _groups_bytes(seen, matched)
        + max(*phases, judging)
    )


def _gpu_memory(
    config: CondenseConfig, facts: DataFacts, recipe: EvaluateConfig | None, limit: int | None, free: float
) -> float:
    """Peak bytes on a GPU: what is always there, and twice the largest phase of all that is computed at once."""
    seen, matched = config.matched(), matched_facts(config, facts)
    matching = classes_per_batch(seen, matched, free) * matching_bytes(seen, matched)
    phases = [matching + _view_bytes(seen, matched), _condense_phases(seen, matched)["batch_network"]]
    if recipe is not None:
        training = training_bytes(recipe, facts, _largest_training(recipe, config, facts))
        trainings = recipe.trainings(config.ipc, config.factor)
        phases.append(training * min(trainings, items_that_fit(training, free)))
    return GPU_BASE_BYTES + _held_data(facts, limit) + _weight_bytes(seen, matched) + GPU_COPIES * max(phases)


def _gpu_free(config: CondenseConfig, facts: DataFacts, limit: int | None) -> float:
    """Bytes that are free on a GPU of `limit` bytes when it is planned what to compute at once; 0: not known."""
    if limit is None:
        return 0.0
    weights = _weight_bytes(config.matched(), matched_facts(config, facts))
    return limit - GPU_BASE_BYTES - _held_data(facts, limit) - weights


def _held_data(facts: DataFacts, limit: int | None) -> int:
    """Bytes of the data, where they fit."""
    data = data_bytes(facts)
    return 0 if limit is not None and data > DATA_SHARE * limit else data


def _weight_bytes(config: CondenseConfig, facts: DataFacts) -> float:
    """Weights, their gradients, momentum, and what is made of these in a step; and the networks of a pool."""
    copies = 6 + _POOL_COPIES[config.method] * config.pool
    return copies * network_cost(config.network, facts).parameters * FLOAT_BYTES


_POOL_COPIES: Mapping[str, int] = {"idc": 1, "dream": 1, "feature": 2}
"""By method: a network's trained weights, and its first ones where they are used too."""


def _condense_phases(config: CondenseConfig, facts: DataFacts) -> Mapping[str, float]:
    """Bytes of what lives in each phase of an inner iteration, by the setting that decides it."""
    kept = network_cost(config.network, facts).activation_bytes
    views = _view_bytes(config, facts)
    matching = _matching_phases(config, facts).items()
    return {
        **{name: max(size, CPU_BATCH_BYTES) + views for name, size in matching},
        "batch_network": _FIRST_ACTIVATIONS * kept * config.batch_network,
    }


def _view_bytes(config: CondenseConfig, facts: DataFacts) -> float:
    """All classes' images, decoded and augmented together, with a few copies on the way."""
    pixels = FLOAT_BYTES * facts.channels * facts.image_size**2
    tiles = config.ipc * config.factor**2
    return len(facts.classes) * pixels * (5 * tiles + 3 * config.batch_real)


def _evaluation_bytes(recipe: EvaluateConfig, config: CondenseConfig, facts: DataFacts) -> float:
    """Bytes of what lives in the largest training, or in a test, which holds some of the widest activations."""
    test = _FORWARD_ACTIVATIONS * network_cost(recipe.network, facts).activation_bytes * TEST_BATCH
    training = training_bytes(recipe, facts, _largest_training(recipe, config, facts))
    return max(training, CPU_BATCH_BYTES, test)


def _largest_training(recipe: EvaluateConfig, config: CondenseConfig, facts: DataFacts) -> int:
    """Images of the largest training of an evaluation."""
    return max(recipe.sizes_of(config.ipc)) * config.factor**2 * len(facts.classes)


def _training(net: Cost, images: int, batch: int) -> Work:
    """Training on so many images once, in steps of a batch."""
    return Work(net.flops_per_image * images, net.activation_bytes * images, -(-images // batch))


def _test(net: Cost, images: float) -> Work:
    """Forward passes."""
    traffic = net.activation_bytes * _FORWARD_TRAFFIC
    return Work(net.flops_per_image / 3, traffic, 1 / TEST_BATCH) * images


def train_images(facts: DataFacts) -> int:
    """Training images of all classes; a lower bound if they are not counted."""
    return facts.images or facts.smallest_class * len(facts.classes)


def _test_images(facts: DataFacts) -> float:
    return train_images(facts) * _TEST_SHARE / (1 - _TEST_SHARE)


def _forward(network: NetworkConfig, facts: DataFacts) -> tuple[float, int, int]:
    """Operations of a forward pass per image: of all layers, of the first convolution, and of the head."""
    geometry = network_geometry(network, facts)
    return float(geometry.flops), geometry.first_flops, geometry.head_flops
