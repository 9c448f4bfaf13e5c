"""Hash of a file's contents."""

import hashlib
import os


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's contents, in hexadecimal, in constant memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
