//! Images through an autoencoder and back.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use image::{DynamicImage, RgbImage};
use ldm_autoencoder::AutoencoderKl;

use crate::{
    data::{self, Dataset, ImageDataset, Picture},
    error::Error,
    sheet::{images_from_tensor, psnr},
    train::images::load_images,
};

/// Images that the held-out PSNR is measured on at most.
pub(crate) const VALIDATION_IMAGES: usize = 256;
/// Images that pass the autoencoder together.
const BATCH: usize = 16;

/// Originals `[N, 3, H, W]` in `[-1, 1]` and what their posterior means decode to.
pub fn pairs(
    vae: &AutoencoderKl,
    images: Tensor<4>,
) -> impl Iterator<Item = (RgbImage, RgbImage)> + use<> {
    let decoded = vae.decode(vae.encode(images.clone()).mode());
    images_from_tensor(images)
        .into_iter()
        .zip(images_from_tensor(decoded))
}

/// Mean PSNR, in dB over 8-bit channels, of the reconstructions of up to 256 images; `None` if there are none.
pub fn held_out_psnr(vae: &AutoencoderKl, set: &ImageDataset, device: &Device) -> Option<f64> {
    let count = set.len().min(VALIDATION_IMAGES);
    let mut values = Vec::with_capacity(count);
    for first in (0..count).step_by(BATCH) {
        if let Some((images, _)) = load_images(set, first..count.min(first + BATCH), device) {
            values.extend(pairs(vae, images).map(|(original, decoded)| psnr(&original, &decoded)));
        }
    }
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// An image file as `[1, 3, H, W]` in `[-1, 1]`, at its own size less what a multiple of `factor` leaves over at the edges.
///
/// # Errors
/// If it can't be decoded, or is smaller than `factor` in a direction.
pub fn load_image(path: &Path, factor: usize, device: &Device) -> Result<Tensor<4>, Error> {
    let image = match data::decode(path, [255; 3], data::DEFAULT_MAX_PIXELS)? {
        Picture::Rgb8(image) => DynamicImage::from(image),
        Picture::Rgb16(image) => DynamicImage::from(image),
    };
    let factor = factor as u32;
    let [width, height] = [image.width(), image.height()].map(|side| side / factor * factor);
    if width == 0 || height == 0 {
        return Err(Error::Request(format!(
            "{} has {} x {} pixels: an autoencoder of factor {factor} needs at least {factor} in both directions",
            path.display(),
            image.width(),
            image.height()
        )));
    }
    let [left, top] = [(image.width() - width) / 2, (image.height() - height) / 2];
    let pixels = image.crop_imm(left, top, width, height).into_rgb32f();
    let pixels = TensorData::new(pixels.into_raw(), [height as usize, width as usize, 3]);
    let image = Tensor::<3>::from_data(pixels, device).permute([2, 0, 1]);
    Ok(image.mul_scalar(2.0).sub_scalar(1.0).unsqueeze())
}
