//! The networks that features are made with.

use std::path::Path;

use burn::{module::Module, tensor::Device};
use ldm_eval::{
    Convention, Extractor,
    inception::{InceptionV3Config, KEY_MAP, SKIP},
};
use ldm_pipeline::{
    Error,
    autoencoder::{Lpips, LpipsConfig, weights::VGG16_KEY_MAP},
    hub,
    weights::{self, LoadOptions, Tensors, WeightsError},
};

use crate::args::{ConventionName, NetworkArgs, VggArgs};

/// pytorch-fid's name of its file, which a hub's repository is expected to have.
const INCEPTION_FILE: &str = "pt_inception-2015-12-05-6726825d.pth";
const INCEPTION_HELP: &str = "the Inception of FID is pytorch-fid's pt_inception-2015-12-05-6726825d.pth or torch-fidelity's weights-inception-2015-12-05-6726825d.pth, not torchvision's";
const VGG_HELP: &str = "VGG16 has torchvision's tensors features.0.weight to features.28.bias; a hub id is timm/vgg16.tv_in1k";
const HEADS_HELP: &str = "LPIPS' weights for VGG16 are lin0.model.1.weight to lin4.model.1.weight, as in the package lpips, weights/v0.1/vgg.pth";
/// The first convolution and its width in the published network.
const STEM: (&str, usize) = ("Conv2d_1a_3x3.conv.weight", 32);
/// Tensors of a VGG16 file that features have no use for.
const CLASSIFIER: &[&str] = &[r"^classifier\.", r"^pre_logits\.", r"^head\."];

/// A network with its features' names in a report.
pub(super) struct Network {
    pub(super) extractor: Extractor,
    /// Whether it is the network that FID is defined by.
    pub(super) family: Family,
}

/// By whose features a distance is, which decides on its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// The published Inception.
    Inception,
    /// One with all widths divided.
    NarrowInception,
    /// VGG16.
    Vgg,
}

impl Network {
    /// Inception if it is given, else VGG16.
    pub(super) fn load(args: &NetworkArgs, device: &Device) -> Result<Option<Self>, Error> {
        if let Some(spec) = &args.inception {
            return inception(spec, args.convention, device).map(Some);
        }
        let extractor = vgg_features(&args.vgg, device)?;
        Ok(extractor.map(|extractor| Self {
            extractor,
            family: Family::Vgg,
        }))
    }
}

fn inception(spec: &str, convention: ConventionName, device: &Device) -> Result<Network, Error> {
    let tensors = weights::open(&hub::weights_file(spec, INCEPTION_FILE)?)?;
    let (stem, width) = STEM;
    let found = tensors.shape(stem).and_then(|shape| shape.first().copied());
    let divisor = match found {
        Some(found) if found > 0 && width % found == 0 => width / found,
        _ => 1,
    };
    let config = InceptionV3Config {
        width_divisor: divisor.min(16),
    };
    let options = LoadOptions {
        key_map: KEY_MAP,
        skip: SKIP,
    };
    let network = load(config.init(device), &tensors, &options, INCEPTION_HELP)?;
    Ok(Network {
        extractor: Extractor::Inception {
            network: Box::new(network),
            convention: match convention {
                ConventionName::TorchFidelity => Convention::TorchFidelity,
                ConventionName::PytorchFid => Convention::PytorchFid,
            },
            weights: tensors.checksum()?,
        },
        family: match divisor {
            1 => Family::Inception,
            _ => Family::NarrowInception,
        },
    })
}

/// VGG16's features, if its weights are given.
pub(super) fn vgg_features(args: &VggArgs, device: &Device) -> Result<Option<Extractor>, Error> {
    let Some(spec) = &args.vgg else {
        return Ok(None);
    };
    let (network, tensors) = vgg(spec, device)?;
    Ok(Some(Extractor::Vgg {
        network,
        side: args.vgg_size as usize,
        weights: tensors.checksum()?,
    }))
}

/// VGG16, and its file.
fn vgg(spec: &str, device: &Device) -> Result<(Lpips, Tensors), Error> {
    let tensors = weights::open(&hub::vgg16(spec)?)?;
    let config = LpipsConfig {
        heads: false,
        ..LpipsConfig::default()
    };
    let options = LoadOptions {
        key_map: VGG16_KEY_MAP,
        skip: CLASSIFIER,
    };
    let network = load(config.init(device), &tensors, &options, VGG_HELP)?;
    Ok((network, tensors))
}

/// The perceptual distance, with the weights of channels in `heads`.
pub(super) fn lpips(spec: &str, heads: Option<&str>, device: &Device) -> Result<Lpips, Error> {
    let (network, _) = vgg(spec, device)?;
    let Some(heads) = heads else {
        return Ok(network);
    };
    let mut key_map = VGG16_KEY_MAP.to_vec();
    key_map.push((r"^heads\.", ""));
    let options = LoadOptions {
        key_map: &key_map,
        skip: &[],
    };
    let fresh = LpipsConfig::default().init(device).heads;
    let heads = weights::open(Path::new(heads))?;
    let heads = load(fresh, &heads, &options, HEADS_HELP)?;
    Ok(Lpips { heads, ..network })
}

/// Loads a network. `help` says which file it is that it takes.
fn load<M: Module>(
    module: M,
    tensors: &Tensors,
    options: &LoadOptions,
    help: &str,
) -> Result<M, Error> {
    match weights::load_from(module, tensors, options) {
        Ok((module, _)) => Ok(module),
        Err(error @ WeightsError::Mismatch { .. }) => Err(Error::Evaluation {
            source: Box::new(error),
            help: Some(help.into()),
        }),
        Err(error) => Err(error.into()),
    }
}
