"""What certified norms are made of, as compiled kernels: a convolution's matrices at its frequencies, their top
eigenpairs, the factorisation that proves a bound, and sums for rounding errors.

Matrices are float32 or float64, on the CPU or a CUDA device, and contiguous (else they are copied). Nothing is recorded
by autograd. The mathematics, and what may be relied on in a proof, is in ``csrc/ops/<name>.h``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, float32, float64, int64
from torch.nn import functional as F

from sparring import _bridge as bridge

_WIDEST = 32  # numbers that a kernel works on at once, at most
_CACHE = 24 * 1024  # bytes of lags that stay near while frequencies pass
_SCRATCH = 2**30  # bytes of scratch memory at most, on a device


class TopEigenpair(NamedTuple):
    """Per matrix: eigenvalue and ``|G x - value x|``, float64 (F,); its unit vector x, (F, m); steps, int64 (F,)."""

    value: Tensor
    vector: Tensor
    residual: Tensor
    steps: Tensor


class AbsoluteSums(NamedTuple):
    """Per row, float64 (rows,): not less than the sum of its magnitudes, and not less than that of its squares."""

    sums: Tensor
    squares: Tensor


def symmetric_symbol(lags: Tensor, twiddles: Tensor) -> Tensor:
    """The Hermitian matrices ``sum_l cos_fl P_l + i sin_fl Q_l`` of all frequencies, as real symmetric ones.

    Parameters
    ----------
    lags : (L, 2, n, n), float32 or float64
        P_l, symmetric, and Q_l, antisymmetric.
    twiddles : (F, L, 2), as lags
        cos_fl and sin_fl.

    Returns
    -------
    (F, 2n, 2n)
        ``[[S, -A], [A, S]]`` with ``S = sum_l cos_fl P_l`` and ``A = sum_l sin_fl Q_l``: the eigenvalues of the
        Hermitian matrix, each twice. An entry's error is at most ``gamma_(L+1)`` times its sum of magnitudes, and the
        same in whatever batch; S is symmetric to the bit if every P_l is, likewise A.

    Raises
    ------
    ValueError
        For other shapes, dtypes or devices.
    """
    lags, twiddles = _checked(lags, "lags", 4, "(L, 2, n, n)"), _checked(twiddles, "twiddles", 3, "(F, L, 2)")
    count, parts, size, across = lags.shape
    if parts != 2 or across != size or size < 1:
        raise ValueError(f"lags must have shape (L, 2, n, n), n >= 1; got {tuple(lags.shape)}")
    if twiddles.shape[1:] != (count, 2):
        raise ValueError(
            f"twiddles must have shape (F, {count}, 2), as there are {count} lags; got {tuple(twiddles.shape)}"
        )
    _same_kind(twiddles, "twiddles", lags, "lags")
    lags, twiddles = bridge.in_memory(lags, "lags"), bridge.in_memory(twiddles, "twiddles")
    out = torch.empty(len(twiddles), 2 * size, 2 * size, dtype=lags.dtype, device=lags.device)
    # Groups of entries, each of them together for all lags.
    near = _CACHE // (2 * max(1, count) * lags.element_size())
    entries = max(_WIDEST, 1 << (max(1, min(near, size * size)).bit_length() - 1))
    packed = lags.view(count, 2, size * size)
    if size * size % entries:
        packed = F.pad(packed, (0, -size * size % entries))
    packed = packed.view(count, 2, packed.shape[2] // entries, entries).permute(2, 0, 1, 3).contiguous()
    bridge.native.symmetric_symbol(
        lags.dtype is float64,
        *bridge.place_of(lags, "lags"),
        len(twiddles),
        size,
        count,
        entries,
        packed.data_ptr(),
        twiddles.data_ptr(),
        out.data_ptr(),
    )
    return out


def absolute_sums(matrix: Tensor) -> AbsoluteSums:
    """Upper bounds, never below the exact sums, of the magnitudes and the squares of every row.

    Parameters
    ----------
    matrix : (rows, n), float32 or float64

    Returns
    -------
    AbsoluteSums
        Above the exact sums by a share of about ``n 2^-52`` (and of squares, by ``n`` smallest subnormal numbers);
        inf or NaN where a row has them. n up to 2^49, and gradual underflow, are assumed.

    Raises
    ------
    ValueError
        For other shapes, dtypes or devices.
    """
    matrix = _checked(matrix, "matrix", 2, "(rows, n)")
    rows, n = matrix.shape
    matrix = matrix if n < 2 or matrix.stride(1) == 1 else bridge.in_memory(matrix, "matrix")
    result = torch.empty(2, rows, dtype=float64, device=matrix.device)
    sums, squares = result
    bridge.native.absolute_sums(
        matrix.dtype is float64,
        *bridge.place_of(matrix, "matrix"),
        rows,
        n,
        matrix.data_ptr(),
        matrix.stride(0),
        sums.data_ptr(),
        squares.data_ptr(),
    )
    return AbsoluteSums(sums, squares)


def top_eigenpair(matrices: Tensor, start: Tensor | None = None, steps: int = 200, tol: float = 1e-9) -> TopEigenpair:
    """The largest eigenvalue of every matrix and its vector, as near as conjugate gradients come: not a bound.

    Parameters
    ----------
    matrices : (F, m, m), float32 or float64
        Symmetric; entries between 1e-100 and 1e100 (in float32, 1e-15 and 1e15), or 0.
    start : (F, m) or (m,), as matrices, optional
        Where to start; by default the same pseudo-random vector for all, always the same for an m.
    steps : int
        At most so many steps, of a matrix-vector product each.
    tol : float
        Ends where ``|G x - value x| <= tol |value|``.

    Returns
    -------
    TopEigenpair
        ``value`` is the vector's Rayleigh quotient, so up to rounding no larger than the largest eigenvalue, and
        ``residual`` away from some eigenvalue at most. NaN or inf for a matrix that has NaN or inf.

    Raises
    ------
    ValueError
        For other shapes, dtypes or devices, negative `steps` or `tol`.

    References
    ----------
    Bradbury and Fletcher, "New iterative methods for solution of the eigenproblem", Numerische Mathematik 9 (1966).
    """
    matrices, count, size = _square(matrices)
    if steps < 0 or not tol >= 0:
        raise ValueError(f"steps and tol are {steps} and {tol}; accepted: numbers >= 0")
    if start is None:
        generator = torch.Generator("cpu").manual_seed(size)
        start = torch.randn(size, generator=generator, dtype=float64, device="cpu").to(matrices)
    start = bridge.as_tensor(start, "start")
    if tuple(start.shape) not in ((count, size), (size,)):
        raise ValueError(f"start must have shape {(count, size)} or {(size,)}; got {tuple(start.shape)}")
    _same_kind(start, "start", matrices, "matrices")
    matrices, start = bridge.in_memory(matrices, "matrices"), bridge.in_memory(start, "start")
    place = bridge.place_of(matrices, "matrices")
    vector = torch.empty(count, size, dtype=matrices.dtype, device=matrices.device)
    value, residual = torch.empty(2, count, dtype=float64, device=matrices.device)
    taken = torch.empty(count, dtype=int64, device=matrices.device)
    slots = count if place.device >= 0 else place.threads
    scratch = torch.empty(slots, 4 * size, dtype=matrices.dtype, device=matrices.device)
    bridge.native.top_eigenpair(
        matrices.dtype is float64,
        *place,
        count,
        size,
        matrices.data_ptr(),
        start.data_ptr(),
        size if start.ndim == 2 else 0,
        steps,
        tol,
        vector.data_ptr(),
        value.data_ptr(),
        residual.data_ptr(),
        taken.data_ptr(),
        scratch.data_ptr(),
    )
    return TopEigenpair(value, vector, residual, taken)


def positive_definite(matrices: Tensor, shift: Tensor) -> Tensor:
    """Whether the Cholesky factorisation of ``shift I - G`` runs to its end, for every matrix G.

    Parameters
    ----------
    matrices : (F, m, m), float32 or float64
        Symmetric: only what is on the diagonal and above is read. Kept as they are.
    shift : (F,), as matrices

    Returns
    -------
    (F,), bool
        True: the textbook algorithm met finite pivots > 0 alone. This proves that the largest eigenvalue is at most
        shift and a rounding term, ``gamma_(m+3) / (1 - gamma_(m+3))`` times the trace of what was factorised, that of
        the difference ``shift - g_ii``, and underflow: see csrc/ops/positive_definite.h. False: nothing is known. A
        matrix with NaN or inf gives False.

    Raises
    ------
    ValueError
        For other shapes, dtypes or devices.

    References
    ----------
    Rump, "Verification of positive definiteness", BIT Numerical Mathematics 46 (2006).
    Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. (2002), Theorem 10.3.
    """
    matrices, count, size = _square(matrices)
    shift = _checked(shift, "shift", 1, "(F,)")
    if len(shift) != count:
        raise ValueError(f"shift must have shape ({count},), one number a matrix; got {tuple(shift.shape)}")
    _same_kind(shift, "shift", matrices, "matrices")
    matrices, shift = bridge.in_memory(matrices, "matrices"), bridge.in_memory(shift, "shift")
    place = bridge.place_of(matrices, "matrices")
    definite = torch.empty(count, dtype=torch.bool, device=matrices.device)
    padded = -(-size // 32) * 32
    each = padded * (padded + 32) // 2
    slots = place.threads
    if place.device >= 0:  # some at a time, so that the scratch memory stays within its limit
        slots = max(1, min(count, _SCRATCH // (each * matrices.element_size())))
    scratch = torch.empty(slots, each, dtype=matrices.dtype, device=matrices.device)
    at_once = slots if place.device >= 0 else max(1, count)
    for begin in range(0, count, at_once):
        some = slice(begin, begin + at_once)
        bridge.native.positive_definite(
            matrices.dtype is float64,
            *place,
            len(shift[some]),
            size,
            matrices[some].data_ptr(),
            shift[some].data_ptr(),
            definite[some].data_ptr(),
            scratch.data_ptr(),
            each,
        )
    return definite


def _checked(tensor: Tensor, name: str, dimensions: int, shape: str) -> Tensor:
    """The tensor with its numbers in memory as they read."""
    if tensor.is_cpu or tensor.is_cuda:
        tensor = bridge.as_tensor(tensor, name)
    if tensor.ndim != dimensions or (tensor.dtype is not float32 and tensor.dtype is not float64):
        raise ValueError(
            f"{name} must be float32 or float64 of shape {shape}; got {tensor.dtype} {tuple(tensor.shape)}"
        )
    bridge.check_memory(tensor, name)
    return tensor


def _square(matrices: Tensor) -> tuple[Tensor, int, int]:
    matrices = _checked(matrices, "matrices", 3, "(F, m, m)")
    count, size, across = matrices.shape
    if size != across or size < 1:
        raise ValueError(f"matrices must have shape (F, m, m), m >= 1; got {tuple(matrices.shape)}")
    return matrices, count, size


def _same_kind(tensor: Tensor, name: str, model: Tensor, model_name: str) -> None:
    if tensor.dtype is not model.dtype or tensor.device != model.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on '{tensor.device}', but {model_name} {model.dtype} on '{model.device}'; "
            "both must agree"
        )
