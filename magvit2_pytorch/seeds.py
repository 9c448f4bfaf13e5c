"""Seeds of random generators, computed from a key."""

import hashlib


def keyed_seed(*key: int | str) -> int:
    """63-bit seed of a key.

    It is the same on every machine, process and version of Python. Begin the key with a word for
    its purpose: two purposes with the same numbers then draw independent values. Similar keys have
    different seeds too: 1 and "1" differ, and so do ("ab", "c") and ("a", "bc").
    """
    digest = hashlib.sha256()
    for part in key:
        # Python does not promise the values of hash(), nor those of random.Random(str).
        # File names that are not UTF-8 contain surrogates.
        text = str(part).encode("utf-8", "surrogatepass")
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
