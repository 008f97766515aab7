//! From the model's values in [-1, 1] to 8-bit pictures, and back.

use burn::tensor::{Device, Tensor, TensorData};
use image::{Rgb, RgbImage};

/// The pictures of a batch `[N, C, H, W]` with values in [-1, 1], clamped; C is 3, or 1 for grey.
///
/// # Panics
/// If C is neither.
#[must_use]
pub fn images_from_tensor(batch: Tensor<4>) -> Vec<RgbImage> {
    let [_, channels, height, width] = batch.dims();
    let values: Vec<f32> = batch.into_data().iter().collect();
    values
        .chunks_exact(channels * height * width)
        .map(|image| rgb_from_chw(image, [channels, height, width]))
        .collect()
}

/// One picture of values `[C, H, W]` in [-1, 1], clamped and rounded to the nearest of 256 levels; C is 3, or 1 for grey.
///
/// # Panics
/// If C is neither, or `values` doesn't hold C * H * W of them.
#[must_use]
pub fn rgb_from_chw(values: &[f32], [channels, height, width]: [usize; 3]) -> RgbImage {
    assert!(
        channels == 3 || channels == 1,
        "a picture has 3 channels or 1, not {channels}"
    );
    let plane = height * width;
    assert_eq!(
        values.len(),
        channels * plane,
        "values for [{channels}, {height}, {width}]"
    );
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let pixel = y as usize * width + x as usize;
        // A NaN becomes black by the cast.
        let level = |channel: usize| {
            (values[channel % channels * plane + pixel] * 127.5 + 127.5).round() as u8
        };
        Rgb([level(0), level(1), level(2)])
    })
}

/// Pictures of one size as `[N, 3, H, W]` in [-1, 1].
///
/// # Panics
/// If there is none, or they differ in size.
#[must_use]
pub fn tensor_from_images(images: &[RgbImage], device: &Device) -> Tensor<4> {
    let (width, height) = images[0].dimensions();
    let values: Vec<f32> = images.iter().flat_map(chw_from_rgb).collect();
    let shape = [images.len(), 3, height as usize, width as usize];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The values `[3, H, W]` in [-1, 1] of a picture.
pub(crate) fn chw_from_rgb(image: &RgbImage) -> Vec<f32> {
    (0..3)
        .flat_map(|channel| {
            let levels = image.pixels().map(move |pixel| pixel.0[channel]);
            levels.map(|level| f32::from(level) / 127.5 - 1.0)
        })
        .collect()
}

/// Peak signal-to-noise ratio between two pictures in decibels, `10 log10(255^2 / mean squared error)` over all
/// channels; infinite for equal ones.
///
/// # Panics
/// If the two differ in size.
#[must_use]
pub fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions(), "pictures of equal size");
    let squared: u64 = a
        .as_raw()
        .iter()
        .zip(b.as_raw())
        .map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2))
        .sum();
    let mean = squared as f64 / a.as_raw().len() as f64;
    10.0 * (255.0f64.powi(2) / mean).log10()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights;
    use std::path::Path;

    #[test]
    fn levels_are_rounded_and_clamped() {
        let image = rgb_from_chw(&[-1.0, 0.0, 1.0, 7.0, -7.0, f32::NAN], [1, 2, 3]);
        let levels: Vec<u8> = image.pixels().map(|pixel| pixel.0[0]).collect();
        assert_eq!(levels, [0, 128, 255, 255, 0, 0]);
        assert!(
            image
                .pixels()
                .all(|pixel| pixel.0[0] == pixel.0[1] && pixel.0[1] == pixel.0[2])
        );
    }

    #[test]
    fn channels_and_batches_keep_their_order() {
        let values: Vec<f32> = (0..2 * 3 * 2 * 2)
            .map(|index| index as f32 / 12.0 - 1.0)
            .collect();
        let batch =
            Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([2, 3, 2, 2]);
        let images = images_from_tensor(batch);
        assert_eq!(images.len(), 2);
        let level = |index: usize| (values[index] * 127.5 + 127.5).round() as u8;
        assert_eq!(images[0].get_pixel(1, 0).0, [level(1), level(5), level(9)]);
        assert_eq!(
            images[1].get_pixel(0, 1).0,
            [level(14), level(18), level(22)]
        );
    }

    /// The number of `scripts/make-eval-fixture.py`.
    #[test]
    fn psnr_is_scikit_images() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/eval");
        let arrays = weights::open(&dir.join("arrays.safetensors")).unwrap();
        let [original, distorted] = ["original", "distorted"].map(|name| {
            let data = arrays.data(name).unwrap();
            let [.., height, width, _] = data.shape()[..] else {
                panic!("{name} has the shape {:?}", data.shape());
            };
            let bytes = data.iter::<u8>().take(3 * height * width).collect();
            RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
        });
        let expected = std::fs::read(dir.join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
        let expected = expected["psnr"].as_f64().unwrap();
        assert!((psnr(&original, &distorted) - expected).abs() < 1e-12);
    }

    #[test]
    fn psnr_of_known_errors() {
        let black = RgbImage::new(4, 4);
        assert_eq!(
            psnr(&black, &RgbImage::from_pixel(4, 4, Rgb([255; 3]))),
            0.0
        );
        assert!((psnr(&black, &RgbImage::from_pixel(4, 4, Rgb([1; 3]))) - 48.1308).abs() < 1e-4);
        assert_eq!(psnr(&black, &black), f64::INFINITY);
    }
}
