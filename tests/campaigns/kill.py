"""A campaign: commands are killed, interrupted, or find the disk full or broken at the n-th call that changes a file.

    python tests/campaigns/kill.py [--trials 100] [--first 0] [--seed 0] [--only NAME]

Each trial runs one command in a folder of its own with up to three such faults, one after the other, each time going on
as the command says: with --resume, for a finished audit by `sparring report`, or with the same command again. In the
end the folder has to hold the same bytes as after a run that nothing disturbed, no command may have ended in a
traceback, and none may have said that it went well where it did not. Needs Linux and a C compiler; the exit status is
1 if a trial fails. The calls are those of the C library, whoever makes them; see faults.c.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOW = ("none", "kill -9", "SIGTERM", "SIGINT twice", "ENOSPC", "EIO")  # as in faults.c
RETRAIN = (
    "--threads", "1", "--real-images", "60", "--model", "mlp", "--images", "10", "--fresh", "5", "--steps", "5",
    "--p-min", "0.05", "--generations", "2", "--pretrain-epochs", "1", "--epochs", "1", "--lr", "0.01", "--batch-size",
    "16", "--set", "eval_images=30",
)  # fmt: skip
NETWORK = ("--arch", "mlp", "--shape", "1,8,8")
RUN = ("--runs-dir", "runs", "--name", "run")
COMMANDS: dict[str, tuple[str, ...]] = {
    **{f"retrain, {mode}": ("retrain", *RETRAIN, "--mode", mode, *RUN) for mode in ("epoch", "batches", "continuous")},
    "mixture": (
        "mixture", "--set", "eval_images=20", "--set", "test_eps=[0.3]", "--real-images", "60", "--members", "2",
        "--pretrain-epochs", "1", "--epochs", "1", "--threads", "1", *RUN,
    ),
    "intriguing": (
        "intriguing", "--data", "digits", "--threads", "1", "--images", "2", "--train-images", "60", "--epochs", "1",
        "--quick", *RUN,
    ),
    "audit": (
        "audit", "WEIGHTS", "--arch", "mlp", "--images", "10", "--attacks", "noise,fgsm,pgd", "--norm", "Linf", *RUN,
    ),
    "images": (
        "images", "make", "WEIGHTS", *NETWORK, "--count", "10", "--steps", "20", "--out", "set.safetensors",
        "--overwrite",
    ),
    "sweep": (
        "sweep", "lambda", "WEIGHTS", *NETWORK, "--count", "4", "--steps", "10", "--values", "1,2", "--csv",
        "sweep.csv",
    ),
}  # fmt: skip
TIMED = ("results.json", "report.html")  # of an audit; their seconds are left out of the comparison


@dataclass(frozen=True)
class Fault:
    """What happens at which call; no fault by default."""

    how: int = 0
    at: int = 0

    def __str__(self) -> str:
        return f"{HOW[self.how]} at call {self.at}"


@dataclass(frozen=True)
class Ended:
    """How a command ended, negative for a signal; what it printed; how many calls it made."""

    status: int
    output: str
    calls: int


class Campaign:
    """Commands with faults, in processes forked from this one, which has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.faults.faults_count.restype = ctypes.c_long
        self.weights = folder / "weights.safetensors"
        self.main = _prepared(self.weights)
        self.wanted: dict[str, tuple[dict[str, bytes], int]] = {}

    def trial(self, name: str, random: random.Random, trial: int) -> str:
        """One trial; what was wrong, or nothing."""
        if name not in self.wanted:
            whole = self._folder(f"whole-{len(self.wanted)}")
            ended = self.run(COMMANDS[name], whole)
            if ended.status:
                return f"without a fault: exit status {ended.status}\n{ended.output}"
            self.wanted[name] = contents(whole), ended.calls
        wanted, calls = self.wanted[name]
        folder, said = self._folder(f"trial-{trial}"), ""
        for i in range(random.choice((1, 1, 1, 2, 3))):
            # one kind after the other, so that each comes up as often; a command that goes on makes fewer calls
            fault = Fault(
                1 + (trial // len(COMMANDS) + i) % (len(HOW) - 1), random.randint(1, max(2, calls // (1 + i)))
            )
            arguments = self.next(name, folder)
            if arguments is None:
                break
            ended = self.run(arguments, folder, fault)
            said += f"\n-- {fault}: exit status {ended.status}\n{ended.output}"
            if "Traceback" in ended.output:
                return f"a traceback{said}"
        arguments = self.next(name, folder)
        if arguments is not None:
            ended = self.run(arguments, folder)
            said += f"\n-- {' '.join(arguments)}: exit status {ended.status}\n{ended.output}"
            if ended.status:
                return f"it cannot go on{said}"
        found = contents(folder)
        if found != wanted:
            differing = [file for file in sorted({*found, *wanted}) if found.get(file) != wanted.get(file)]
            return f"other bytes in {', '.join(differing)}{said}"
        shutil.rmtree(folder)
        return ""

    def next(self, name: str, folder: Path) -> tuple[str, ...] | None:
        """What to do in a folder to have the command's results; None if they are there."""
        run, command = folder / "runs" / "run", COMMANDS[name]
        if name == "sweep" and (folder / "sweep.csv").exists():
            return None
        if name == "audit" and (run / "results.json").exists():
            return "report", str(Path("runs", "run"))
        if name != "audit" and (run / "config.json").exists():
            return command[0], "--resume", *RUN
        return command

    def run(self, arguments: tuple[str, ...], folder: Path, fault: Fault | None = None) -> Ended:
        """Run a command in a folder, with a fault."""
        fault = fault or Fault()
        log, count = folder.with_suffix(".log"), folder.with_suffix(".count")
        child = os.fork()
        if child == 0:
            self._work(arguments, folder, fault, log, count)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ended(status, log.read_text(errors="replace"), int(count.read_text() or 0) if count.exists() else 0)

    def _work(self, arguments: tuple[str, ...], folder: Path, fault: Fault, log: Path, count: Path) -> None:
        """What the forked process does; it does not return."""
        status = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.chdir(folder)
            self.faults.faults_arm(f"{folder}/".encode(), fault.how, fault.at)
            self.main([str(self.weights) if part == "WEIGHTS" else part for part in arguments])
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for handled in (signal.SIGINT, signal.SIGTERM):
                signal.signal(handled, signal.SIG_IGN)
            calls = self.faults.faults_count()
            self.faults.faults_arm(b"", 0, 0)
            count.write_text(str(calls))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name, without times: all that equal commands are to leave equal."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "tensorboard" not in path.parts and path.name not in ("timings.jsonl", ".lock"):
            content = path.read_bytes()
            if path.name in TIMED and (path.parent / "results.json").exists():
                content = re.sub(rb'("seconds": |<td[^>]*>|<dd>)[\d.e-]+( s|)(?=[,<\s}])', b"", content)
            found[name] = content
    return found


def _prepared(weights: Path) -> Callable[[list[str]], None]:
    """Import all that commands need, write a network's weights, and return what runs a command.

    Figures are made but not drawn: their files, which are written all the same, hold a few bytes.
    """
    import matplotlib.figure  # noqa: F401
    import torch
    import torch.utils.tensorboard
    from safetensors.torch import save_file

    import sparring.__main__
    import sparring.cli
    import sparring.evaluation
    import sparring.intriguing
    import sparring.report.page as page
    from sparring import data, networks

    torch.set_num_threads(1)
    page._png = lambda figure, small: repr(sorted(map(str, figure.get_size_inches()))).encode()
    data.load("digits")
    network = networks.build("mlp", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    save_file({name: 2 * value for name, value in network.state_dict().items()}, weights)
    return sparring.__main__.main


def _preloaded() -> None:
    """Start this script again with faults.c, compiled, in its process."""
    library = Path(tempfile.mkdtemp(prefix="sparring-faults-")) / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    again = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **again})


def main() -> int:
    """Run the campaign; 1 if a trial fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first trial's number, of a campaign in parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*COMMANDS], help="one of the commands alone")
    options = parser.parse_args()
    if "sparring-faults-" not in os.environ.get("LD_PRELOAD", ""):
        _preloaded()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names, failed, begin = [options.only] if options.only else [*COMMANDS], Counter[str](), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="sparring-campaign-")).resolve()
    campaign = Campaign(folder)
    for trial in range(options.first, options.first + options.trials):
        name = names[trial % len(names)]
        problem = campaign.trial(name, random.Random(f"{options.seed} {trial}"), trial)
        if problem:
            failed[name] += 1
            print(f"FAILED: trial {trial}, {name}: {problem}\n", flush=True)
    shutil.rmtree(Path(os.environ["LD_PRELOAD"]).parent, ignore_errors=True)
    good = options.trials - failed.total()
    print(f"{good} of {options.trials} trials end in the same bits ({time.monotonic() - begin:.0f} s)")
    if failed:
        print(f"what is left of the others is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
