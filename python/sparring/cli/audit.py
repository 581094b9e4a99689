"""The command `sparring audit`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sparring import _files, _signals
from sparring.cli import _common as common
from sparring.cli import _ending as ending
from sparring.cli import _printing as printing
from sparring.cli import _weights

if TYPE_CHECKING:
    from torch import nn

    from sparring.analysis import Bracket
    from sparring.evaluation import AttackRow, Evaluation
    from sparring.runs import Run

RUN, DATA, ATTACKS = "Run", "Data and network", "Attacks"

# Where nothing else is said: the radii that the data set is usually attacked with.
USUAL_EPS = {
    "digits": {"Linf": 0.3, "L2": 2.0, "L1": 5.0, "L0": 3.0, "pixels": 3.0},
    "mnist": {"Linf": 0.3, "L2": 2.0, "L1": 10.0, "L0": 10.0, "pixels": 10.0},
    "cifar10": {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0, "L0": 24.0, "pixels": 10.0},
}

HELP = (
    "Attack a trained network, and say what share of the images withstands.\n\n"
    "Every attack is run on the test images that the network classifies correctly; what it returns is classified and "
    "measured again. The run's folder then holds results.json, the adversarial examples, figures and "
    "[bold]report.html[/bold]."
)

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]sparring audit weights.safetensors --arch net.py:Net --data mnist --data-dir data/mnist[/cyan]
      a network of yours: Net() or Net(outputs) has to make it

  [cyan]sparring audit weights.safetensors --arch lenet5 --data mnist --norm L1 --eps 10[/cyan]
      a built-in network, in another norm

  [cyan]sparring audit weights.safetensors --arch net.py:Net --attacks fgsm,pgd,apgd-t --images 0[/cyan]
      only these attacks, on all test images
"""


