use burn::tensor::Device;
use image::RgbImage;
use ldm_eval::{
    Collector, Error as EvalError, Pictures, SSIM_WINDOW, SetStatistics, Subsets, compare, ssim,
};
use ldm_pipeline::{
    Error,
    autoencoder::Lpips,
    model::FirstStageFiles,
    reconstruct::pairs,
    sheet::{psnr, tensor_from_images},
};
use serde_json::json;

use super::{
    failed,
    network::{self, Network},
    pictures::Folder,
    report::Report,
    samples::warn_of_few,
};
use crate::{args::EvalReconstructionArgs, progress::Progress};

pub(super) fn run(args: &EvalReconstructionArgs) -> Result<(), Error> {
    let device = args.output.device.device.open();
    let files = FirstStageFiles::open(&args.model.model, args.model.yaml.as_deref())?;
    if files.config.image_channels() != 3 {
        let channels = files.config.image_channels();
        return Err(Error::Request(format!(
            "this model's pictures have {channels} channels: only those of red, green and blue are measured"
        )));
    }
    let trained = files.config.sample_size().map(|side| side as u64);
    let folder = Folder::open(&args.data, args.resolution.or(trained), args.count)?;
    let network = Network::load(&args.network, &device)?;
    let heads = args.lpips_heads.as_deref();
    let lpips = (args.network.vgg.vgg.as_ref())
        .map(|vgg| network::lpips(vgg, heads, &device))
        .transpose()?;
    let first_stage = files.load(&device)?;

    let mut progress = Progress::new();
    let mut collectors = network.as_ref().map(|network| {
        let new = || Collector::new(&network.extractor, &device);
        (new(), new())
    });
    let (mut psnrs, mut ssims, mut distances) = (Vec::new(), Vec::new(), Vec::new());
    let (count, batch) = (folder.len(), args.output.batch as usize);
    for first in (0..count).step_by(batch) {
        let originals = (first..count.min(first + batch))
            .map(|index| folder.get(index).map_err(Error::from))
            .collect::<Result<Vec<RgbImage>, Error>>()?;
        check_sizes(&folder, first, &originals, files.config.factor())?;
        let images = tensor_from_images(&originals, &device);
        let (originals, decoded): (Vec<_>, Vec<_>) = pairs(&first_stage, images).unzip();
        for (original, decoded) in originals.iter().zip(&decoded) {
            psnrs.push(psnr(original, decoded));
            ssims.push(ssim(original, decoded));
        }
        if let Some(lpips) = &lpips {
            distances.extend(perceptual(lpips, &originals, &decoded, &device));
        }
        if let Some((of_originals, of_decoded)) = &mut collectors {
            let name = |index| folder.name(first + index);
            of_originals.push(&originals, name).map_err(failed)?;
            of_decoded.push(&decoded, name).map_err(failed)?;
        }
        let done = first + originals.len();
        progress.count("reconstruction", done as u64, count as u64, "");
        if progress.flow().is_break() {
            return Err(failed(EvalError::Stopped));
        }
    }
    progress.finish();

    let mut report = Report::new(
        "reconstruction",
        json!({ "model": args.model.model, "data": args.data, "count": count }),
    );
    report.number("psnr", "PSNR", mean(&psnrs), "dB");
    report.number("ssim", "SSIM", mean(&ssims), "");
    if lpips.is_some() {
        let (key, name) = match heads {
            Some(_) => ("lpips", "LPIPS"),
            None => ("vgg_distance", "VGG distance"),
        };
        report.number(key, name, mean(&distances), "");
    }
    if let (Some(network), Some((originals, decoded))) = (&network, collectors) {
        let name = network.extractor.name();
        let statistics = |collector: Collector| {
            let collected = collector.finish(&folder.name)?;
            SetStatistics::of(collected, name.clone(), &folder.name)
        };
        let real = statistics(originals).map_err(failed)?;
        let fake = statistics(decoded).map_err(failed)?;
        warn_of_few(&progress, &folder.name, &real);
        let sets = [folder.name.as_str(), "the reconstructions"];
        let found = compare(&real, &fake, None, Subsets::default(), sets).map_err(failed)?;
        report.comparison(&found, network.family, true);
    }
    report.finish(args.output.json.as_deref())
}

/// Pictures of one batch go through the autoencoder together.
fn check_sizes(
    folder: &Folder,
    first: usize,
    images: &[RgbImage],
    factor: usize,
) -> Result<(), Error> {
    let size = |image: &RgbImage| [image.width(), image.height()];
    let expected = size(&images[0]);
    if let Some(offset) = images.iter().position(|image| size(image) != expected) {
        return Err(failed(EvalError::Sizes {
            name: folder.name(first + offset),
            found: size(&images[offset]),
            first: folder.name(first),
            expected,
        }));
    }
    let needed = SSIM_WINDOW as u32;
    if expected.iter().any(|&side| side < needed) {
        return Err(failed(EvalError::TooSmall {
            size: expected,
            what: "SSIM",
            needed,
        }));
    }
    if !(expected.iter()).all(|&side| (side as usize).is_multiple_of(factor)) {
        return Err(Error::Evaluation {
            source: format!(
                "{} has {} x {} pixels: the first stage needs multiples of {factor}",
                folder.name(first),
                expected[0],
                expected[1]
            )
            .into(),
            help: Some("bring the pictures to a size that fits with --resolution N".into()),
        });
    }
    Ok(())
}

/// The perceptual distance of each pair, of what 8 bits hold.
fn perceptual(lpips: &Lpips, a: &[RgbImage], b: &[RgbImage], device: &Device) -> Vec<f64> {
    let distances = lpips.forward(tensor_from_images(a, device), tensor_from_images(b, device));
    distances.into_data().iter::<f64>().collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
