"""Base networks: by name, with normalisation as first layer; checkpoints, fingerprints."""

from __future__ import annotations

from lightning_rs.networks.build import available_networks, build_network
from lightning_rs.networks.checkpoints import (
    CheckpointInfo,
    load_checkpoint,
    load_cohen_checkpoint,
    state_dict_sha256,
    weights_sha256,
)
from lightning_rs.networks.cifar_resnet import CifarResNet
from lightning_rs.networks.denoise import (
    DenoisedNetwork,
    Denoiser,
    EpsilonDenoiser,
    NoiseMapDenoiser,
    PlainDenoiser,
    SigmaDenoiser,
)
from lightning_rs.networks.denoisers import DnCNN, SigmaUNet
from lightning_rs.networks.normalize import Normalize
from lightning_rs.networks.null_coding import NullCoding
from lightning_rs.networks.pooling import LowResolution
from lightning_rs.networks.schedules import alphas_cumprod, denoising_timestep
from lightning_rs.networks.small import MLP, DigitsCNN, MnistLeNet, PooledCNN, SmallCNN
from lightning_rs.networks.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "CheckpointInfo",
    "CifarResNet",
    "DenoisedNetwork",
    "Denoiser",
    "DigitsCNN",
    "DnCNN",
    "EpsilonDenoiser",
    "LowResolution",
    "MnistLeNet",
    "NoiseMapDenoiser",
    "Normalize",
    "NullCoding",
    "PlainDenoiser",
    "PooledCNN",
    "SigmaDenoiser",
    "SigmaUNet",
    "SmallCNN",
    "WideResNet",
    "alphas_cumprod",
    "available_networks",
    "build_network",
    "denoising_timestep",
    "load_checkpoint",
    "load_cohen_checkpoint",
    "state_dict_sha256",
    "weights_sha256",
]