def audit(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.safetensors", help="File of the weights.", show_default=False)
    ],
    arch: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE:CLASS",
            help="The network: one of sparring.networks (mlp, cnn, lenet5, ...), or a class in a Python file, called "
            "with no argument, or with the number of classes if it needs one.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="digits|mnist|mnist-non-sparse|cifar10", help="Test images.", rich_help_panel=DATA)
    ] = "digits",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with the data's files; by default MNIST is downloaded.", rich_help_panel=DATA),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="So many, from the first; 0: all.", rich_help_panel=DATA)] = 500,
    preprocessing: Annotated[
        str | None,
        typer.Option(
            metavar="MEAN,STD",
            help="Between the images in \\[0, 1] and the network, such as 0.1307,0.3081; for colours three means, then "
            "three deviations.",
            rich_help_panel=DATA,
        ),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="apgd-ce, apgd-t, minimal, square, ..., separated by commas. "
            "[dim]default: the standard audit of each norm[/dim]",
            rich_help_panel=ATTACKS,
        ),
    ] = None,
    norm: Annotated[
        str, typer.Option(metavar="LIST", help="Linf, L2, L1, L0, pixels, or several of them.", rich_help_panel=ATTACKS)
    ] = "Linf,L2,L1",
    eps: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="How far an image may be moved, for pixels in \\[0, 1]: a number for each norm, or several for one "
            "norm. [dim]default: what is usual for the data[/dim]",
            rich_help_panel=ATTACKS,
        ),
    ] = None,
    worst_case: Annotated[
        bool,
        typer.Option(
            "--worst-case",
            help="With --attacks: attack only what the attacks before have left, as the standard audit does.",
            rich_help_panel=ATTACKS,
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Run every attack on all images.", rich_help_panel=ATTACKS)
    ] = False,
    bracket: Annotated[
        bool,
        typer.Option(
            "--bracket/--no-bracket",
            help="For each image also the certified radius and the smallest perturbation found, in Linf, L2 and L1 as "
            "far as --norm names them. Takes about as long as the audit.",
            rich_help_panel=ATTACKS,
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.", rich_help_panel=ATTACKS)] = 250,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; by default audit-<number>.", rich_help_panel=RUN)
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder that holds the runs.", rich_help_panel=RUN)] = Path("runs"),
    seed: Annotated[int, typer.Option(help="All randomness follows from it.", rich_help_panel=RUN)] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of torch. [dim]default: torch's choice[/dim]", rich_help_panel=RUN),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to work, such as cpu or cuda.", rich_help_panel=RUN)] = "cpu",
) -> None:
    """See `HELP`."""
    import torch

    from sparring.report import audit as results
    from sparring.runs import Run, check_new

    console, output = Console(), printing.Tolerant()
    with common.threads_restored():
        with ending.users_errors():
            if name is not None:
                _discard_unfinished(runs_dir / name)
            check_new(runs_dir, name or "audit", numbered=name is None)
            threats = _threats(norm, eps, data)
            sides = _sides(norm, threats) if bracket else []
            where = common.device(device)
            test = common.data_set(data, data_dir, "test").to(where)
            test = test if images in (0, len(test)) else test[: min(images, len(test))]
            network = _weights.load_network(model, arch, test.input_shape, test.classes).to(where)
            torch.set_num_threads(threads or torch.get_num_threads())
            wanted = {
                "attacks": attacks and [part.strip() for part in attacks.split(",")], "eps": threats,
                "preprocessing": _preprocessing(preprocessing, test.input_shape[0]), "worst_case": worst_case or None,
                "full": full,
                "batch_size": batch_size, "seed": seed, **({"bracket": sides} if sides else {}),
            }  # fmt: skip
            config = {
                "command": common.command("audit", common.given(context)),
                "data": {
                    "name": data, "folder": None if data_dir is None else str(data_dir.resolve()),
                    "shape": list(test.input_shape), "classes": test.classes, "images": len(test),
                },
                "weights": {"file": str(model.resolve()), "sha256": common.digest(model)},
                "network": common.located(arch),
                "device": device,
                "threads": torch.get_num_threads(),
                "audit": wanted,
                "versions": common.versions(),
            }  # fmt: skip
            run = Run.create(runs_dir, name or "audit", config, numbered=name is None)
        with _until_results(run, console):
            images_of = f"{printing.data(arch)} on {len(test)} images of {printing.data(data)}"
            with output:
                printing.line(console, f"Run [bold]{printing.data(run.path)}[/bold]: {images_of}")
            with ending.users_errors():
                found = _evaluate(network, test.images, test.labels, wanted, console, output)
                brackets = _brackets(network, test.images, test.labels, wanted, found, console)
            try:
                results.save(run, found, test.images, brackets)
            except OSError as error:
                raise OSError(f"the results cannot be written: {printing.reason(error)}") from error
            finally:
                with output:
                    _print(found, brackets, console)
        with ending.drawing(run.path, console):
            page = _written(run)
    with output:
        printing.line(console, f"Report: {printing.data(page)}")
    if output.error is not None:
        why = f"the output cannot be written: {printing.reason(output.error)}"
        printing.error(f"{why}; the results are kept in {run.path}")
        raise typer.Exit(1)


@contextlib.contextmanager
def _until_results(run: Run, console: Console) -> Iterator[None]:
    """Lock a run until it has results; one that comes to have none leaves no folder."""
    from sparring.report import audit as results

    try:
        with run:
            with contextlib.suppress(OSError):
                (run.path / "checkpoints").rmdir()  # an audit has none
            yield
    except KeyboardInterrupt as error:
        if results.exist(run.path):
            with ending.drawing(run.path, console):
                raise
        _remove(run.path)
        what = f"{printing.data(run.path)} stays, without results" if run.path.exists() else "this one leaves no folder"
        printing.line(console, f"\nInterrupted; an audit cannot be resumed, and {what}.")
        raise typer.Exit(_signals.status(error)) from None
    finally:
        if results.exist(run.path):
            (run.path / ".lock").unlink(missing_ok=True)
        else:
            _remove(run.path)


def _discard_unfinished(path: Path) -> None:
    """Remove what an audit that was killed left: a run without results, or anything else, that no process works on."""
    from sparring.report import audit as results
    from sparring.runs import Run

    if not (path / "config.json").is_file() or results.exist(path):
        return
    others = {file.name for file in path.iterdir()} - {"config.json", "checkpoints", ".lock"}
    run = Run.open(path)
    if "audit" in run.config and all(name.startswith(".") and name.endswith(".part") for name in others):
        with run:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder; under its name it goes at once, so that none is ever half there."""
    gone = _files.draft_of(path)
    with contextlib.suppress(OSError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _evaluate(
    network: nn.Module, x: Any, y: Any, wanted: dict[str, Any], console: Console, output: printing.Tolerant
) -> Evaluation:
    import warnings

    from sparring.attacks import GradientMaskingWarning
    from sparring.evaluation import evaluate
    from sparring.report.audit import KEPT

    def on_row(row: AttackRow) -> None:
        with output:
            _print_row(row, console)

    with common.progress_bar(console) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientMaskingWarning)  # they are printed below the table
        return evaluate(
            network, x, y, wanted["attacks"], eps=wanted["eps"], preprocessing=wanted["preprocessing"],
            worst_case=wanted["worst_case"], full=wanted["full"], batch_size=wanted["batch_size"],
            seed=wanted["seed"], keep=KEPT, on_progress=bar, on_row=on_row,
        )  # fmt: skip


def _brackets(
    network: nn.Module, x: Any, y: Any, wanted: dict[str, Any], found: Evaluation, console: Console
) -> dict[str, Bracket]:
    import warnings

    from sparring.analysis import brackets
    from sparring.report.bracket import completed

    if not wanted.get("bracket"):
        return {}
    with common.progress_bar(console) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of masked gradients, as above; contradictions are printed and in the report
        sides = brackets(
            network, x, y, wanted["bracket"], preprocessing=wanted["preprocessing"], batch_size=wanted["batch_size"],
            on_progress=bar,
        )  # fmt: skip
        return completed(sides, found)


def _sides(norm: str, threats: dict[str, list[float]]) -> list[str]:
    """The norms of brackets."""
    from sparring.analysis.bracket import ORDERS

    norms = [name for name in threats if name in ORDERS]
    if not norms:
        raise ValueError(f"--bracket: there are brackets in {', '.join(ORDERS)}, but --norm is {norm}")
    return norms


def _written(run: Run) -> Path:
    from sparring import report

    return report.write(run)


def _threats(norm: str, eps: str | None, data: str) -> dict[str, list[float]]:
    """The eps of each norm, from two lists."""
    from sparring.attacks._norms import norm_name

    try:
        norms = [norm_name(int(part) if part.strip().isdigit() else part.strip()) for part in norm.split(",")]
    except ValueError as error:
        raise ValueError(f"--norm {norm}: {error}") from None
    usual = USUAL_EPS.get(data.removesuffix("-non-sparse"), USUAL_EPS["digits"])
    sizes = [usual[name] for name in norms] if eps is None else _numbers("--eps", eps)
    if len(norms) == 1:
        norms *= len(sizes)
    if len(sizes) != len(norms):
        raise ValueError(f"--eps {eps}: {len(sizes)} numbers for {len(norms)} norms ({', '.join(norms)}); one for each")
    if len({*zip(norms, sizes, strict=True)}) != len(norms):
        raise ValueError(f"--norm {norm}, --eps {eps}: each pair once")
    threats: dict[str, list[float]] = {}
    for name, size in zip(norms, sizes, strict=True):
        threats.setdefault(name, []).append(size)
    return threats


def _preprocessing(text: str | None, channels: int) -> dict[str, list[float]] | None:
    if text is None:
        return None
    numbers = _numbers("--preprocessing", text)
    if len(numbers) not in (2, 2 * channels):
        raise ValueError(
            f"--preprocessing {text}: {len(numbers)} numbers; wanted are a mean and a deviation, or {channels} "
            "means, then as many deviations"
        )
    half = len(numbers) // 2
    return {"mean": numbers[:half], "std": numbers[half:]}


def _numbers(option: str, text: str) -> list[float]:
    """Numbers separated by commas; a fraction such as 8/255 is one."""
    numbers = []
    for part in text.split(","):
        above, slash, below = part.partition("/")
        try:
            numbers.append(float(above) / float(below) if slash else float(above))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{option} {text}: {part.strip()!r} is no number") from None
    return numbers


def _print_row(row: AttackRow, console: Console) -> None:
    if not console.is_terminal:
        from sparring._text import percent

        line = f"  {row.name}, {row.threat}: robust accuracy {percent(row.accuracy)}, {row.seconds:.1f} s"
        printing.line(console, printing.data(line))


def _print(found: Evaluation, brackets: dict[str, Bracket], console: Console) -> None:
    """The table, both sides of each norm if they are there, and the verdict."""
    head, lines = found.cells()
    console.print()
    worst = [i for i, line in enumerate(lines) if line[0] == "worst case"]
    printing.table(console, head, lines, left=3, strong=worst)
    for bracket in brackets.values():
        console.print()
        printing.table(console, *bracket.cells(), left=1)
        for text in bracket.verdict.splitlines():
            printing.line(console, printing.data(text))
    for warning in found.warnings:
        printing.line(console, f"\n[bold dark_orange]Warning:[/] {printing.data(warning)}")
    printing.line(console, f"\n[bold]{printing.data(found.verdict)}[/]")
