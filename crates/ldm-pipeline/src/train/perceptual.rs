//! The network behind the perceptual term.

use std::path::{Path, PathBuf};

use burn::{module::Module, tensor::Device};
use ldm_autoencoder::{Lpips, LpipsConfig, weights::VGG16_KEY_MAP};

use super::{Event, Observer};
use crate::{
    config::Stage1Config,
    error::Error,
    hub,
    weights::{self, LoadOptions},
};

/// Tensors of a VGG16 file that the perceptual distance has no use for.
const CLASSIFIER: &[&str] = &[r"^classifier\.", r"^pre_logits\.", r"^head\."];

/// Loads VGG16 and, if configured, the LPIPS heads.
///
/// # Errors
/// If none is configured, or a file can't be had or holds something else.
pub(super) fn load_lpips(
    stage1: &Stage1Config,
    device: &Device,
    observer: &mut Observer,
) -> Result<Lpips, Error> {
    let Some(vgg) = &stage1.vgg else {
        return Err(Error::PerceptualNetworkMissing);
    };
    let path = find_vgg(vgg)?;
    let config = LpipsConfig {
        heads: stage1.lpips_heads.is_some(),
        ..LpipsConfig::default()
    };
    let Lpips { convs, heads } = config.init(device);
    let convs = load_part(convs, &path, r"^convs\.")?;
    let heads = match (heads, &stage1.lpips_heads) {
        (Some(heads), Some(path)) => Some(load_part(heads, path, r"^heads\.")?),
        _ => None,
    };
    let with = if heads.is_some() { "with" } else { "without" };
    let note = format!(
        "perceptual loss: VGG16 from {}, {with} LPIPS heads",
        path.display()
    );
    let _ = observer(Event::Note(&note));
    Ok(Lpips { convs, heads })
}

/// The file of VGG16's weights that a path or a hub id names.
///
/// # Errors
/// If it can't be had.
pub(crate) fn find_vgg(spec: &str) -> Result<PathBuf, Error> {
    hub::vgg16(spec)
}

/// Loads one of the fields of [`Lpips`], whose name is `prefix` in the key map.
fn load_part<M: Module>(part: M, path: &Path, prefix: &str) -> Result<M, Error> {
    let mut key_map = VGG16_KEY_MAP.to_vec();
    key_map.push((prefix, ""));
    let options = LoadOptions {
        key_map: &key_map,
        skip: CLASSIFIER,
    };
    Ok(weights::load(part, path, &options)?.0)
}
