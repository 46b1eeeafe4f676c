"""ops.select_queries and ops.activation_rank against their definitions in loops."""

import math

import pytest
import torch

from fastinst.ops import activation_rank, select_queries


def make_inputs(batch=2, classes=3, size=(5, 7), channels=4, num_queries=11, dtype=torch.float64):
    """One position map for all images."""
    return {
        "class_logits": (2 * torch.randn(batch, classes + 1, *size)).to(dtype),
        "features": torch.randn(batch, channels, *size).to(dtype).requires_grad_(),
        "positions": torch.randn(1, channels, *size).to(dtype).requires_grad_(),
        "num_queries": num_queries,
    }


def from_probabilities(*maps):
    """Logits [1, K + 1, h, w] of given foreground probabilities [h][w], one map for each class."""
    foreground = torch.tensor(maps, dtype=torch.float64)
    everything = torch.cat([foreground, 1 - foreground.sum(0, keepdim=True)])
    return everything.log().unsqueeze(0)


def softmax(values):
    weights = [math.exp(v - max(values)) for v in values]
    return [w / sum(weights) for w in weights]


def rank_definition(class_logits, local_maximum_first=True):
    """For each image a list of h * w ranks."""
    ranks = []
    for logits in class_logits:
        height, width = logits.shape[1:]
        kept = {}  # (row, column) -> (class, probability)
        for y in range(height):
            for x in range(width):
                foreground = softmax(logits[:, y, x].tolist())[:-1]
                kept[y, x] = (foreground.index(max(foreground)), max(foreground))
        rank = []
        for (y, x), (best, probability) in kept.items():
            around = [
                p if k == best else 0.0
                for k, p in (
                    kept.get((y + dy, x + dx), (best, 0.0))
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                    if (dy, dx) != (0, 0)
                )
            ]
            is_maximum = probability >= 1e-6 and all(probability >= p for p in around)
            rank.append(probability + (is_maximum and local_maximum_first))
        ranks.append(rank)
    return ranks


@pytest.mark.parametrize("local_maximum_first", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"batch": 1},
        {"classes": 1},
        {"size": (1, 13), "num_queries": 5},
        {"size": (3, 2), "num_queries": 1},
        {"num_queries": 35},
    ],
)
def test_equals_the_definition(shape, local_maximum_first):
    inputs = make_inputs(**shape)
    ranks = rank_definition(inputs["class_logits"], local_maximum_first)
    actual = activation_rank(inputs["class_logits"], local_maximum_first)
    torch.testing.assert_close(actual, torch.tensor(ranks, dtype=torch.float64))

    features, positions, indices = select_queries(**inputs, local_maximum_first=local_maximum_first)
    width = inputs["features"].shape[3]
    for image, rank in enumerate(ranks):
        order = sorted(range(len(rank)), key=lambda i: (-rank[i], i))  # noqa: B023
        chosen = sorted(order[: inputs["num_queries"]])
        assert indices[image].tolist() == chosen
        for n, pixel in enumerate(chosen):
            y, x = divmod(pixel, width)
            assert torch.equal(features[image, n], inputs["features"][image, :, y, x])
            assert torch.equal(positions[image, n], inputs["positions"][0, :, y, x])


def chosen(class_logits, num_queries, **options):
    maps = torch.zeros(1, 1, *class_logits.shape[2:], dtype=torch.float64)
    return select_queries(class_logits, maps, maps, num_queries, **options)[2][0].tolist()


def test_of_equal_pixels_the_first_wins():
    flat = from_probabilities([[0.5] * 4] * 3)
    assert activation_rank(flat).tolist() == [pytest.approx([1.5] * 12)]  # all are maxima
    assert chosen(flat, 5) == [0, 1, 2, 3, 4]
    # Sorts are unstable in small chunks only by luck, so a large map too.
    assert chosen(from_probabilities([[0.5] * 61] * 59), 100) == list(range(100))


def test_equal_neighbours_are_both_maxima():
    rank = activation_rank(from_probabilities([[0.1, 0.6, 0.6, 0.1, 0.2]]))[0]
    assert rank.tolist() == pytest.approx([0.1, 1.6, 1.6, 0.1, 1.2])


def test_a_local_maximum_beats_a_likelier_neighbour_of_a_peak():
    logits = from_probabilities([[0.9, 0.8, 0.1, 0.2]])
    assert chosen(logits, 2) == [0, 3]
    assert chosen(logits, 2, local_maximum_first=False) == [0, 1]


def test_neighbours_of_another_class_do_not_count():
    rank = activation_rank(from_probabilities([[0.1, 0.4, 0.3]], [[0.5, 0.1, 0.1]]))[0]
    assert rank.tolist() == pytest.approx([1.5, 1.4, 0.3])


