//! A picture to start from: image-to-image (Meng et al. 2022, SDEdit), and filling a masked region.

use std::{collections::BTreeSet, path::Path};

use burn::{prelude::*, tensor::TensorData};
use image::{DynamicImage, GrayImage, RgbImage, imageops};
use ldm_diffusion::Sampler;

use crate::{
    data::{self, Picture},
    error::Error,
    model::{InpaintInput, LatentDiffusion},
    sheet::tensor_from_images,
};

/// A picture, and how far drawing may lead away from it.
#[derive(Clone, Debug)]
pub struct Source {
    /// The picture.
    pub image: RgbImage,
    /// Share of the steps that are made, in (0, 1]: near 0 nearly the picture, 1 hardly anything of it.
    pub strength: f64,
    /// Where to draw anew: white. Elsewhere the picture is kept. Of the picture's size.
    pub mask: Option<GrayImage>,
}

/// A [`Source`] in the latent space.
pub(super) struct EncodedSource {
    /// Of the picture, scaled, `[1, c, h, w]`.
    pub(super) latents: Tensor<4>,
    /// 1 where to draw, 0 elsewhere, `[1, 1, h, w]`.
    pub(super) mask: Option<Tensor<4>>,
    /// Of the picture with the region to draw blanked, scaled, `[1, c, h, w]`.
    masked_latents: Option<Tensor<4>>,
    pub(super) strength: f64,
    /// Whether sampling starts from the picture, not from pure noise.
    pub(super) starts_here: bool,
}

impl Source {
    /// Height and width in pixels.
    pub(super) fn size(&self) -> [usize; 2] {
        [self.image.height() as usize, self.image.width() as usize]
    }

    /// Whether this source fits the model and the sampler's steps.
    pub(super) fn check(
        &self,
        model: &LatentDiffusion,
        size: [usize; 2],
        sampler: &dyn Sampler,
    ) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Request(problem));
        if self.size() != size {
            return refuse(format!(
                "the picture has {} x {} pixels, but {} x {} are to be drawn",
                self.image.width(),
                self.image.height(),
                size[1],
                size[0]
            ));
        }
        if let Some(mask) = &self.mask
            && mask.dimensions() != self.image.dimensions()
        {
            return refuse(format!(
                "the mask has {} x {} pixels, but the picture {} x {}",
                mask.width(),
                mask.height(),
                self.image.width(),
                self.image.height()
            ));
        }
        if model.takes_masked_image() && self.mask.is_none() {
            return refuse("this model fills a region of a picture: give a --mask".into());
        }
        if !(self.strength > 0.0 && self.strength <= 1.0) {
            return refuse(format!(
                "the strength is {}: it must lie above 0 and be at most 1",
                self.strength
            ));
        }
        if sampler.img2img_start(self.strength) >= sampler.timesteps().len() {
            return refuse(format!(
                "a strength of {} leaves no step to make: raise it, or the number of steps",
                self.strength
            ));
        }
        Ok(())
    }

    /// Puts the pixels that were not to be drawn back as they were.
    pub(super) fn restore_known_pixels(&self, images: &mut [RgbImage]) {
        let Some(mask) = &self.mask else { return };
        for image in images {
            for ((drawn, known), wanted) in image
                .pixels_mut()
                .zip(self.image.pixels())
                .zip(mask.pixels())
            {
                if wanted.0[0] < 128 {
                    *drawn = *known;
                }
            }
        }
    }

    /// The source in the latent space of `model`.
    pub(super) fn encode(&self, model: &LatentDiffusion) -> EncodedSource {
        let device = model.device();
        let config = &model.configs.first_stage;
        let scale = config.scaling_factor();
        let encode = |image: Tensor<4>| model.first_stage.encode(image).mode().mul_scalar(scale);
        let pixels = rgb_tensor(&self.image, config.image_channels(), &device);
        let mask = (self.mask.as_ref()).map(|mask| latent_mask(mask, config.factor(), &device));
        let masked_latents = self
            .mask
            .as_ref()
            .filter(|_| model.takes_masked_image())
            .map(|mask| {
                let redrawn = mask_tensor(mask, &device);
                encode(pixels.clone() * (redrawn.neg().add_scalar(1.0)))
            });
        EncodedSource {
            latents: encode(pixels),
            mask,
            masked_latents,
            strength: self.strength,
            // A network that sees the rest of the picture needs no other hint.
            starts_here: !model.takes_masked_image() || self.strength < 1.0,
        }
    }
}

impl EncodedSource {
    /// What a network for filling regions sees beside the latents, in its order.
    pub(super) fn concatenated(&self, model: &LatentDiffusion) -> Vec<Tensor<4>> {
        let (Some(mask), Some(masked)) = (&self.mask, &self.masked_latents) else {
            return Vec::new();
        };
        match model.configs.facts.inpaint_input {
            InpaintInput::MaskThenImage => vec![mask.clone(), masked.clone()],
            // CompVis gives the mask from -1 to 1.
            InpaintInput::ImageThenMask => {
                vec![masked.clone(), mask.clone().mul_scalar(2.0).sub_scalar(1.0)]
            }
        }
    }
}

