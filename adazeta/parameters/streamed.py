"""Forward passes at perturbed parameters that never write to the parameters.

Just before a module runs, its own parameters are perturbed into a scratch buffer and point there
until its forward has ended, whether by a result or by an exception. So one evaluation at
``theta + c z`` reads theta once and writes as much scratch as it reads, theta itself keeps every
bit, and the scratch is as large as the largest module's own parameters (summed along a nesting of
modules that own some), not as large as the model. Within that size a module around others binds
theirs with its own, in one call: a block of a small model at once, not its layers one by one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from adazeta.kernels import add_noise_
from adazeta.parameters.perturbation import Perturbation, one_term
from adazeta.parameters.read_detector import ReadDetector

_ALIGNMENT = 256  # bytes; matrix products choose their kernel by it, so as an allocation would be


@dataclass
class _Frame:
    """A module that is running, or (None) the evaluation as a whole; and what it has bound."""

    module: nn.Module | None
    bound: list[nn.Parameter] = field(default_factory=list)
    level: int | None = None


class StreamedPerturbation(Perturbation):
    """Perturbs each module's own parameters for the length of that module's forward.

    A parameter belongs to the modules that hold it; a holder without a forward (``ParameterList``
    and the like) stands for the module around it. A tied parameter has one range of indices, so
    all its holders see the same values. Where a module reads a parameter that another one holds,
    without calling that module, the first evaluation notices and from then on the reader counts
    as a holder too; what is read outside of every module is bound for the whole evaluation.

    Which modules the model has must not change afterwards. One evaluation runs at a time.

    Args:
        model: the model that is evaluated; every parameter belongs to a module of it.
        parameters: float32, bfloat16 or float16 tensors, by name, on one device.
        offsets: index of each parameter's first element.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.

    Attributes:
        borrowed: names of the parameters that were read outside of the modules that hold them.

    Raises:
        ValueError: a parameter belongs to no module of the model, or the model is compiled (a
            compiled model may pass over the hooks of its modules).
    """

    takes_tensors = True

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        offsets: Sequence[int],
        distribution: str,
    ) -> None:
        if is_compiled(model):
            raise ValueError(
                "perturbation='streamed' needs the hooks of the modules, which a compiled model "
                "may skip; use perturbation='buffer', or do not compile"
            )
        super().__init__(list(parameters.values()), offsets, distribution)
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._hosts = _hosts(model, self._names)
        _gather(model, self._hosts)
        self.borrowed: list[str] = []
        self._everywhere: list[nn.Parameter] = []
        self._levels: list[Tensor | None] = []
        self._frames: list[_Frame] = []
        self._originals: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self._detector: ReadDetector | None = None
        self._checked = False
        self._asks = True  # which rows of an embedding are read

    @contextmanager
    def perturbed(self, seed: int | Tensor, scale: float | Tensor) -> Iterator[None]:
        """Evaluate the model at ``theta + scale * z(seed)`` inside the context.

        Args:
            seed: 63-bit seed of the direction; or int64 (1,).
            scale: step along it, in units of the parameters; 0 evaluates at theta. Or float32
                (1,); then every row of an embedding is perturbed, as the host does not ask which
                ones are read.

        Raises:
            RuntimeError: an evaluation is going on already, or the first evaluation found a read
                of the parameters that cannot be served (through an alias made beforehand).
        """
        self.refuse_inside()
        if not isinstance(scale, Tensor) and scale == 0:
            yield
            return
        seeds, scales = one_term(seed, scale)
        self._seeds = torch.as_tensor(seeds, dtype=torch.int64, device=self.device)
        self._scales = torch.as_tensor(scales, dtype=torch.float32, device=self.device)
        self._asks = not isinstance(scale, Tensor)
        handles = []
        self._frames.append(_Frame(None))
        try:
            self.busy = True
            if not self._checked:
                self._detector = ReadDetector(self._serve, self._held(), self._idle)
            handles.append(register_module_forward_pre_hook(self._enter))
            handles.append(register_module_forward_hook(self._leave, always_call=True))
            self._bind(self._frames[0], self._everywhere)
            with self._detector or nullcontext():
                yield
            self._checked = True
        finally:
            for handle in handles:
                handle.remove()
            self._detector = None
            # Modules still open: the exception was none that hooks are told about (an interrupt).
            while self._frames:
                self._close(self._frames[-1])
                self._frames.pop()
            self.busy = False

    def held(self) -> list[Tensor]:
        """Return the parameters' values and the scratch."""
        return [*self.tensors, *(buffer for buffer in self._levels if buffer is not None)]

    @property
    def scratch_bytes(self) -> int:
        """Size of the scratch that evaluations have needed so far."""
        return sum(buffer.numel() for buffer in self._levels if buffer is not None)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Perturb what a module holds; called before its forward."""
        held = self._hosts.get(id(module))
        if held is None and self._detector is None:
            return
        self._frames.append(_Frame(module))
        if held:
            with self._unwatched():
                rows = _rows_read(module, args) if self._asks else None
                self._bind(self._frames[-1], held, rows)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Restore what a module holds; called after its forward, also after an exception."""
        if not any(frame.module is module for frame in self._frames):
            return
        while True:
            frame = self._frames[-1]
            self._close(frame, output)
            self._frames.pop()
            if frame.module is module:
                return

    def _close(self, frame: _Frame, output: Any = None) -> None:
        with self._unwatched():
            for parameter in frame.bound:
                if id(parameter) in self._originals:
                    parameter.data = self._originals[id(parameter)][1]
                    del self._originals[id(parameter)]
        if frame.level is None:
            return
        buffer = self._levels[frame.level]
        if buffer is not None and _shares_memory(output, buffer):
            # The module returned (a view of) its own weights: that memory is now the caller's.
            self._levels[frame.level] = None

    def _unwatched(self) -> AbstractContextManager[None]:
        """Let our own reads pass the detector."""
        return self._detector.paused() if self._detector else nullcontext()

    def _bind(
        self, frame: _Frame, parameters: Sequence[nn.Parameter], rows: Tensor | None = None
    ) -> None:
        """Point parameters to their perturbed values until the frame is closed."""
        todo = [p for p in parameters if id(p) not in self._originals and p.numel()]
        if not todo:
            return
        thetas = [parameter.data for parameter in todo]
        scratch = self._scratch(frame, thetas)
        offsets = [self._offset_by_id[id(parameter)] for parameter in todo]
        pieces = list(zip(thetas, scratch, offsets, strict=True))
        if rows is not None:
            pieces = _only_rows(pieces, rows)
        inputs, outputs, starts = zip(*pieces, strict=True)
        add_noise_(
            inputs,
            self._seeds,
            self._scales,
            offsets=starts,
            out=outputs,
            distribution=self.distribution,
        )
        for parameter, theta, view in zip(todo, thetas, scratch, strict=True):
            # In this order, so that an interrupt at any point is undone.
            self._originals[id(parameter)] = (parameter, theta)
            frame.bound.append(parameter)
            parameter.data = view

    def _scratch(self, frame: _Frame, thetas: Sequence[Tensor]) -> list[Tensor]:
        """Return uninitialised tensors like the given ones, from the frame's level of scratch."""
        sizes = [theta.numel() * theta.element_size() for theta in thetas]
        starts = [0]
        for theta in thetas:
            starts.append(starts[-1] + _space_of(theta))
        buffer = self._buffer(frame, starts[-1])
        return [
            buffer[start : start + size].view(theta.dtype).view(theta.shape)
            for theta, start, size in zip(thetas, starts[:-1], sizes, strict=True)
        ]

    def _buffer(self, frame: _Frame, size: int) -> Tensor:
        if frame.level is not None:  # in use: the frame was late to learn of this parameter
            return _bytes(size, self.device)
        level = sum(other.level is not None for other in self._frames)
        if level == len(self._levels):
            self._levels.append(None)
        buffer = self._levels[level]
        if buffer is None or buffer.numel() < size or buffer.device != self.device:
            buffer = self._levels[level] = None  # free the old one first
            buffer = self._levels[level] = _bytes(size, self.device)
        frame.level = level
        return buffer

    def _held(self) -> list[tuple[str, Tensor]]:
        """Every parameter's values by name."""
        found = {id(p): p for held in self._hosts.values() for p in held}
        return [(self._names[key], parameter.data) for key, parameter in found.items()]

    def _serve(self, tensor: Tensor) -> bool:
        """Bind a parameter that is about to be read; tell whether the tensor is a parameter."""
        if id(tensor) not in self._names:
            return False
        if id(tensor) not in self._originals and isinstance(tensor, nn.Parameter):
            frame = self._frames[-1]
            self._bind(frame, [tensor])
            if tensor.numel():
                self.borrowed.append(self._names[id(tensor)])
                if frame.module is None:
                    self._everywhere.append(tensor)
                else:
                    self._hosts.setdefault(id(frame.module), []).append(tensor)
        return True

    def _idle(self) -> list[Tensor]:
        """Scratch that belongs to no running module."""
        used = {frame.level for frame in self._frames}
        return [b for level, b in enumerate(self._levels) if b is not None and level not in used]


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to a model or to a module of it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )


