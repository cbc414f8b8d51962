"""Figures show the numbers they were given, in the data's units, with every axis named."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from ndeflow import Brownian, FixedRungeKutta, RungeKutta, Solution, plots, solve
from ndeflow.contracts import Batch, DataSpec
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from tests.numerics.sdes import Growth

SPEC = DataSpec(("hare", "lynx"), mean=(10.0, 20.0), std=(2.0, 4.0), time_scale=0.5, time_origin=1900.0)


def example(rows: int = 3, times: int = 12, channels: int = 2) -> Batch:
    """Forecasts from the ninth of twelve times; the second row is padded from its seventh time on."""
    generator = torch.Generator().manual_seed(0)
    ts = torch.arange(float(times)).repeat(rows, 1)
    ys = torch.randn(rows, times, channels, generator=generator)
    mask = torch.ones(rows, times, channels, dtype=torch.bool)
    ts[1, 6:], mask[1, 6:], ys[1, 6:] = ts[1, 6], False, 0.0
    mask[1, 6] = True
    seen = mask & (torch.arange(times) < 8)[:, None]
    return Batch(ts, ys, mask, seen, None, None, torch.arange(rows) + 5)


def drawn(figure) -> bytes:
    """The figure as pixels: laid out without a warning, and not blank."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert pixels.std() > 1
    return pixels.tobytes()


def line(panel, label: str):
    return next(artist for artist in panel.lines if artist.get_label() == label)


def labels(figure) -> set[str]:
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


ROWS = [
    {"step": 50.0, "train/loss": 8.0, "train/nfe": 40.0, "train/accepted": 5.0, "train/rejected": 1.0},
    {
        "step": 100.0,
        "train/loss": 0.1,
        "train/nfe": 30.0,
        "val/loss": 0.5,
        "val/rmse": 2.0,
        "val/z/rmse": 1.0,
        "val/nfe": 20.0,
    },
    {"step": 150.0, "train/penalty/error": 0.3, "val/loss": 0.2, "train/worst_error": 0.9},
]


def test_learning_curves_have_a_panel_a_quantity():
    figure = plots.learning_curves(ROWS)
    assert [panel.get_title("left") for panel in figure.axes] == ["loss", "penalty: error", "rmse"]
    assert line(figure.axes[0], "training").get_xydata().tolist() == [[50, 8], [100, 0.1]]
    assert line(figure.axes[0], "validation").get_xydata().tolist() == [[100, 0.5], [150, 0.2]]
    assert figure.axes[0].get_yscale() == "log" and figure.axes[2].get_yscale() == "linear"
    assert "lowest validation loss: 0.2 at step 150" in labels(figure)
    assert all(panel.get_xlabel() == "training step" for panel in figure.axes)
    drawn(figure)


def test_evaluations():
    figure = plots.evaluations(ROWS)
    assert [p.get_title("left") for p in figure.axes] == [
        "evaluations of the field",
        "steps of the solver",
        "worst error / tolerance",
    ]
    assert line(figure.axes[0], "forward").get_ydata().tolist() == [40, 30]
    assert figure.axes[0].get_ylim()[0] == 0 and {"accepted", "rejected", "tolerance"} <= labels(figure)
    drawn(figure)


def test_evaluations_that_were_never_made_are_not_drawn():
    rows = [{"step": 1.0, "train/nfe": 6.0, "train/backward_nfe": 0.0}, {"step": 2.0, "train/nfe": 0.0}]
    assert labels(plots.evaluations(rows)) == {"forward"}


@pytest.mark.parametrize("draw", [plots.learning_curves, plots.evaluations])
@pytest.mark.parametrize(
    "rows", [[{"step": 1.0}], [{"step": 1.0, "train/loss": float("nan"), "val/loss": float("nan")}]]
)
def test_tables_with_little_in_them(draw, rows):
    figure = draw(rows)
    figure.canvas.draw()
    assert figure.axes[0].get_title("left")


def test_predictions_are_in_data_units_and_end_with_the_series():
    batch = example()
    figure = plots.predictions(batch, batch.ys + 1.0, SPEC)
    assert len(figure.axes) == 3 * 2
    panel = figure.axes[2]  # padded: series 6, hare
    assert panel.get_title("left") == "series 6, hare"
    predicted, observed = line(panel, "predicted"), line(panel, "observed, read")
    assert predicted.get_xdata().tolist() == [1900 + 0.5 * t for t in range(7)]
    np.testing.assert_allclose(observed.get_ydata(), 10 + 2 * batch.ys[1, :7, 0], rtol=1e-6)
    np.testing.assert_allclose(predicted.get_ydata() - observed.get_ydata(), 2.0, rtol=1e-5)
    assert figure.axes[4].get_xlabel() == "time"
    drawn(figure)


