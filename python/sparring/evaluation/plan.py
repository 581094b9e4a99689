"""Which attacks run with which settings: what the user wrote, turned into calls and checked before any of them runs."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sparring import attacks as library
from sparring.attacks._norms import COUNTED, NORMED, Norm, norm_name

Kind = Literal["noise", "one-step", "iterative", "black-box", "other"]
Eps = float | Tensor
Sizes = Eps | Sequence[float]
Entry = str | Callable[..., Any] | tuple[str | Callable[..., Any], Mapping[str, Any]] | Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """An attack that goes by a name: a function of `sparring.attacks`, settings, and the norms it works in.

    One that is `nearest` looks for the smallest perturbation, and may return one beyond eps.
    """

    function: str
    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = NORMED
    nearest: bool = False


NAMES: Mapping[str, Known] = {
    "noise": Known("uniform_noise", "noise", {"repeats": 10}),
    "gaussian-noise": Known("gaussian_noise", "noise", {"repeats": 10}),
    "fgsm": Known("fgsm", "one-step"),
    "fgm": Known("fgm", "one-step", norms=("L2",)),
    "pgd": Known("pgd", "iterative"),
    "slide": Known("slide", "iterative", norms=("L1",)),
    "apgd": Known("apgd", "iterative"),
    "apgd-ce": Known("apgd", "iterative", {"loss": "ce"}),
    "apgd-margin": Known("apgd", "iterative", {"loss": "margin"}),
    "apgd-dlr": Known("apgd", "iterative", {"loss": "dlr"}),
    "apgd-t": Known("apgd", "iterative", {"loss": "dlr", "target_classes": 9}),
    "minimal": Known("minimal", "iterative", norms=("Linf", "L2", "L1", "L0", "pixels"), nearest=True),
    "alma": Known("alma", "iterative", norms=("L2", "L1"), nearest=True),
    "ddn": Known("ddn", "iterative", nearest=True),
    "pdpgd": Known("pdpgd", "iterative", norms=("L2", "L1"), nearest=True),
    "fab": Known("fab", "iterative", nearest=True),
    "fab-t": Known("fab", "iterative", {"target_classes": 9}, nearest=True),
    "sigma-zero": Known("sigma_zero", "iterative", norms=("L0", "pixels"), nearest=True),
    "sparse-pgd": Known("sparse_pgd", "iterative", norms=COUNTED),
    "sparse-rs": Known("sparse_rs", "black-box", norms=COUNTED),
    "square": Known("square", "black-box"),
}
"""The names that `attacks` may hold. apgd-t and fab-t aim at each of the nine likeliest wrong classes."""

BATTERIES: Mapping[str, tuple[Entry, ...]] = {
    "Linf": (
        "noise", "fgsm", "apgd-ce", ("minimal", {"steps": 100}), ("apgd-margin", {"restarts": 3}),
        ("apgd-t", {"steps": 30}), ("square", {"queries": 200}),
    ),
    "L2": (
        "noise", "fgm", "apgd-ce", ("apgd-ce", {"name": "apgd-ce inward", "schedule": library.INWARD}),
        ("minimal", {"steps": 300}), ("apgd-t", {"target_classes": 3, "schedule": library.INWARD}),
        ("square", {"queries": 200}),
    ),
    "L1": (
        "noise", "fgsm", ("apgd-ce", {"restarts": 3}), ("minimal", {"steps": 160}),
        ("apgd-t", {"target_classes": 5}), "pdpgd", ("square", {"queries": 200}),
    ),
    **dict.fromkeys(COUNTED, (("sparse-rs", {"queries": 1000}), ("sigma-zero", {"steps": 300}), "sparse-pgd")),
}  # fmt: skip
"""The standard audit in each norm: in Linf, L2 and L1 two weak attacks, which must not do better than
the strong ones, these, and one without gradients; in L0 what changes few entries, or pixels.

Drawn on networks trained with and without attacks; see `docs/evaluation.md` for what each finds, and in how many steps.
"""


@dataclass(frozen=True)
class Plan:
    """One attack under one threat model: what is called, and with what."""

    name: str
    kind: Kind
    call: Callable[..., Any]
    norm: str
    eps: Eps
    options: Mapping[str, Any]
    accepts: frozenset[str]
    nearest: bool = False
    shown: str = ""  # eps in words, told apart from those of other threat models; empty: `eps_name`
    added: bool = False  # by the evaluation itself, for what others left

    @property
    def key(self) -> Key:
        """The threat model."""
        return threat_key(self.norm, self.eps)

    @property
    def threat(self) -> str:
        """The threat model in words."""
        return threat_name(self.norm, self.eps, self.shown)

    def arguments(self, rows: Tensor, count: int, context: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments for the examples `rows` of `count`: settings of one entry an example are cut to them.

        The function gets what it has parameters for of eps, norm and `context`, and all of its own options.
        """
        arguments = {"eps": self.eps, "norm": self.norm, **context}
        arguments = {name: value for name, value in arguments.items() if name in self.accepts} | dict(self.options)
        for name in ("eps", "targets"):
            value = arguments.get(name)
            if isinstance(value, Tensor) and value.dim() == 1 and len(value) == count:
                arguments[name] = value[rows.to(value.device)]
        return arguments


