//! Images to latents, and both in safetensors files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use image::{DynamicImage, RgbImage, imageops::FilterType};

use crate::{
    atomic,
    data::{self, Picture},
    error::Error,
    model::{FirstStage, FirstStageConfig},
    weights::{self, Tensors},
};

/// Name of the pixels in a safetensors file.
const IMAGES: &str = "images";
/// Images that pass the autoencoder together.
const BATCH: usize = 8;

/// What a first stage makes of images, not scaled.
pub struct EncodedImages {
    /// Means of a KL autoencoder's posteriors, latents of a VQ one before quantisation, or pixels; `[N, c, h, w]`.
    pub latents: Tensor<4>,
    /// Log-variances of a KL autoencoder's posteriors, `[N, c, h, w]`.
    pub logvar: Option<Tensor<4>>,
}

/// Encodes image files, or safetensors files with `images` `[N, C, H, W]` in `[-1, 1]`, which must agree in size. An image file
/// loses what the first stage's factor leaves over at its edges.
///
/// # Errors
/// If one can't be read, or the sizes differ or don't fit the first stage.
pub fn encode_files(
    paths: &[PathBuf],
    first_stage: &FirstStage,
    config: &FirstStageConfig,
    device: &Device,
) -> Result<EncodedImages, Error> {
    let mut first: Option<(&PathBuf, [usize; 3])> = None;
    let (mut means, mut logvars) = (Vec::new(), Vec::new());
    for path in paths {
        let images = read_images(path, config.factor(), device)?;
        let [n, c, h, w] = images.dims();
        check_image_shape(path, [c, h, w], config)?;
        match first {
            Some((other, shape)) if shape != [c, h, w] => {
                return Err(Error::Request(format!(
                    "{} has {w} x {h} pixels, but {} has {} x {}: latents of one file have one size",
                    path.display(),
                    other.display(),
                    shape[2],
                    shape[1]
                )));
            }
            Some(_) => {}
            None => first = Some((path, [c, h, w])),
        }
        for from in (0..n).step_by(BATCH) {
            let batch = images.clone().narrow(0, from, BATCH.min(n - from));
            let posterior = first_stage.encode(batch);
            means.push(posterior.mean);
            logvars.push(posterior.logvar);
        }
    }
    Ok(EncodedImages {
        latents: Tensor::cat(means, 0),
        logvar: matches!(first_stage, FirstStage::Kl(_)).then(|| Tensor::cat(logvars, 0)),
    })
}

fn check_image_shape(
    path: &Path,
    [c, h, w]: [usize; 3],
    config: &FirstStageConfig,
) -> Result<(), Error> {
    let factor = config.factor();
    if c != config.image_channels() {
        return Err(Error::Request(format!(
            "{} has {c} channels, but the first stage takes {}",
            path.display(),
            config.image_channels()
        )));
    }
    if h == 0 || w == 0 || h % factor != 0 || w % factor != 0 {
        return Err(Error::Request(format!(
            "{} has {w} x {h} pixels: the first stage needs multiples of {factor}",
            path.display()
        )));
    }
    Ok(())
}

/// Writes `mean` and `logvar`, or `latents`.
///
/// # Errors
/// If the file can't be written.
pub fn save_encoded(path: &Path, encoded: &EncodedImages) -> Result<(), Error> {
    match &encoded.logvar {
        Some(logvar) => save_tensors(path, &[("mean", &encoded.latents), ("logvar", logvar)]),
        None => save_tensors(path, &[("latents", &encoded.latents)]),
    }
}

/// Reads the tensor `name`, which must have four axes, as the device's floats.
///
/// # Errors
/// If the file can't be read, or holds no such tensor.
pub fn load_tensor(path: &Path, name: &str, device: &Device) -> Result<Tensor<4>, Error> {
    let data = weights::open(path)?.data(name)?;
    let shape = data.shape().to_vec();
    if shape.len() != 4 || shape.contains(&0) {
        return Err(Error::Malformed {
            path: path.into(),
            problem: format!("`{name}` has shape {shape:?}, but [N, C, H, W] is expected"),
        });
    }
    Ok(Tensor::from_data(data.convert::<f32>(), device))
}

/// Writes tensors in f32 to a safetensors file.
///
/// # Errors
/// If the file can't be written.
pub fn save_tensors(path: &Path, tensors: &[(&str, &Tensor<4>)]) -> Result<(), Error> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        atomic::create_dir(folder)?;
    }
    let mut named = Tensors::default();
    for &(name, tensor) in tensors {
        named.insert(name, tensor.clone().into_data().convert::<f32>());
    }
    Ok(weights::write(path, &named, &BTreeMap::new())?)
}

/// An image file as `[1, 3, H, W]`, or the `images` of a safetensors file.
fn read_images(path: &Path, factor: usize, device: &Device) -> Result<Tensor<4>, Error> {
    let is_tensor = path
        .extension()
        .is_some_and(|extension| extension == "safetensors");
    if is_tensor {
        return load_tensor(path, IMAGES, device);
    }
    load_image(path, factor, device)
}

/// An image file as `[1, 3, H, W]` in `[-1, 1]`, at its own size less what a multiple of `factor` leaves over at the edges.
///
/// # Errors
/// If it can't be decoded, or is smaller than `factor` in a direction.
pub fn load_image(path: &Path, factor: usize, device: &Device) -> Result<Tensor<4>, Error> {
    let image = open(path)?;
    let pixels = cut_to_multiple(path, image, factor)?.into_rgb32f();
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    let pixels = TensorData::new(pixels.into_raw(), [height, width, 3]);
    let image = Tensor::<3>::from_data(pixels, device).permute([2, 0, 1]);
    Ok(image.mul_scalar(2.0).sub_scalar(1.0).unsqueeze())
}

/// An image file in 8 bits: filling `size` (width and height) with what is over cut off at the edges, or at its own size less what a
/// multiple of `factor` leaves over.
///
/// # Errors
/// If it can't be decoded, or is smaller than `factor` in a direction.
pub fn load_picture(
    path: &Path,
    size: Option<(u32, u32)>,
    factor: usize,
) -> Result<RgbImage, Error> {
    let image = open(path)?;
    let image = match size {
        Some((width, height)) => image.resize_to_fill(width, height, FilterType::CatmullRom),
        None => cut_to_multiple(path, image, factor)?,
    };
    Ok(image.into_rgb8())
}

fn open(path: &Path) -> Result<DynamicImage, Error> {
    Ok(
        match data::decode(path, [255; 3], data::DEFAULT_MAX_PIXELS)? {
            Picture::Rgb8(image) => DynamicImage::from(image),
            Picture::Rgb16(image) => DynamicImage::from(image),
        },
    )
}

fn cut_to_multiple(path: &Path, image: DynamicImage, factor: usize) -> Result<DynamicImage, Error> {
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
    Ok(image.crop_imm(left, top, width, height))
}
