"""A run in several processes: what must hold before it begins, and where each process trains."""

from __future__ import annotations

from dataclasses import replace

import torch

from recdenoise.errors import UserError
from recdenoise.parallel import Parallel, Processes, require_engine
from vision.run import Run
from vision.settings import Settings


def check(settings: Settings, parallel: Parallel) -> None:
    """Refuse what several processes cannot do, before any data is read.

    Raises:
        UserError: a batch that they cannot share evenly, a method that needs the whole of it, one GPU for all, or no
            Accelerate.
    """
    if parallel.size == 1:
        return
    options = settings.options
    settings.method.check_processes(parallel.size)
    if options.batch_size % parallel.size:
        raise UserError(
            f"A batch of {options.batch_size} images is not divisible among {parallel.size} processes: "
            f"set batch_size to a multiple of {parallel.size}."
        )
    if options.device is not None and ":" in options.device:
        raise UserError(f"Option 'device' is {options.device!r}; with several processes leave its number out.")
    require_engine()


def place(settings: Settings, parallel: Parallel) -> Settings:
    """Form the group of processes; the settings with this process's own device. One process changes nothing."""
    if not isinstance(parallel, Processes):
        return settings
    device = parallel.start(settings.options.torch_device())
    return replace(settings, options=replace(settings.options, device=str(device)))


def check_same(run: Run, parallel: Parallel) -> None:
    """See that every process has the same data and the same initial weights; averages of others would be of nothing.

    Raises:
        UserError: they differ, because the machines hold other files or other versions.
    """
    if parallel.size == 1:
        return
    labels = run.task.labels.double()
    place_values = torch.arange(1, len(labels) + 1, device=labels.device, dtype=torch.float64)
    data = torch.stack([labels.new_tensor(len(labels)), (labels * place_values).sum()])
    weights = torch.stack([p.detach().double().sum() for p in run.denoiser.parameters()])
    for what, values in (("training labels", data), ("initial weights", weights)):
        found = parallel.gather(values.unsqueeze(0))
        if not torch.allclose(found, found[:1], rtol=1e-6, atol=1e-6):
            raise UserError(f"The processes do not have the same {what}: every machine needs the same files.")
