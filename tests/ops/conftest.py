"""The backends on which every operation is tested: compiled CPU code, CUDA kernels run on the host, and CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # for `from checks import ...`

LANE_ORDERS = range(3)
SIMT_ROWS, SIMT_COLUMNS = 8, 1500  # a lane is a fiber on the host, about a thousand times slower than compiled code


class CudaOps:
    """`sparring.ops` on the GPU for arguments on the CPU: same layout there, and what was written is copied back."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from sparring import ops

        return partial(self._call, getattr(ops, name))

    @staticmethod
    def _call(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pairs: dict[int, tuple[Tensor, Tensor]] = {}

        def send(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return pairs.setdefault(id(value), (value, _same_layout_on_cuda(value)))[1]

        try:
            result = op(*map(send, args), **{name: send(value) for name, value in kwargs.items()})
        finally:
            for here, there in pairs.values():
                if 0 not in here.stride():
                    here.copy_(there)
        return next((here for here, there in pairs.values() if there is result), None) or result.cpu()


def _same_layout_on_cuda(t: Tensor) -> Tensor:
    if t.numel() == 0:
        return t.cuda()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.as_strided((extent,), (1,)).cuda().as_strided(t.shape, t.stride())


class SimtInTurn:
    """The CUDA kernels on the host, every call with the next order of lanes."""

    def __init__(self) -> None:
        import simt

        module = simt.load()
        self._orders = cycle([simt.SimtOps(module, seed=seed) for seed in LANE_ORDERS])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(next(self._orders), name)


@pytest.fixture(
    scope="session",
    params=["cpu", pytest.param("simt", marks=pytest.mark.simt), pytest.param("cuda", marks=pytest.mark.cuda)],
)
def backend(request: pytest.FixtureRequest) -> Any:
    """Something with the functions of `sparring.ops`, called with CPU tensors."""
    if request.param == "simt":
        return SimtInTurn()
    if request.param == "cuda":
        return CudaOps()
    from sparring import ops

    return ops


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave shapes that the emulation is too slow for to the other backends."""

    def too_large(item: pytest.Item) -> bool:
        params = getattr(getattr(item, "callspec", None), "params", {})
        rows, *rest = params.get("shape", (0,))
        columns = torch.Size(rest).numel()
        return params.get("backend") == "simt" and (rows > SIMT_ROWS or columns > SIMT_COLUMNS)

    dropped = [item for item in items if too_large(item)]
    if dropped:
        items[:] = [item for item in items if not too_large(item)]
        config.hook.pytest_deselected(items=dropped)
