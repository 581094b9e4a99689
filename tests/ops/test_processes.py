"""Fork after threads have run, and calls from several Python threads at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from checks import assert_projection, same_bits, sample

from sparring import ops

FORK = """
import os, sys, time, torch, numpy
from sparring import ops
torch.set_num_threads(4)
x = torch.rand(64, 5000, generator=torch.Generator().manual_seed(0))
delta = x.flip(1) - 0.5
parents = ops.project_l1_box(delta, x, 3.0)
child = os.fork()
if child == 0:
    same = numpy.array_equal(ops.project_l1_box(delta, x, 3.0).numpy(), parents.numpy())  # torch's own threads may hang
    os._exit(0 if same else 3)
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.02)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    sys.exit("the forked child hangs")
if status:
    sys.exit(f"the forked child ended with status {status}")
if not torch.equal(ops.project_l1_box(delta, x, 3.0), parents):
    sys.exit("the parent computes something else after the fork")
"""


def test_a_forked_child_computes() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_four_python_threads_at_once() -> None:
    problems = [sample((40, 3000), torch.float32, seed=seed) for seed in range(4)]
    alone = [ops.project_l1_box(delta, x, 20.0) for delta, x in problems]
    with ThreadPoolExecutor(4) as pool:
        rounds = [pool.submit(ops.project_l1_box, *problems[i % 4], 20.0) for i in range(64)]
        for i, future in enumerate(rounds):
            assert same_bits(future.result(), alone[i % 4])
    for (delta, x), v in zip(problems, alone, strict=True):
        assert_projection(v, delta, x, 20.0)