def test_neighbours_are_the_eight_around_and_do_not_wrap():
    board = [[0.3, 0.01, 0.2], [0.01, 0.01, 0.01], [0.25, 0.01, 0.28]]
    rank = activation_rank(from_probabilities(board))[0]
    assert rank[[0, 2, 6, 8]].tolist() == pytest.approx([1.3, 1.2, 1.25, 1.28])
    for place in (0, 1, 2, 3, 5, 6, 7, 8):
        board = [[0.01] * 3 for _ in range(3)]
        board[1][1], board[place // 3][place % 3] = 0.3, 0.4
        assert activation_rank(from_probabilities(board))[0, 4].item() == pytest.approx(0.3)


def test_probabilities_under_a_millionth_are_no_maxima():
    """Not even alone; from 1e-6 on they are."""
    rank = activation_rank(from_probabilities([[0.99e-6, 0.5, 1e-12]], [[1e-9, 1e-9, 1e-10]]))[0]
    assert rank.tolist() == pytest.approx([0.99e-6, 1.5, 1e-10], rel=1e-6)
    alone = [[1e-13] * 5 for _ in range(5)]
    alone[2][2] = 0.99e-6
    assert activation_rank(from_probabilities(alone)).max().item() < 1e-6
    alone[2][2] = 1.01e-6
    assert activation_rank(from_probabilities(alone)).max().item() > 1
    # Then rank is probability alone, and the first of the equals.
    alone = [[1e-13] * 4, [1e-13, 1e-13, 1e-7, 1e-13]]
    assert chosen(from_probabilities(alone), 3) == [0, 1, 6]


@pytest.mark.parametrize("batch_of_positions", [1, 3])
def test_gradients(batch_of_positions):
    inputs = make_inputs(batch=3)
    positions = torch.randn(batch_of_positions, 4, 5, 7, dtype=torch.float64, requires_grad=True)

    def gathered(features, positions):
        return select_queries(inputs["class_logits"], features, positions, 11)[:2]

    assert torch.autograd.gradcheck(gathered, (inputs["features"], positions))


def test_the_choice_has_no_gradient():
    inputs = make_inputs()
    inputs["class_logits"].requires_grad_()
    features, positions, indices = select_queries(**inputs)
    assert not indices.requires_grad
    (features.sum() + positions.sum()).backward()
    assert inputs["class_logits"].grad is None
    # Each of the 11 pixels of an image counts once; the shared positions collect both images.
    assert inputs["features"].grad.sum().item() == 2 * 11 * 4
    assert inputs["positions"].grad.sum().item() == 2 * 11 * 4


def test_memory_layout_does_not_matter():
    inputs = make_inputs()
    odd = {
        k: v.to(memory_format=torch.channels_last) for k, v in inputs.items() if k != "num_queries"
    }
    expected, actual = select_queries(**inputs), select_queries(**odd, num_queries=11)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_an_empty_batch():
    features, positions, indices = select_queries(**make_inputs(batch=0))
    assert features.shape == positions.shape == (0, 11, 4)
    assert indices.shape == (0, 11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_in_float32(dtype):
    inputs = make_inputs(dtype=dtype)
    rank = activation_rank(inputs["class_logits"])
    assert rank.dtype == torch.float32
    torch.testing.assert_close(rank, activation_rank(inputs["class_logits"].float()))
    features, positions, indices = select_queries(**inputs)
    assert features.dtype == positions.dtype == dtype
    exact = select_queries(
        inputs["class_logits"].float(), inputs["features"], inputs["positions"], 11
    )
    assert torch.equal(indices, exact[2]) and torch.equal(features, exact[0])


@pytest.mark.parametrize("batch", [1, 3])
def test_registration(batch):
    args = tuple(make_inputs(batch).values())
    torch.library.opcheck(torch.ops.fastinst.select_queries.default, (*args, True))


def test_compiled_equals_eager():
    inputs = make_inputs(dtype=torch.float32)
    compiled = torch.compile(select_queries, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(**inputs), select_queries(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    grads = [torch.randn_like(x) for x in expected[:2]]
    wanted = (inputs["features"], inputs["positions"])
    for a, b in zip(
        torch.autograd.grad(actual[:2], wanted, grads),
        torch.autograd.grad(expected[:2], wanted, grads),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.rand(4, 5, 7)}, "^features must have shape"),
        ({"class_logits": torch.rand(2, 4, 35)}, "^class_logits must have shape"),
        ({"class_logits": torch.rand(2, 4, 7, 5)}, "^class_logits must have shape"),
        ({"class_logits": torch.rand(1, 4, 5, 7)}, "^class_logits must have shape"),
        ({"class_logits": torch.rand(2, 1, 5, 7)}, "^class_logits must have shape"),
        ({"class_logits": torch.ones(2, 4, 5, 7).long()}, "^class_logits must be a floating-point"),
        ({"positions": torch.rand(1, 4, 7, 5).double()}, "^positions must have shape"),
        ({"positions": torch.rand(3, 4, 5, 7).double()}, "^positions must have 1 or 2 maps"),
        ({"positions": torch.rand(1, 4, 5, 7)}, "^positions must have .* torch.float64"),
        ({"num_queries": 0}, "^num_queries must be in 1..35"),
        ({"num_queries": 36}, "^num_queries must be in 1..35"),
        ({"class_logits": torch.rand(2, 4, 5, 7, device="meta")}, "^class_logits is on meta"),
        ({"positions": torch.rand(1, 4, 5, 7, device="meta")}, "^positions is on meta"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        select_queries(**make_inputs() | change)
