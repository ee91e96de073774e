"""Numerical precision: bfloat16 where the hardware supports it, and results that repeat exactly."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has fast bfloat16 matrix products: GPUs since Ampere, and CPUs with AMX.

    On CPUs with AVX-512 only, bfloat16 is slower than float32 in networks as narrow as ours.
    """
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, enabled: bool = True) -> AbstractContextManager:
    """Autocast to bfloat16 if `enabled` and supported by `device`; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_bfloat16(device))


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Compute reproducibly: GPUs of one model give equal bytes, by deterministic kernels only and without TF32.

    Only this function sets PyTorch's determinism switches. It restores them at the end, except for the variable
    CUBLAS_WORKSPACE_CONFIG, which cuBLAS reads once. On a CPU it sets nothing: the kernels that our networks use are
    deterministic there.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode, tf32 = torch.get_deterministic_debug_mode(), torch.backends.cuda.matmul.allow_tf32
    torch.use_deterministic_algorithms(True)  # raises RuntimeError for an operation without one
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cuda.matmul.allow_tf32 = tf32
