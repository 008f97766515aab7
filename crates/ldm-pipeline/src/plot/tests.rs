use super::*;

fn panel(points: Vec<Point>) -> Panel {
    let curves = vec![Curve {
        name: "loss".into(),
        points,
    }];
    Panel {
        title: "losses".into(),
        y_label: "per image".into(),
        curves,
    }
}

fn ink(image: &RgbImage, color: RGBColor) -> usize {
    image
        .pixels()
        .filter(|pixel| pixel.0 == [color.0, color.1, color.2])
        .count()
}

#[test]
fn curves_are_drawn_in_every_panel() {
    let points: Vec<Point> = (0..500)
        .map(|step| (f64::from(step), 1.0 + 1.0 / f64::from(step + 1)))
        .collect();
    let image = render_curves(
        "run",
        &[panel(points.clone()), panel(points.clone()), panel(points)],
    );
    assert_eq!(
        image.dimensions(),
        (2 * PANEL_WIDTH, 2 * PANEL_HEIGHT + TITLE_HEIGHT)
    );
    for (x, y) in [(0, 0), (1, 0), (0, 1)] {
        let corner = (x * PANEL_WIDTH, TITLE_HEIGHT + y * PANEL_HEIGHT);
        let part = image::imageops::crop_imm(&image, corner.0, corner.1, PANEL_WIDTH, PANEL_HEIGHT)
            .to_image();
        assert!(ink(&part, COLORS[0]) > 300, "panel {x}, {y}");
    }
}

#[test]
fn degenerate_curves_are_drawn_without_panic() {
    for points in [
        vec![],
        vec![(0.0, f64::NAN)],
        vec![(3.0, 0.0)],
        vec![(3.0, -2.0); 2],
        vec![(0.0, 1e-9), (1.0, 1e12)],
        vec![(0.0, f64::INFINITY), (1.0, 2.0)],
    ] {
        let image = render_curves("run", &[panel(points)]);
        assert_eq!(
            image.dimensions(),
            (PANEL_WIDTH, PANEL_HEIGHT + TITLE_HEIGHT)
        );
    }
    assert!(render_curves("nothing", &[]).height() > 0);
}

#[test]
fn smoothing_keeps_a_constant_and_damps_noise() {
    assert!(smooth(&[(0.0, 1.0); 5]).is_none());
    assert!(
        smooth(&[(0.0, 3.0); 100])
            .unwrap()
            .iter()
            .all(|point| (point.1 - 3.0).abs() < 1e-12)
    );
    let noisy: Vec<Point> = (0..1000)
        .map(|step| (f64::from(step), f64::from(step % 2)))
        .collect();
    assert!(
        smooth(&noisy).unwrap()[100..900]
            .iter()
            .all(|point| (point.1 - 0.5).abs() < 0.05)
    );
}

#[test]
fn thinning_keeps_the_last_point_and_the_envelope_every_spike() {
    let mut points: Vec<Point> = (0..10_001).map(|step| (f64::from(step), 0.0)).collect();
    points[777].1 = 9.0;
    assert_eq!(thinned(&points).last(), Some(10_000));
    assert!(thinned(&points).count() <= MAX_POINTS + 1);
    assert_eq!(thinned(&[]).count(), 0);
    let envelope = envelope(&points);
    assert!(envelope.contains(&(777.0, 9.0)) && envelope.len() <= MAX_POINTS + 2);
}

#[test]
fn the_legend_avoids_the_curves() {
    let rising = (0..100).map(|step| (f64::from(step), f64::from(step)));
    let corner = emptiest_corner(rising, &(0.0..99.0), &(0.0..99.0));
    assert!(matches!(corner, SeriesLabelPosition::LowerRight));
    let nothing = emptiest_corner(std::iter::empty(), &(0.0..1.0), &(0.0..1.0));
    assert!(matches!(nothing, SeriesLabelPosition::UpperRight));
}

#[test]
fn numbers_are_short() {
    let cases = [
        (0.0, "0"),
        (1500.0, "1.5k"),
        (20_000.0, "20k"),
        (3e6, "3M"),
        (0.25, "0.25"),
        (2e-5, "2e-5"),
    ];
    for (value, text) in cases {
        assert_eq!(format_number(value), text);
    }
}
