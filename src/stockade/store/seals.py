"""Secrets of tenants' that have to be kept as they are: encrypted wherever they lie."""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from stockade.errors import Fault

__all__ = ["Seal"]

_NONCE_BYTES = 12


class Seal:
    """Encrypts, and notices what was changed (AES-256 in Galois/counter mode)."""

    def __init__(self, key: str) -> None:
        """Take a key of 256 bits in hexadecimal, such as `secret_file.kept_secret` keeps."""
        self._cipher = AESGCM(bytes.fromhex(key))

    def close(self, text: bytes, *, about: str) -> bytes:
        """*text*, encrypted; only who names the same *about* can open it: it cannot be moved to another row."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text, about.encode())

    def open(self, sealed: bytes, *, about: str) -> bytes:
        """What was encrypted.

        Raises:
            Fault: it was not encrypted with this key, for this, or it is damaged.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode())
        except (InvalidTag, ValueError):
            raise Fault(
                f"the secrets of {about} cannot be read: the file with the server's own secret is not the one that "
                "they were encrypted with. Restore it from the backup that the database comes from"
            ) from None
