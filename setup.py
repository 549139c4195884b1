"""Configurations and checkpoints lie at the top level and belong to the package: one source of truth.

Everything else is in pyproject.toml, which cannot say "all packages that are found, and these two folders".
"""

from setuptools import find_packages, setup

found = find_packages(include=["lightning_rs", "lightning_rs.*"])
setup(
    packages=[
        *found,
        "lightning_rs.configs",
        "lightning_rs.checkpoints",
    ],
    package_dir={"lightning_rs.configs": "configs", "lightning_rs.checkpoints": "checkpoints"},
    package_data={
        "lightning_rs": ["py.typed"],
        "lightning_rs.configs": ["*/*.yaml"],
        "lightning_rs.checkpoints": ["*.ckpt", "manifest.json", "README.md"],
    },
)
