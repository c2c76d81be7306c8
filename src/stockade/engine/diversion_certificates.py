"""Certificates by which a program in a sandbox takes us for the host it called: one authority for each sandbox.

Its key follows from a secret of the server and the sandbox's id: a server that starts again is believed by the
sandboxes that it finds. It is in no file, and an authority is trusted by its own sandbox only.
"""

import hashlib
import hmac
import ipaddress
import os
import ssl
from collections import OrderedDict
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority"]

_CURVE = ec.SECP256R1()
_AUTHORITY_DAYS = 3650
_HOST_DAYS = 30
_RENEW_DAYS = 15
_SKEW = timedelta(days=1)  # a sandbox's clock is the host's, yet may be set back in a machine under it
_MOST_HOSTS = 256


class Authority:
    """Vouches for us to one sandbox."""

    def __init__(self, secret: bytes) -> None:
        """Two with the same *secret* are the same authority."""
        self._key = _derived_key(secret, "authority")
        self._host_key = _derived_key(secret, "hosts")
        common = f"Stockade secrets {hashlib.sha256(secret).hexdigest()[:16]}"
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        self._contexts: OrderedDict[str, tuple[datetime, ssl.SSLContext]] = OrderedDict()

    def certificate(self) -> str:
        """What the sandbox is to trust, as PEM."""
        made = (
            self._builder(self._name, self._key.public_key(), _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def context(self, host: str) -> ssl.SSLContext:
        """To be *host* (a name, or an IPv4 address) with; HTTP/1.1 is all that is offered."""
        now = datetime.now(UTC)
        made_at, context = self._contexts.get(host, (None, None))
        if context is None or made_at is None or now - made_at > timedelta(days=_RENEW_DAYS):
            context = _server_context(self._certificate_of(host), self._host_key)
            self._contexts[host] = now, context
        self._contexts.move_to_end(host)
        if len(self._contexts) > _MOST_HOSTS:
            self._contexts.popitem(last=False)
        return context

    def _certificate_of(self, host: str) -> x509.Certificate:
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.IPv4Address(host))
        except ValueError:
            name = x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Stockade")])  # a host's name may be too long
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            self._builder(subject, self._host_key.public_key(), _HOST_DAYS)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _derived_key(secret: bytes, purpose: str) -> ec.EllipticCurvePrivateKey:
    # More bits than the group's order has, so that no key is likelier than another.
    number = int.from_bytes(hmac.digest(secret, purpose.encode(), "sha512"), "big")
    return ec.derive_private_key(number % (_CURVE.group_order - 1) + 1, _CURVE)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _server_context(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION  # a session of one host's is none of another's
    context.num_tickets = 0
    # Loaded from a file only: from one in memory that nobody else can open.
    fd = os.memfd_create("host", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    return context
