"""CUDA graphs: what a function launches is recorded once and started by one call from then on.

Sources: PyTorch's notes "CUDA semantics", section "CUDA Graphs" (warm-up on a side stream, static
memory, private pools), and the CUDA C++ Programming Guide, section "CUDA Graphs".
"""

from collections.abc import Callable

import torch

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a function without arguments, which reads and writes memory that stays where it is, and
returns one that does the same to that memory."""

_WARM_UPS = 2  # compile kernels, fill caches of tables, and let libraries take their workspaces


class CudaRecorder:
    """Records functions on one device; all share the memory that they need in between.

    They may share it since they run one at a time, and what one leaves behind lies outside of it.

    Args:
        device: a CUDA (or ROCm) device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run a function twice, record it, and return what replays it on the current stream.

        Args:
            run: launches the same for the same shapes, and never waits for the device.

        Raises:
            RuntimeError: it waits for the device, or does something else that cannot be recorded.
        """
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                run()
        now.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on: that of a data loader pins memory, which "global" would object to.
        with torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=self._stream,
            capture_error_mode="thread_local",
        ):
            run()
        return graph.replay  # the bound method holds the graph
