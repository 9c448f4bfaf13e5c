import math
from itertools import cycle, product

import pytest
import torch

from magvit2_pytorch.tokenizer.protocol import Tokenizer
from magvit2_pytorch.tokenizer_1d import PRESETS_1D, Tokenizer1d, Tokenizer1dConfig
from magvit2_pytorch.tokenizer_1d.patches import MAX_TOKENS, anchor_distances, anchors
from tests.tokenizer_1d.narrow import KINDS, narrow, random_clip

SIZES = [(1, 1, 1), (7, 13, 5), (17, 24, 40)]


def test_anchors_cover_every_octant_evenly_for_every_number():
    points = anchors((2, 2, 2), MAX_TOKENS) > 0.5
    octants = (points.long() * torch.tensor([4, 2, 1])).sum(dim=1)
    counts = torch.nn.functional.one_hot(octants, 8).cumsum(dim=0)
    expected = torch.arange(1, MAX_TOKENS + 1)[:, None] / 8
    assert (counts - expected).abs().max() <= 1.5
    assert torch.equal(anchors((3, 5, 7), 9), anchors((3, 5, 7), 40)[:9])


def test_a_token_begins_with_the_patches_around_its_anchor():
    grid, count = (2, 4, 4), 32
    weights = (-anchor_distances(grid, count, torch.device("cpu"))).softmax(dim=1)
    centres = torch.cartesian_prod(torch.arange(2.0), torch.arange(4.0), torch.arange(4.0))
    means = weights @ centres.double()
    assert ((means - anchors(grid, count)).abs().max(dim=0).values < 0.6).all()
    assert (weights.max(dim=1).values > 2 / 32).all()


@pytest.mark.filterwarnings("ignore:.*largest size of training")
@pytest.mark.parametrize(
    ("kind", "size"),
    # Each kind with a size, by turns, and the first with all.
    [*zip(KINDS, cycle(SIZES)), *product(list(KINDS)[:1], SIZES[1:])],
)
def test_any_size_comes_back(kind, size):
    tokenizer = narrow(kind)
    video = random_clip(*size, channels=tokenizer.config.channels)[None]
    codes = tokenizer.tokenize(video)
    assert codes.shape == (1, *tokenizer.code_shape(*size))
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < tokenizer.codebook_size
    recon = tokenizer.decode_from_code_indices(codes, tuple(video.shape[2:]))
    assert recon.shape == video.shape
    # Codes decode to float32 latents.
    torch.testing.assert_close(recon, tokenizer(video).detach(), atol=1e-5, rtol=1e-5)
    image = video[:, :, 0]
    assert tokenizer(image).shape == image.shape
    assert torch.equal(tokenizer.tokenize(image), tokenizer.tokenize(image[:, :, None]))


@pytest.mark.filterwarnings("ignore:.*largest size of training")
def test_decoding_to_another_size():
    tokenizer = narrow()
    codes = tokenizer.tokenize([random_clip(8, 16, 16)], 9)
    (larger,) = tokenizer.decode(codes, [(16, 40, 24)])
    assert larger.shape == (3, 16, 40, 24)
    assert torch.equal(larger, tokenizer.decode(codes, (16, 40, 24))[0])
    assert tokenizer.decode(codes)[0].shape == (3, 8, 32, 32)


def test_a_size_above_training_is_warned_of():
    with pytest.warns(UserWarning, match="16 x 8 x 8 is above 8 x 32 x 32"):
        narrow().decode([torch.tensor([1, 2])], [(16, 8, 8)])


