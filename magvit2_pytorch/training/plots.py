"""Curves of a run as a picture."""

from pathlib import Path

CURVES = ("loss", "psnr", "learning_rate", "codebook_usage")


def plot_curves(log: list[dict[str, float | int]], path: Path) -> None:
    """Loss, PSNR (training and held out), learning rate and codebook use over steps, as PNG."""
    # Only a run's end needs a plotting library, and not its window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
        # Short runs are validated once, and a line of one point would not show.
        for key, label, mark in ((name, "training", ""), (f"valid/{name}", "held out", "o")):
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), marker=mark, label=label)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=100)
