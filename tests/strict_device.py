"""A device like Apple's graphics, on any machine: it computes, but refuses float64 and numbers of the CPU.

Its tensors call themselves "meta", the one device that every build of torch has, and hold their numbers on the CPU.
"""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = "meta"
COPY = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)  # only these may meet both devices


class Strict(Tensor):
    """A tensor on the strict device; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor):
        how = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=HERE)
        new = Tensor._make_wrapper_subclass(cls, held.shape, **how)
        new.held = held
        return new

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def tolist(self):
        return self.held.tolist()


class StrictDevice(TorchDispatchMode):
    """Inside, what is made on or moved to "meta" is on the strict device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args: tuple, kwargs: dict):
    """One operator on the tensors' numbers. Raises what Apple's graphics would raise, for float64 and mixed devices."""
    tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    mine = [v for v in tensors if isinstance(v, Strict)]
    if (device := kwargs.get("device")) is not None:
        result_is_mine = torch.device(device).type == HERE
        kwargs = {**kwargs, "device": "cpu"}
    else:
        result_is_mine = isinstance(args[0], Strict) if function is COPY[1] else bool(mine)
    if mine and function not in COPY:
        for v in tensors:  # single numbers and indices may lie on the CPU
            if not isinstance(v, Strict) and v.ndim and v.is_floating_point():
                raise RuntimeError(f"{function}: expected all tensors on the strict device, found one on the CPU")
    held = tree_map(lambda v: v.held if isinstance(v, Strict) else v, (args, kwargs))
    out = function(*held[0], **held[1])
    same = {id(v.held): v for v in mine}  # operators in place return what they got

    def wrapped(v):
        if not isinstance(v, Tensor) or not result_is_mine:
            return v
        if v.dtype == torch.float64:
            raise TypeError(f"{function}: the strict device has no float64")
        return same[id(v)] if id(v) in same else Strict(v)

    return tree_map(wrapped, out)


def move(module: nn.Module) -> nn.Module:
    """A module's weights and buffers onto the device, in place; one that modules share stays shared."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                new = moved.setdefault(id(p), nn.Parameter(Strict(p.detach()), requires_grad=p.requires_grad))
                part._parameters[name] = new
        part._buffers.update({name: Strict(b) for name, b in part._buffers.items() if b is not None})
    return module
