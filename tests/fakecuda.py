"""NVIDIA libraries of our own: real shared objects that answer what the environment tells them to.

FAKE_INIT is what cuInit returns, FAKE_GPUS how many GPUs there are (FAKE_NONE: cuInit does not mind none),
FAKE_CUDA the driver's CUDA version (13000), FAKE_DEVICE what cuDeviceGet returns; FAKE_CRASH and FAKE_HANG
make cuInit do so.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_LIBCUDA = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
static int gpus(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && !*visible ? 0 : number("FAKE_GPUS", 2);
}
int cuInit(unsigned flags) {
    if (number("FAKE_CRASH", 0)) *(volatile int *)flags = 1;
    if (number("FAKE_HANG", 0)) for (;;) sleep(60);
    int code = number("FAKE_INIT", 0);
    return code ? code : gpus() ? 0 : 100;
}
#ifndef ONLY_INIT
int cuGetErrorName(int code, const char **name) {
    *name = code == 777 ? "CUDA_ERROR_OF_A_NEWER_DRIVER" : 0;
    return *name ? 0 : 1;
}
int cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_NONE", 0) ? 0 : gpus(); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return number("FAKE_DEVICE", 0); }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device ? "NVIDIA Quadro of old" : "NVIDIA H100 of ours", size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? (device ? 7 : 9) : attribute == 76 ? 0 : -1;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (device ? 8ull : 80ull) << 30; return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) { memset(uuid, 0x11, 16); return 0; }
#ifndef NO_UUID_V2
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = 16 * device + i;
    return 0;
}
#endif
#endif
"""
_NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    strncpy(version, "580.65.06", size);
    return 0;
}
"""


def build_libcuda(folder: Path, *defines: str) -> Path:
    """A libcuda.so.1 in `folder`, which is given back; skips the test where there is no C compiler.

    `defines`: ONLY_INIT leaves out all but cuInit, NO_UUID_V2 what drivers before 11.4 had not.
    """
    return _compile(folder, "libcuda.so.1", _LIBCUDA, defines)


def build_nvml(folder: Path) -> Path:
    """A libnvidia-ml.so.1 in `folder`, which is given back."""
    return _compile(folder, "libnvidia-ml.so.1", _NVML, ())


def _compile(folder: Path, name: str, source: str, defines: tuple[str, ...]) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a library cannot be made here: there is no C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.c").write_text(source)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", *(f"-D{define}" for define in defines), "-o", name, f"{name}.c"],
        cwd=folder,
        check=True,
    )
    return folder
