"""The codebook: encoder outputs -> nearest codes, and how the codes learn.

Both quantizers share one interface: `quantizer(z)` returns a `Quantized`, `quantizer.embed(codes)` looks codes up,
and `quantizer.step()` ends a training step, like `optimizer.step()`.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

ROWS = 1024  # vectors at a time on a CPU, so that their distances stay in its cache


class Quantized(NamedTuple):
    """What a quantizer returns."""

    vectors: torch.Tensor  # (B, D, H, W): nearest codes; the gradient passes straight through to z
    codes: torch.Tensor  # (B, H, W) int64 in [0, K)
    loss: torch.Tensor  # (): weighted commitment loss, plus the codebook loss if the codebook learns by gradient


def nearest(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the code nearest to each row of z. (N, D), (K, D) -> (N,) int64.

    |z - e|^2 without |z|^2, which is the same for every code: one matrix product, no (N, K, D) tensor.
    """
    squares = codebook.pow(2).sum(1)  # (K,)
    rows = ROWS if z.device.type == "cpu" else len(z)
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 often finds a code that is not the nearest
        distances = (torch.addmm(squares, part, codebook.t(), alpha=-2.0) for part in z.float().split(rows))
        return torch.cat([each.min(1).indices for each in distances])  # each (ROWS, K); argmin is slow on CPUs


