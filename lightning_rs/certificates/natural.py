"""The certificate that is meant when none is named: the usual one of the noise.

Which theorem is usual depends on the pair of noise and certificate, so it is registered beside the certificate::

    @usual_for(MyNoise)
    class MyCertificate(TopVoteCertificate):
        noises = (MyNoise,)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_rs.certificates.base import Certificate
from lightning_rs.class_paths import class_path
from lightning_rs.noise.base import Noise

C = TypeVar("C", bound=Certificate)
_USUAL: dict[type[Noise], type[Certificate]] = {}


def usual_for(*laws: type[Noise]) -> Callable[[type[C]], type[C]]:
    """Register a certificate as the usual one of some noises; a decorator of the certificate's class.

    The certificate is built without arguments. ``usual_for(MyNoise)(GaussianL2)`` serves where the theorem exists.

    Raises:
        ValueError: for a law that the theorem is not proved for, or that has another usual certificate already.
    """

    def register(certificate: type[C]) -> type[C]:
        for law in laws:
            # Where ``noises`` is computed for each instance, the instance is asked when it certifies.
            if isinstance(certificate.noises, tuple) and not issubclass(law, certificate.noises):
                raise ValueError(f"certificate {certificate.__name__} is not proved for {law.__name__}")
            before = _USUAL.get(law)
            # The same class again is a notebook cell that ran twice.
            if before is not None and class_path(before) != class_path(certificate):
                raise ValueError(
                    f"the usual certificate of {law.__name__} is {before.__name__} already, got {certificate.__name__}"
                )
            _USUAL[law] = certificate
        return certificate

    return register


def find_natural_certificate(law: type[Noise]) -> type[Certificate] | None:
    """Return the usual certificate of the most specific registered law that ``law`` is, or None."""
    return next((_USUAL[base] for base in law.__mro__ if base in _USUAL), None)


def natural_certificate(law: type[Noise]) -> type[Certificate]:
    """Return the usual certificate for a noise; that of its nearest base class if it has none of its own.

    Raises:
        ValueError: for a law that has none, because then it must be named.
    """
    found = find_natural_certificate(law)
    if found is None:
        known = ", ".join(noise.__name__ for noise in _USUAL)
        raise ValueError(
            f"certificates must be named for {law.__name__}, because none is registered for it by "
            f"@usual_for({law.__name__}); without a name they are known for {known}"
        )
    return found
