//! The whole pipeline on pictures that are part of the program.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use image::RgbImage;

use crate::{
    config::RunConfig,
    data::{
        Dataset, ImageDataset,
        twemoji::{self, Captions, Group, Selection},
    },
    error::Error,
    generate::{Condition, Request},
    hardware::Hardware,
    model::LatentDiffusion,
    nearest::NearestCaption,
    report::draw_curves,
    rng::{Stream, permutation},
    run::RunDir,
    sheet::{Sheet, save_png},
    train::{
        Event, Observer, Outcome, Stage, images::load_images, perceptual::find_vgg,
        train_diffusion, train_vae,
    },
};

/// The preset, a configuration like any other.
pub const PRESET: &str = include_str!("../../../configs/quickstart.toml");

/// Pictures exported; some of them are held out from training.
const PICTURES: usize = 288;
/// Prompts on the sheet of samples.
const PROMPTS: usize = 16;
/// Held-out pictures on the sheet of reconstructions.
const RECONSTRUCTIONS: usize = 16;
/// Standard deviation, in pixels, of the blur before pictures are compared.
const BLUR: f32 = 2.0;

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything is written here.
    pub out: PathBuf,
    /// Key of all random draws.
    pub seed: u64,
    /// VGG16 for the perceptual loss; without it that term is off.
    pub vgg: Option<String>,
    /// Go on with an interrupted quickstart.
    pub resume: bool,
    /// Steps of both stages, in place of the preset's.
    pub steps: Option<u64>,
    /// The machine, for the run's records.
    pub hardware: Hardware,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Report {
    /// Sheet of samples, one per prompt.
    pub samples: PathBuf,
    /// Sheet of held-out pictures and their reconstructions.
    pub reconstructions: PathBuf,
    /// Loss curves of both stages.
    pub curves: PathBuf,
    /// The model directory.
    pub model: PathBuf,
    /// Samples whose nearest training picture carries their prompt as caption.
    pub matched: usize,
    /// Samples in all.
    pub prompts: usize,
    /// Training pictures that they were compared with.
    pub pictures: usize,
    /// Mean PSNR of held-out reconstructions, in dB.
    pub psnr: f64,
    /// A prompt to try.
    pub example: String,
}

/// Exports the pictures, trains both stages and draws the results; `None` if the observer stopped it.
///
/// # Errors
/// As for [`train_vae`] and [`train_diffusion`], and if `out` already holds a run that is not to be resumed.
pub fn quickstart(
    options: &Options,
    device: &Device,
    observer: &mut Observer,
) -> Result<Option<Report>, Error> {
    let data = options.out.join("data");
    let config = configure(options, &data, observer)?;
    let run = RunDir::open(
        &options.out,
        &config,
        &[Stage::Vae, Stage::Diffusion],
        options.resume,
    )?
    .with_hardware(options.hardware.clone());
    if !data.exists() {
        let pictures = twemoji::select(&selection(options.steps));
        twemoji::export(&data, &pictures, Captions::Name)?;
        let count = pictures.len();
        let note = format!("{count} Twemoji pictures (CC-BY 4.0) in {}", data.display());
        let _ = observer(Event::Note(&note));
    }
    for train in [train_vae, train_diffusion] {
        if train(&config, &run, device, observer)? != Outcome::Finished {
            return Ok(None);
        }
    }
    let model = LatentDiffusion::load(&run.model(), device)?;
    let (training_set, validation_set) = config.data.open(config.seed)?;
    let (reconstructions, psnr) = reconstruct(&model, &validation_set, &options.out, device)?;
    let curves = run.path().join("curves.png");
    draw_curves(run.path(), &curves)?;
    let Some(samples) = draw_samples(&model, &config, &training_set, observer)? else {
        return Ok(None);
    };

    let nearest = NearestCaption::new(&training_set, BLUR);
    let mut sheet = Sheet::new("samples after the quickstart", 4);
    let mut matched = 0;
    for (image, prompt) in &samples {
        let found = nearest.caption(image);
        let caption = if found == prompt {
            matched += 1;
            prompt.clone()
        } else {
            format!("{prompt} (nearest: {found})")
        };
        sheet.push([image.clone()], caption);
    }
    let path = options.out.join("samples.png");
    save_png(&path, &sheet.render(), &[])?;
    Ok(Some(Report {
        samples: path,
        reconstructions,
        curves,
        model: run.model(),
        matched,
        prompts: samples.len(),
        pictures: training_set.len(),
        psnr,
        example: samples[0].1.clone(),
    }))
}

