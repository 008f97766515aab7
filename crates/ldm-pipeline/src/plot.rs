//! Training curves as a PNG: one panel per group of figures, raw values faint behind a smoothed line.

use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

use image::RgbImage;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::register_font;

use crate::atomic::WriteError;
use crate::sheet::{save_png, text::FONT_BYTES};

const FONT: &str = "sans-serif";
const PANEL_WIDTH: u32 = 680;
const PANEL_HEIGHT: u32 = 380;
const TITLE_HEIGHT: u32 = 44;
/// Everything is drawn this much larger and scaled down, because the drawing backend leaves lines jagged.
const OVERSAMPLING: u32 = 2;
/// More points than a panel has pixels only cost time.
const MAX_POINTS: usize = 1200;
/// Fewer points than this are shown as they are.
const MIN_POINTS_TO_SMOOTH: usize = 20;
/// Decades from which a logarithmic axis reads better.
const LOG_DECADES: f64 = 2.0;

const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 82, 20),
    RGBColor(44, 140, 60),
    RGBColor(130, 80, 180),
    RGBColor(200, 40, 90),
    RGBColor(90, 90, 90),
];

/// A named curve: points `(step, value)` by rising step. Values that are not finite are left out.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// `(step, value)`.
    pub points: Vec<(f64, f64)>,
}

/// Curves that share a vertical axis.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Heading of the panel.
    pub title: String,
    /// What the vertical axis measures.
    pub y_label: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// Draws `panels` in a grid under `title` and writes it to `path` as PNG, complete or not at all.
///
/// # Errors
/// [`WriteError`] with the path and the cause.
pub fn plot_curves(path: &Path, title: &str, panels: &[Panel]) -> Result<(), WriteError> {
    save_png(path, &render_curves(title, panels), &[])
}

/// Draws `panels` in a grid under `title`. The vertical axis of a panel is logarithmic if all its values are positive
/// and span more than two decades. A panel without finite values says so.
#[must_use]
pub fn render_curves(title: &str, panels: &[Panel]) -> RgbImage {
    static REGISTERED: LazyLock<()> = LazyLock::new(|| {
        let registered = register_font(FONT, FontStyle::Normal, FONT_BYTES);
        assert!(registered.is_ok(), "the embedded font is valid");
    });
    LazyLock::force(&REGISTERED);

    let columns = if panels.len() > 1 { 2 } else { 1 };
    let rows = panels.len().div_ceil(columns).max(1);
    let (width, height) = (
        PANEL_WIDTH * columns as u32,
        PANEL_HEIGHT * rows as u32 + TITLE_HEIGHT,
    );
    let (drawn_width, drawn_height) = (OVERSAMPLING * width, OVERSAMPLING * height);
    let mut pixels = vec![0; (drawn_width * drawn_height * 3) as usize];
    {
        let canvas = BitMapBackend::with_buffer(&mut pixels, (drawn_width, drawn_height))
            .into_drawing_area();
        draw(&canvas, title, panels, (rows, columns)).expect("drawing into memory can't fail");
    }
    let drawn = RgbImage::from_raw(drawn_width, drawn_height, pixels)
        .expect("the buffer has the picture's size");
    image::imageops::thumbnail(&drawn, width, height)
}

type Point = (f64, f64);
type Canvas<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A length on the canvas, from one in the final picture.
const fn px(length: u32) -> u32 {
    OVERSAMPLING * length
}

fn draw(canvas: &Canvas, title: &str, panels: &[Panel], grid: (usize, usize)) -> Drawn {
    canvas.fill(&WHITE)?;
    let body = canvas
        .margin(px(8), 0, 0, 0)
        .titled(title, (FONT, px(26)).into_font().color(&BLACK))?;
    for (area, panel) in body.split_evenly(grid).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    Ok(())
}

fn draw_panel(area: &Canvas, panel: &Panel) -> Drawn {
    let curves: Vec<Vec<Point>> = panel
        .curves
        .iter()
        .map(|curve| finite(&curve.points))
        .collect();
    let points = || curves.iter().flatten().copied();
    let x = range(points().map(|point| point.0)).map_or(0.0..1.0, not_empty);
    let y = range(points().map(|point| point.1)).unwrap_or(0.0..1.0);
    if y.start > 0.0 && (y.end / y.start).log10() > LOG_DECADES {
        let y = y.start / 1.3..y.end * 1.3;
        let (bottom, top) = (y.start.ln(), y.end.ln());
        let corner = emptiest_corner(
            points().map(|(step, value)| (step, value.ln())),
            &x,
            &(bottom..top),
        );
        draw_chart(area, panel, &curves, corner, x, y.log_scale())
    } else {
        let y = not_empty(y);
        let room = 0.05 * (y.end - y.start);
        let y = y.start - room..y.end + room;
        let corner = emptiest_corner(points(), &x, &y);
        draw_chart(area, panel, &curves, corner, x, y)
    }
}

