use image::RgbImage;
use ldm_eval::{Extractor, Features, Neighbour, Pictures, memorisation, nearest};
use ldm_pipeline::{
    Error,
    sheet::{Sheet, save_png},
};
use serde_json::json;

use super::{
    fakes::{Fakes, Gathered},
    network,
    pictures::{Folder, Work, cache},
    report::Report,
};
use crate::args::EvalNearestArgs;

/// Pairs in a row of the sheet.
const COLUMNS: usize = 8;

pub(super) fn run(args: &EvalNearestArgs) -> Result<(), Error> {
    let device = args.output.device.device.open();
    let fakes = Fakes::open(&args.fake)?;
    let resolution = fakes.resolution(&args.fake);
    let train = Folder::open(&args.train, resolution, None)?;
    let held_out = (args.held_out.as_ref())
        .map(|path| Folder::open(path, resolution, None))
        .transpose()?;
    let extractor = network::vgg_features(&args.vgg, &device)?.unwrap_or(Extractor::Pixels);
    let mut work = Work::new(&args.output, device);
    let known = real_features(&train, "training", args, &mut work, &extractor)?;
    let unseen = (held_out.as_ref())
        .map(|folder| real_features(folder, "held out", args, &mut work, &extractor))
        .transpose()?;
    let name = fakes.name();
    let Gathered { collected, images } =
        fakes.gather(&args.fake, &train.captions(), &mut work, &extractor, true)?;
    for (features, name) in unseen
        .iter()
        .zip(&held_out)
        .map(|(features, folder)| (features, &folder.name))
        .chain([(&collected.features, &name)])
    {
        check_dims(&known, &train.name, features, name)?;
    }

    let samples = nearest(&collected.features, &known);
    let mut report = Report::new(
        "nearest",
        json!({
            "features": extractor.name(),
            "train": train.name,
            "train_count": train.len(),
            "samples": name,
            "sample_count": samples.len(),
            "held_out": held_out.as_ref().map(|folder| &folder.name),
            "distances": samples.iter().map(|n| n.distance).collect::<Vec<_>>(),
            "nearest": samples.iter().map(|n| train.name(n.index)).collect::<Vec<_>>(),
        }),
    );
    // Without held-out pictures the samples stand for them, and nothing is said of ratios and copies.
    let reference = unseen.map(|features| nearest(&features, &known));
    let found = memorisation(
        &samples,
        reference.as_ref().unwrap_or(&samples),
        args.copy_ratio,
    );
    report.number(
        "median",
        "median distance",
        found.median,
        "of a sample to the nearest training picture",
    );
    report.number("least", "least distance", found.least, "");
    if reference.is_some() {
        if found.held_out_median == 0.0 {
            work.progress.say(
                "warning: most held-out pictures are training pictures as well: their distance says nothing",
            );
        }
        report.number(
            "held_out_median",
            "held-out median",
            found.held_out_median,
            "of a held-out picture",
        );
        report.number("ratio", "ratio", found.ratio, "of the medians");
        let copies = found.copies.len();
        let remark = format!(
            "of {} nearer than {:.4}",
            samples.len(),
            found.copying_distance
        );
        report.count("copies", "copies", copies, &remark);
    }
    if let Some(path) = &args.out {
        let sheet = sheet(&samples, &images, &train, args.pairs as usize)?;
        save_png(path, &sheet.render(), &[])?;
    }
    report.finish(args.output.json.as_deref())
}

/// The features of real pictures. Pixels aren't kept: to read the pictures is as quick.
fn real_features(
    folder: &Folder,
    title: &str,
    args: &EvalNearestArgs,
    work: &mut Work,
    extractor: &Extractor,
) -> Result<Features, Error> {
    let cache = cache(&args.cache).filter(|_| !matches!(extractor, Extractor::Pixels));
    if let Some(cache) = cache
        && let Some(features) = (folder.statistics(title, work, extractor, Some(&cache))?).features
    {
        return Ok(features);
    }
    Ok(folder.features(title, work, extractor)?.features)
}

/// Pixels can only be compared between pictures of one size.
fn check_dims(a: &Features, first: &str, b: &Features, second: &str) -> Result<(), Error> {
    if a.dim() == b.dim() {
        return Ok(());
    }
    Err(Error::Evaluation {
        source: format!("the pictures of {first} and of {second} differ in size").into(),
        help: Some("bring all to one size with --resolution N".into()),
    })
}

/// The nearest pairs, the nearest first.
fn sheet(
    samples: &[Neighbour],
    images: &[RgbImage],
    train: &Folder,
    pairs: usize,
) -> Result<Sheet, Error> {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by(|&a, &b| samples[a].distance.total_cmp(&samples[b].distance));
    let mut sheet = Sheet::new("sample | nearest training picture", COLUMNS);
    for index in order.into_iter().take(pairs) {
        let Neighbour {
            index: nearest,
            distance,
        } = samples[index];
        let caption = format!("{index}: {distance:.4}");
        sheet.push([images[index].clone(), train.get(nearest)?], caption);
    }
    Ok(sheet)
}