def test_padding_repeats_the_edge():
    tokenizer, video = narrow(), random_clip(5, 9, 6)
    padded = torch.cat((video, video[:, -1:].expand(-1, 3, -1, -1)), dim=1)
    padded = torch.cat((padded, padded[:, :, -1:].expand(-1, -1, 7, -1)), dim=2)
    padded = torch.cat((padded, padded[..., -1:].expand(-1, -1, -1, 2)), dim=3)
    codes = tokenizer.tokenize([video, padded], 3)
    assert torch.equal(*codes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_tokens_decode(kind):
    tokenizer = narrow(kind)
    video = random_clip(4, 16, 16, channels=tokenizer.config.channels)[None]
    codes = tokenizer.tokenize(video, 12)
    decoded = [tokenizer.decode(codes[:, :count], (4, 16, 16)) for count in (1, 5, 12)]
    assert not torch.equal(decoded[0], decoded[1])
    assert not torch.equal(decoded[1], decoded[2])


def test_all_counts_are_given_as_asked(without_type_checks):
    tokenizer = narrow()
    videos = [random_clip(4, 16, 16), random_clip(1, 5, 5)]
    for count in (1, 7, 33, 4096):
        assert [len(codes) for codes in tokenizer.tokenize(videos, count)] == [count] * 2
    assert [len(codes) for codes in tokenizer.tokenize(videos, [3, 1])] == [3, 1]
    assert [len(codes) for codes in tokenizer.tokenize(videos, "share:0.5")] == [2, 1]
    for wrong in (0, 4097, [3, 0], [1.5, 2]):
        with pytest.raises(ValueError, match="give 1 to 4096"):
            tokenizer.tokenize(videos, wrong)
    with pytest.raises(ValueError, match="3 numbers for 2 videos"):
        tokenizer.tokenize(videos, [1, 2, 3])
    with pytest.raises(ValueError, match=r"'share:0\.1'"):
        tokenizer.tokenize(videos, "quality:3")


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    tokenizer = narrow(kind).train()
    video = random_clip(9, 16, 24, channels=tokenizer.config.channels)[None]
    latents = tokenizer.encode([video], [6])[0]
    terms = tokenizer.quantizer.loss_terms(latents)
    recon = tokenizer.decode_latents([tokenizer.quantize(latents).quantized], [(9, 16, 24)])[0]
    ((recon - video).square().mean() + sum(terms.values())).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_saves_and_loads(tmp_path):
    tokenizer = narrow("blocks").float()
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer1d.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    video = random_clip(6, 16, 16).float()[None]
    assert torch.equal(again.tokenize(video), tokenizer.tokenize(video))
    assert Tokenizer1dConfig.from_dict(tokenizer.config.to_dict()) == tokenizer.config


def test_half_precision_keeps_nearly_all_codes():
    tokenizer = narrow().float()
    videos = [random_clip(8, 32, 32).float() for _ in range(8)]
    codes = torch.stack(tokenizer.tokenize(videos, 16))
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.stack(tokenizer.tokenize(videos, 16))
    assert (codes == half).float().mean() >= 0.97


def test_it_is_a_tokenizer():
    assert isinstance(narrow(), Tokenizer)


@pytest.mark.parametrize("name", PRESETS_1D)
def test_presets_say_what_they_are(name):
    with torch.device("meta"):
        tokenizer = Tokenizer1d.from_preset(name)
    config = tokenizer.config
    text = PRESETS_1D[name].read_text(encoding="utf-8").partition("\n\n")[0]
    size = " x ".join(map(str, (config.num_frames, *config.height_and_width)))
    low, high = config.num_tokens
    millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    assert f"{low} to {high} tokens of {tokenizer.codebook_size:,} codes for {size}" in text
    assert f"{millions:.1f} M parameters" in text
    patches = config.num_patches((config.num_frames, *config.height_and_width))
    bits = high * math.log2(8575) / (config.num_frames * math.prod(config.height_and_width))
    assert high <= patches
    assert tokenizer.bits_per_pixel == pytest.approx(bits)
    assert PRESETS_1D.model(name)["num_tokens"] == config.num_tokens


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(num_tokens=(0, 5)), "from 1 to 4096"),
        (dict(num_tokens=(9, 5)), "fewest and the most"),
        (dict(slots="free"), "'anchored' or 'learned'"),
        (dict(block_frames=6), "multiple of the 4 frames"),
        (dict(encoder_dim=25), "multiple of"),
        (dict(patch_size=(0, 8)), "pixels to a side"),
        (dict(quantizer=dict(name="continuous", dim=4)), "one code each"),
        (dict(heads_per_kv_head=3), "must divide"),
        (dict(chanels=3), "did you mean channels"),
    ],
)
def test_mistakes(without_type_checks, wrong, message):
    with pytest.raises(ValueError, match=message):
        narrow(**wrong)
