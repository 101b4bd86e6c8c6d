"""Models whose tensors have shapes and no contents: a step of a billion weights can be counted on any machine."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


def without_contents(model: nn.Module) -> nn.Module:
    """The model, in place, with floating-point weights that have shapes alone; what it computes has none either.

    Whole numbers stay as they are, so that it can still count the words of a caption.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    tensors[name] = mode.from_tensor(tensor)
    return model


class CountedMasks(TorchDispatchMode):
    """Chooses by the row numbers of a mask in place of the mask: how many they are is then known without contents."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index.Tensor:
            chosen = []
            for index in args[1]:
                mask = index is not None and index.dtype is torch.bool
                chosen += index.nonzero().unbind(1) if mask else [index]
            args = (args[0], chosen)
        return func(*args, **(kwargs or {}))


class Unfilled(TorchDispatchMode):
    """Leaves out the drawing of random weights: a billion take minutes, and memory that is not touched is free."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0]
        return func(*args, **(kwargs or {}))
