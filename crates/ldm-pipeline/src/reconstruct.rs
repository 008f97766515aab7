//! Images through an autoencoder and back.

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use crate::{
    data::{Dataset, ImageDataset},
    model::FirstStage,
    sheet::{images_from_tensor, psnr},
    train::images::load_images,
};

/// Images that the held-out PSNR is measured on at most.
pub(crate) const VALIDATION_IMAGES: usize = 256;
/// Images that pass the autoencoder together.
const BATCH: usize = 16;

/// Originals `[N, 3, H, W]` in `[-1, 1]` and what their posterior means decode to.
pub fn pairs(
    first_stage: &FirstStage,
    images: Tensor<4>,
) -> impl Iterator<Item = (RgbImage, RgbImage)> + use<> {
    let decoded = first_stage.decode(first_stage.encode(images.clone()).mode());
    images_from_tensor(images)
        .into_iter()
        .zip(images_from_tensor(decoded))
}

/// Mean PSNR, in dB over 8-bit channels, of the reconstructions of up to 256 images; `None` if there are none.
pub fn held_out_psnr(first_stage: &FirstStage, set: &ImageDataset, device: &Device) -> Option<f64> {
    let count = set.len().min(VALIDATION_IMAGES);
    let mut values = Vec::with_capacity(count);
    for first in (0..count).step_by(BATCH) {
        if let Some((images, _)) = load_images(set, first..count.min(first + BATCH), device) {
            values.extend(
                pairs(first_stage, images).map(|(original, decoded)| psnr(&original, &decoded)),
            );
        }
    }
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
