import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from concurrent.futures import ThreadPoolExecutor
import torch
from sda_features.lvlm.heap import keep_freed_memory

def faults():
    for turn in range(40):
        if turn == 30:  # by then freed blocks lie beside each other
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10 << 20)  # 40 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_a_thread():
    with ThreadPoolExecutor(1) as worker:
        return worker.submit(faults).result()

torch.set_num_threads(1)
before = faults(), in_a_thread()
keep_freed_memory()
print(*before, faults(), in_a_thread())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    *before, main, worker = map(int, done.stdout.split())
    pages = 10 * (40 << 20) // 4096
    assert min(before) > pages / 2  # without it each of ten tensors faults its pages in
    assert max(main, worker) < pages / 10
