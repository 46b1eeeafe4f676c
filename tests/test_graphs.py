"""CUDA graphs of a network. On the CPU: when they are captured, kept and forgotten, with graphs
that only count."""

import threading
import time
import warnings

import pytest
import torch
from torch import nn

from fastinst import create_model
from fastinst.engine import prepare
from fastinst.engine.graphs import GraphedNetwork

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Doubling(nn.Module):
    """Counts its calls, and notes if two overlap."""

    config, device, dtype = None, torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.calls, self.inside, self.overlapped = 0, 0, False

    def forward(self, batch):
        self.calls += 1
        self.inside += 1
        self.overlapped |= self.inside > 1
        time.sleep(0.001)
        self.inside -= 1
        return {"twice": 2 * batch}


class Capture:
    """Notes the shapes; a graph is a function with an output of its own, as CUDA's are."""

    def __init__(self, error=None):
        self.shapes, self.replays, self.error = [], [], error

    def __call__(self, network, batch):
        self.shapes.append(tuple(batch.shape))
        if self.error:
            raise self.error
        own = torch.empty_like(batch)

        def replay(batch):
            self.replays.append(tuple(batch.shape))
            own.copy_(network(batch)["twice"])
            return {"twice": own.clone()}

        return replay


def batch(width, value=1.0):
    return torch.full((1, 3, 4, width), value)


def test_a_shape_is_captured_the_second_time_and_replayed_from_then_on():
    capture = Capture()
    graphed = GraphedNetwork(Doubling(), capture=capture)
    for value in range(5):
        assert torch.equal(graphed(batch(8, value))["twice"], batch(8, 2.0 * value))
    assert capture.shapes == [(1, 3, 4, 8)] and capture.replays == [(1, 3, 4, 8)] * 4
    graphed(batch(9))
    assert len(capture.shapes) == 1


def test_the_graph_that_was_not_used_for_the_longest_is_forgotten():
    capture = Capture()
    graphed = GraphedNetwork(Doubling(), capacity=2, capture=capture)
    for width in (1, 1, 2, 2, 1, 3, 3):  # 2 goes, as 1 was used after it
        graphed(batch(width))
    assert [shape[3] for shape in capture.shapes] == [1, 2, 3]
    graphed(batch(1))
    assert [shape[3] for shape in capture.shapes] == [1, 2, 3]
    graphed(batch(2))
    assert [shape[3] for shape in capture.shapes] == [1, 2, 3, 2]


def test_without_a_graph_it_goes_on_and_says_so_once():
    capture = Capture(RuntimeError("operation not permitted when stream is capturing"))
    graphed = GraphedNetwork(Doubling(), capture=capture)
    graphed(batch(1))
    with pytest.warns(UserWarning, match="without CUDA graphs.*not permitted"):
        assert torch.equal(graphed(batch(1, 3))["twice"], batch(1, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width in (1, 2, 2):
            assert torch.equal(graphed(batch(width))["twice"], batch(width, 2))
    assert len(capture.shapes) == 1


def test_threads_take_turns():
    network = Doubling()
    graphed = GraphedNetwork(network, capacity=1, capture=Capture())
    wrong = []

    def work(thread):
        for value in range(10):
            width = 1 + (thread + value) % 2  # captures and forgets all the time
            if not torch.equal(graphed(batch(width, value))["twice"], batch(width, 2.0 * value)):
                wrong.append((thread, value))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not network.overlapped


def small_network(dtype=torch.float32):
    sizes = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32, "num_layers": 3}
    model = create_model("fastinst-d1-r18-192", num_classes=5, **sizes)
    nn.init.normal_(model.positions.weight)
    return prepare(model, "cuda", dtype)


def inputs(*shapes, dtype=torch.float32):
    return [
        torch.randn(shape, dtype=dtype, device="cuda").contiguous(memory_format=torch.channels_last)
        for shape in shapes
    ]


def outputs_equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.inference_mode()
def test_graphs_compute_what_the_network_does(dtype):
    """More shapes than the network keeps positions of, and then again."""
    network = small_network(dtype)
    graphed = GraphedNetwork(network)
    batches = inputs(*[(b, 3, 64, 32 * n) for n in range(1, 8) for b in (1, 2)], dtype=dtype)
    for _ in range(3):
        for one in batches:
            torch.testing.assert_close(graphed(one), network(one))
    assert len(graphed._graphs) == len(batches)


@needs_gpu
@torch.inference_mode()
def test_a_replay_waits_for_the_last_one_on_another_stream():
    graphed = GraphedNetwork(small_network())
    one, other = inputs((1, 3, 64, 96), (1, 3, 64, 96))
    graphed(one)
    expected = [{k: v.clone() for k, v in graphed(x).items()} for x in (one, other)]
    torch.cuda.synchronize()
    for _ in range(20):
        first, second = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(first):
            torch.cuda._sleep(2_000_000)
            found_first = graphed(one)
        with torch.cuda.stream(second):
            found_second = graphed(other)
        torch.cuda.synchronize()
        assert outputs_equal(found_first, expected[0])
        assert outputs_equal(found_second, expected[1])
