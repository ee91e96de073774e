"""Numerical precision: bfloat16 where the hardware supports it, and results that repeat exactly."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices of bfloat16: GPUs since Ampere, and CPUs with AMX.

    What AVX-512 alone has for bfloat16 takes longer than float32 in networks as narrow as ours.
    """
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, enabled: bool = True) -> AbstractContextManager:
    """Matrix products in bfloat16 where `device` has it, if `enabled`; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_bfloat16(device))


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, equal GPUs compute equal bytes: only deterministic kernels run, and float32 is not rounded to TF32.

    This is the one place that sets PyTorch's switches for it. They are set back at the end, except for the variable
    CUBLAS_WORKSPACE_CONFIG, which cuBLAS reads once. Nothing is set for a CPU: the kernels that networks use there are
    deterministic as they are.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode, tf32 = torch.get_deterministic_debug_mode(), torch.backends.cuda.matmul.allow_tf32
    torch.use_deterministic_algorithms(True)  # an operation that has no such kernel raises RuntimeError
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cuda.matmul.allow_tf32 = tf32
