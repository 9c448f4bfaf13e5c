"""Descriptions of tokenizers, files and checkpoints, in plain JSON values."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from magvit2_pytorch.codes.code_file import CODE_SUFFIX, read_codes
from magvit2_pytorch.codes.code_header import to_json
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.metrics.codebook import compression_ratio
from magvit2_pytorch.pipelines.fingerprint import fingerprint
from magvit2_pytorch.pipelines.media_file import media_kind
from magvit2_pytorch.quantizers.continuous import Continuous
from magvit2_pytorch.tokenizer.layer_spec import LayerEntry
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, Tokenizer1d, Tokenizer1dConfig
from magvit2_pytorch.training.checkpoints import STATE_FILE

Description = dict[str, Any]


def tokenizer_info(tokenizer: AnyTokenizer, with_fingerprint: bool = True) -> Description:
    """Sizes, rates, layers and configuration of a tokenizer.

    `with_fingerprint` needs weights; without it the tokenizer may be on the device "meta".
    """
    bits = tokenizer.bits_per_pixel
    is_sequence = isinstance(tokenizer, Tokenizer1d)
    description = {
        "kind": "1-D tokenizer" if is_sequence else "tokenizer",
        "parameters": count(tokenizer),
        "encoder_parameters": count(tokenizer.encoder),
        "decoder_parameters": count(tokenizer.decoder),
        "time_factor": tokenizer.time_factor,
        "space_factor": tokenizer.space_factor,
        "quantizer": type(tokenizer.quantizer).__name__,
        "codebook_size": tokenizer.codebook_size,
        "num_codebooks": tokenizer.num_codebooks,
        "bits_per_pixel": bits,
        "compression_ratio": bits and compression_ratio(bits, tokenizer.config.channels),
    }
    if with_fingerprint:
        description["fingerprint"] = fingerprint(tokenizer)
        if isinstance(tokenizer.quantizer, Continuous):
            description["latent_statistics"] = _latent_statistics(tokenizer.quantizer)
    if is_sequence:
        low, high = tokenizer.config.num_tokens
        description |= {"fewest_tokens": low, "most_tokens": high}
        return description | {"config": tokenizer.config.to_dict()}
    return description | {"layers": _layers(tokenizer), "config": tokenizer.config.to_dict()}


def describe_preset(options: dict[str, Any]) -> Description:
    """Description of the tokenizer of a preset, without allocating its weights."""
    sequence = "num_tokens" in options
    config = (Tokenizer1dConfig if sequence else TokenizerConfig).from_dict(options)
    with torch.device("meta"):
        tokenizer = (Tokenizer1d if sequence else VideoTokenizer).from_config(config)
        return tokenizer_info(tokenizer, with_fingerprint=False)


def describe_file(path: str | os.PathLike) -> Description:
    """Describes a code file, video or image; `UnusableMedia` if unreadable."""
    if Path(path).name.lower().endswith(CODE_SUFFIX):
        return _describe_codes(path)
    if media_kind(path) == "image":
        height, width, _ = read_image(path).shape
        return {"kind": "image", "height": height, "width": width}
    video = VideoFile(path)
    return {
        "kind": "video",
        "num_frames": video.num_frames,
        "height": video.height,
        "width": video.width,
        "fps": video.fps,
        "duration_s": video.duration_s,
    }


def is_checkpoint(folder: Path) -> bool:
    """True if the folder contains the state of a trainer."""
    return (folder / STATE_FILE).is_file()


def describe_checkpoint(folder: Path) -> Description:
    """Saved state of training; raises `UnusableMedia` if it cannot be read."""
    try:
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return {"kind": "checkpoint", "step": values["step"]} | values
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableMedia(folder / STATE_FILE, f"is damaged ({error})") from error


def count(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _describe_codes(path: str | os.PathLike) -> Description:
    codes, video = read_codes(path)
    entry, header = (json.loads(to_json(metadata)) for metadata in (video, video.header))
    num_bits = math.log2(video.header.codebook_size) * codes.numel()
    return {
        "kind": "codes",
        "of": video.kind,
        **{name: value for name, value in entry.items() if name not in ("kind", "state")},
        "codebook_size": video.header.codebook_size,
        **header,
        "num_codes": codes.numel(),
        "different_codes": len(codes.unique()),
        "bits_per_pixel": num_bits / (video.num_frames * video.height * video.width),
    }


def _layers(tokenizer: AnyTokenizer) -> list[Description]:
    """Grid and parameters of each layer, from pixels to latents."""
    config, (first_grid, *grids) = tokenizer.config, tokenizer.config.grids
    input_layer, *down = tokenizer.encoder.layers
    output_layer, *up = reversed(tokenizer.decoder.layers)
    rows = [_row("pixels", first_grid, [input_layer], [output_layer])]
    if config.decoder_layers is None:
        layers = zip(config.layers, grids, down, up, strict=False)
        rows += [
            _row(_name(entry), grid, [module], [other]) for entry, grid, module, other in layers
        ]
        others = up[len(config.layers) :]
    else:
        layers = zip(config.layers, grids, down, strict=False)
        rows += [_row(_name(entry), grid, [module], []) for entry, grid, module in layers]
        layers = zip(config.decoder_layers, config.decoder_grids[1:], up, strict=False)
        rows += [_row(f"decoder: {_name(e)}", grid, [], [module]) for e, grid, module in layers]
        others = up[len(config.decoder_layers) :]
    return [*rows, _row("latents", config.grids[-1], down[len(config.layers) :], others)]


def _latent_statistics(continuous: Continuous) -> Description | str:
    """Measured mean and standard deviation of each latent channel, for `normalize_latents`."""
    if not continuous.has_statistics:
        return "not measured"
    pairs = zip(continuous.latent_mean.tolist(), continuous.latent_std.tolist(), strict=True)
    return {
        "num_latents": int(continuous.num_latents),
        "channels": [{"channel": c, "mean": m, "std": s} for c, (m, s) in enumerate(pairs)],
    }


def _row(name: str, grid: Any, encoder: list[nn.Module], decoder: list[nn.Module]) -> Description:
    return {
        "layer": name,
        "dim": grid.dim,
        "frames": grid.time,
        "pixels": grid.space,
        "encoder_parameters": sum(map(count, encoder)),
        "decoder_parameters": sum(map(count, decoder)),
    }


def _name(entry: LayerEntry) -> str:
    return entry if isinstance(entry, str) else " ".join(map(str, entry))
