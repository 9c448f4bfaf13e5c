"""Compiled against eager, in a process of its own: the tests' type checks do not compile."""

import copy

import torch

from tests.conftest import build, random_video

KINDS = {
    "own": lambda: build("residual", "compress_space", "compress_time", "attend_time"),
    "magvit2": lambda: build(
        "magvit2_compress_space_time", "magvit2_decoder_residual", norm="group", norm_groups=4
    ),
}


def main(kind: str) -> None:
    torch.manual_seed(0)
    tokenizer = KINDS[kind]()
    compiled = copy.deepcopy(tokenizer)
    # What is in question is the graph, and not what a backend makes of it.
    compiled.compile(fullgraph=True, backend="eager")
    assert compiled.state_dict().keys() == tokenizer.state_dict().keys()

    for num_frames in (5, 7):
        video = random_video(num_frames)
        torch.testing.assert_close(compiled(video), tokenizer(video), atol=1e-5, rtol=1e-5)
    streams = [(model.encode_stream(), model.decode_stream()) for model in (tokenizer, compiled)]
    for piece in random_video(9).split([1, 2, 2, 4], dim=2):
        (codes, frames), (same_codes, same_frames) = (
            (said := encoder.push(piece), decoder.push(said)) for encoder, decoder in streams
        )
        assert torch.equal(codes, same_codes)
        torch.testing.assert_close(frames, same_frames, atol=1e-5, rtol=1e-5)
