"""Seeds of random generators, as functions of a key."""

import hashlib


def keyed_seed(*key: int | str) -> int:
    """63-bit seed of a key: the same for every machine, process and version of Python.

    The key begins with a word for its purpose, so that the draws of one purpose tell nothing of
    those of another with the same numbers. Different keys have different seeds, near ones too:
    1 and "1" differ, and so do ("ab", "c") and ("a", "bc").
    """
    digest = hashlib.sha256()
    for part in key:
        # Python does not promise the values of hash(), nor those of random.Random(str).
        # Names of files that are not UTF-8 hold surrogates.
        text = str(part).encode("utf-8", "surrogatepass")
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
