"""How much of a fooling image has to be laid over a clean one until the network gives that the fooling image's class.

A fooling image R is laid over a clean image Q as ``P = clip(Q + alpha R, 0, 1)``. The smallest alpha at which P has the
class of R with a high probability is small where the pattern in R outweighs what the network sees in Q.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from sparring._text import aligned, number, percent
from sparring.attacks._model import answered, held_still

ALPHAS = (*(i / 10 for i in range(10)), *range(1, 10), *range(10, 100, 10), 100, 200, 300)
"""The factors that are tried: by .1 up to 1, by 1 up to 10, by 10 up to 100, then 200 and 300."""

TOLERANCE = 1e-6  # of images outside [0, 1]


@dataclass(frozen=True)
class Group:
    """Pairs of one attack class and one true class; None stands for all classes.

    Attributes
    ----------
    pairs : how many there are.
    share : share of them for which an alpha was found.
    mean, median : of these alphas; NaN without any.
    """

    attack_class: int | None
    true_class: int | None
    pairs: int
    share: float
    mean: float
    median: float


@dataclass(frozen=True)
class Perturbations:
    """The result of :func:`perturb` on N pairs of images; tensors are where the images are.

    Attributes
    ----------
    clean, fooling
        The images that the pairs are made of, (Q, C, H, W) and (R, C, H, W).
    pairs
        int64 (N, 2): the indices of the clean and of the fooling image.
    attack_class, true_class
        int64 (N,): the network's class for the fooling image, and the label of the clean one.
    alpha
        float64 (N,): the smallest factor that works; NaN where none of those tried does.
    prob
        (N,): the probability of the attack class at that factor; NaN where there is none.
    """

    clean: Tensor
    fooling: Tensor
    pairs: Tensor
    attack_class: Tensor
    true_class: Tensor
    alpha: Tensor
    prob: Tensor

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def success(self) -> Tensor:
        """bool (N,): an alpha was found."""
        return ~self.alpha.isnan()

    def group(self, attack_class: int | None = None, true_class: int | None = None) -> Group:
        """The pairs of these classes together; None takes all classes."""
        chosen = torch.ones_like(self.success)
        for wanted, classes in ((attack_class, self.attack_class), (true_class, self.true_class)):
            if wanted is not None:
                chosen &= classes == wanted
        found = self.alpha[chosen & self.success]
        count = int(chosen.sum())
        return Group(
            attack_class,
            true_class,
            count,
            len(found) / count if count else math.nan,
            float(found.mean()),
            float(found.quantile(0.5)) if len(found) else math.nan,
        )

    def groups(self) -> list[Group]:
        """One for each (attack class, true class) that occurs, in ascending order."""
        classes = torch.stack([self.attack_class, self.true_class], 1)
        return [self.group(attack, true) for attack, true in torch.unique(classes, dim=0).tolist()]

    def table(self) -> str:
        """A line for each attack and true class: pairs, share of successes, mean and median alpha; all pairs last."""
        head = ["attack class", "true class", "pairs", "success", "mean alpha", "median alpha"]
        lines = [
            [
                "all" if group.attack_class is None else str(group.attack_class),
                "all" if group.true_class is None else str(group.true_class),
                str(group.pairs),
                "" if math.isnan(group.share) else percent(group.share),
                number(group.mean),
                number(group.median),
            ]
            for group in [*self.groups(), self.group()]
        ]
        return aligned(head, lines, left=0)

    def __str__(self) -> str:
        return self.table()

    def to_csv(self, path: str | Path) -> Path:
        """Write :meth:`groups` to a file that does not exist yet, a line each; no alpha is an empty cell."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["attack_class", "true_class", "pairs", "success", "mean_alpha", "median_alpha"])
        for group in self.groups():
            alphas = ["" if math.isnan(alpha) else repr(alpha) for alpha in (group.mean, group.median)]
            writer.writerow([group.attack_class, group.true_class, group.pairs, repr(group.share), *alphas])
        path = Path(path)
        with path.open("x", encoding="ascii") as file:
            file.write(lines.getvalue())
        return path

    def strip(self, index: Tensor | None = None) -> Tensor:
        """(n, 3, C, H, W): Q, R and P of the pairs that `index` (n,) selects, which need an alpha.

        None selects, for each attack class that ever succeeds, the first of the pairs with the smallest alpha.
        """
        if index is None:
            order = self.alpha.argsort(stable=True)[: int(self.success.sum())]  # NaN comes last
            classes = self.attack_class[order].tolist()
            index = order[[classes.index(c) for c in sorted(set(classes))]]
        elif not bool(self.success[index].all()):
            raise ValueError(f"index: no alpha was found for pair {int(index[~self.success[index]][0])}")
        clean, fooling = (images[i] for images, i in zip((self.clean, self.fooling), self.pairs[index].T, strict=True))
        alpha = self.alpha[index].to(clean.dtype).reshape(-1, *(1,) * (clean.dim() - 1))
        return torch.stack([clean, fooling, _laid_over(clean, fooling, alpha)], 1)