def make_plans(
    entries: Iterable[Entry] | None,
    norm: Norm | None,
    eps: Sizes | Mapping[Any, Sizes] | None,
    outputs: int,
    count: int,
) -> list[Plan]:
    """The attacks to run, each with its own name and threat model, one threat model after the other."""
    default = norm_name(math.inf if norm is None else norm)
    if isinstance(eps, Mapping):
        if norm is not None:
            raise ValueError("norm is left out where eps is given norm by norm")
        sizes = {norm_name(key): value for key, value in eps.items()}
    else:
        sizes = {} if eps is None else {default: eps}
    threats = [
        (name, _check_eps("eps", value, count))
        for name, values in sizes.items()
        for value in (values if isinstance(values, list | tuple) else [values])
    ]
    if entries is None:
        if not threats:
            raise ValueError("eps is missing: how far may an attack move an image? Such as eps=0.3, or {'Linf': 0.3}")
        plans = [
            plan
            for threat in threats
            for name in BATTERIES[threat[0]]
            for plan in _plans(_for_few_classes(name, outputs), [threat], default, count)
        ]
    else:
        if isinstance(entries, str | Mapping) or callable(entries) or not isinstance(entries, Iterable):
            raise ValueError("attacks is a list of attacks; for a single one, a list of one")
        plans = [plan for entry in entries for plan in _plans(entry, threats, default, count)]
    if not plans:
        raise ValueError("attacks is empty; None runs the default ones")
    order = list(dict.fromkeys(plan.key for plan in plans))
    return _with_own_names(_told_apart(sorted(plans, key=lambda plan: order.index(plan.key))))


def added(name: str, beside: Plan, options: Mapping[str, Any], outputs: int) -> Plan:
    """A known attack under the threat model of another plan, on what the attacks before it leave."""
    attack, fitted = _taken_apart(_for_few_classes(name, outputs))
    more = f"{attack} ({' and '.join(WITH[option] for option in options)})" if options else attack
    entry = {"attack": attack, "name": more, **fitted, **options}
    (plan,) = _plans(entry, [(beside.norm, beside.eps)], beside.norm, 0)
    return replace(plan, shown=beside.shown, added=True)


WITH = {"backward": "seen through", "eot": "mean of draws"}
"""Of an added attack, what its options mean."""

Key = tuple[str, float | tuple[float, ...]]


def threat_key(norm: str, eps: Eps) -> Key:
    """What a threat model is told apart by: its numbers."""
    return norm, tuple(eps.double().tolist()) if isinstance(eps, Tensor) and eps.dim() else float(eps)


def threat_name(norm: str, eps: Eps, shown: str = "") -> str:
    """Such as "Linf, eps 0.3"; where every example has an eps of its own, "Linf, eps 0.1-0.3"."""
    return f"{norm}, eps {shown or eps_name(eps)}"


def eps_name(eps: Eps, digits: int = 4) -> str:
    """The number, or the range of one number an example."""
    if isinstance(eps, Tensor) and eps.dim():
        low, high = (float(end) for end in eps.aminmax())
        return f"{low:.{digits}g}" if low == high else f"{low:.{digits}g}-{high:.{digits}g}"
    return f"{float(eps):.{digits}g}"


def _told_apart(plans: list[Plan]) -> list[Plan]:
    """With as many digits of eps as it takes to tell the threat models apart; where none do, they are numbered."""
    threats = {plan.key: plan for plan in plans}

    def shown(digits: int) -> list[tuple[str, str]]:
        return [(plan.norm, eps_name(plan.eps, digits)) for plan in threats.values()]

    digits = max(range(4, 18), key=lambda digits: (len({*shown(digits)}), -digits))
    seen: dict[tuple[str, str], int] = {}
    names: dict[Key, str] = {}
    for key, name in zip(threats, shown(digits), strict=True):
        seen[name] = seen.get(name, 0) + 1
        names[key] = name[1] if seen[name] == 1 else f"{name[1]} ({seen[name]})"
    return [replace(plan, shown=names[plan.key]) for plan in plans]


def _for_few_classes(entry: Entry, outputs: int) -> Entry:
    """The targeted loss needs four outputs; below, the margin of the two likeliest says the same."""
    attack, options = _taken_apart(entry)
    if attack != "apgd-t" or outputs > 9:
        return entry
    if outputs >= 4:
        return attack, {**options, "target_classes": min(outputs - 1, options.get("target_classes", outputs))}
    return "apgd-margin", {key: value for key, value in options.items() if key != "target_classes"}


