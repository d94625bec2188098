"""What a test on a board says: sizes, times, and that it got no slower.

The fixtures and markers come from the pytest plugin, edgeopt.pytest_plugin.
"""

from edgeopt.hil.baseline import assert_not_slower
from edgeopt.hil.measured import Deployment, Measured, Size

#: Bytes: `assert measurement.peak <= 32 * MB`.
KB, MB, GB = 10**3, 10**6, 10**9
KIB, MIB, GIB = 2**10, 2**20, 2**30
#: Milliseconds: `assert measurement.p95 <= 30 * MS`.
US, MS, SECOND = 1e-3, 1.0, 1e3
#: Instructions: `assert measurement.instructions <= 100 * MILLION`.
MILLION = 10**6

__all__ = [
    "GB",
    "GIB",
    "KB",
    "KIB",
    "MB",
    "MIB",
    "MILLION",
    "MS",
    "SECOND",
    "US",
    "Deployment",
    "Measured",
    "Size",
    "assert_not_slower",
]
