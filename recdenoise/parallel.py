"""One run in several processes: each takes its part of every batch, and what one has found all of them get.

Accelerate forms the group of processes and carries the tensors (gloo on CPUs, NCCL on GPUs). Its wrappers of modules
and loaders are not used. A method calls its networks in ways of its own: several in a step, by function, differentiated
twice. A wrapper would not see that, while gradients of every kind are averaged alike once they are there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recdenoise.errors import UserError

AGREE_STEPS = 16
"""Steps between two moments at which the processes ask each other whether to save or to stop."""


class Parallel:
    """One process: every batch is its own, and there is nobody to ask.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Which of ``n`` examples are this process's: contiguous, and as many as the others' where ``size`` divides."""
        whole, rest = divmod(n, self.size)
        first = self.rank * whole + min(self.rank, rest)
        return slice(first, first + whole + (self.rank < rest))

    def mine(self, places: Tensor, n: int) -> Tensor:
        """Those of ``(k,)`` places in a batch of ``n`` that are in this process's share, counted from its beginning."""
        return places

    def gather(self, values: Tensor, n: int | None = None) -> Tensor:
        """The values of all processes, in the order of their ranks, without gradient.

        Args:
            values: ``(m, ...)`` of this process's share.
            n: of how many in all; ``None`` is ``size * m``.

        Returns:
            ``(n, ...)``, the same bits in every process.
        """
        return values.detach()

    def whole(self, values: Tensor) -> Tensor:
        """:meth:`gather` of equal shares, through which gradients pass: for losses of a whole batch.

        A loss of the whole batch is the same in every process. The mean over processes that the loop takes then has the
        gradient of that one loss.
        """
        return values

    def mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The mean over processes of each of some tensors, through which gradients pass."""
        return list(values)

    def level(self, values: Sequence[Tensor]) -> None:
        """Replace tensors by their means over processes, in place."""

    def agree(self, step: int, *flags: bool) -> tuple[bool, ...]:
        """Which of some flags are set in any process: the same answer everywhere.

        Args:
            step: several processes ask each other every :data:`AGREE_STEPS` steps alone, and else say that none is.
            flags: of this process.
        """
        return flags

    def wait(self) -> None:
        """Go on when every process is here."""

    def combine(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, logs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Make gradients, loss and logs those of the whole batch: means over processes, gradients in place."""
        return loss, logs


ALONE = Parallel()
"""What everything uses that is not told of further processes."""


class Processes(Parallel):
    """Several processes that train one model.

    Args:
        rank, size: of this process, and how many there are.
        local_rank: of this process on its machine: which GPU it takes.
    """

    def __init__(self, rank: int, size: int, local_rank: int) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.device = torch.device("cpu")

    def start(self, device: torch.device) -> torch.device:
        """Form the group, and return this process's own device of the kind of ``device``.

        Raises:
            UserError: Accelerate is missing, or there are fewer GPUs than processes on this machine.
        """
        require_engine()
        if device.type == "cuda" and self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"Process {self.local_rank + 1} on this machine finds {torch.cuda.device_count()} GPUs: "
                "lower --nproc-per-node, or add --device cpu."
            )
        from accelerate import PartialState

        self.device = PartialState(cpu=device.type == "cpu").device
        return self.device

    def stop(self) -> None:
        """Leave the group."""
        from accelerate import PartialState

        PartialState().destroy_process_group()

    def mine(self, places: Tensor, n: int) -> Tensor:
        share = self.share(n)
        return places[(places >= share.start) & (places < share.stop)] - share.start

    def gather(self, values: Tensor, n: int | None = None) -> Tensor:
        values = values.detach()
        if n is None or n % self.size == 0:
            return _gathered(values)
        most = -(-n // self.size)
        padded = torch.cat([values, values.new_zeros(most - len(values), *values.shape[1:])])
        sizes = [n // self.size + (rank < n % self.size) for rank in range(self.size)]
        return torch.cat([part[:m] for part, m in zip(_gathered(padded).split(most), sizes, strict=True)])

    def whole(self, values: Tensor) -> Tensor:
        out: Tensor = _Whole.apply(values, self)
        return out

    def mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        return list(_Mean.apply(*values)) if values else []

    @torch.no_grad()
    def level(self, values: Sequence[Tensor]) -> None:
        if values:
            torch._foreach_copy_(list(values), self.mean(values))

    def agree(self, step: int, *flags: bool) -> tuple[bool, ...]:
        from accelerate.utils import reduce

        if step % AGREE_STEPS:
            return (False,) * len(flags)
        total = reduce(torch.tensor(flags, dtype=torch.float32, device=self.device), "sum")
        return tuple(bool(value) for value in total.tolist())

    def wait(self) -> None:
        from accelerate import PartialState

        PartialState().wait_for_everyone()

    def combine(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, logs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scalars = [loss, *(value.detach().float().to(loss.device) for value in logs.values())]
        with torch.no_grad():
            means = self.mean([*gradients, *scalars])
            torch._foreach_copy_(gradients, means[: len(gradients)])
        loss, *values = means[len(gradients) :]
        return loss, dict(zip(logs, values, strict=True))


class _Whole(torch.autograd.Function):
    """Gathers on the way there; on the way back every process's gradient of a share is added up at its owner."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, parallel: Processes) -> Tensor:
        ctx.parallel = parallel
        return _gathered(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        from accelerate.utils import reduce

        total = reduce(gradients[0].contiguous(), "sum")
        return total[ctx.parallel.share(len(total))], None


class _Mean(torch.autograd.Function):
    """The mean over processes is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return _means(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _means(gradients)


def _gathered(values: Tensor) -> Tensor:
    from accelerate.utils import gather

    out: Tensor = gather(values.contiguous())
    return out


def _means(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All in one message: many small ones would each wait for the slowest process."""
    from accelerate.utils import reduce

    flat = reduce(torch.cat([value.reshape(-1) for value in values]), "mean")
    parts = flat.split([value.numel() for value in values])
    return tuple(part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True))


def require_engine() -> None:
    """Raises ``UserError`` where Accelerate is not installed."""
    if importlib.util.find_spec("accelerate") is None:
        raise UserError("Training in several processes needs Accelerate: pip install 'recdenoise[distributed]'.")


def from_environment() -> Parallel:
    """What torchrun says about this process; :data:`ALONE` where nothing or nobody else was started."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    rank = int(os.environ.get("RANK", "0"))
    return Processes(rank, size, int(os.environ.get("LOCAL_RANK", str(rank))))
