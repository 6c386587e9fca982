"""Tensors made of pieces: they come back whole, in any cut, and what is missing or doubled is seen before it is read."""

from __future__ import annotations

import tracemalloc
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optstate.errors import Damaged, Refused
from optstate.formats.containers.assembled import CUTS, Absent, Assembled, Piece, joined, uncovered
from optstate.formats.containers.stored_tensor import MemoryRecord, StoredTensor, row_major
from optstate.state.tensors import BLOCK


def stored(array, dtype="float32"):
    record = MemoryRecord(np.ascontiguousarray(array).tobytes(), "memory")
    return StoredTensor(record, dtype, 0, array.shape, row_major(array.shape))


def counted(*shape):
    return np.arange(prod(shape), dtype=np.float32).reshape(shape)


def cut(array, boxes):
    return [
        Piece(start, stored(array[tuple(slice(at, at + size) for at, size in zip(start, shape, strict=True))]))
        for start, shape in boxes
    ]


def whole(array, boxes, **options):
    return Assembled("weight", "float32", array.shape, cut(array, boxes), **options)


def assert_reads(tensor, array):
    """The same values, at once and block by block, each block full but the last."""
    assert tensor.missing is None
    found = tensor.array()
    assert (found.shape, found.tobytes()) == (array.shape, array.tobytes())
    blocks = list(tensor.blocks())
    assert [block.size for block in blocks[:-1]] == [BLOCK] * (len(blocks) - 1)
    assert b"".join(block.tobytes() for block in blocks) == array.tobytes()


