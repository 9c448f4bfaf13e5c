"""`magvit2 export`: a tokenizer as ONNX or .pt2 files, for runtimes without this library."""

from pathlib import Path
from typing import Literal

from magvit2_pytorch.cli.errors import UserError, user_errors
from magvit2_pytorch.cli.model_folder import find_tokenizer, load_tokenizer


def export(
    model: str,
    /,
    *,
    output: str,
    format: Literal["onnx", "pt2", "both"] = "onnx",
    part: Literal["encode", "decode", "both"] = "both",
) -> int:
    """Turns a tokenizer into programs that run without this library.

    encode takes video in [-1, 1] and gives codes, decode takes codes and gives video; of a
    continuous tokenizer, latents. Batch, frames, height and width may be of any size that the
    strides divide, one frame being an image. Each program is loaded again and compared with the
    tokenizer; where one differs, no file is written. export.json says what goes in and comes out.

    Args:
        model: Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME.
        output: Folder for encode.onnx, decode.onnx and the like; older ones in it are replaced.
        format: onnx for onnxruntime and others, which needs the extra magvit2-pytorch[export]; pt2
            for torch.export.load.
        part: Which direction.
    """
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder")
    find_tokenizer(model, "MODEL")
    from magvit2_pytorch.evaluation.export import ProgramMismatch, export_tokenizer
    from magvit2_pytorch.evaluation.export_formats import FORMATS

    formats = ("onnx", "pt2") if format == "both" else (format,)
    parts = ("encode", "decode") if part == "both" else (part,)
    with user_errors():
        for name in formats:
            FORMATS[name].check_installed()
    tokenizer, tokenizer_id = load_tokenizer(model, "cpu")
    with user_errors(ProgramMismatch):
        agreements = export_tokenizer(tokenizer, folder, formats, parts, tokenizer_id)
    width = max(map(len, agreements))
    for file, agreement in agreements.items():
        print(f"{file:{width}}  {agreement}")
    print(f"Wrote {folder}/")
    return 0
