"""What a process tells torch beside the network: flags that change how numbers are rounded, and so what ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

# Name, how to read it, torch's own default.
_FLAGS: Mapping[str, tuple[Callable[[], Any], Any]] = {
    "default_dtype": (lambda: str(torch.get_default_dtype()).removeprefix("torch."), "float32"),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, "highest"),
    "deterministic_algorithms": (torch.are_deterministic_algorithms_enabled, False),
    "mkldnn": (lambda: torch.backends.mkldnn.enabled, True),
    "mkldnn_deterministic": (lambda: torch.backends.mkldnn.deterministic, False),
    "flush_denormal": (lambda: flushes_denormals(), False),
}
_CUDA_FLAGS: Mapping[str, tuple[Callable[[], Any], Any]] = {
    "matmul_tf32": (lambda: torch.backends.cuda.matmul.allow_tf32, False),
    "matmul_fp16_reduction": (lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction, True),
    "matmul_bf16_reduction": (lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction, True),
    "cudnn": (lambda: torch.backends.cudnn.enabled, True),
    "cudnn_tf32": (lambda: torch.backends.cudnn.allow_tf32, True),
    "cudnn_deterministic": (lambda: torch.backends.cudnn.deterministic, False),
    "cudnn_benchmark": (lambda: torch.backends.cudnn.benchmark, False),
}


def unusual_flags(device_type: str) -> dict[str, Any]:
    """Return the flags of this process that differ from torch's defaults: they bind what ran on this device."""
    flags = {**_FLAGS, **(_CUDA_FLAGS if device_type == "cuda" else {})}
    found = {name: _read(read) for name, (read, _) in flags.items()}
    return {name: value for name, value in found.items() if value != flags[name][1]}


def flushes_denormals() -> bool:
    """Say whether this thread rounds the smallest numbers to zero; torch has a setter only."""
    return not bool(torch.full((1,), 1e-39).mul_(0.5).count_nonzero())


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError as error:  # a flag set through torch's newer interface cannot be read through the older one
        return str(error).splitlines()[0]
