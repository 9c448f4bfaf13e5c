import pytest

from magvit2_pytorch.config import Registry
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES
from magvit2_pytorch.quantizers.quantizer import QUANTIZERS
from magvit2_pytorch.tokenizer.layer_spec import LAYERS

REGISTRIES = [LAYERS, QUANTIZERS, RECONSTRUCTION_LOSSES]


def instruments():
    registry = Registry("instrument")

    @registry.register("violin")
    class Violin:
        pass

    registry.register("viola")(int)
    return registry, Violin


def test_it_is_a_mapping_in_the_order_of_registration():
    registry, violin = instruments()
    assert registry["violin"] is violin
    assert dict(registry) == {"violin": violin, "viola": int}
    assert list(registry) == ["violin", "viola"]
    assert len(registry) == 2


def test_asking_is_no_error():
    registry, _ = instruments()
    assert "viola" in registry
    assert "violla" not in registry
    assert 3 not in registry


def test_a_name_given_twice_keeps_its_first_owner():
    registry, violin = instruments()
    with pytest.raises(ValueError, match="instrument 'violin' is already registered"):
        registry.register("violin")
    assert registry["violin"] is violin


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_every_entry_says_what_it_is(registry):
    assert registry
    for name, entry in registry.items():
        assert name.replace("-", "_").isidentifier()
        doc = entry.__doc__ or ""
        assert doc.strip(), f"{registry.kind} {name!r} has no docstring"
        # What a dataclass writes by itself is a signature, and says nothing.
        assert not doc.startswith(f"{entry.__name__}("), f"{registry.kind} {name!r}"
