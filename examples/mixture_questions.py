"""What mixtures of networks do, in numbers: transfer, votes, weights, pretraining, width, and correlation.

    python examples/mixture_questions.py path/to/mnist out

trains some mixtures on MNIST (about twenty minutes on two cores) and writes out/mixture-questions.md with its figures.
`--members`, `--model`, `--epochs`, `--images` and `--device` set another size. What is trained is kept in out/networks,
so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparring as sp
from sparring import analysis, attacks, figures, networks
from sparring.data import Dataset
from sparring.training import FitConfig, fit, fit_adversarial, fit_mixture
from sparring.training.streams import stream

EPS, WEAK = 0.3, 0.1
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5)
REGS = (0.0, 0.01, 0.1, 1.0)


class Setting(NamedTuple):
    """What everything is trained with."""

    model: str
    members: int
    config: FitConfig
    train: Dataset
    test: Dataset
    sample: Dataset
    out: Path


def main() -> None:
    setting = parsed()
    (setting.out / "networks").mkdir(parents=True, exist_ok=True)
    parts = [head(setting)]
    plain = trained(setting, "plain", attack="none", updates="independent", weights_lr=0.0)
    hardened = trained(setting, "hardened", weights_lr=0.0)
    for part in (
        transfer(setting, plain, hardened),
        majority(
            setting, {"trained on images alone, one by one": plain, f"trained against FGS {EPS}, as one": hardened}
        ),
        weights(setting),
        pretraining(setting, plain, hardened),
        width(setting, hardened),
        correlation(setting, plain, hardened),
    ):
        parts.append(part)
        print(part)
    (setting.out / "mixture-questions.md").write_text("\n".join(parts))


def parsed() -> Setting:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MNIST's four files")
    parser.add_argument("out", type=Path, help="folder for the page")
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--model", default="mlp", help="a network of sparring.networks; perceptrons are widened")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=10_000, help="training images; 0: all")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    train, test = (sp.data.load("mnist", options.data, split).to(options.device) for split in ("train", "test"))
    config = FitConfig(
        epochs=options.epochs, eps=EPS, optimizer="adam", lr=1e-3, real_images=options.images, test_eps=BUDGETS
    )
    sample = test.subset(1000, stream(0, "test"))
    return Setting(options.model, options.members, config, train, test, sample, options.out)


def members(setting: Setting) -> list[nn.Module]:
    shape, classes = setting.train.input_shape, setting.train.classes
    device = setting.train.images.device
    return [
        networks.build(setting.model, shape, classes, generator=stream(0, "member", i)).to(device)
        for i in range(setting.members)
    ]


def trained(setting: Setting, name: str, start: sp.StackedEnsemble | None = None, **changes: Any) -> sp.StackedEnsemble:
    """A mixture trained with changed settings, or read from where it was kept."""
    file = setting.out / "networks" / f"{name}.safetensors"
    if not file.exists():
        mixture = start if start is not None else sp.StackedEnsemble(members(setting))
        history = fit_mixture(mixture, setting.train, setting.test, setting.config.replace(**changes)).weights
        assert history is not None
        save_file({"weights": history}, setting.out / "networks" / f"{name}-weights.safetensors")
        mixture.save(file)
    return sp.StackedEnsemble.load(file, members(setting)[0]).to(setting.train.images.device).eval()


def moved(setting: Setting, model: nn.Module, eps: float) -> Tensor:
    adversarial = attacks.fgsm(model, setting.sample.images, setting.sample.labels, eps=eps)
    assert isinstance(adversarial, Tensor)
    return adversarial


def accuracy(setting: Setting, model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == setting.sample.labels).double().mean())


def head(setting: Setting) -> str:
    config = setting.config
    count = config.real_images or len(setting.train)
    return (
        "# Questions about mixtures\n\n"
        f"{setting.members} networks `{setting.model}` on MNIST, {count} training images, {config.epochs} epochs of "
        f"Adam ({config.lr:g}), one seed; attacks are the fast gradient sign method on 1000 test images. Made by "
        "`python examples/mixture_questions.py path/to/mnist out`, which writes this page.\n"
    )


def transfer(setting: Setting, plain: sp.StackedEnsemble, hardened: sp.StackedEnsemble) -> str:
    nets = {str(i): plain.member(i).eval() for i in range(len(plain))}
    count, lines = len(nets), []
    for eps in (WEAK, EPS):
        attack = partial(attacks.fgsm, eps=eps)
        matrix = sp.transfer_matrix(nets, {**nets, "*": hardened}, setting.sample.images, setting.sample.labels, attack)
        if eps == WEAK:
            matrix.plot(setting.out / "transfer.png")
        error = matrix.error[:, :count]
        others = error[~torch.eye(count, dtype=torch.bool)]
        worst = int((others - others.mean()).abs().argmax())
        low, high = (1 - matrix.interval()[:, :count][~torch.eye(count, dtype=torch.bool)][worst]).flip(0).tolist()
        own, other = pc(error.diagonal().mean()), pc(others.mean())
        ranges = f"{pc(others.min())} to {pc(others.max())} | {pc(low)} to {pc(high)}"
        lines.append(f"| {eps} | {own} | {other} | {ranges} | {pc(matrix.error[:, count].mean())} |")
    return (
        "## Do adversarial images transfer between all pairs?\n\n"
        f"Networks trained on images alone ({pc(1 - matrix.clean[:count].mean())} clean error), and the error on "
        "images made for one of them: its own, another network's (mean, range over the pairs, 95 % interval of the "
        "pair furthest from the mean), and that of the mixture trained against the attack.\n\n"
        "| FGS | the network itself | another one | all pairs | interval | the mixture |\n"
        "|---:|---:|---:|---:|---:|---:|\n"
        + "\n".join(lines)
        + f"\n\nWith {WEAK}, each network on the images made for each (*: the mixture):\n\n"
        "![Error of every network on the images made for every other](transfer.png)\n"
    )


def majority(setting: Setting, mixtures: dict[str, sp.StackedEnsemble]) -> str:
    lines = [
        "## Does the majority survive an attack on the mixture?\n",
        "Accuracy where the attack is on the mean probabilities: of these, of the majority, of a member on average.\n",
        "| mixture | | clean | " + " | ".join(f"FGS {eps:g}" for eps in BUDGETS) + " |",
        "|---|---|" + "---:|" * (1 + len(BUDGETS)),
    ]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name, mixture in mixtures.items():
        rows: dict[str, list[str]] = {"mean probabilities": [], "majority": [], "a member": []}
        for eps in (0.0, *BUDGETS):
            images = moved(setting, mixture, eps) if eps else setting.sample.images
            with torch.no_grad():
                logits = mixture.member_logits(images)
            right = logits.argmax(2) == setting.sample.labels
            for row, found in (
                ("mean probabilities", analysis.votes(logits, "probs")),
                ("majority", analysis.votes(logits)),
            ):
                rows[row].append(pc((found.label == setting.sample.labels).double().mean()))
            rows["a member"].append(pc(right.double().mean()))
            if eps == EPS and mixture is [*mixtures.values()][-1]:
                curves = coverage(logits, setting.sample.labels)
        lines += [f"| {name} | {row} | {' | '.join(cells)} |" for row, cells in rows.items()]
    save(
        setting,
        "coverage",
        figures.curves(figures.LIGHT, curves, x="share answered", y="right", shares=True, whole=False),
    )
    return "\n".join(
        [*lines, "", f"If the mixture trained against the attack leaves out what it is least sure of (FGS {EPS}), by "
         "its probability, or by the divergence of its members' probabilities:", "",
         "![Accuracy by the share of images that are answered](coverage.png)", ""]
    )  # fmt: skip


def coverage(logits: Tensor, labels: Tensor) -> dict[str, tuple[list[float], list[float]]]:
    """Accuracy against the share answered, from a twentieth on, before which single images decide."""
    found, curves = analysis.votes(logits, "probs"), {}
    for name, value in (("probability", found.confidence), ("divergence", -found.divergence)):
        curve = analysis.accuracy_coverage(value, found.label == labels)
        shares = [step / 40 for step in range(2, 41)]
        curves[name] = (shares, [curve.at(share) for share in shares])
    return curves


def weights(setting: Setting) -> str:
    series, lines = {}, []
    for reg in REGS:
        mixture = trained(setting, f"reg-{reg:g}", reg=reg)
        history = load_file(setting.out / "networks" / f"reg-{reg:g}-weights.safetensors")["weights"]
        steps = list(range(0, len(history), max(1, len(history) // 60)))
        series[f"reg {reg:g}"] = (steps, history[steps].amax(1).tolist())
        last = history[-1]
        effective = float((-torch.special.xlogy(last, last).sum()).exp())
        images = moved(setting, mixture, EPS)
        lines.append(
            f"| {reg:g} | {float(last.min()):.3f} | {float(last.max()):.3f} | {effective:.1f} | "
            f"{pc(accuracy(setting, mixture, setting.sample.images))} | {pc(accuracy(setting, mixture, images))} |"
        )
    save(setting, "weights", figures.curves(figures.LIGHT, series, x="step", y="largest weight"))
    heads = f"| reg | smallest | largest | members that count | clean | FGS {EPS} |"
    table = [heads, "|---:|---:|---:|---:|---:|---:|", *lines]
    return (
        "## How do the weights move?\n\n"
        "Members and weights trained jointly against the attack, the weights from equal ones, with "
        "`reg * mean(-log w)` added (Adam, .01). Members that count: exp of the entropy.\n\n"
        + "\n".join(table)
        + "\n\n"
        "![The largest weight over the steps](weights.png)\n"
    )


def pretraining(setting: Setting, plain: sp.StackedEnsemble, hardened: sp.StackedEnsemble) -> str:
    copy = sp.StackedEnsemble([plain.member(i) for i in range(len(plain))])
    first = trained(setting, "pretrained", start=copy, weights_lr=0.0)
    twice = trained(setting, "hardened-twice", epochs=2 * setting.config.epochs, weights_lr=0.0)
    rows = []
    for name, mixture in (
        ("none", hardened),
        ("none, as many epochs in all", twice),
        (f"{setting.config.epochs} epochs, one by one", first),
    ):
        images = moved(setting, mixture, EPS)
        clean = accuracy(setting, mixture, setting.sample.images)
        rows.append(f"| {name} | {pc(clean)} | {pc(accuracy(setting, mixture, images))} |")
    return (
        "## Is pretraining necessary?\n\n"
        f"The mixture trained as one against FGS {EPS}, from new members or from members that were first trained on "
        "images alone.\n\n"
        f"| pretraining | clean | FGS {EPS} |\n|---|---:|---:|\n" + "\n".join(rows) + "\n"
    )


def width(setting: Setting, hardened: sp.StackedEnsemble) -> str:
    """One network with as many parameters as all members."""
    single = members(setting)[0]
    wanted = setting.members * sum(p.numel() for p in single.parameters())
    inputs, classes = setting.train.images[0].numel(), setting.train.classes
    hidden = max(1, round((((inputs + classes) ** 2 + 4 * wanted) ** 0.5 - inputs - classes) / 2))
    wide = networks.mlp((inputs, hidden, hidden, classes))
    rows = []
    for name, model in (("one", single), (f"one with {hidden} units a layer", wide.to(setting.train.images.device))):
        for training, function in (("images alone", fit), (f"FGS {EPS}", fit_adversarial)):
            file = setting.out / "networks" / f"{name.replace(' ', '-')}-{function.__name__}.safetensors"
            own = again(model)
            if file.exists():
                networks.load_weights(own, file)
            else:
                function(own, setting.train, setting.test, setting.config)
                save_file(own.state_dict(), file)
            rows.append((name, training, own.eval()))
    rows.append((f"{setting.members} as one", f"FGS {EPS}", hardened))
    lines = []
    for name, training, model in rows:
        numbers = [
            pc(accuracy(setting, model, moved(setting, model, eps) if eps else setting.sample.images))
            for eps in (0.0, *BUDGETS)
        ]
        count = sum(p.numel() for p in model.parameters())
        lines.append(f"| {name} | {count:,} | {training} | {' | '.join(numbers)} |")
    heads = " | ".join(["clean", *(f"FGS {eps:g}" for eps in BUDGETS)])
    return (
        "## Many networks, or one that is as large?\n\n"
        f"| networks | parameters | trained on | {heads} |\n|---|---:|---|{'---:|' * (1 + len(BUDGETS))}\n"
        + "\n".join(lines)
        + "\n"
    )


def again(model: nn.Module) -> nn.Module:
    """A copy, to be trained from the same start."""
    import copy

    return copy.deepcopy(model)


def correlation(setting: Setting, plain: sp.StackedEnsemble, hardened: sp.StackedEnsemble) -> str:
    labels, rows = setting.sample.labels, []
    for name, mixture in (("images alone, one by one", plain), (f"FGS {EPS}, as one", hardened)):
        for kind, images in (("clean", setting.sample.images), (f"FGS {EPS}", moved(setting, mixture, EPS))):
            together = analysis.agreement(mixture, images, labels)
            gradients = analysis.gradient_correlation(mixture, images, labels)
            pairs = [together.between(together.correlation), together.between(together.jaccard), gradients.between()]
            cells = " | ".join(f"{mean:.2f} ± {spread:.2f}" for mean, spread in pairs)
            rows.append(f"| {name} | {kind} | {pc(together.accuracy.mean())} | {cells} |")
    return (
        "## Are errors and gradients correlated?\n\n"
        "Over all pairs of members, mean ± standard deviation: correlation of being right, Jaccard similarity of the "
        "misclassified images, and cosine of the input gradients. The original found .31 for being right on real "
        "images, .19 on adversarial ones, and no correlation of gradients.\n\n"
        "| trained on | tested on | a member is right | correlation | Jaccard | cosine of gradients |\n"
        "|---|---|---:|---:|---:|---:|\n" + "\n".join(rows) + "\n"
    )


def pc(share: Tensor | float) -> str:
    return f"{100 * float(share):.1f} %"


def save(setting: Setting, name: str, figure: Any) -> None:
    figure.savefig(setting.out / f"{name}.png", dpi=figures.DPI)


if __name__ == "__main__":
    main()