def test_held_back_values_and_the_start_of_the_forecast_are_marked():
    batch = example()
    figure = plots.predictions(batch, batch.ys, SPEC, rows=1)
    assert [panel.get_title("left") for panel in figure.axes] == ["hare", "lynx"]
    held = line(figure.axes[0], "observed, held back")
    assert held.get_xdata().tolist() == [1900 + 0.5 * t for t in range(8, 12)]
    assert line(figure.axes[0], "forecast starts").get_xdata() == [1903.5, 1903.5]


def test_interpolation_has_no_start_of_a_forecast():
    batch = example()
    batch = batch._replace(seen=batch.mask & (torch.arange(12) % 2 == 0)[:, None])
    assert "forecast starts" not in labels(plots.predictions(batch, batch.ys, SPEC, rows=1))


def test_draws_show_their_median_and_intervals():
    batch = example()
    draws = torch.linspace(-1, 1, 19)[:, None, None, None] + batch.ys
    figure = plots.predictions(batch, draws, SPEC, draws=True, rows=1)
    np.testing.assert_allclose(
        line(figure.axes[0], "median of draws").get_ydata(), 10 + 2 * batch.ys[0, :, 0], rtol=1e-5
    )
    assert {"50 % of draws", "90 % of draws"} <= labels(figure)
    widest, narrow = (band.get_datalim(figure.axes[0].transData).height for band in figure.axes[0].collections)
    assert widest > narrow
    drawn(figure)


def test_more_channels_than_fit_are_said():
    spec = DataSpec(tuple("abcdef"), (0.0,) * 6, (1.0,) * 6)
    batch = example(channels=6)
    figure = plots.predictions(batch, batch.ys, spec)
    assert figure.get_suptitle() == "Predictions (4 of 6 channels)" and len(figure.axes) == 3 * 4


@pytest.mark.parametrize(
    ("origin", "scale", "label", "last"),
    [
        (0.0, 86400.0, "date", np.datetime64("1970-01-12T00:00:00.000")),
        (None, 86400.0, "days since the first", 11.0),
        (None, 3600.0, "hours since the first", 11.0),
        (None, 1.0, "seconds since the first", 11.0),
    ],
)
def test_dates_are_read_as_dates(origin, scale, label, last):
    spec = DataSpec(("a", "b"), (0.0, 0.0), (1.0, 1.0), time_scale=scale, time_kind="date", time_origin=origin)
    batch = example()
    figure = plots.predictions(batch, batch.ys, spec, rows=1)
    assert figure.axes[-1].get_xlabel() == label
    assert line(figure.axes[0], "predicted").get_xdata(orig=True)[-1] == last
    drawn(figure)


def test_a_prediction_of_another_shape_is_refused():
    batch = example()
    with pytest.raises(
        ValueError, match=r"expected a prediction of shape \(3, 12, 2\), got \(4, 3, 12, 2\); check draws="
    ):
        plots.predictions(batch, batch.ys.expand(4, 3, 12, 2), SPEC)


@pytest.mark.parametrize("draws", [False, True])
def test_phase_portrait(draws):
    batch = example()
    prediction = torch.stack([batch.ys - 1, batch.ys, batch.ys + 1]) if draws else batch.ys
    figure = plots.phase_portrait(batch, prediction, SPEC, draws=draws)
    panel = figure.axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("hare", "lynx")
    np.testing.assert_allclose(line(panel, "series 5").get_xydata(), SPEC.to_data_units(batch.ys[0]), rtol=1e-5)
    drawn(figure)


def test_a_phase_portrait_needs_two_channels():
    batch = example(channels=1)
    with pytest.raises(ValueError, match="expected at least two channels"):
        plots.phase_portrait(batch, batch.ys, DataSpec(("a",), (0.0,), (1.0,)))


def test_confusion_matrix_counts():
    target, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    figure = plots.confusion_matrix(target, predicted, ["cat", "dog", "horse"])
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.texts] == list("110010102")
    np.testing.assert_allclose(panel.images[0].get_array(), [[0.5, 0.5, 0], [0, 1, 0], [1 / 3, 0, 2 / 3]])
    assert figure.get_suptitle() == "Confusion matrix: 4 of 6 right"
    assert [text.get_text() for text in panel.get_yticklabels()] == ["cat", "dog", "horse"]
    drawn(figure)


def test_many_classes_are_not_numbered():
    target = torch.arange(60)
    assert not plots.confusion_matrix(target, target, [f"class {i}" for i in range(60)]).axes[0].texts


