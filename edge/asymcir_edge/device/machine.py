"""What machine this is, for reports of measurements: nothing that identifies its user."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_X86_VENDORS = ("GenuineIntel", "AuthenticAMD")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The machine that measured.

    Attributes:
        platform: operating system, release and C library.
        architecture: such as "aarch64".
        cpu_model: as the operating system calls it; empty where it does not say.
        board: such as "Raspberry Pi 5 Model B Rev 1.0"; empty where there is no name for it.
        cores: logical ones.
        usable_cores: of these, the ones that this process may run on.
        emulated: an ARM program on an x86 kernel (qemu-user): its times say nothing about the device.
        python: its version.
    """

    platform: str
    architecture: str
    cpu_model: str
    board: str
    cores: int
    usable_cores: int
    emulated: bool
    python: str


def describe_machine() -> Machine:
    """Describe this machine."""
    architecture = platform.machine()
    cpu = _read_cpuinfo()
    cores = os.cpu_count() or 1
    return Machine(
        platform=platform.platform(),
        architecture=architecture,
        cpu_model=_find_cpu_model(cpu),
        board=_read_text(Path("/proc/device-tree/model")),
        cores=cores,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        emulated=architecture.startswith(("aarch64", "arm")) and cpu.get("vendor_id") in _X86_VENDORS,
        python=platform.python_version(),
    )


def peak_rss_mb() -> float | None:
    """Return the most memory that this process has had resident so far, 10^6 bytes; None where nothing tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _find_cpu_model(cpu: dict[str, str]) -> str:
    if sys.platform == "darwin":
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()
    if cpu.get("model name"):
        return cpu["model name"]
    if cpu.get("CPU part"):  # how ARM kernels say it; 0xd0b of implementer 0x41 is Arm's Cortex-A76
        return f"implementer {cpu.get('CPU implementer', '?')}, part {cpu['CPU part']}"
    return platform.processor()


def _read_cpuinfo() -> dict[str, str]:
    """Return the first value of every key of /proc/cpuinfo; empty where there is none."""
    found: dict[str, str] = {}
    for line in _read_text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