/// Where the legend hides the fewest points; the upper right if it doesn't matter.
fn emptiest_corner(
    points: impl Iterator<Item = Point>,
    x: &Range<f64>,
    y: &Range<f64>,
) -> SeriesLabelPosition {
    use SeriesLabelPosition::{LowerLeft, LowerRight, UpperLeft, UpperRight};
    let mut corners = [
        (UpperRight, 0),
        (LowerRight, 0),
        (UpperLeft, 0),
        (LowerLeft, 0),
    ];
    for point in points {
        let right = (point.0 - x.start) / (x.end - x.start);
        let up = (point.1 - y.start) / (y.end - y.start);
        for (corner, count) in &mut corners {
            let beside = if matches!(corner, UpperRight | LowerRight) {
                right > 0.7
            } else {
                right < 0.3
            };
            let level = if matches!(corner, UpperRight | UpperLeft) {
                up > 0.7
            } else {
                up < 0.3
            };
            *count += usize::from(beside && level);
        }
    }
    corners
        .into_iter()
        .min_by_key(|(_, count)| *count)
        .map_or(UpperRight, |(corner, _)| corner)
}

fn draw_chart<Y>(
    area: &Canvas,
    panel: &Panel,
    curves: &[Vec<Point>],
    legend: SeriesLabelPosition,
    x: Range<f64>,
    y: Y,
) -> Drawn
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, px(20)))
        .margin(px(12))
        .x_label_area_size(px(44))
        .y_label_area_size(px(66))
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(&panel.y_label)
        .x_labels(8)
        .y_labels(7)
        .x_label_formatter(&|step| format_number(*step))
        .y_label_formatter(&|value| format_number(*value))
        .label_style((FONT, px(15)))
        .axis_desc_style((FONT, px(16)))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.mix(0.5))
        .draw()?;
    for ((curve, raw), color) in panel.curves.iter().zip(curves).zip(COLORS.iter().cycle()) {
        let smoothed = smooth(raw);
        if smoothed.is_some() {
            chart.draw_series(LineSeries::new(envelope(raw), color.mix(0.25)))?;
        }
        let line = smoothed.unwrap_or_else(|| raw.clone());
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(px(2))))?
            .label(&curve.name)
            .legend(|(x, y)| Rectangle::new([(x, y - 3), (x + 36, y + 3)], color.filled()));
    }
    if curves.iter().all(Vec::is_empty) {
        let (width, height) = area.dim_in_pixel();
        let style = (FONT, px(18)).into_font().color(&BLACK.mix(0.6));
        area.draw_text(
            "nothing to show yet",
            &style,
            (width as i32 * 2 / 5, height as i32 / 2),
        )?;
    } else {
        chart
            .configure_series_labels()
            .position(legend)
            .margin(px(8))
            .legend_area_size(px(26))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .label_font((FONT, px(15)))
            .draw()?;
    }
    Ok(())
}

fn finite(points: &[Point]) -> Vec<Point> {
    points
        .iter()
        .copied()
        .filter(|point| point.1.is_finite())
        .collect()
}

fn range(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    values.fold(None, |range, value| match range {
        None => Some(value..value),
        Some(Range { start, end }) => Some(start.min(value)..end.max(value)),
    })
}

/// A range of a single value has no scale: half of it, or one, is added on both sides.
fn not_empty(range: Range<f64>) -> Range<f64> {
    if range.start < range.end {
        return range;
    }
    let room = if range.start == 0.0 {
        1.0
    } else {
        range.start.abs() / 2.0
    };
    range.start - room..range.end + room
}

/// The mean over a window of a twenty-fifth of the curve around points of it, narrower towards the ends, so that the
/// line neither lags behind nor leaves out the beginning; `None` if there are too few points.
fn smooth(points: &[Point]) -> Option<Vec<Point>> {
    if points.len() < MIN_POINTS_TO_SMOOTH {
        return None;
    }
    let last = points.len() - 1;
    let half = (points.len() / 50).max(1);
    let smoothed = thinned(points).map(|index| {
        let half = half.min(index).min(last - index);
        let window = &points[index - half..=index + half];
        (
            points[index].0,
            window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64,
        )
    });
    Some(smoothed.collect())
}

/// Every n-th index and the last.
fn thinned(points: &[Point]) -> impl Iterator<Item = usize> {
    let stride = points.len().div_ceil(MAX_POINTS).max(1);
    let last = points.len().checked_sub(1);
    (0..points.len())
        .step_by(stride)
        .chain(last.filter(|last| last % stride != 0))
}

/// The lowest and the highest point of each stretch: fewer points, and no spike lost.
fn envelope(points: &[Point]) -> Vec<Point> {
    let stride = points.len().div_ceil(MAX_POINTS).max(1);
    if stride == 1 {
        return points.to_vec();
    }
    let by_value = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
    points
        .chunks(2 * stride)
        .flat_map(|stretch| {
            let lowest = stretch.iter().min_by(by_value).copied();
            let highest = stretch.iter().max_by(by_value).copied();
            [lowest, highest].into_iter().flatten()
        })
        .collect()
}

/// Short: `1.5k`, `20k`, `3M`, `0.25`, `2e-5`.
fn format_number(value: f64) -> String {
    let trimmed = |value: f64, digits: usize| {
        let text = format!("{value:.digits$}");
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    };
    match value.abs() {
        size if size < 1e-12 => "0".to_owned(),
        size if size >= 1e9 => format!("{value:.1e}"),
        size if size >= 1e6 => format!("{}M", trimmed(value / 1e6, 2)),
        size if size >= 1e3 => format!("{}k", trimmed(value / 1e3, 2)),
        size if size >= 0.01 => trimmed(value, 3),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests;