/// What is not to be drawn, put back between the steps at the noise level that they reach.
pub(super) struct KnownRegion {
    /// 1 where to draw, 0 elsewhere, `[1, 1, h, w]`.
    mask: Tensor<4>,
    /// Of the picture, scaled, `[N, c, h, w]`.
    latents: Tensor<4>,
    /// That drawing started from, of unit variance.
    noise: Tensor<4>,
    sampler: Box<dyn Sampler>,
    /// The steps that begin at a noise level; between two calls of the model within a step the latents are at no level that a picture
    /// could be noised to.
    steps: BTreeSet<usize>,
}

impl KnownRegion {
    pub(super) fn new(
        mask: Tensor<4>,
        latents: Tensor<4>,
        noise: Tensor<4>,
        sampler: Box<dyn Sampler>,
    ) -> Self {
        let steps = (0..sampler.levels())
            .map(|level| sampler.step_of_level(level))
            .collect();
        Self {
            mask,
            latents,
            noise,
            sampler,
            steps,
        }
    }

    /// Into `drawn`, which step `next` of `total` will take, or none if there is no more.
    pub(super) fn restore(&self, drawn: &mut Tensor<4>, next: usize, total: usize) {
        let known = if next == total {
            self.latents.clone()
        } else if self.steps.contains(&next) {
            (self.sampler).add_noise(self.latents.clone(), self.noise.clone(), next)
        } else {
            return;
        };
        *drawn = known.clone() + (drawn.clone() - known) * self.mask.clone();
    }
}

/// Reads a mask: white where to draw. Any image will do, of which the brightness counts, from half of it on.
///
/// # Errors
/// If it can't be decoded.
pub fn load_mask(path: &Path, width: u32, height: u32) -> Result<GrayImage, Error> {
    let image = match data::decode(path, [0; 3], data::DEFAULT_MAX_PIXELS)? {
        Picture::Rgb8(image) => image::DynamicImage::from(image).into_luma8(),
        Picture::Rgb16(image) => image::DynamicImage::from(image).into_luma8(),
    };
    let mut mask = if image.dimensions() == (width, height) {
        image
    } else {
        imageops::resize(&image, width, height, imageops::FilterType::Nearest)
    };
    for pixel in mask.pixels_mut() {
        pixel.0[0] = if pixel.0[0] < 128 { 0 } else { 255 };
    }
    Ok(mask)
}

/// `[1, C, H, W]` in `[-1, 1]`; C is 3, or 1 for the brightness.
fn rgb_tensor(image: &RgbImage, channels: usize, device: &Device) -> Tensor<4> {
    if channels == 1 {
        // Each channel of a grey picture is its brightness.
        let grey = DynamicImage::from(imageops::grayscale(image)).to_rgb8();
        return tensor_from_images(&[grey], device).narrow(1, 0, 1);
    }
    tensor_from_images(std::slice::from_ref(image), device)
}

/// 1 where the mask is white, `[1, 1, H, W]`.
fn mask_tensor(mask: &GrayImage, device: &Device) -> Tensor<4> {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let values: Vec<f32> = mask.as_raw().iter().map(|&v| f32::from(v >= 128)).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, height, width]), device)
}

/// 1 for every latent pixel that a pixel to draw falls into, `[1, 1, h, w]`.
fn latent_mask(mask: &GrayImage, factor: usize, device: &Device) -> Tensor<4> {
    let [width, height] = [
        mask.width() as usize / factor,
        mask.height() as usize / factor,
    ];
    let mut values = vec![0f32; width * height];
    for (x, y, pixel) in mask.enumerate_pixels() {
        let (x, y) = (x as usize / factor, y as usize / factor);
        if pixel.0[0] >= 128 && x < width && y < height {
            values[y * width + x] = 1.0;
        }
    }
    Tensor::from_data(TensorData::new(values, [1, 1, height, width]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latent_pixel_is_drawn_if_any_of_its_pixels_is() {
        let mut mask = GrayImage::new(8, 4);
        mask.put_pixel(5, 3, image::Luma([255]));
        let latent = latent_mask(&mask, 4, &Device::flex());
        assert_eq!(latent.dims(), [1, 1, 1, 2]);
        assert_eq!(
            latent.into_data().iter::<f32>().collect::<Vec<_>>(),
            [0.0, 1.0]
        );
    }

    #[test]
    fn known_pixels_come_back_exactly() {
        let known = RgbImage::from_pixel(2, 1, image::Rgb([1, 2, 3]));
        let mut mask = GrayImage::new(2, 1);
        mask.put_pixel(1, 0, image::Luma([255]));
        let source = Source {
            image: known,
            strength: 1.0,
            mask: Some(mask),
        };
        let mut images = [RgbImage::from_pixel(2, 1, image::Rgb([9, 9, 9]))];
        source.restore_known_pixels(&mut images);
        assert_eq!(images[0].as_raw(), &[1, 2, 3, 9, 9, 9]);
    }
}