def perturb(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    fooling: Tensor,
    *,
    pairs: Tensor | None = None,
    alphas: Sequence[float] = ALPHAS,
    p_min: float = 0.9,
    classes: int | None = None,
    chunk_size: int = 1024,
) -> Perturbations:
    """Find the smallest alpha for which ``clip(clean + alpha * fooling, 0, 1)`` has the class of `fooling`.

    All pairs go through the factors together, in ascending order, and leave where they succeed. Where clip leaves an
    image as it was at the factor before, the network is not asked again.

    Parameters
    ----------
    model
        Network with logits (B, outputs); in eval mode meanwhile, and left as it was.
    clean, labels
        Images (Q, C, H, W) in [0, 1], and their classes, int64 (Q,).
    fooling
        Images (R, C, H, W) in [0, 1]. The class of each is the network's own answer to it.
    pairs
        int64 (N, 2), indices of a clean and a fooling image; by default all Q x R, the fooling image varying fastest.
    alphas
        The factors to try, ascending, none negative.
    p_min
        The image has the class if that is the likeliest, with a probability above this.
    classes
        Number of real classes, if the network has outputs beyond them for fooling images: the class of a fooling image
        is then the likeliest of the first so many outputs, while an image laid over has it only if no output at all is
        likelier. None: the likeliest of all outputs, so that a fooling image that is recognised as one has its fake
        class, and the question is when the clean image gets that.
    chunk_size
        Images that go through the network at once, which bounds the memory.
    """
    _check_images(clean, labels, fooling)
    _check_settings(alphas, p_min, classes, chunk_size)
    if pairs is None:
        pairs = torch.cartesian_prod(*(torch.arange(len(images), device=clean.device) for images in (clean, fooling)))
    _check_pairs(pairs, len(clean), len(fooling))
    q, r = pairs.unbind(1)
    with held_still(model), torch.no_grad():
        answers = [answered(model, some)[:, :classes].argmax(1) for some in torch.split(fooling, chunk_size)]
        attack_class = torch.cat(answers)[r]
        alpha = torch.full((len(pairs),), math.nan, dtype=torch.float64, device=clean.device)
        prob = torch.full((len(pairs),), math.nan, dtype=clean.dtype, device=clean.device)
        left = torch.arange(len(pairs), device=clean.device)
        for i, factor in enumerate(alphas):
            for some in torch.split(left, chunk_size):
                images = _laid_over(clean[q[some]], fooling[r[some]], factor)
                if i:  # an image that clip left as it was before needs no second answer
                    before = _laid_over(clean[q[some]], fooling[r[some]], alphas[i - 1])
                    changed = (images != before).flatten(1).any(1)
                    some, images = some[changed], images[changed]
                    if len(some) == 0:
                        continue
                probs = answered(model, images).softmax(1)
                wanted = attack_class[some]
                p = probs.gather(1, wanted[:, None])[:, 0]
                has_it = (probs.argmax(1) == wanted) & (p > p_min)
                alpha[some[has_it]] = factor
                prob[some[has_it]] = p[has_it].to(prob.dtype)
            left = left[alpha[left].isnan()]
            if len(left) == 0:
                break
    return Perturbations(clean, fooling, pairs, attack_class, labels[q], alpha, prob)


def _laid_over(clean: Tensor, fooling: Tensor, alpha: Tensor | float) -> Tensor:
    """P of pairs of images (n, ...), with one factor or some that broadcast."""
    return (clean + alpha * fooling).clamp(0, 1)


def _check_images(clean: Tensor, labels: Tensor, fooling: Tensor) -> None:
    for name, images in (("clean", clean), ("fooling", fooling)):
        if images.dim() < 2 or not images.is_floating_point() or images.shape[1:] != clean.shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(images.shape)} and dtype {images.dtype}; accepted: floating point images "
                "(count, C, H, W), clean and fooling of one shape"
            )
        if not bool(((images >= -TOLERANCE) & (images <= 1 + TOLERANCE)).all()):
            raise ValueError(f"{name} must be in [0, 1]; got {float(images.min()):g} to {float(images.max()):g}")
    if labels.shape != clean.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be {len(clean)} integers, got {labels.dtype} of shape {tuple(labels.shape)}")


def _check_settings(alphas: Sequence[float], p_min: float, classes: int | None, chunk_size: int) -> None:
    ascending = all(low < high for low, high in pairwise(alphas))
    if not alphas or not ascending or not 0 <= alphas[0] <= alphas[-1] < math.inf:
        raise ValueError(f"alphas must be ascending numbers from 0 on, at least one; got {tuple(alphas)}")
    if not 0 <= p_min < 1:
        raise ValueError(f"p_min must be in [0, 1), got {p_min}")
    for name, value in (("classes", classes), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def _check_pairs(pairs: Tensor, clean: int, fooling: int) -> None:
    if pairs.dim() != 2 or pairs.shape[1] != 2 or pairs.is_floating_point():
        raise ValueError(f"pairs must be integers (N, 2), got {pairs.dtype} of shape {tuple(pairs.shape)}")
    sizes = torch.tensor([clean, fooling], device=pairs.device)
    if not bool(((pairs >= 0) & (pairs < sizes)).all()):
        raise ValueError(f"pairs must be below {clean} (clean) and {fooling} (fooling), and not negative")
