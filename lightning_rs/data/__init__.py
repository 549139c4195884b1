"""LightningDataModules: images in [0, 1] (or vectors in R^d), a held-out split, a certification subset."""

from lightning_rs.data.base import ImageDataModule as ImageDataModule
from lightning_rs.data.cifar import CIFAR10 as CIFAR10
from lightning_rs.data.cifar import CIFAR100 as CIFAR100
from lightning_rs.data.datasets import View as View
from lightning_rs.data.digits import Digits as Digits
from lightning_rs.data.errors import CorruptDataError as CorruptDataError
from lightning_rs.data.errors import MissingDataError as MissingDataError
from lightning_rs.data.folder import ImageFolder as ImageFolder
from lightning_rs.data.imagenet import ImageNet as ImageNet
from lightning_rs.data.mnist import MNIST as MNIST
from lightning_rs.data.mnist import MNISTPCA as MNISTPCA
from lightning_rs.data.mnist import FashionMNIST as FashionMNIST
from lightning_rs.data.own import OwnData as OwnData
from lightning_rs.data.own import as_datamodule as as_datamodule
from lightning_rs.data.svhn import SVHN as SVHN
from lightning_rs.data.toy import SwissRoll as SwissRoll