@st.composite
def tilings(draw):
    """A shape of up to four dimensions, cut into boxes again and again, in any order."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        index = draw(st.integers(0, len(boxes) - 1))
        start, size = boxes[index]
        axes = [axis for axis, length in enumerate(size) if length > 1]
        if not axes:
            continue
        axis = draw(st.sampled_from(axes))
        at = draw(st.integers(1, size[axis] - 1))
        low, high, behind = list(size), list(size), list(start)
        low[axis], high[axis], behind[axis] = at, size[axis] - at, start[axis] + at
        boxes[index : index + 1] = [(start, tuple(low)), (tuple(behind), tuple(high))]
    return shape, draw(st.permutations(boxes))


@given(tilings())
def test_any_tiling(tiling):
    """However a tensor is cut, along any dimensions and in any order, its values come back in their places."""
    shape, boxes = tiling
    assert_reads(whole(counted(*shape), boxes), counted(*shape))


@given(tilings(), st.data())
def test_hole(tiling, data):
    """With pieces missing nothing is read, and the first element that is not there is named."""
    shape, boxes = tiling
    gone = data.draw(st.lists(st.sampled_from(boxes), min_size=1, unique=True))
    tensor = whole(counted(*shape), [box for box in boxes if box not in gone])
    covered = np.ones(shape, bool)
    for start, size in gone:
        covered[tuple(slice(at, at + length) for at, length in zip(start, size, strict=True))] = False
    first = next(index for index in product(*map(range, shape)) if not covered[index])
    assert (
        tensor.missing
        == f"{covered.sum():,} of {prod(shape):,} elements are there, and the one at {list(first)} is not"
    )
    for read in (tensor.array, lambda: list(tensor.blocks())):
        with pytest.raises(Damaged, match="weight is not whole"):
            read()


@given(tilings(), st.data())
def test_overlap(tiling, data):
    """A piece that lies on another one is refused, however often: which of them is right cannot be told."""
    shape, boxes = tiling
    again = data.draw(st.lists(st.sampled_from(boxes), min_size=1, max_size=4))
    with pytest.raises(ValueError, match="on top of each other"):
        whole(counted(*shape), [*boxes, *again])


def test_overlap_and_hole_of_one_size():
    """Pieces that add up to the right number of elements do not hide that two lie on each other."""
    with pytest.raises(ValueError, match="on top of each other"):
        uncovered((4,), [((0,), (2,)), ((1,), (2,))])
    with pytest.raises(ValueError, match="on top of each other"):
        uncovered((2, 2), [((0, 0), (1, 2)), ((0, 0), (2, 1))])


@pytest.mark.parametrize(
    ("start", "shape"), [((0,), (2,)), ((3, 0), (2, 3)), ((-1, 0), (2, 3)), ((0, 1), (4, 3)), ((0, 0, 0), (1, 1, 1))]
)
def test_piece_outside(start, shape):
    """A piece outside the tensor, or of another rank, is refused when it is opened."""
    with pytest.raises(ValueError, match="a piece of shape"):
        Assembled("weight", "float32", (4, 3), [Piece(start, stored(counted(*shape)))])


def test_piece_of_another_type():
    """A piece of another element type is refused, not converted."""
    with pytest.raises(ValueError, match="a piece of float64 in a tensor of float32"):
        Assembled("weight", "float32", (2,), [Piece((0,), stored(np.zeros(2), "float64"))])


def test_too_many_cuts():
    """A tensor cut along more dimensions than any program cuts is refused: checking that would take time without end."""
    shape = (2,) * (CUTS + 1)
    rank = len(shape)
    boxes = [((1,) * axis + (0,) * (rank - axis), (1,) * (axis + 1) + (2,) * (rank - axis - 1)) for axis in range(rank)]
    with pytest.raises(ValueError, match=f"cut along {CUTS + 1} dimensions"):
        whole(counted(*shape), [*boxes, ((1,) * rank, (1,) * rank)])


def test_pieces_without_elements():
    """Ranks that have nothing of a tensor, or everything of a small one, change nothing."""
    array = counted(1, 2)
    assert_reads(whole(array, [((0, 0), (1, 2)), ((1, 0), (0, 2)), ((1, 0), (0, 2))]), array)
    assert_reads(whole(counted(0, 3), []), counted(0, 3))
    assert_reads(whole(counted(0, 3), [((0, 0), (0, 3))]), counted(0, 3))


def test_flat_pieces():
    """Runs of a flat buffer become a tensor of the right shape, at once and in blocks."""
    array = counted(3, 4)
    flat = array.reshape(-1)
    runs = [Piece((5,), stored(flat[5:])), Piece((0,), stored(flat[:5]))]
    assert_reads(Assembled("weight", "float32", (3, 4), runs, flat=True), array)
    short = Assembled("weight", "float32", (3, 4), runs[:1], flat=True)
    assert short.missing == "7 of 12 elements are there, and the one at [0] is not"


@pytest.mark.parametrize(
    "boxes",
    [
        [((0, 0), (700, 4000)), ((700, 0), (300, 4000))],
        [((0, 0), (1000, 1500)), ((0, 1500), (1000, 2500))],
        [((0, 0), (333, 1500)), ((0, 1500), (500, 2500)), ((333, 0), (667, 1500)), ((500, 1500), (500, 2500))],
    ],
    ids=["rows", "columns", "bricks"],
)
def test_streaming(boxes):
    """A large tensor is streamed in full blocks of the right values in any cut."""
    array = counted(1000, 4000)
    assert_reads(whole(array, boxes), array)


def test_long_rows():
    """A row that is longer than a block is streamed as well."""
    array = counted(2, BLOCK + 7)
    assert_reads(whole(array, [((0, 0), (2, 5)), ((0, 5), (2, BLOCK + 2))]), array)


class Made:
    """A piece whose values are made when they are asked for: nothing of it is in memory before."""

    dtype = "float32"

    def __init__(self, *shape):
        self.shape = shape

    def blocks(self):
        left = prod(self.shape)
        while left:
            yield np.full(min(BLOCK, left), 1, np.float32)
            left -= min(BLOCK, left)


@pytest.mark.parametrize("columns", [1, 2])
def test_bounded_memory(columns):
    """Streaming a tensor of 256 MB takes the memory of a few blocks, whichever way it is cut."""
    shape, rows = (64 * 1024, 1024), 8 // columns
    size = shape[0] // rows, shape[1] // columns
    pieces = [Piece((r * size[0], c * size[1]), Made(*size)) for r in range(rows) for c in range(columns)]
    tensor = Assembled("weight", "float32", shape, pieces)
    tracemalloc.start()
    try:
        assert sum(int(block.sum()) for block in tensor.blocks()) == prod(shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * 4 * BLOCK


def test_number():
    """A scalar in one piece gives its number; one that is missing says so; a larger tensor is no number."""
    assert whole(counted(1, 1) + 3, [((0, 0), (1, 1))]).item() == 3.0
    assert whole(counted() + 3, [((), ())]).item() == 3.0
    with pytest.raises(Damaged, match="weight is not whole"):
        whole(counted(1), []).item()
    with pytest.raises(Refused, match="not a single number"):
        whole(counted(2), [((0,), (2,))]).item()


def test_joined_ranks():
    """What several files have of one tensor makes it whole; a replica counts once, a contradiction is refused."""
    array = counted(4, 3)
    low, high = whole(array, [((0, 0), (2, 3))]), whole(array, [((2, 0), (2, 3))])
    assert_reads(joined([low, high]), array)
    assert_reads(joined([low, high, low]), array)
    with pytest.raises(ValueError, match="in one file"):
        joined([low, whole(counted(5, 3), [((2, 0), (2, 3))])])


def test_absent_piece():
    """A piece that is known and not there says why when it is read; the tensor's shape is known all the same."""
    array = counted(4, 3)
    gone = Absent("weight", "float32", (2, 3), "__1_0.distcp is missing")
    tensor = Assembled("weight", "float32", (4, 3), [*cut(array, [((0, 0), (2, 3))]), Piece((2, 0), gone)])
    assert (tensor.missing, tensor.shape) == (None, (4, 3))
    for read in (tensor.array, lambda: list(tensor.blocks()), gone.item):
        with pytest.raises(Damaged, match="__1_0.distcp is missing"):
            read()


def test_unknown_type():
    """A type whose values cannot be read keeps its name and shape, and refuses its values."""
    with pytest.raises(Refused, match="values of type float4 cannot be read"):
        Assembled("weight", "float4", (2,), [Piece((0,), Absent("weight", "float4", (2,), "opaque"))]).array()