/// Things to recognise: no people, whose variants resemble each other, and no signs. A training that was shortened to `steps` gets
/// no more than it could look at.
fn selection(steps: Option<u64>) -> Selection {
    let limit = steps.map_or(PICTURES, |steps| {
        PICTURES.min(2 * PROMPTS + 16 * steps.min(PICTURES as u64) as usize)
    });
    Selection {
        groups: vec![
            Group::Animals,
            Group::Food,
            Group::Travel,
            Group::Activities,
            Group::Objects,
        ],
        skin_tones: false,
        limit: Some(limit),
    }
}

/// The preset with the user's choices.
fn configure(options: &Options, data: &Path, observer: &mut Observer) -> Result<RunConfig, Error> {
    let mut config = RunConfig::parse(PRESET, "the quickstart's preset", &[])?;
    config.seed = options.seed;
    config.data.path = Some(data.into());
    if let Some(vgg) = &options.vgg {
        // Before the pictures are written, so that a wrong name leaves nothing behind.
        find_vgg(vgg)?;
    }
    config.stage1.vgg = options.vgg.clone();
    if options.vgg.is_none() {
        config.stage1.loss.perceptual_weight = 0.0;
        let note = "perceptual loss off: it needs VGG16's weights, which are not part of this program (--vgg FILE); \
                    reconstruction, KL and adversarial loss are on";
        let _ = observer(Event::Note(note));
    }
    if let Some(steps) = options.steps {
        shorten(&mut config, steps);
    }
    Ok(config)
}

fn shorten(config: &mut RunConfig, steps: u64) {
    config.stage1.training.steps = steps;
    config.stage1.loss.disc_start = config.stage1.loss.disc_start.min(steps / 2);
    if let Some(stage2) = &mut config.stage2 {
        stage2.training.steps = steps;
        // Samples of such a model are noise, however long they take.
        stage2.preview.steps = stage2.preview.steps.min(steps as usize);
    }
}

/// The prompts, drawn from the training captions, and a sample of each.
fn draw_samples(
    model: &LatentDiffusion,
    config: &RunConfig,
    training_set: &ImageDataset,
    observer: &mut Observer,
) -> Result<Option<Vec<(RgbImage, String)>>, Error> {
    let order = permutation(config.seed, Stream::Preview, 0, training_set.len());
    let prompts: Vec<String> = (order.into_iter())
        .filter_map(|index| training_set.entries()[index].caption.clone())
        .take(PROMPTS)
        .collect();
    let preview = &crate::run::stage2(config)?.preview;
    let request = Request {
        conditions: prompts.iter().cloned().map(Condition::Prompt).collect(),
        seed: config.seed,
        sampler: preview.sampler,
        steps: preview.steps,
        eta: preview.eta,
        guidance: preview.guidance,
        ..Request::default()
    };
    let mut stopped = false;
    let images = model.generate(&request, |progress| {
        let flow = observer(Event::Work {
            what: "sampling",
            done: progress.done,
            total: progress.total,
        });
        stopped = flow.is_break();
        flow
    })?;
    Ok((!stopped).then(|| images.into_iter().zip(prompts).collect()))
}

/// Writes the sheet of held-out pictures; its path and the mean PSNR over all of them.
fn reconstruct(
    model: &LatentDiffusion,
    validation_set: &ImageDataset,
    out: &Path,
    device: &Device,
) -> Result<(PathBuf, f64), Error> {
    let psnr = crate::reconstruct::held_out_psnr(&model.first_stage, validation_set, device)
        .unwrap_or(f64::NAN);
    let title = format!("held-out pictures | reconstructions, PSNR {psnr:.2} dB");
    let mut sheet = Sheet::new(title, 4);
    let count = validation_set.len().min(RECONSTRUCTIONS);
    if let Some((images, _)) = load_images(validation_set, 0..count, device) {
        for (original, reconstruction) in crate::reconstruct::pairs(&model.first_stage, images) {
            sheet.push_reconstruction(original, reconstruction);
        }
    }
    let path = out.join("reconstructions.png");
    save_png(&path, &sheet.render(), &[])?;
    Ok((path, psnr))
}
