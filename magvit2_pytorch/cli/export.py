"""`magvit2 export`: exports a tokenizer to ONNX or .pt2 files."""

from typing import Literal

from magvit2_pytorch.cli.model_folder import (
    find_tokenizer,
    load_tokenizer,
    output_folder,
    user_errors,
)
from magvit2_pytorch.cli.options import Model


def export(
    model: Model,
    /,
    *,
    output: str,
    format: Literal["onnx", "pt2", "both"] = "onnx",
    part: Literal["encode", "decode", "both"] = "both",
) -> int:
    """Exports a tokenizer as programs that run without this library.

    encode turns video in [-1, 1] into codes, and decode turns codes into video; a continuous
    tokenizer has latents instead of codes. Batch, frames, height and width may have any size that
    the strides divide; one frame is an image. Each program is loaded again and compared with the
    tokenizer; if one differs, no file is written. export.json describes inputs and outputs.

    Args:
        output: Folder for encode.onnx, decode.onnx and so on; older files are replaced.
        format: onnx for onnxruntime and others (requires magvit2-pytorch[export]), or pt2 for
            torch.export.load.
        part: The direction to export.
    """
    folder = output_folder(output)
    find_tokenizer(model, "MODEL")
    from magvit2_pytorch.pipelines.export_formats import FORMATS
    from magvit2_pytorch.pipelines.exporting import (
        ProgramMismatch,
        check_exportable,
        export_tokenizer,
    )

    formats = ("onnx", "pt2") if format == "both" else (format,)
    parts = ("encode", "decode") if part == "both" else (part,)
    with user_errors():
        for name in formats:
            FORMATS[name].check_installed()
    tokenizer, tokenizer_id = load_tokenizer(model, "cpu")
    with user_errors():
        check_exportable(tokenizer)
    with user_errors(ProgramMismatch):
        agreements = export_tokenizer(tokenizer, folder, formats, parts, tokenizer_id)
    width = max(map(len, agreements))
    for file, agreement in agreements.items():
        print(f"{file:{width}}  {agreement}")
    print(f"Wrote {folder}/")
    return 0
