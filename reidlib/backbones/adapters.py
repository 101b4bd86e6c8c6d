"""Low-rank adapters (LoRA, through peft) in the transformer towers of any method."""

from torch import nn

from reidlib.errors import ReidError


def add_adapters(tower: nn.Module, rank: int) -> None:
    """Freezes a tower and adds low-rank adapters, alpha = 2 rank, to its linear and attention layers, in place.

    A tower that has adapters already, or rank 0, is left as it is. A temperature that learns goes on learning.
    Raises ReidError without peft.
    """
    if not rank or any("lora_" in name for name, _ in tower.named_parameters()):
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ReidError("Low-rank adapters need the package peft: pip install 'reidlib[lora]'.") from error
    attention = [name for name, module in tower.named_modules() if isinstance(module, nn.MultiheadAttention)]
    inside = tuple(f"{name}." for name in attention)  # an attention's adapter holds that of its last projection
    linear = [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear) and not (inside and name.startswith(inside))
    ]
    scale = getattr(tower, "logit_scale", None)
    learns = scale is not None and scale.requires_grad
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=attention + linear), tower)
    if learns:
        scale.requires_grad_(True)


def merge_adapters(model: nn.Module) -> nn.Module:
    """Adds the adapters to the weights they adapt and takes them away, in place; returns the model."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer) and not name.endswith(".out_proj"):
            layer.merge()
            plain = layer.get_base_layer()
            if isinstance(plain, nn.MultiheadAttention):  # its adapter has merged that of the last projection too
                plain.out_proj = plain.out_proj.get_base_layer()
                for owner, weight in ((plain, "in_proj_weight"), (plain.out_proj, "weight")):
                    merged = getattr(owner, weight).detach().clone()  # peft leaves a tensor in the parameter's place
                    delattr(owner, weight)
                    owner.register_parameter(weight, nn.Parameter(merged))
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    return model.requires_grad_(True)