def _space_of(theta: Tensor) -> int:
    """Bytes of scratch that a tensor takes."""
    size = theta.numel() * theta.element_size()
    return size + -size % _ALIGNMENT


def _bytes(size: int, device: torch.device) -> Tensor:
    # A tensor that inference mode made could not be written to outside of it.
    with torch.inference_mode(False):
        return torch.empty(size, dtype=torch.uint8, device=device)


def _hosts(model: nn.Module, names: Mapping[int, str]) -> dict[int, list[nn.Parameter]]:
    """Find the parameters that each module with a forward has to itself, by the module's id."""
    hosts: dict[int, list[nn.Parameter]] = {}
    missing = dict(names)
    seen = set()

    def visit(module: nn.Module, runs: nn.Module | None) -> None:
        if type(module).forward is not nn.Module.forward or "forward" in vars(module):
            runs = module
        if (id(module), id(runs)) in seen:
            return
        seen.add((id(module), id(runs)))
        for parameter in module.parameters(recurse=False):
            if id(parameter) in names and runs is not None:
                held = hosts.setdefault(id(runs), [])
                if not any(parameter is other for other in held):
                    held.append(parameter)
                missing.pop(id(parameter), None)
        for child in module.children():
            visit(child, runs)

    visit(model, None)
    if missing:
        raise ValueError(
            f"parameter {next(iter(missing.values()))!r} belongs to no module of the model that "
            "has a forward; use perturbation='buffer'"
        )
    return hosts


