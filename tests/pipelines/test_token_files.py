"""Files through a 1-D tokenizer: clips or blocks, any number of tokens, and clear refusals."""

from dataclasses import replace

import pytest
import torch

from magvit2_pytorch.codes.code_file import read_codes, write_codes
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.pipelines.exporting import export_tokenizer
from magvit2_pytorch.pipelines.files import (
    decode_file,
    decoded_frames,
    reconstruct_file,
    tokenize_file,
)
from magvit2_pytorch.pipelines.inference import Inference, load_tokenizer, reconstruct_clip
from magvit2_pytorch.pipelines.tokenizer_info import tokenizer_info
from tests.conftest import build
from tests.evaluation.clips import clip
from tests.pipelines.test_files import read_all
from tests.tokenizer_1d.narrow import narrow, random_clip


@pytest.mark.parametrize("kind", ["anchored", "blocks"])
@pytest.mark.parametrize("chunk_frames", [1, 16])
def test_codes_of_files_are_those_of_streams(tmp_path, kind, chunk_frames):
    tokenizer, path = narrow(kind), clip(tmp_path, num_frames=19)
    inference = Inference(chunk_frames=chunk_frames, num_tokens=3)
    codes, video = tokenize_file(tokenizer, path, inference=inference)
    frames = to_float(read_all(path))[None].double()
    stream = tokenizer.encode_stream(3)
    parts = [stream.push(frames), stream.flush()]
    wanted = torch.cat([part for part in parts if part is not None], dim=1)[0]
    assert torch.equal(codes, wanted)
    assert video.shape == (3 * (3 if kind == "anchored" else 5),)
    assert video.header.num_tokens == 3

    write_codes(tmp_path / "a.codes.safetensors", codes, video)
    again, entry = read_codes(tmp_path / "a.codes.safetensors")
    assert entry == video
    decoded = torch.cat(list(decoded_frames(tokenizer, again, entry)))
    assert decoded.shape == (19, 18, 22, 3)
    recon, recon_codes = reconstruct_clip(tokenizer, frames, inference)
    assert torch.equal(recon_codes[0], codes)
    pixels = ((recon[0].clamp(-1, 1) + 1) * 127.5).movedim(0, -1)
    # Codes decode to float32 latents, and bytes are rounded.
    assert (decoded - pixels).abs().max() < 1.01
    decode_file(tokenizer, again, entry, tmp_path / "out.mkv")
    reconstruct_file(tokenizer, path, tmp_path / "recon.mkv", inference=inference)
    assert len(read_all(tmp_path / "out.mkv")) == len(read_all(tmp_path / "recon.mkv")) == 19


def test_the_first_tokens_of_a_file_decode(tmp_path):
    tokenizer, path = narrow(), clip(tmp_path, num_frames=10)
    codes, video = tokenize_file(tokenizer, path, inference=Inference(num_tokens=9))
    few = Inference(num_tokens=4)
    frames = torch.cat(list(decoded_frames(tokenizer, codes, video, few)))
    kept = codes.unflatten(0, (2, 9))[:, :4].flatten()
    short = replace(video, shape=tuple(kept.shape))
    assert torch.equal(frames, torch.cat(list(decoded_frames(tokenizer, kept, short))))
    assert not torch.equal(frames, torch.cat(list(decoded_frames(tokenizer, codes, video))))


def test_images_and_datasets(tmp_path):
    tokenizer = narrow()
    write_image(tmp_path / "a.png", torch.randint(0, 255, (9, 13, 3), dtype=torch.uint8))
    codes, video = tokenize_file(tokenizer, tmp_path / "a.png")
    assert video.shape == (4,)  # 2 x 2 patches
    write_codes(tmp_path / "codes" / "a.codes.safetensors", codes, video)
    longer, other = tokenize_file(tokenizer, clip(tmp_path, num_frames=5))
    write_codes(tmp_path / "codes" / "b.codes.safetensors", longer, other)
    dataset = CodesDataset(tmp_path / "codes")
    assert [item.codes.shape for item in dataset] == [(4,), (16,)]
    decode_file(tokenizer, codes, video, tmp_path / "out.png")


def test_codes_that_do_not_fit(tmp_path):
    tokenizer = narrow()
    codes, video = tokenize_file(
        tokenizer, clip(tmp_path, num_frames=10), inference=Inference(num_tokens=3)
    )
    short = replace(video, shape=(5,))
    with pytest.raises(ValueError, match="do not fit 10 frames"):
        decode_file(tokenizer, codes[:5], short, tmp_path / "out.mkv")


def test_what_a_tokenizer_cannot_do(tmp_path):
    tokenizer = narrow().float()
    with pytest.raises(ValueError, match="cannot be exported"):
        export_tokenizer(tokenizer, tmp_path)
    with pytest.raises(ValueError, match="no tile_size"):
        Inference(tile_size=16).check(tokenizer)
    with pytest.raises(ValueError, match="give a number"):
        Inference(num_tokens="psnr:20").check(tokenizer)
    with pytest.raises(ValueError, match="only a 1-D tokenizer"):
        Inference(num_tokens=8).check(build("compress_space"))
    Inference(num_tokens=8).check(tokenizer)


@pytest.mark.parametrize("tokenizer", [narrow(), build("compress_space")], ids=["1-D", "grid"])
def test_the_config_says_which_kind_is_loaded(tmp_path, tokenizer):
    tokenizer.float().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert type(loaded) is type(tokenizer)
    assert tokenizer_info(loaded) == tokenizer_info(tokenizer)


def test_files_of_a_grid_have_no_number_of_tokens(tmp_path):
    tokenizer = build("compress_space")
    codes, video = tokenize_file(tokenizer, clip(tmp_path))
    write_codes(tmp_path / "a.codes.safetensors", codes, video)
    assert b"num_tokens" not in (tmp_path / "a.codes.safetensors").read_bytes()
    assert read_codes(tmp_path / "a.codes.safetensors")[1] == video


def test_a_clip_in_chunks_is_the_whole_clip():
    tokenizer, video = narrow("blocks"), random_clip(10, 16, 17)[None]
    recon, codes = reconstruct_clip(tokenizer, video, Inference(chunk_frames=4, num_tokens=3))
    assert torch.equal(codes, tokenizer.tokenize(video, 3))
    wanted = tokenizer.decode(codes, (10, 16, 17))
    torch.testing.assert_close(recon, wanted, atol=1e-5, rtol=1e-5)
