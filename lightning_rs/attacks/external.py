"""Attacks of other libraries, by class path."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_rs.attacks.base import Aim, Attack
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.checks import check_choice
from lightning_rs.smoothed import SmoothedClassifier


class External(Attack):
    """An attack of foolbox or torchattacks on the smoothed classifier's log-probabilities.

    Its points are put back into the threat set, and successes are confirmed, as for every attack.

    Args:
        class_path: for instance "foolbox.attacks.L2PGD" or "torchattacks.PGDL2".
        init_args: arguments of that class, without model and radius.
        norm: norm that it attacks in.

    Raises:
        ValueError: if the library is not installed or has no such class, or for another norm than l1, l2, linf.
    """

    norms: ClassVar[tuple[str, ...]] = ("l1", "l2", "linf")

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None, norm: str = "l2") -> None:
        check_choice("norm", norm, type(self).norms)
        self.class_path = class_path
        self.init_args = dict(init_args or {})
        self.norm = norm
        self.norms = (norm,)  # type: ignore[misc]
        self._class = _find(class_path)

    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        run = self._foolbox if self.class_path.startswith("foolbox") else self._torchattacks
        smoothed.renew()
        with torch.enable_grad():
            # One image at a time: these libraries take one radius a call.
            found = [
                run(smoothed, image[None], aim.classes[row : row + 1], float(aim.eps[row]), aim.geometry)
                for row, image in enumerate(aim.images)
            ]
        return torch.cat(found)

    def _foolbox(
        self, smoothed: SmoothedClassifier, image: Tensor, label: Tensor, eps: float, geometry: Geometry
    ) -> Tensor:
        import foolbox

        model = foolbox.PyTorchModel(smoothed.eval(), bounds=geometry.domain or (-1e6, 1e6), device=image.device)
        _, clipped, _ = self._class(**self.init_args)(model, image, label, epsilons=eps)
        return clipped

    def _torchattacks(
        self, smoothed: SmoothedClassifier, image: Tensor, label: Tensor, eps: float, geometry: Geometry
    ) -> Tensor:
        return self._class(smoothed.eval(), **{"eps": eps, **self.init_args})(image, label)


def _find(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"class_path {class_path!r} cannot be imported: {error}") from error
    if found is None:
        raise ValueError(f"class_path must name an attack, got {class_path!r}: {module} has no {name}")
    return found
