"""Training curves as a PNG."""

from pathlib import Path

CURVES = ("loss", "psnr", "learning_rate", "codebook_usage")


def plot_curves(log: list[dict[str, float | int]], path: Path) -> None:
    """Plots loss, PSNR, learning rate and codebook usage to a PNG."""
    # Imported here because only the end of a run needs matplotlib; Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
        # Short runs have one validation, and a line of one point is invisible without a marker.
        for key, label, mark in ((name, "training", ""), (f"valid/{name}", "held out", "o")):
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), marker=mark, label=label)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=100)