DOLLARS = ("$/m_$", "a$_$", "$")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 1]), DOLLARS),
        lambda: plots.predictions(example(), torch.zeros(3, 12, 2), DataSpec(DOLLARS[:2], (0.0, 0.0), (1.0, 1.0))),
        lambda: plots.phase_portrait(example(), torch.zeros(3, 12, 2), DataSpec(DOLLARS[:2], (0.0, 0.0), (1.0, 1.0))),
        lambda: plots.sampled_paths(example(), example().ys, DataSpec(DOLLARS[:2], (0.0, 0.0), (1.0, 1.0))),
        lambda: plots.learning_curves([{"step": 1.0, "val/loss": 1.0, "val/$/m_$": 1.0}]),
    ],
)
def test_names_are_written_as_they_are_also_where_they_could_be_formulas(draw):
    figure = draw()
    drawn(figure)
    written = [text.get_text() for text in figure.findobj(lambda artist: isinstance(artist, Text))]
    assert any("$/m_$" in text for text in written) and not any("mathdefault" in text for text in written)


def test_calibration_of_draws_from_the_truth_lies_on_the_diagonal():
    generator = torch.Generator().manual_seed(0)
    prediction, ys = torch.randn(39, 20, 50, 2, generator=generator), torch.randn(20, 50, 2, generator=generator)
    scored = torch.ones(20, 50, 2, dtype=torch.bool)
    figure = plots.calibration(prediction, ys, scored)
    nominal, covered = line(figure.axes[0], "forecast").get_xydata().T
    np.testing.assert_allclose(covered, nominal, atol=0.04)
    assert "of 2000 values" in figure.axes[0].texts[0].get_text()
    drawn(figure)


def test_calibration_of_nothing():
    assert (
        "no values"
        in plots.calibration(torch.zeros(5, 1, 2, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1, dtype=torch.bool))
        .axes[0]
        .texts[0]
        .get_text()
    )


def test_points_are_densities_over_one_square_and_on_one_scale():
    """Of a uniform cloud, 1 / area inside and 0 outside; the integral over the square is 1 for clouds of any size."""
    generator = torch.Generator().manual_seed(0)
    wide, narrow = 2 * torch.rand(20_000, 2, generator=generator) - 1, torch.rand(5_000, 2, generator=generator)
    wide[0] = float("nan")
    figure = plots.points({"wide": wide, "narrow": narrow})
    panels, images = figure.axes[:2], [panel.images[0] for panel in figure.axes[:2]]
    assert [panel.get_title("left") for panel in panels] == ["wide", "narrow"]
    left, right, low, high = images[0].get_extent()
    assert images[1].get_extent() == images[0].get_extent() and images[0].get_clim() == images[1].get_clim()
    np.testing.assert_allclose(right - left, high - low)
    assert -1.2 < left < -1 and 1 < high < 1.2
    for image, area in zip(images, (4, 1), strict=True):
        density = np.asarray(image.get_array())
        np.testing.assert_allclose(density.mean() * (right - left) ** 2, 1.0, rtol=1e-3)
        np.testing.assert_allclose(np.median(density[density > 0]), 1 / area, rtol=0.1)
    drawn(figure)


def test_points_have_their_x_across_and_y_up():
    figure = plots.points({"right": torch.cat([torch.tensor([[1.0, 0.0]]).expand(99, 2), torch.zeros(1, 2)])})
    density = np.asarray(figure.axes[0].images[0].get_array())
    row, column = np.unravel_index(density.argmax(), density.shape)
    assert column > 0.9 * density.shape[1] and abs(row / density.shape[0] - 0.5) < 0.1
    drawn(figure)


def test_densities_are_drawn_beside_points():
    """The triangle density x / 2 on 0 < x < 2, 0 < y < 1 of points and of its formula."""
    uniform = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cloud = torch.stack([2 * uniform[:, 0].sqrt(), uniform[:, 1]], dim=1)

    def density(x):
        return torch.where((x > 0).all(dim=1) & (x[:, 0] < 2) & (x[:, 1] < 1), x[:, 0] / 2, 0.0)

    figure = plots.points({"points": cloud}, densities={"density": density})
    points, formula = (panel.images[0] for panel in figure.axes[:2])
    assert points.get_extent() == formula.get_extent() and points.get_clim() == formula.get_clim()
    left, right, _, _ = formula.get_extent()
    for image in (points, formula):
        values = np.asarray(image.get_array())
        assert values.mean() * (right - left) ** 2 == pytest.approx(1.0, abs=0.05)
        column = int((1.5 - left) / (right - left) * values.shape[1])
        assert values[values.shape[0] // 2, column] == pytest.approx(0.75, abs=0.15)
    drawn(figure)


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        ({}, "expected at least one cloud of points, got none"),
        ({"a": torch.zeros(4, 3)}, r"expected a as points \(N, 2\), got \(4, 3\)"),
        ({"a": torch.full((4, 2), torch.nan)}, "expected a finite point in a, got none"),
    ],
)
def test_what_is_no_cloud_of_points_is_refused(clouds, message):
    with pytest.raises(ValueError, match=message):
        plots.points(clouds)


