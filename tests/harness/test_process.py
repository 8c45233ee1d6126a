"""What a script does to its own process."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import ctypes, resource, threading
from rlax_ft.harness.command_line import prepare_process

prepare_process()
libc, size = ctypes.CDLL(None), 128 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def step():
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def steps():
    before = step()
    print([step() for _ in range(4)][-1] - before)

for run in (steps, threading.Thread(target=steps).start):
    run()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_a_large_block_that_every_step_takes_again_is_no_new_memory_in_any_thread():
    """128 MB are 32,768 pages; the compiler's threads, too, must find theirs where they left them."""
    done = subprocess.run([sys.executable, '-c', PAGES], capture_output=True, text=True, check=True)
    assert all(int(faults) < 100 for faults in done.stdout.split()) and len(done.stdout.split()) == 2, done
