"""The README and the pages in examples/ run as they stand, with sizes and steps reduced."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.cli.main import main
from magvit2_pytorch.media.images import write_image
from tests import vidtok
from tests.data.clip_files import make_video
from tests.o2_magvit2 import Shape, made_state, tokenizer_shapes
from tests.pipelines.test_export import without_tracing  # noqa: F401

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "examples").rglob("*.md")))
"""Their blocks run in this order, in one folder: later ones load what earlier ones saved."""
DOCUMENTS = (*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "benchmarks/RESULTS.md")))

SMALLER = {
    "image_size=128": "image_size=16",
    "init_dim=64": "init_dim=8",
    "max_dim=512": "max_dim=16",
    "batch_size=4": "batch_size=2",
    "grad_accum_every=8": "grad_accum_every=1",
    "num_train_steps=1_000_000": "num_train_steps=2",
    '"num_train_steps": 10_000': '"num_train_steps": 2, "num_frames": 5, "batch_size": 2',
    "num_train_steps=10_000": "num_train_steps=2",
    'results_folder="long-run"': 'results_folder="long-run", num_frames=5',
    "discriminator_start_step=2_000": "discriminator_start_step=0",
    "adversarial_start_step=3_000": "adversarial_start_step=1",
    "adversarial_ramp_steps=1_000": "adversarial_ramp_steps=1",
    "torch.randn(1, 3, 17, 128, 128)": "torch.randn(1, 3, 17, 32, 32)",
    "torch.rand(1, 3, 17, 128, 192)": "torch.rand(1, 3, 17, 32, 48)",
    '"path/to/videos"': '"videos"',
}

NUM_FILES = 5

NARROW = (
    "--model.init_dim 32 --model.image_size 16 --num_train_steps 2 --batch_size 2 --num_frames 5 "
    "--image_batch_size 2 --model.layers '[[magvit2_encoder_residual, 1], [magvit2_compress_space"
    "{time}, 32, 1], [magvit2_decoder_residual, 1]]' --{view}_discriminator '{{dim: 4, dim_mults: "
    "[1, 2]}}'"
)
SMALLER_COMMANDS = {
    "path/to/": "",
    "-o run --num_train_steps 10_000": "-o run --num_train_steps 2 --preset tiny",
    "-o run-1d --num_train_steps 10_000": "-o run-1d --num_train_steps 2 --pack_length 100 "
    "--min_side 16 --num_valid_clips 1 --model.image_size 32 --model.encoder_dim 24 "
    "--model.encoder_depth 1 --model.encoder_heads 2 --model.decoder_dim 24 "
    "--model.decoder_depth 1 --model.decoder_heads 2",
    "export run": "export run --part decode",
    "--size 720": "--size 32",
    "--size 128": "--size 16",
    "[128, 224]": "[16, 32]",
    "--max_duration_s 240": "--num_train_steps 2 --num_frames 5",
    "--max_duration_s 900": "--num_train_steps 2",
    '"[4, 8]" --model.image_size 128': "2 --model.image_size 32",
    "--max_duration_s 300": "--num_train_steps 2",
    "--seconds 8": "--frames 20",
    "--preset x2-small --minutes 5": "--preset x2-tiny --num_train_steps 2 --batch_size 1 "
    "--crop 16 --short_side 16",
    "--num 4": "--num 1 --frames 18 --size 16",
    "-o film-scenes --minutes 45": "-o film-scenes --minutes 0.001 --scenes 1 --preset tiny "
    "--size 16 --seconds 0.1 --scale 1",
    "-o film-report": "-o film-report --num_samples 2 --max_videos 1 --num_latents 1",
    "--size 256": "--size 16",
    "--init_from vidtok --num_train_steps 10_000": "--init_from vidtok --num_train_steps 2 "
    "--model.image_size 16 --batch_size 2 --num_frames 5",
    "--preset small --num_train_steps 750": "--preset tiny --num_train_steps 2",
    "--preset o2-image-small": f"--preset o2-image-small {NARROW}".format(time="", view="frame"),
    "--preset o2-small": f"--preset o2-small {NARROW}".format(time="_time", view="video"),
}


def blocks(language: str, page: Path) -> list[str]:
    """The code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[tuple[str, str]]:
    """Targets of a page's links: address or path, and section."""
    return re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))


