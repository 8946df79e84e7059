"""Install script of Melodjinn: `pip install -e .[dev]`."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="melodjinn-jax",
    version="0.1.0",
    description="Steerable music world models: latent actions and dynamics over neural-codec tokens, in JAX",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["melodjinn_jax", "melodjinn_jax.*", "data_pipelines", "data_pipelines.*"]),
    package_data={
        "melodjinn_jax": ["py.typed"],
        "melodjinn_jax.evaluation.report": ["*.tmpl"],
        "melodjinn_jax.live": ["page/*"],
    },
    install_requires=[
        # On a CPU with 0.11, Fourier transforms that run side by side wait for each other's threads for ever.
        "jax>=0.10,!=0.11.*",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "array-record>=0.8.1",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "requests>=2.32",
        "huggingface_hub>=1.0",
        "pyarrow>=17",
        "numpy>=2.0",
        "scipy>=1.14",
        "soundfile>=0.13",
        "safetensors>=0.4",
        "tyro>=1.0",
        "tqdm>=4.66",
        "matplotlib>=3.9",
    ],
    extras_require={
        "beam": ["apache-beam>=2.60"],
        # The TPU compiler, for python -m melodjinn_jax.compile on a machine without TPUs: the one of this very JAX, for
        # what a newer one gives an older JAX cannot always read.
        "aot": ["jax[tpu]"],
        # The reference to compare EnCodec with, under CC BY-NC 4.0. Install torch first, in the build that you want.
        "encodec": ["torch>=2.6", "encodec==0.1.1"],
        "play": ["aiohttp>=3.11"],
        "export": ["onnx>=1.18", "onnxruntime>=1.22"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.8",
            "mypy>=1.13",
            "aiohttp>=3.11",
            "onnx>=1.18",
            "onnxruntime>=1.22",
            "playwright>=1.49",
        ],
    },
)
