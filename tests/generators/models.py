"""Small generators for tests, with weights that are far from their first values."""

import torch

from magvit2_pytorch.generators import build_generator

EXACT = dict(atol=1e-12, rtol=1e-12)


def generator(kind="autoregressive", levels=((3, 3),), dtype=torch.float64, **options):
    """A small generator whose outputs depend clearly on all it sees."""
    torch.manual_seed(0)
    options = dict(kind=kind, levels=levels, dim=16, depth=2, heads=2) | options
    model = build_generator(**options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def random_codes(model, *shape, seed=1):
    """Codes `b j y x` (or with a codebook axis) of a generator's code space."""
    draws = torch.Generator().manual_seed(seed)
    space = model.code_space
    sizes = torch.tensor([part.size for part in space.digits])
    digits = torch.rand(*shape, len(sizes), generator=draws) * sizes
    return space.from_digits(digits.long())
