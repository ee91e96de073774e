"""The process of a Ray actor that computes with a model: its device and its threads."""

import ray
import torch


def device() -> str:
    """`cuda` where Ray reserved a GPU for this process, `cpu` where it did not; without Ray, what the machine has.

    Ray hides no GPU from a process that has reserved none.
    """
    reserved = not ray.is_initialized() or ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return "cuda" if reserved and torch.cuda.is_available() else "cpu"


def set_up() -> torch.device:
    """Set this process up as a model actor; returns the device for its model.

    Sets the number of PyTorch's threads to one, for the whole process: there is an actor, or a task, for each CPU.
    """
    torch.set_num_threads(1)
    return torch.device(device())
