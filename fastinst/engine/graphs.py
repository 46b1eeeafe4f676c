"""CUDA graphs of a network: its hundreds of launches, which take longer than the work of a fast
GPU, become one."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]
# Libraries load kernels and choose algorithms when first called, which a capture must not see.
WARM_UP = 3


class GraphedNetwork(nn.Module):
    """A prepared network that runs as a CUDA graph, one for each shape of its batches.

    A shape is captured when it comes for the second time, and forgotten when `capacity` others
    have been used since. If a capture fails, the network runs without graphs from then on, with a
    warning. Threads and streams may share it: they take turns, and outputs belong to the caller.

    network: such as of `prepare`, on a GPU
    capacity: how many graphs are kept; they share one memory pool
    capture: (network, batch) to what runs the graph on a batch of the same shape
    """

    def __init__(
        self,
        network: nn.Module,
        capacity: int = 16,
        capture: Callable[[nn.Module, Tensor], Callable[[Tensor], Outputs]] | None = None,
    ):
        super().__init__()
        self.network, self.config = network, network.config
        self.capacity = capacity
        self._capture = capture or CudaGraphs(network.device).capture
        self._graphs: OrderedDict[torch.Size, Callable[[Tensor], Outputs]] = OrderedDict()
        self._seen: set[torch.Size] = set()
        self._failed = False
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Outputs:
        """See `FastInst.forward`."""
        # Whoever comes second while a graph is captured or fed would disturb that.
        with self._lock:
            graph = self._graph_for(batch)
            return graph(batch) if graph else self.network(batch)

    def _graph_for(self, batch: Tensor) -> Callable[[Tensor], Outputs] | None:
        shape = batch.shape
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
        elif shape not in self._seen or self._failed:
            self._seen.add(shape)
        else:
            try:
                self._graphs[shape] = self._capture(self.network, batch)
            except RuntimeError as error:
                self._failed = True
                self._graphs.clear()  # memory may be what was missing
                warnings.warn(
                    f"runs without CUDA graphs, up to several times slower: {error}", stacklevel=2
                )
            # Only now, when the capture has waited for whatever the old graph was still doing.
            if len(self._graphs) > self.capacity:
                self._graphs.popitem(last=False)
        return self._graphs.get(shape)

    def preprocess(self, *args: Any, **kwargs: Any) -> tuple[Tensor, list[tuple[int, int]]]:
        """See `FastInst.preprocess`."""
        return self.network.preprocess(*args, **kwargs)

    def stages(self, batch: Tensor) -> Iterator[tuple[str, Any]]:
        """See `FastInst.stages`; without graphs, which have no stages."""
        return self.network.stages(batch)

    def describe(self) -> str:
        return f"{self.network.describe()}; CUDA graphs{' failed' if self._failed else ''}"


class CudaGraphs:
    """Captures graphs that share a memory pool, on one GPU.

    Sharing is safe although they run in any order: a graph's own input and outputs are held, so
    that no other has them, and of what else it writes nothing is read after it has run. One must
    not begin before the last has ended, on whatever stream.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.last_end = torch.cuda.Event()

    def capture(self, network: nn.Module, batch: Tensor) -> "CudaGraph":
        """Raises RuntimeError if the network does what a graph cannot hold, or memory runs out."""
        return CudaGraph(self, network, batch)


class CudaGraph:
    """Runs a network on batches of one shape; the outputs are copies."""

    def __init__(self, graphs: CudaGraphs, network: nn.Module, batch: Tensor):
        self._graphs = graphs
        self._constants = network.constants(batch.shape[2], batch.shape[3])
        self._batch = batch.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(graphs.device):
            graphs.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(graphs.stream):
                for _ in range(WARM_UP):
                    network(self._batch)
                # The device is waited for here. Other threads may allocate meanwhile. The outer
                # context gives the caller's stream back after a failure, which this one does not.
                with torch.cuda.graph(
                    self._graph, graphs.pool, graphs.stream, capture_error_mode="thread_local"
                ):
                    self._outputs = network(self._batch)

    def __call__(self, batch: Tensor) -> Outputs:
        stream = torch.cuda.current_stream(self._graphs.device)
        stream.wait_event(self._graphs.last_end)
        self._batch.copy_(batch)
        self._graph.replay()
        outputs = {name: values.clone() for name, values in self._outputs.items()}
        self._graphs.last_end.record(stream)
        return outputs