def straight_through(z: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """`vectors` in the forward pass; their gradient goes to z unchanged (Bengio et al. 2013, arXiv:1308.3432)."""
    return z + (vectors - z).detach()


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(entropy) of code counts (K,): 1 if a single code is used, K if all are used equally often."""
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(torch.special.entr(p).sum())


def count_codes(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """How often each code occurs in each row: (B, N) int64 -> (B, K) float32. `bincount` would need a host sync."""
    counts = torch.zeros(len(codes), codebook_size, device=codes.device)
    return counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=counts.dtype))


class Quantizer(nn.Module):
    """A codebook of K codes with D dimensions: the part that both quantizers share."""

    codebook: torch.Tensor  # (K, D)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, H, W) int64 -> (B, D, H, W)."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)  # (B, D, H, W)

    def step(self) -> None:
        """End a training step, after `backward`: update the codebook, unless an optimizer does."""

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W) -> (B, H, W) int64 in [0, K)."""
        B, D, H, W = z.shape
        flat = z.detach().permute(0, 2, 3, 1).reshape(-1, D)  # (B*H*W, D)
        return nearest(flat, self.codebook.detach()).view(B, H, W)


class GradientQuantizer(Quantizer):
    """The codebook learns by gradient: van den Oord et al. 2017 (arXiv:1711.00937), equation 3."""

    def __init__(self, codebook_size: int, code_dim: int, commitment: float) -> None:
        super().__init__()
        self.commitment = commitment
        bound = 1.0 / codebook_size
        self.codebook = nn.Parameter(torch.empty(codebook_size, code_dim).uniform_(-bound, bound))

    def forward(self, z: torch.Tensor, generator: torch.Generator | None = None, whole: int = 0) -> Quantized:
        """(B, D, H, W) -> Quantized. Deterministic: `generator` and `whole` are unused."""
        codes = self.encode(z)  # (B, H, W)
        vectors = self.embed(codes)
        codebook_loss = F.mse_loss(vectors, z.detach())
        commitment_loss = F.mse_loss(z, vectors.detach())
        return Quantized(straight_through(z, vectors), codes, codebook_loss + self.commitment * commitment_loss)


class EMAQuantizer(Quantizer):
    """Each code is a moving average of the vectors it is nearest to (van den Oord et al. 2017, appendix A.1).

    A code that is hardly used is dead; it restarts at a random encoder output of the step (Dhariwal et al. 2020,
    arXiv:2005.00341). Counts, sums and restarts are the same on all ranks; evaluation has no collectives.

    In training, every `forward` must be followed by one `step`; this is asserted.
    """

    ema_count: torch.Tensor  # (K,): how many vectors of a step a code is nearest to
    ema_sum: torch.Tensor  # (K, D): their sum
    # Set by `forward` for `step`, (K, 1 + 2D): counts, sums, and vectors where dead codes restart.
    sums: torch.Tensor | None
    reduction: dist.Work | None  # in progress: adds `sums` over all ranks

    def __init__(self, codebook_size: int, code_dim: int, commitment: float, decay: float, dead_below: float) -> None:
        super().__init__()
        self.commitment, self.decay, self.dead_below = commitment, decay, dead_below
        self.register_buffer("codebook", torch.randn(codebook_size, code_dim))
        self.register_buffer("ema_count", torch.zeros(codebook_size))  # all dead: the first step places all codes
        self.register_buffer("ema_sum", torch.zeros(codebook_size, code_dim))
        self.sums = self.reduction = None

    def forward(self, z: torch.Tensor, generator: torch.Generator | None = None, whole: int = 0) -> Quantized:
        """(B, D, H, W) -> Quantized; in training, `generator` chooses where dead codes restart.

        `whole` is the batch size over all ranks; 0: every rank has as many slices as this one.
        """
        codes = self.encode(z)  # (B, H, W)
        vectors = self.embed(codes)
        if self.training:
            self._gather(z.detach().float().permute(0, 2, 3, 1).flatten(1, 2), codes.flatten(), generator, whole)
        loss = self.commitment * F.mse_loss(z, vectors)
        return Quantized(straight_through(z, vectors), codes, loss)

    @torch.no_grad()
    def _gather(self, z: torch.Tensor, codes: torch.Tensor, generator: torch.Generator | None, whole: int) -> None:
        """Sum one step's vectors (B, H*W, D) per code (B*H*W,) over all ranks; `step` waits for the result.

        `generator` has the same state on all ranks, and each rank holds every world-th slice of the step's batch. So a
        dead code restarts at the same vector, however many ranks there are.
        """
        assert self.sums is None, "two forward passes in training without a step between them"
        K = len(self.codebook)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        B, P, _ = z.shape
        # (K,): positions in the whole batch, drawn on the device of z and `generator`
        drawn = torch.randint((whole or world * B) * P, (K,), generator=generator, device=z.device)
        owner, place = drawn // P % world, drawn // P // world * P + drawn % P
        place = place.clamp(max=B * P - 1)  # a position that another rank owns may be past this rank's last
        z = z.flatten(0, 1)  # (B*H*W, D)
        restarts = torch.where((owner == rank)[:, None], z[place], 0.0)  # (K, D): where dead codes restart
        count = count_codes(codes[None], K)[0]  # (K,)
        total = torch.zeros_like(self.ema_sum).index_add_(0, codes, z)  # (K, D)
        self.sums = torch.cat([count[:, None], total, restarts], 1)  # (K, 1 + 2D)
        self.reduction = dist.all_reduce(self.sums, async_op=True) if world > 1 else None

    @torch.no_grad()
    def step(self) -> None:
        """Update the averages with the step's sums, then restart dead codes."""
        assert self.sums is not None, "a step without a forward pass in training before it"
        if self.reduction:
            self.reduction.wait()
        K, D = self.codebook.shape
        count, total, restarts = self.sums.split([1, D, D], 1)  # (K, 1), (K, D) twice
        self.sums = self.reduction = None
        self.ema_count.lerp_(count.squeeze(1), 1.0 - self.decay)
        self.ema_sum.lerp_(total, 1.0 - self.decay)

        threshold = self.dead_below * count.sum() / K
        dead = self.ema_count < threshold  # (K,)
        self.ema_count.copy_(torch.where(dead, threshold.clamp(min=1e-6), self.ema_count))
        self.ema_sum.copy_(torch.where(dead[:, None], restarts * self.ema_count[:, None], self.ema_sum))
        self.codebook.copy_(self.ema_sum / self.ema_count[:, None])
