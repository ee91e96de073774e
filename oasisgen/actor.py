"""Device and threads of a Ray actor that runs a model."""

import ray
import torch


def device() -> str:
    """`cuda` if Ray reserved a GPU for this process (without Ray: if the machine has one), else `cpu`.

    PyTorch alone cannot tell: Ray leaves GPUs visible to a process that reserved none.
    """
    reserved = not ray.is_initialized() or ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return "cuda" if reserved and torch.cuda.is_available() else "cpu"


def set_up() -> torch.device:
    """Set up this process as a model actor; returns the device for its model.

    Limits PyTorch to one thread in the whole process, because Ray runs an actor or a task on every CPU.
    """
    torch.set_num_threads(1)
    return torch.device(device())
