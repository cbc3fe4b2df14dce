"""A second device made of the CPU, so that a machine without a GPU can tell what would not run on one.

A tensor of the device computes on the CPU and refuses what a GPU refuses: to meet a tensor of the CPU (numbers without
dimensions, indices and copies apart), a generator of the other side, or to become an array of numpy. What it cannot
tell is whether a GPU has an operation, in which precision, and how fast.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = "simulated"  # torch gives modules and tensors a method of this name
MARK = 0x5EC0  # the low bits of every seed of the device's generators: an operation sees no more of them than the seed

PACKAGES = {"recdenoise", "vision"}

ACROSS = {"aten::copy_", "aten::_to_copy", "aten::_foreach_copy_", "aten::_copy_from"}
WITHOUT_NUMBERS = {"aten::cat", "aten::stack"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}

WAITS = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
"""Operations whose result, or its size, the CPU waits for until the device has done all that it was given."""

CPU = torch.device("cpu")
plain_generator, plain_tensor, plain_new = torch.Generator, torch.tensor, torch.Tensor.new_tensor
plain_save, plain_load = torch.save, torch.load


class Refused(RuntimeError):
    """What a GPU would refuse."""


class Backend:
    """What torch asks a device's module."""

    is_available = is_initialized = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: None)


def available() -> bool:
    """Whether this torch lets a device be written in Python."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def here(device: Any) -> bool:
    """Whether a device, however it is named, is this one."""
    return device is not None and torch.device(device).type == NAME


class Second(torch.Tensor):
    """A tensor of the device around the CPU's tensor that holds its values."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> Second:
        place: dict[str, Any] = {}
        if inside.layout is torch.strided:
            place = {"strides": inside.stride(), "storage_offset": inside.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(
            cls, inside.size(), dtype=inside.dtype, device=torch.device(NAME, 0), requires_grad=False, **place
        )
        made.inside = inside
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Second({self.inside!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = Second(self.inside.detach().clone())
        if getattr(self, "_is_param", False):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        return self.inside.tolist()

    def numpy(self, **_: Any) -> Any:
        raise Refused("numpy() of a tensor of the device")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Refused("an array of numpy from a tensor of the device")


class Operations(TorchDispatchMode):
    """While it is on, operations that make a tensor make it on the device where they are asked to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


class Generator(torch.Generator):
    """One that knows which device it was made for; it draws on the CPU."""

    second: bool

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = plain_generator.__new__(cls, "cpu")
        self.second = here(device)
        return self.manual_seed(0) if self.second else self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0) if self.second else CPU

    def manual_seed(self, seed: int) -> Generator:
        super().manual_seed(seed & ~0xFFFF | MARK if self.second else seed)
        return self


class Waiting:
    """Where the CPU waits for the device while it is watched."""

    def __init__(self) -> None:
        self.watched = False
        self.found: set[str] = set()

    def place(self) -> str:
        """The line of the library that asks."""
        frames = [each for each in traceback.extract_stack() if PACKAGES & set(Path(each.filename).parts)]
        frames = [each for each in frames if "tests" not in Path(each.filename).parts]
        return f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].line}" if frames else "?"

    def watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, watched while it runs."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.watched = self.watched, True
            try:
                return function(*args, **kwargs)
            finally:
                self.watched = before

        return call


waiting = Waiting()


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Refuse an operation, or do it on the CPU and say where its results are."""
    name, asked = func._schema.name, kwargs.get("device")
    given, form = tree_flatten((args, kwargs))
    ours = [each for each in given if isinstance(each, Second)]
    result_here = here(asked) if asked is not None else bool(ours)
    if name == "aten::copy_":
        result_here = isinstance(args[0], Second)
    refuse(name, args, given, ours, result_here)
    if ours and waiting.watched and waits(name, args, kwargs):
        waiting.found.add(f"{name} {waiting.place()}")
    inner = [each.inside if isinstance(each, Second) else CPU if is_device(each) else each for each in given]
    plain_args, plain_kwargs = tree_unflatten(inner, form)
    if "pin_memory" in plain_kwargs:
        plain_kwargs["pin_memory"] = False
    result = func(*plain_args, **plain_kwargs)
    if not result_here:
        left = name == "aten::_to_copy" and any(result is each for each in inner)
        return result.clone() if left else result
    known = {id(each.inside): each for each in ours}  # what an operation in place gives back
    return tree_map(lambda each: known.get(id(each), wrapped(each)), result)


def waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the CPU would wait for an operation of the device."""
    asked, by_mask = kwargs.get("device"), False
    if name in INDEXING:
        by_mask = any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1])
    lengths = name == "aten::repeat_interleave" and kwargs.get("output_size") is None
    fetched = name == "aten::_to_copy" and asked is not None and not here(asked)
    return name in WAITS or by_mask or lengths or fetched


def wrapped(value: Any) -> Any:
    """A tensor as one of the device; anything else as it is."""
    return Second(value) if isinstance(value, Tensor) and not isinstance(value, Second) else value


def is_device(value: Any) -> bool:
    """Whether a value is this device."""
    return isinstance(value, torch.device) and value.type == NAME


def refuse(name: str, args: Any, given: list[Any], ours: list[Second], result_here: bool) -> None:
    """Raise ``Refused`` for what a GPU does not do."""
    theirs = [each for each in given if isinstance(each, Tensor) and not isinstance(each, Second)]
    if ours and theirs and name not in ACROSS:
        meets = [each for each in theirs if each.dim() > 0 or name in WITHOUT_NUMBERS]
        if name in INDEXING and isinstance(args[0], Second):  # indices may come from the CPU, values may not
            meets = [each for each in meets if any(each is value for value in args[2:3])]
        if meets:
            shapes = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in meets)
            raise Refused(f"{name} on the device meets a tensor of the CPU: {shapes}")
    for each in given:
        if isinstance(each, plain_generator) and (each.initial_seed() & 0xFFFF == MARK) != result_here:
            raise Refused(f"{name} draws from a generator of the other device")


def tensor(data: Any, *, device: Any = None, **more: Any) -> Tensor:
    """``torch.tensor``, which makes the values before any mode sees them."""
    return plain_tensor(data, **more).to(device) if here(device) else plain_tensor(data, device=device, **more)


def new_tensor(self: Tensor, data: Any, **more: Any) -> Tensor:
    """``Tensor.new_tensor``, which does too."""
    if not isinstance(self, Second) or "device" in more:
        return plain_new(self, data, **more)
    return wrapped(plain_tensor(data, **{"dtype": self.dtype, **more}))


def save(value: Any, *args: Any, **kwargs: Any) -> None:
    """``torch.save`` of the values: a file knows no device that is made of Python."""
    plain_save(tree_map(lambda each: each.inside if isinstance(each, Second) else each, value), *args, **kwargs)


def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
    """``torch.load`` onto the device or elsewhere."""
    if not here(map_location):
        return plain_load(file, map_location=map_location, **kwargs)
    value = plain_load(file, map_location="cpu", **kwargs)
    return tree_map(wrapped, value)


@contextlib.contextmanager
def device() -> Iterator[torch.device]:
    """The device, there while the block runs. For a process of its own: torch keeps the name for good."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())  # type: ignore[attr-defined]
    changed = {"Generator": Generator, "tensor": tensor, "save": save, "load": load}
    before = {name: getattr(torch, name) for name in changed}
    try:
        for name, value in changed.items():
            setattr(torch, name, value)
        torch.Tensor.new_tensor = new_tensor  # type: ignore[method-assign]
        with Operations():
            yield torch.device(NAME, 0)
    finally:
        for name, value in before.items():
            setattr(torch, name, value)
        torch.Tensor.new_tensor = plain_new  # type: ignore[method-assign]
