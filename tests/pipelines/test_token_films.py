"""Films of 1-D tokens: prompts of whole parts, and frames of the codes that are drawn."""

import json
from contextlib import nullcontext

import pytest
import torch

from magvit2_pytorch.generators import Sampling
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.pipelines import generation
from magvit2_pytorch.pipelines.fingerprint import TokenizerId, TokenizerMismatch
from magvit2_pytorch.pipelines.generation import (
    check_generator,
    continued_codes,
    empty_prompt,
    generate_films,
    read_prompt,
)
from magvit2_pytorch.pipelines.inference import Inference
from tests.conftest import build
from tests.evaluation.clips import clip
from tests.generators.models import generator, random_codes
from tests.pipelines.test_files import read_all
from tests.tokenizer_1d.narrow import narrow

KINDS = ("anchored", "blocks")


def small(kind):
    """A tokenizer, and a generator of its codes with five tokens in a part."""
    tokenizer = narrow(kind).float()
    fingerprint = TokenizerId.of(tokenizer).fingerprint
    levels = (tokenizer.digit_levels,)
    options = dict(levels=levels, num_tokens=5, window=2, tokenizer_fingerprint=fingerprint)
    return tokenizer, generator(dtype=torch.float32, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_frames", [1, 16])
def test_a_prompt_is_whole_parts_and_stays(tmp_path, kind, chunk_frames):
    tokenizer, model = small(kind)
    path = clip(tmp_path, num_frames=19)
    part = tokenizer.time_factor
    inference = Inference(chunk_frames=chunk_frames, num_tokens=5)
    prompt = read_prompt(tokenizer, path, 2 * part + 1, inference=inference)
    assert prompt.num_frames == 2 * part
    frames = to_float(read_all(path)[: 2 * part])[None]
    stream = tokenizer.encode_stream(5)
    assert torch.equal(prompt.codes, stream.push(frames).view(1, 2, 1, 5))
    assert read_prompt(tokenizer, path, inference=inference).num_frames == 19 // part * part

    def film_codes(*samples):
        parts = continued_codes(model, prompt.codes, Sampling(seed=3), torch.tensor(samples))
        return torch.cat([next(parts) for _ in range(4)], dim=1)

    three = film_codes(0, 1, 2)
    assert three.shape == (3, 5, 1, 5)
    assert torch.equal(three[:, :2], prompt.codes.expand(3, -1, -1, -1))
    assert torch.equal(film_codes(2), three[2:])
    assert not torch.equal(three[1, 2:], three[2, 2:])


def test_a_prompt_shorter_than_a_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"prompt of 3 frames .* has 8: give more"):
        read_prompt(narrow().float(), clip(tmp_path, num_frames=19), 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [None, 2])
def test_a_film_is_the_decoded_codes(tmp_path, monkeypatch, kind, num_tokens):
    tokenizer, model = small(kind)
    part, num_frames = tokenizer.time_factor, 2 * tokenizer.time_factor + 3
    prompt = empty_prompt(tokenizer, 18, 22, 5)
    assert prompt.codes.shape == (1, 0, 1, 5)
    paths = [tmp_path / f"{number}.mkv" for number in range(2)]
    inference = Inference(num_tokens=num_tokens)
    reports, written = [], {path: [] for path in paths}
    monkeypatch.setattr(
        generation, "media_writer", lambda path, *_: nullcontext(written[path].append)
    )
    generate_films(
        model, tokenizer, paths, prompt, num_frames, inference=inference, fps=10.0,
        on_frames=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    parts = continued_codes(model, prompt.codes, Sampling(), torch.arange(2))
    codes = torch.cat([next(parts) for _ in range(3)], dim=1)[..., : num_tokens or 5]
    # The last part is whole, and cut: its codes stand for all of its frames.
    wanted = tokenizer.decode_stream((18, 22)).push(codes)[:, :, :num_frames].clamp(-1, 1)
    for path, film in zip(paths, wanted, strict=True):
        assert torch.equal(torch.cat(written[path]), to_uint8(film))
    assert reports == [(done, num_frames) for done in (0, part, 2 * part, num_frames)]
    record = json.loads(paths[1].with_suffix(".json").read_text("utf-8"))
    assert (record["num_tokens"], record["sample"]) == (num_tokens, 1)


def test_generator_and_tokenizer_are_of_one_kind():
    tokenizer, model = small("blocks")
    check_generator(model, tokenizer, TokenizerId.of(tokenizer))
    grid = generator(levels=(tokenizer.digit_levels,))
    first = build("compress_space")
    ours = generator(
        levels=(first.digit_levels,), tokenizer_fingerprint=TokenizerId.of(first).fingerprint
    )
    for codes_of in (None, ours.config.tokenizer_fingerprint):
        second = build("compress_space", codes_of=codes_of)
        with nullcontext() if codes_of else pytest.raises(TokenizerMismatch):
            check_generator(ours, second, TokenizerId.of(second))
    with pytest.raises(ValueError, match=r"1-D tokenizer, .* trained on a grid"):
        check_generator(grid, tokenizer, TokenizerId.of(tokenizer), force=True)
    other = build("compress_space")
    with pytest.raises(ValueError, match=r"VideoTokenizer, .* trained on 1-D tokens"):
        check_generator(model, other, TokenizerId.of(other), force=True)
    third = narrow("blocks").float()
    torch.nn.init.ones_(third.decoder.patch)
    with pytest.raises(TokenizerMismatch, match="give the former"):
        check_generator(model, third, TokenizerId.of(third))


def test_likelihood_and_compression_of_held_out_tokens():
    pytest.importorskip("constriction")
    from magvit2_pytorch.generators.compression import HEADER, compress_codes, decompress_codes

    _, model = small("blocks")
    codes = random_codes(model, 1, 9, 1, 5)
    data = compress_codes(codes[0], model)
    assert torch.equal(decompress_codes(data, model), codes[0])
    bits = float(model.bits(codes)[0].sum())
    assert bits <= 8 * (len(data) - HEADER.size) <= bits * 1.001 + 64
