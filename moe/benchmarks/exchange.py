"""What processes pay for exchanging numbers over gloo.

`torchrun --nproc-per-node 2 -m moe.benchmarks.exchange`

CPU time of each process, its exchange threads included: on a busy machine the clock would measure
the others.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

SIZES = {
    "loss, counts and signals of a step": (64, 300),
    "all gradients of MiniLM-L6 (22.7 M)": (22_700_000, 5),
}


def milliseconds(numbers: int, times: int) -> float:
    """CPU time of one sum of float32 numbers over all processes."""
    values = torch.zeros(numbers)
    dist.all_reduce(values)
    dist.barrier()
    start = time.process_time()
    for _ in range(times):
        dist.all_reduce(values)
    return (time.process_time() - start) / times * 1e3


def main() -> None:
    """Prints a line for each size."""
    dist.init_process_group("gloo")
    for name, (numbers, times) in SIZES.items():
        spent = milliseconds(numbers, times)
        if dist.get_rank() == 0:
            print(f"{name}: {spent:.2f} ms of CPU time in each process", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
