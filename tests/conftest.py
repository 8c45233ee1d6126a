"""Test set-up: 8 virtual CPU devices and quick compilation before jax starts, and float64 on request."""

import os
import tempfile

os.environ['XLA_FLAGS'] = ' '.join(
    [
        os.environ.get('XLA_FLAGS', ''),
        '--xla_force_host_platform_device_count=8',
        # jaxlib 0.10.2 can deadlock on two cores with this scheduler.
        '--xla_cpu_enable_concurrency_optimized_scheduler=false',
    ]
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Programs of tests are small and many: most of the time goes into compiling them, which LLVM's optimisations double.
# Processes that tests start inherit it.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')

import jax
import pytest

from rlax_ft.parallel.mesh import compiling_for

# A program that one test has compiled is not compiled again by the next.
jax.config.update('jax_compilation_cache_dir', os.path.join(tempfile.gettempdir(), 'rlax_ft_tests'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)


@pytest.fixture(scope='module')
def optimised():
    """Compiles the programs of a module with all optimisations: where running them is what takes long."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='module')
def one_device():
    """Scripts of a module run on one of the devices: where what is computed matters, and not how it is spread."""
    with compiling_for(jax.devices()[:1]):
        yield


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield
