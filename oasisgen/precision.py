"""bfloat16 where the hardware multiplies in it; elsewhere it would only be slower."""

from contextlib import AbstractContextManager

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
