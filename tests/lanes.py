"""What tests of the lanes share: blocks through lanes on the double, and what the host says of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint, Scores
from engine.gpu.device import Device, open_device
from engine.gpu.lane import Work
from engine.gpu.lanes import Lanes, open_lanes
from engine.gpu.results import Results
from engine.gpu.start import Models
from engine.runners.base import DEFAULT_OUTPUTS, Images
from engine.runners.half import unpack_masks
from tests.double import Double, Slots, bundle_graph, make_models
from tests.double.compute import computer

LIMIT = 60.0
"""Seconds after which a run is taken for one that will never end."""


@dataclass(frozen=True, slots=True)
class Block:
    """Slices of a block, uint8 [n,256,256,3], and which of them were decoded."""

    images: Images
    valid: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Ran:
    """What became of a run's blocks, by their place: results of those that were scored, and how often."""

    results: dict[int, Results] = field(default_factory=dict)
    scored: list[int] = field(default_factory=list)
    copied: list[int] = field(default_factory=list)
    refused: int = 0
    error: BaseException | None = None


def cut(images: Images, batch: int) -> list[Block]:
    """Blocks of `batch` slices, the last one of what is left; all decoded."""
    pieces = (images[start : start + batch] for start in range(0, len(images), batch))
    return [Block(piece, np.ones(len(piece), np.bool_)) for piece in pieces]


def run_lanes(
    double: Double,
    bundle: Bundle,
    blocks: Sequence[Block],
    *,
    batch: int,
    lanes: int = 1,
    gate: float | None = 0.5,
    ring_blocks: int = 4,
    together: bool = False,
    begun: Callable[[Device], None] = lambda device: None,
    models: Callable[[], AbstractContextManager[Models]] | None = None,
) -> Ran:
    """Score blocks as a run does: each is decoded into a slot that is free, and let go when it is copied.

    `together`: no lane goes on before it can have all blocks. `begun` is called before the first block. The
    `models` are the double's own unless others are opened. An error of start-up is raised; one of a lane ends
    the run and is in the answer.
    """
    slots = Slots(double, ring_blocks, batch)
    feeder = Feeder(slots, blocks, together)
    with (
        open_device(0) as device,
        models() if models else double_models(double, bundle, batch) as opened_models,
        open_lanes(
            device,
            opened_models,
            count=lanes,
            batch=batch,
            gate=gate,
            failed=feeder.events.put,
        ) as opened,
    ):
        feeder.ran.refused = opened.begin(slots.memory.reshape(-1, *slots.memory.shape[2:]))
        begun(device)
        with double.steady():
            feeder.feed(opened)
    slots.close()
    return feeder.ran


@contextmanager
def double_models(double: Double, bundle: Bundle, batch: int) -> Iterator[Models]:
    """A bundle's models as the double computes them, by no runtime."""
    classifier, segmenter = make_models(double, bundle, batch)
    with classifier, segmenter:
        yield classifier, segmenter


class PlainSlots:
    """`Slots` without a double: `memory` uint8 [blocks,block_size,256,256,3]."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.memory = np.zeros((blocks, block_size, 256, 256, 3), np.uint8)

    def fill(self, block: int, images: Images) -> Images:
        self.memory[block, : len(images)] = images
        filled: Images = self.memory[block]
        return filled

    def release(self, block: int) -> None:
        self.memory[block] = 0xFF


class Feeder:
    """Gives lanes blocks as slots come free, until all are scored or one of its `events` is an error."""

    def __init__(self, slots: Slots | PlainSlots, blocks: Sequence[Block], together: bool = False) -> None:
        self.ran = Ran()
        self.events: queue.Queue[tuple[str, int] | BaseException] = queue.Queue()
        self._slots = slots
        self._blocks = blocks
        self._free = list(range(len(slots.memory)))
        self._all_there = threading.Event()
        if not together:
            self._all_there.set()

    def feed(self, lanes: Lanes) -> None:
        results: list[Results] = []
        held: dict[int, int] = {}
        while len(self.ran.scored) < len(self._blocks):
            while len(results) < len(self._blocks) and self._free:
                place = len(results)
                held[place] = self._free.pop()
                results.append(empty_results(self._blocks[place]))
                lanes.submit(self._work(place, held[place], results[place]))
            if len(results) == len(self._blocks):
                self._all_there.set()
            event = self.events.get(timeout=LIMIT)
            if isinstance(event, BaseException):
                self.ran.error = event
                return
            kind, place = event
            if kind == "copied":
                self.ran.copied.append(place)
                self._free.append(held.pop(place))
            else:
                self.ran.scored.append(place)
                self.ran.results[place] = results[place]

    def _work(self, place: int, ring_block: int, results: Results) -> Work:
        block = self._blocks[place]
        images = self._slots.fill(ring_block, block.images)[: len(block.images)]

        def copied() -> None:
            self._all_there.wait(LIMIT)
            self._slots.release(ring_block)
            self.events.put(("copied", place))

        return Work(images, results, copied, scored=lambda: self.events.put(("scored", place)))


def empty_results(block: Block) -> Results:
    """A seat for a block, in memory of this process."""
    n = len(block.images)
    return Results(
        np.full((n, 256, 32), 0xFF, np.uint8),
        np.full(n, -1, np.float32),
        np.full(n, -1, np.int32),
        block.valid.copy(),
        np.ones(n, np.bool_),
    )


class _GraphRunner:
    """A bundle's FP16 graph as the double computes it, for the host's cascade."""

    name, version, precision = "onnxruntime", "", "fp16"
    concurrency, options = 1, MappingProxyType({})

    def __init__(self, bundle: Bundle, model: Model) -> None:
        self.outputs = DEFAULT_OUTPUTS[model]
        self._graph = computer(bundle_graph(bundle, model))

    def infer(self, images: Images) -> dict[str, Any]:
        outputs = dict(self._graph.run(images))
        if "mask_bits" in outputs:
            outputs["mask"], outputs["mask_pixels"] = unpack_masks(outputs.pop("mask_bits"))
        return outputs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


def host_cascade(bundle: Bundle, gate: float | None = 0.5) -> Cascade:
    """The host's cascade over the same FP16 graphs."""
    point = OperatingPoint(0.5 if gate is None else gate, 0.5, bundle.min_pixels, gated=gate is not None)
    return Cascade(_GraphRunner(bundle, "classifier"), _GraphRunner(bundle, "segmenter"), point)


def host_scores(bundle: Bundle, blocks: Sequence[Block], gate: float | None = 0.5) -> list[Scores]:
    """What the host's cascade says of the same blocks."""
    cascade = host_cascade(bundle, gate)
    return [cascade.score(block.images, block.valid) for block in blocks]


def assert_same(ran: Ran, expected: Sequence[Scores]) -> None:
    """Every block copied and scored once, and to the bit what the host says."""
    assert ran.error is None
    assert sorted(ran.scored) == sorted(ran.copied) == list(range(len(expected)))
    for place, scores in enumerate(expected):
        assert_block(ran.results[place], scores)


def assert_block(found: Results, scores: Scores) -> None:
    """One block's results, to the bit."""
    np.testing.assert_array_equal(found.probability, scores.tumor_probability)
    np.testing.assert_array_equal(found.passed, scores.passed)
    np.testing.assert_array_equal(found.pixels, scores.mask_pixels)
    for position, mask in scores.masks.items():
        np.testing.assert_array_equal(np.unpackbits(found.bits[position], axis=-1), mask)