def _plans(entry: Entry, threats: Sequence[tuple[str, Eps]], default: str, count: int) -> list[Plan]:
    """One entry, under its own threat model or under every one that it can work in."""
    attack, options = _taken_apart(entry)
    if isinstance(attack, str):
        if attack not in NAMES:
            raise ValueError(f"attacks: there is no {attack!r}; there are {', '.join(NAMES)}, or pass a function")
        known = NAMES[attack]
        call, name, kind, norms, nearest = (
            getattr(library, known.function), attack, known.kind, known.norms, known.nearest
        )  # fmt: skip
        options = {**known.options, **options}
    else:
        call, name, kind, norms, nearest = attack, *_described(attack)
        bound: dict[str, Any] = attack.keywords if isinstance(attack, functools.partial) else {}
        options = {**bound, **options}
    name = str(options.pop("name", name))
    if options.get("steps") == 1 and kind == "iterative":
        kind = "one-step"
    if options.get("targets") is not None:
        kind = "other"  # to reach one class is harder than to leave one: it need not do better than what does that
    parameters = inspect.signature(call).parameters
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    accepts = frozenset([*parameters, *(("eps", "norm", "bounds", "generator") if accepts_any else ())])
    norm = norm_name(options["norm"]) if "norm" in options else None
    eps = options.get("eps")
    # Where the function has no such parameter, they say what its answers are held to.
    options = {key: value for key, value in options.items() if key in accepts or key not in ("norm", "eps")}
    if norm is not None and norms and norm not in norms:
        raise ValueError(f"attack {name!r} works in {' and '.join(norms)}, not in {norm}")
    unknown = [] if accepts_any else [option for option in options if option not in accepts]
    if unknown:
        raise ValueError(f"attack {name!r} has no option {unknown[0]!r}; it has {', '.join([*parameters][3:])}")
    norm = norm if eps is None or norm is not None else default if not norms or default in norms else norms[0]
    if eps is not None and norm is not None:
        chosen = [(norm, _check_eps(f"attack {name!r}: eps", eps, count))]
    elif norms or norm is not None or "norm" in accepts:
        chosen = [threat for threat in threats if threat[0] in ([norm] if norm else norms or [threat[0]])]
    else:  # a function that knows no norm is held to the first threat model
        chosen = list(threats[:1])
    if threats and not chosen:
        raise ValueError(f"attack {name!r} works in {norm or ' and '.join(norms)}: give eps for that norm")
    if not chosen:
        raise ValueError(f"attack {name!r}: eps is missing; give evaluate(..., eps=...) or ({name!r}, {{'eps': ...}})")
    return [Plan(name, kind, call, norm_, eps_, options, accepts, nearest) for norm_, eps_ in chosen]


def _taken_apart(entry: Entry) -> tuple[str | Callable[..., Any], dict[str, Any]]:
    """The attack and its options, whichever way they are written."""
    if isinstance(entry, Mapping):
        options = dict(entry)
        attack = options.pop("attack", None)
    elif isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping):
        attack, options = entry[0], dict(entry[1])
    else:
        attack, options = entry, {}
    if not isinstance(attack, str) and not callable(attack):
        raise ValueError(
            "attacks holds names, functions f(model, x, y, ...), pairs (name or function, options) and dicts with "
            f"the key 'attack'; not {entry!r}"
        )
    return attack, options


def _described(attack: Callable[..., Any]) -> tuple[str, Kind, tuple[str, ...], bool]:
    """Name, kind, norms of a function, and if it is `nearest`; others' are of kind "other", their norms unknown."""
    function = attack
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    for known in NAMES.values():
        if getattr(library, known.function, None) is function:
            return name, known.kind, known.norms, known.nearest
    return name, "other", (), False


def _check_eps(name: str, eps: Any, count: int) -> Eps:
    if isinstance(eps, Tensor):
        if eps.dim() == 0:
            eps = float(eps)
        elif tuple(eps.shape) != (count,):
            raise ValueError(f"{name} has shape {tuple(eps.shape)}; accepted: a number, or ({count},)")
    elif isinstance(eps, bool) or not isinstance(eps, int | float):
        raise ValueError(f"{name} is {eps!r}; accepted: a number, or a tensor ({count},)")
    values = eps if isinstance(eps, Tensor) else torch.as_tensor(eps, device="cpu")
    if not bool(((values >= 0) & (values < math.inf)).all()):
        raise ValueError(f"{name} is {eps!r}; accepted: finite and not negative")
    return eps if isinstance(eps, Tensor) else float(eps)


def _with_own_names(plans: list[Plan]) -> list[Plan]:
    """No two with the same name and threat model: the second is called "pgd (2)"."""
    seen: dict[tuple[str, Key], int] = {}
    named = []
    for plan in plans:
        key = (plan.name, plan.key)
        seen[key] = seen.get(key, 0) + 1
        named.append(plan if seen[key] == 1 else replace(plan, name=f"{plan.name} ({seen[key]})"))
    return named