def sections(page: Path) -> set[str]:
    """Names that links give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def marked(mark: str) -> str:
    """The bash block under a comment."""
    text = README.read_text(encoding="utf-8")
    matches = re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)\n```", text, flags=re.DOTALL)
    assert len(matches) == 1
    return matches[0]


def reduced(code: str, smaller: dict[str, str]) -> str:
    """Code with sizes and steps of a test."""
    for text, replacement in smaller.items():
        code = code.replace(text, replacement)
    return code


PYTHON_BLOCKS = [(page, n) for page in PAGES for n in range(len(blocks("python", page)))]
COMMANDS = [
    line
    for page in PAGES
    for block in blocks("bash", page)
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith("magvit2")
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """One working directory for all blocks, with what the readers have in theirs."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("videos", "images"):
        (folder / name).mkdir()
    for number in range(NUM_FILES):
        make_video(folder / "videos" / f"{number}.mp4", 20, 32, 40)
        picture = torch.randint(256, (20, 24, 3), dtype=torch.uint8)
        write_image(folder / "images" / f"{number}.png", picture)
    make_video(folder / "film.mp4", num_frames=40)
    VideoTokenizer.from_preset("tiny").save_pretrained(folder / "demo" / "tokenizer")
    torch.save(made_state(tokenizer_shapes(Shape()), seed=0), folder / "pytorch_model.bin")
    state = vidtok.made_state(vidtok.Shape(8, (1, 2, 2), z=6, version="1.0"))
    torch.save({"state_dict": state}, folder / "vidtok_fsq_causal_488_262144.ckpt")
    return folder


def test_every_reduction_is_of_something_there():
    code = "".join(block for page in PAGES for block in blocks("python", page))
    assert [text for text in SMALLER if text not in code] == []
    commands = "\n".join(COMMANDS)
    assert [text for text in SMALLER_COMMANDS if text not in commands] == []


@pytest.mark.parametrize(("page", "number"), PYTHON_BLOCKS, ids=lambda x: getattr(x, "stem", x))
def test_python_blocks_run_in_order(here, monkeypatch, page, number):
    monkeypatch.chdir(here)
    code = reduced(blocks("python", page)[number], SMALLER)
    exec(compile(code, f"{page.name} block {number}", "exec"), {"__name__": "__main__"})


@pytest.mark.usefixtures("without_tracing", "without_type_checks")  # as users run it
def test_the_command_lines_run(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert len(COMMANDS) == 41
    for command in dict.fromkeys(COMMANDS):
        line = reduced(command, SMALLER_COMMANDS)
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    decoded = sorted(path.name for path in (here / "decoded").rglob("*.mp4"))
    assert decoded == [f"{number}.mp4" for number in range(NUM_FILES)]


def test_the_two_commands_are_one_line_each_and_do_all():
    for mark, end in (("demo", "magvit2 demo"), ("test", "pytest -n 2 --dist loadfile")):
        command = marked(mark)
        assert "\n" not in command
        assert command.endswith(f"&& {end}")


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target, section in links(page):
        if target.startswith("https://"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not section or section in sections(linked), f"{target}#{section}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.stem)
def test_benchmarks_that_are_named_exist(page):
    for name in re.findall(r"python (benchmarks/\w+\.py)", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 220


def test_all_layers_and_presets_are_in_the_tables():
    from magvit2_pytorch.tokenizer.layer_spec import LAYERS
    from magvit2_pytorch.tokenizer.presets import PRESETS

    text = (ROOT / "examples" / "choosing.md").read_text(encoding="utf-8")
    assert [name for name in (*LAYERS, *PRESETS) if f"`{name}`" not in text] == []
