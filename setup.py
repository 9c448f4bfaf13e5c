from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "magvit2_pytorch" / "version.py").read_text().split('"')[1]

DEMO = ["scikit-video>=1.1.11"]
TRACKING = ["tensorboard>=2.14"]
ENTROPY = ["constriction>=0.4"]
EXPORT = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.6"]
TEST = [
    *DEMO,
    *TRACKING,
    *EXPORT,
    *ENTROPY,
    "hypothesis>=6.100",
    "pytest>=9",
    "pytest-xdist>=3.8",
    "ruff>=0.6",
    "scipy>=1.11",
    "torchmetrics>=1.4",
]

setup(
    name="magvit2-pytorch",
    version=VERSION,
    description="A video tokenizer to train, stream and build on: MAGVIT-v2 in PyTorch",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["magvit2_pytorch*"]),
    package_data={
        "magvit2_pytorch.tokenizer": ["presets/*.yaml"],
        "magvit2_pytorch.generators": ["presets/*.yaml"],
        "magvit2_pytorch.tokenizer_1d": ["presets/*.yaml"],
        "magvit2_pytorch.super_resolution": ["presets/*.yaml"],
    },
    python_requires=">=3.10",
    install_requires=[
        "accelerate>=1.0",
        "av>=17.1",
        "beartype>=0.20",
        "einops>=0.8",
        "ema-pytorch>=0.7.7",
        "huggingface_hub>=1.0",
        "jaxtyping>=0.3.7",
        "jsonargparse[signatures]>=4.53",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10.4",
        "psutil>=5.9",
        "pyyaml>=6",
        "safetensors>=0.4.3",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.65",
        "vector-quantize-pytorch>=1.32",
        "wandb>=0.19",
    ],
    extras_require={
        "demo": DEMO,
        "tracking": TRACKING,
        "export": EXPORT,
        "entropy": ENTROPY,
        "test": TEST,
        "dev": TEST,
    },
    entry_points={"console_scripts": ["magvit2 = magvit2_pytorch.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
