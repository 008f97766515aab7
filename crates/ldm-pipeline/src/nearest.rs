//! Which training picture a sample resembles most.

use image::RgbImage;

use crate::{
    data::{Dataset, ImageDataset},
    sheet::chw_from_rgb,
};

/// The blurred pictures of a training set, by their captions.
///
/// The blur makes the distance one of layout and colour: without it a sample shifted by a pixel would be far from the picture that it plainly
/// shows.
#[derive(Debug)]
pub struct NearestCaption {
    pictures: Vec<(Vec<f32>, String)>,
    side: [usize; 2],
    sigma: f32,
}

impl NearestCaption {
    /// Takes all readable pictures of `set` as squares, blurred by a Gaussian of standard deviation `sigma` pixels.
    pub fn new(set: &ImageDataset, sigma: f32) -> Self {
        let squares = set.has_buckets().then(|| set.squares());
        let set = squares.as_ref().unwrap_or(set);
        let side = [set.preprocess().resolution; 2];
        let pictures = (0..set.len())
            .filter_map(|index| set.get(index, 0).ok())
            .map(|sample| {
                (
                    blur(&sample.image, side, sigma),
                    sample.caption.unwrap_or_default(),
                )
            })
            .collect();
        Self {
            pictures,
            side,
            sigma,
        }
    }

    /// The caption of the picture nearest to `image`, in the L2 distance of blurred pixels.
    ///
    /// # Panics
    /// If there are no pictures, or `image` has another size than they.
    pub fn caption(&self, image: &RgbImage) -> &str {
        assert_eq!([image.height() as usize, image.width() as usize], self.side);
        let blurred = blur(&chw_from_rgb(image), self.side, self.sigma);
        let distance = |picture: &[f32]| -> f32 {
            picture
                .iter()
                .zip(&blurred)
                .map(|(a, b)| (a - b) * (a - b))
                .sum()
        };
        let nearest = (self.pictures.iter())
            .min_by(|(a, _), (b, _)| distance(a).total_cmp(&distance(b)))
            .expect("a training set has pictures");
        &nearest.1
    }
}

/// A Gaussian blur of planes `[C, H, W]`, with the edges continued outwards.
fn blur(planes: &[f32], [height, width]: [usize; 2], sigma: f32) -> Vec<f32> {
    let radius = (3.0 * sigma).ceil() as isize;
    let weights: Vec<f32> = (-radius..=radius)
        .map(|i| (-(i * i) as f32 / (2.0 * sigma * sigma)).exp())
        .collect();
    let total: f32 = weights.iter().sum();
    let along = |planes: &[f32], horizontal: bool| -> Vec<f32> {
        let mut blurred = Vec::with_capacity(planes.len());
        for plane in planes.chunks_exact(height * width) {
            for y in 0..height as isize {
                for x in 0..width as isize {
                    let sum: f32 = (-radius..=radius)
                        .zip(&weights)
                        .map(|(offset, weight)| {
                            let (dx, dy) = if horizontal { (offset, 0) } else { (0, offset) };
                            let x = (x + dx).clamp(0, width as isize - 1) as usize;
                            let y = (y + dy).clamp(0, height as isize - 1) as usize;
                            weight * plane[y * width + x]
                        })
                        .sum();
                    blurred.push(sum / total);
                }
            }
        }
        blurred
    };
    along(&along(planes, true), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blur_keeps_the_mean_and_spreads_a_point() {
        let mut planes = vec![0.0; 2 * 15 * 17];
        planes[7 * 17 + 8] = 1.0;
        let blurred = blur(&planes, [15, 17], 2.0);
        let (first, second) = blurred.split_at(15 * 17);
        assert!((first.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        assert!(second.iter().all(|&value| value == 0.0));
        let peak = 1.0 / (2.0 * std::f32::consts::PI * 4.0);
        assert!(
            (first[7 * 17 + 8] - peak).abs() < 0.02 * peak,
            "{}",
            first[7 * 17 + 8]
        );
        assert_eq!(blur(&[0.5; 3 * 4 * 4], [4, 4], 2.0).len(), 48);
    }

    #[test]
    fn a_shifted_picture_is_still_the_nearest() {
        let square = |left: u32, colour: [u8; 3]| {
            RgbImage::from_fn(16, 16, |x, y| {
                let inside = (left..left + 6).contains(&x) && (5..11).contains(&y);
                image::Rgb(if inside { colour } else { [255; 3] })
            })
        };
        let pictures = [
            ("red", square(4, [255, 0, 0])),
            ("blue", square(4, [0, 0, 255])),
        ];
        let nearest = NearestCaption {
            pictures: pictures
                .iter()
                .map(|(name, image)| (blur(&chw_from_rgb(image), [16, 16], 2.0), name.to_string()))
                .collect(),
            side: [16, 16],
            sigma: 2.0,
        };
        assert_eq!(nearest.caption(&square(6, [220, 20, 10])), "red");
        assert_eq!(nearest.caption(&square(3, [10, 60, 250])), "blue");
    }
}
