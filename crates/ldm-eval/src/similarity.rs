//! How alike two pictures are, window by window.

use image::RgbImage;

/// Side of the window of [`ssim`] in pixels.
pub const SSIM_WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
/// The stabilising constants `(0.01 L)^2` and `(0.03 L)^2` for the range L = 255.
const C1: f64 = 6.5025;
const C2: f64 = 58.5225;

/// Structural similarity (Wang et al. 2004) with the paper's constants: windows of 11 x 11 weighted by a Gaussian of 1.5 pixels, the range
/// 255, K1 = 0.01, K2 = 0.03, weighted (biased) variances, only windows that lie within the picture. Worked out for R, G and B each and
/// averaged; 1 for equal pictures.
///
/// # Panics
/// If the two differ in size or are smaller than a window.
pub fn ssim(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions(), "pictures of equal size");
    let (width, height) = (a.width() as usize, a.height() as usize);
    assert!(
        width.min(height) >= SSIM_WINDOW,
        "pictures of a window or more"
    );
    let weights = window();
    let channel = |channel: usize| {
        let plane = |image: &RgbImage| -> Vec<f64> {
            (image.pixels())
                .map(|pixel| f64::from(pixel.0[channel]))
                .collect()
        };
        let (a, b) = (plane(a), plane(b));
        let mean = |value: &dyn Fn(usize) -> f64| {
            let plane: Vec<f64> = (0..a.len()).map(value).collect();
            filter(&plane, width, height, &weights)
        };
        let (mean_a, mean_b) = (mean(&|i| a[i]), mean(&|i| b[i]));
        let squares_a = mean(&|i| a[i] * a[i]);
        let squares_b = mean(&|i| b[i] * b[i]);
        let crossed = mean(&|i| a[i] * b[i]);
        let sum: f64 = (0..mean_a.len())
            .map(|i| {
                let (ma, mb) = (mean_a[i], mean_b[i]);
                let (va, vb) = (squares_a[i] - ma * ma, squares_b[i] - mb * mb);
                let covariance = crossed[i] - ma * mb;
                (2.0 * ma * mb + C1) * (2.0 * covariance + C2)
                    / ((ma * ma + mb * mb + C1) * (va + vb + C2))
            })
            .sum();
        sum / mean_a.len() as f64
    };
    (0..3).map(channel).sum::<f64>() / 3.0
}

/// The Gaussian along one axis; its sum is 1.
fn window() -> [f64; SSIM_WINDOW] {
    let middle = (SSIM_WINDOW / 2) as f64;
    let weights: [f64; SSIM_WINDOW] = std::array::from_fn(|i| {
        let offset = i as f64 - middle;
        (-offset * offset / (2.0 * SIGMA * SIGMA)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

/// The weighted means of all windows that lie within a plane.
fn filter(plane: &[f64], width: usize, height: usize, weights: &[f64; SSIM_WINDOW]) -> Vec<f64> {
    let columns = width + 1 - SSIM_WINDOW;
    let mut along = Vec::with_capacity(columns * height);
    for row in plane.chunks_exact(width) {
        along.extend((row.windows(SSIM_WINDOW)).map(|values| {
            let weighted = values.iter().zip(weights);
            weighted.map(|(value, weight)| value * weight).sum::<f64>()
        }));
    }
    let rows = height + 1 - SSIM_WINDOW;
    let mut means = vec![0.0; columns * rows];
    for (top, line) in means.chunks_exact_mut(columns).enumerate() {
        for (offset, weight) in weights.iter().enumerate() {
            let from = &along[(top + offset) * columns..][..columns];
            for (sum, value) in line.iter_mut().zip(from) {
                *sum += weight * value;
            }
        }
    }
    means
}
