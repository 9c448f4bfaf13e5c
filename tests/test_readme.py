"""What the README shows runs as it stands, sizes and steps cut down to a test's."""

import re
import shlex
from pathlib import Path

import jaxtyping
import pytest
import torch

from magvit2_pytorch.cli.main import main
from magvit2_pytorch.data import write_image
from magvit2_pytorch.evaluation.export_formats import OLDEST_TORCH
from tests.data.clip_files import make_video
from tests.o2_magvit2 import Shape, made_state, tokenizer_shapes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALLER = {
    "image_size=128": "image_size=16",
    "init_dim=64": "init_dim=8",
    "max_dim=512": "max_dim=16",
    "batch_size=4": "batch_size=2",
    "grad_accum_every=8": "grad_accum_every=1",
    "num_train_steps=1_000_000": "num_train_steps=2",
    '"num_train_steps": 10_000': '"num_train_steps": 2',
    '"path/to/videos"': '"videos"',
}

NARROW = (
    "--model.init_dim 32 --model.image_size 16 --num_train_steps 2 --batch_size 2 --num_frames 5 "
    "--image_batch_size 2 --model.layers '[[magvit2_encoder_residual, 1], [magvit2_compress_space"
    "{time}, 32, 1], [magvit2_decoder_residual, 1]]' --{view}_discriminator '{{dim: 4, dim_mults: "
    "[1, 2]}}'"
)
SMALLER_COMMANDS = {
    "path/to/": "",
    "10_000": "2",
    "--size 720": "--size 32",
    "--preset o2-image-small": f"--preset o2-image-small {NARROW}".format(time="", view="frame"),
    "--preset o2-small": f"--preset o2-small {NARROW}".format(time="_time", view="video"),
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)#]+)\)", text)


def marked(mark: str) -> str:
    """The bash block under a comment."""
    found = re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)\n```", README, flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """One working directory for all blocks: later ones load what earlier ones saved."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("videos", "images"):
        (folder / name).mkdir()
    for number in range(8):
        make_video(folder / "videos" / f"{number}.mp4", num_frames=20)
        picture = torch.randint(256, (20, 24, 3), dtype=torch.uint8)
        write_image(folder / "images" / f"{number}.png", picture)
    torch.save(made_state(tokenizer_shapes(Shape()), seed=0), folder / "pytorch_model.bin")
    return folder


def test_every_cut_down_is_of_something_there():
    code, commands = ("".join(blocks(language)) for language in ("python", "bash"))
    assert [text for text in SMALLER if text not in code] == []
    assert [text for text in SMALLER_COMMANDS if text not in commands] == []


@pytest.mark.parametrize("page", sorted((ROOT / "examples").glob("*.md")), ids=lambda p: p.stem)
def test_pages_run_and_their_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for number, code in enumerate(blocks("python", text)):
        exec(compile(code, f"{page.name} block {number}", "exec"), {"__name__": "__main__"})
    for target in links(text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run_in_order(here, monkeypatch, number):
    monkeypatch.chdir(here)
    code = blocks("python")[number]
    for text, smaller in SMALLER.items():
        code = code.replace(text, smaller)
    exec(compile(code, f"README block {number}", "exec"), {"__name__": "__main__"})


def test_the_command_lines_run(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    lines = [x for block in blocks("bash") for x in block.splitlines() if x.startswith("magvit2")]
    assert len(lines) == 12
    for line in lines:
        for text, smaller in SMALLER_COMMANDS.items():
            line = line.replace(text, smaller)
        with monkeypatch.context() as context:
            if line.startswith("magvit2 export"):
                if torch.__version__ < OLDEST_TORCH:
                    continue
                # While a program is traced, sizes are no ints.
                context.setattr(jaxtyping.config, "jaxtyping_disable", True)
            assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    decoded = sorted(path.name for path in (here / "decoded").rglob("*.mp4"))
    assert decoded == [f"{number}.mp4" for number in range(8)]


def test_the_two_commands_are_one_line_each_and_do_all():
    for mark, end in (("demo", "magvit2 demo"), ("test", "pytest -n 2 --dist loadfile")):
        command = marked(mark)
        assert "\n" not in command
        assert command.endswith(f"&& {end}")


def test_links_to_files_lead_somewhere():
    for target in links(README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_all_layers_and_presets_are_in_the_tables():
    from magvit2_pytorch.tokenizer.layer_spec import LAYERS
    from magvit2_pytorch.tokenizer.presets import PRESETS

    assert [name for name in (*LAYERS, *PRESETS) if f"`{name}`" not in README] == []
