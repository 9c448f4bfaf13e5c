"""Checks of quantizer options, and their translation to those of a class."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from magvit2_pytorch.quantizers import QUANTIZERS
from magvit2_pytorch.quantizers.vector import VectorQuantizerName


def quantizer_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Name and options for `build_quantizer`, from the options of a tokenizer."""

    def with_prefix(prefix: str) -> dict[str, Any]:
        names = (name for name in options if name.startswith(prefix))
        return {name.removeprefix(prefix): options[name] for name in names}

    if options["quantizer"] is not None:
        return dict(options["quantizer"])
    if options["continuous_dim"] is not None:
        kl = dict(kl=options["use_kl"], kl_loss_weight=options["kl_loss_weight"])
        return dict(name="continuous", dim=options["continuous_dim"], **kl)
    num_codebooks, size = options["num_codebooks"], options["codebook_size"]
    if options["residual_levels"] > 1:
        names = ("residual_levels", "level_dropout")
        levels = {name: options[name] for name in names}
        if options["use_fsq"]:
            return dict(name="residual_fsq", levels=options["fsq_levels"], **levels)
        lfq = with_prefix("lfq_")
        del lfq["spherical"]
        return dict(name="residual_lfq", codebook_size=size, **levels, **lfq)
    if options["use_fsq"]:
        return dict(name="fsq", levels=options["fsq_levels"], num_codebooks=num_codebooks)
    if options["vq_type"] is not None:
        vq = with_prefix("vq_")
        return dict(name="vector", codebook_size=size, vq_type=vq.pop("type"), **vq)
    lfq = with_prefix("lfq_")
    return dict(name="lfq", codebook_size=size, num_codebooks=num_codebooks, **lfq)


def check_quantizer_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless the options of a tokenizer choose one quantizer."""
    if options["use_fsq"] and not options["fsq_levels"]:
        raise ValueError("use_fsq needs fsq_levels, e.g. (8, 8, 8, 5, 5, 5)")
    if options["fsq_levels"] and not options["use_fsq"]:
        raise ValueError("fsq_levels has no effect without use_fsq=True")
    chosen = {
        name: options[name]
        for name in ("codebook_size", "use_fsq", "continuous_dim", "quantizer")
        if options[name] is not None and options[name] is not False
    }
    if options["use_fsq"] and options["codebook_size"] == math.prod(options["fsq_levels"]):
        del chosen["codebook_size"]
    if len(chosen) > 1:
        raise ValueError(
            "choose one of codebook_size (LFQ), use_fsq with fsq_levels, continuous_dim or "
            "quantizer, and set use_fsq to false and the others to null (None)"
        )
    _check_vq(options, defaults)
    if not chosen:
        raise ValueError(
            "no quantizer chosen: give codebook_size (LFQ, e.g. 2**18), use_fsq=True with "
            "fsq_levels, or continuous_dim (no quantization)"
        )
    if options["use_kl"] and "continuous_dim" not in chosen:
        raise ValueError("use_kl needs continuous latents: give continuous_dim")
    if "quantizer" in chosen and "name" not in options["quantizer"]:
        raise ValueError(
            f"quantizer {options['quantizer']}: give a name too, one of {sorted(QUANTIZERS)}"
        )
    if options["num_codebooks"] > 1 and "continuous_dim" in chosen:
        raise ValueError(
            f"num_codebooks={options['num_codebooks']}, but continuous latents have no codes"
        )
    if options["num_codebooks"] > 1 and "quantizer" in chosen:
        raise ValueError("num_codebooks has no effect here: give it among those of quantizer")

    _check_residual(options)


def _check_residual(options: Mapping[str, Any]) -> None:
    if options["residual_levels"] == 1:
        if options["level_dropout"]:
            raise ValueError("level_dropout has no effect without residual_levels")
        return
    if options["residual_levels"] < 1:
        raise ValueError(f"residual_levels is {options['residual_levels']}: give 1 or more")
    for name in ("quantizer", "continuous_dim", "vq_type"):
        if options[name] is not None:
            raise ValueError(
                f"residual_levels={options['residual_levels']} is for LFQ and FSQ, not {name}"
            )
    if options["num_codebooks"] > 1 or options["lfq_spherical"]:
        raise ValueError("residual_levels does not work with num_codebooks or lfq_spherical")


def _check_vq(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    vq_type = options["vq_type"]
    if vq_type is None:
        for name in ("vq_dim", "vq_num_levels", "vq_commitment_loss_weight"):
            if options[name] != defaults[name]:
                raise ValueError(f"{name} has no effect without vq_type")
        return
    if vq_type not in get_args(VectorQuantizerName):
        raise ValueError(f"vq_type {vq_type!r}: use 'vq', 'simvq' or 'residual'")
    if options["codebook_size"] is None or options["use_fsq"]:
        raise ValueError(
            f"vq_type={vq_type!r} needs codebook_size, e.g. 1024, and no other quantizer"
        )
    if options["num_codebooks"] > 1:
        raise ValueError(
            f"num_codebooks={options['num_codebooks']} is not for vq_type: use vq_type='residual' "
            "and vq_num_levels"
        )
    if options["vq_num_levels"] != defaults["vq_num_levels"] and vq_type != "residual":
        raise ValueError("vq_num_levels has no effect without vq_type='residual'")