def solution(field, method: str = "dopri5", tol: float = 1e-6, **options) -> Solution:
    ts = torch.linspace(0, 10, 6, dtype=torch.float64)
    return solve(field, torch.ones(2, 1, dtype=torch.float64), ts, solver=RungeKutta(method, tol, tol), **options)


def test_a_trace_shows_all_attempts_and_why():
    solved = solution(lambda t, y: -y + 3.0 * (t > 4))
    figure, stats = plots.trace(solved), solved.stats
    steps, errors, products = figure.axes
    assert figure.get_suptitle().startswith("Discontinuous: ")
    accepted, rejected, saved = (line(steps, name).get_xydata() for name in ("accepted", "rejected", "save time"))
    np.testing.assert_allclose(accepted, torch.stack([stats.times + stats.steps / 2, stats.steps], -1)[0])
    assert len(rejected) == int(stats.rejected[0]) > 5
    np.testing.assert_allclose(saved[:, 0], solved.ts)
    assert (line(errors, "rejected").get_ydata() > 1).all() and (line(errors, "accepted").get_ydata() <= 1).all()
    assert len(line(products, "step size times stiffness").get_xydata()) == int(stats.accepted[0])
    assert line(products, "limit").get_ydata()[0] == RungeKutta().tableau.stability
    assert {"accepted", "rejected", "save time", "limit", "step size times stiffness"} == labels(figure)
    assert products.get_xlabel() == "time"
    drawn(figure)


def test_a_trace_of_an_sde_shows_the_stability_of_its_mean():
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0, noise = torch.ones(3, 1, dtype=torch.float64), Brownian(0)
    solved = solve(Growth("ito"), y0, ts, solver=AdaptiveStochastic(), noise=noise)
    products = plots.trace(solved).axes[-1]
    shown = line(products, "step size times stiffness").get_ydata()
    np.testing.assert_allclose(shown, 0.3 * solved.stats.steps[0], rtol=1e-6)
    assert line(products, "limit").get_ydata()[0] == 2.0


def test_a_trace_of_methods_without_estimates():
    assert len(plots.trace(solution(lambda t, y: -y, "bosh3", 1e-3)).axes) == 2
    ts = torch.tensor([[0.0, 1.0, 1.0], [0.0, 2.0, 3.0]])
    fixed = plots.trace(solve(lambda t, y: -y, torch.ones(2, 1), ts, solver=FixedRungeKutta()))
    assert len(fixed.axes) == 1 and line(fixed.axes[0], "save time").get_xdata().tolist() == [0, 2, 3]
    drawn(fixed)


def results(cost: float, score: float) -> list[dict[str, float]]:
    return [{"cost": cost + shift, "time": 2 * cost, "score": score + shift} for shift in (-0.1, 0.1)]


def test_a_pareto_picture_shows_means_and_what_nothing_beats():
    runs = {"cheap": results(1, 2), "dear": results(5, 4), "beaten": results(4, 2), "unfinished": [{"cost": 1.0}]}
    figure = plots.pareto(runs, "score", {"cost": "evaluations", "time": "seconds"})
    assert labels(figure) == {"cheap", "dear", "beaten"}
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel(), left.get_ylabel()) == ("evaluations", "seconds", "score")
    front = next(artist for artist in left.lines if artist.get_linestyle() == "--")
    assert front.get_xydata().tolist() == [[1, 2], [5, 4]]
    drawn(figure)
    lower = plots.pareto({"a": results(1, 2), "b": results(5, 4)}, "score", {"cost": "evaluations"}, higher=False)
    front = next(artist for artist in lower.axes[0].lines if artist.get_linestyle() == "--")
    assert front.get_xydata().tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="expected runs with nothing, cost, got a"):
        plots.pareto({"a": results(1, 2)}, "nothing", {"cost": "evaluations"})


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, ndeflow.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_users_own_settings_are_left_alone_and_do_not_leak_in():
    import matplotlib

    before = drawn(plots.evaluations(ROWS))
    with matplotlib.rc_context({"lines.linewidth": 9.0, "axes.grid": False, "font.size": 20}):
        assert drawn(plots.evaluations(ROWS)) == before
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
