use ldm_eval::{SetStatistics, Subsets, compare};
use ldm_pipeline::{Error, atomic, data::is_shard};
use serde_json::json;

use super::{
    failed,
    fakes::{Fakes, Gathered},
    network::Network,
    pictures::{Folder, Work, cache},
    report::Report,
};
use crate::{args::EvalSamplesArgs, progress::Progress};

pub(super) fn run(args: &EvalSamplesArgs) -> Result<(), Error> {
    let device = args.output.device.device.open();
    let Some(network) = Network::load(&args.network, &device)? else {
        return Err(Error::Evaluation {
            source: "no network makes features of the pictures".into(),
            help: Some("give --inception pt_inception-2015-12-05-6726825d.pth (from the releases of pytorch-fid) for FID, or --vgg FILE for distances of VGG16's features".into()),
        });
    };
    let extractor = &network.extractor;
    let fakes = Fakes::open(&args.fake)?;
    let mut work = Work::new(&args.output, device);
    let real_name = args.real.display().to_string();
    let (real, captions) = if args.real.is_file() && !is_shard(&args.real) {
        let statistics = SetStatistics::read(&args.real).map_err(failed)?;
        (statistics, Vec::new())
    } else {
        let folder = Folder::open(&args.real, fakes.resolution(&args.fake), None)?;
        let cache = cache(&args.cache);
        let statistics = folder.statistics("real", &mut work, extractor, cache.as_deref())?;
        (statistics, folder.captions())
    };
    if let Some(path) = &args.save_stats {
        atomic::write_file(path, &real.to_bytes())?;
    }

    let name = fakes.name();
    let Gathered { collected, .. } =
        fakes.gather(&args.fake, &captions, &mut work, extractor, false)?;
    let logits = collected.logits.clone();
    let samples = SetStatistics::of(collected, extractor.name(), &name).map_err(failed)?;
    let subsets = Subsets {
        count: args.kid_subsets as usize,
        size: args.kid_subset_size as usize,
    };
    let sets = [real_name.as_str(), name.as_str()];
    let found = compare(&real, &samples, logits.as_ref(), subsets, sets).map_err(failed)?;

    for (set, statistics) in [(&real_name, &real), (&name, &samples)] {
        warn_of_few(&work.progress, set, statistics);
    }
    let mut report = Report::new(
        "samples",
        json!({
            "features": extractor.name(),
            "real": real_name,
            "real_count": real.count(),
            "samples": name,
            "sample_count": samples.count(),
        }),
    );
    report.comparison(&found, network.family, false);
    report.finish(args.output.json.as_deref())
}

/// Fréchet distances grow as sets shrink; with fewer pictures than features no covariance has full rank.
pub(super) fn warn_of_few(progress: &Progress, set: &str, statistics: &SetStatistics) {
    let dim = statistics.gaussian.dim();
    if let Some(count) = statistics.count().filter(|&count| count <= dim) {
        progress.say(&format!(
            "warning: {set} has {count} pictures for {dim} features: Fréchet distances are biased upwards, and comparable only between sets of one size"
        ));
    }
}