def _gather(model: nn.Module, hosts: dict[int, list[nn.Parameter]]) -> None:
    """Let modules bind what the modules in them hold, as far as the scratch does not grow.

    The noise of a whole block in one call costs less than layer by layer: fewer calls, and on a CPU
    no turn-taking with the threads of the matrix products. The modules inside keep their entries:
    one that is called without the module around it binds its own. An embedding is left out, since
    only the rows that are looked up are needed.
    """
    limit = max(sum(map(_space_of, held)) for held in hosts.values())
    by_rows = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }

    def visit(module: nn.Module) -> None:
        inside = {id(p): p for m in module.modules() for p in hosts.get(id(m), [])}
        runs = type(module).forward is not nn.Module.forward
        if not runs or sum(map(_space_of, inside.values())) > limit:
            for child in module.children():
                visit(child)
            return
        held = hosts.get(id(module), [])
        own = set(map(id, held))
        rest = [p for key, p in inside.items() if key not in own and key not in by_rows]
        if rest:
            hosts[id(module)] = [*held, *rest]

    visit(model)


def _rows_read(module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
    """Return which rows of a module's parameters its forward will read; None for all.

    A forward that was put in place of the module's own says so by an attribute ``rows_read``.
    """
    replaced: Callable[..., Any] | None = vars(module).get("forward")
    if replaced is not None:
        return getattr(replaced, "rows_read", None)
    plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    # A hook might change the indices; on an accelerator the whole is faster than to ask for them.
    if plain and args and isinstance(args[0], Tensor) and not module._forward_pre_hooks:
        return args[0] if args[0].device.type == "cpu" else None
    return None


def _only_rows(
    pieces: list[tuple[Tensor, Tensor, int]], rows: Tensor
) -> list[tuple[Tensor, Tensor, int]]:
    """Restrict (theta, scratch, offset) to some rows, in runs of consecutive ones."""
    count = pieces[0][0].shape[0]
    unique = rows.detach().unique()
    wrong = bool(((unique < 0) | (unique >= count)).any())  # for the module to complain about
    if wrong or 2 * len(unique) > count or any(p[0].shape[:1] != (count,) for p in pieces):
        return pieces
    if not len(unique):
        return [(theta[:0], scratch[:0], offset) for theta, scratch, offset in pieces]
    last = torch.cat([unique.diff() > 1, torch.ones(1, dtype=torch.bool, device=unique.device)])
    ends = (unique[last] + 1).tolist()
    starts = unique[last.roll(1)].tolist()
    return [
        (theta[start:end], scratch[start:end], offset + start * (theta.numel() // count))
        for theta, scratch, offset in pieces
        for start, end in zip(starts, ends, strict=True)
    ]


def _shares_memory(output: Any, buffer: Tensor) -> bool:
    """Whether a module's output holds a view of a buffer."""
    if isinstance(output, Tensor):
        if output.layout is not torch.strided or output.device != buffer.device:
            return False
        return output.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    if isinstance(output, Mapping):
        return any(_shares_memory(value, buffer) for value in output.values())
    if isinstance(output, (tuple, list)):
        return any(_shares_memory(value, buffer) for value in output)
    return False
