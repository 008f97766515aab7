use std::{path::PathBuf, str::FromStr};

use clap::{ArgGroup, Args};
use ldm_pipeline::diffusion::SamplerKind;

use super::DeviceArgs;

/// Largest side of an image in pixels: beyond it no memory suffices.
const MAX_SIDE: i64 = 16_384;

/// Largest number of images.
pub(crate) const MAX_IMAGES: u64 = 100_000;

/// Draw images from a trained model.
///
/// Without --model, from the text-to-image model that comes with ldm's repository, twemoji-64.
///
/// Several prompts, classes or masks are drawn one after the other, each with all seeds. An image depends on what it shows, its seed and its
/// number under that seed, not on what else is drawn: image 0 of --seed 7 is the one of --seeds 7.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("ends").multiple(true).args(["to", "prompts", "class", "seeds"]))]
pub(crate) struct SampleArgs {
    /// What to draw, for a text-conditional model
    pub(crate) prompt: Option<String>,
    /// What to draw, one prompt a line; empty lines and those that begin with # are passed over
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: SampledModel,
    /// What to lead away from
    #[arg(long, value_name = "PROMPT", default_value = "")]
    pub(crate) negative: String,
    /// Class to draw, by its name or its number from 0, for a class-conditional model; may be repeated
    #[arg(
        long,
        value_name = "CLASS",
        conflicts_with_all = ["prompt", "prompts"],
        allow_negative_numbers = true,
        value_parser = class
    )]
    pub(crate) class: Vec<String>,
    /// Scene to draw, for a model of semantic masks: a PNG whose pixels are labels (palette index or grey level), or have the colours of
    /// labels; may be repeated
    #[arg(long, value_name = "PNG", conflicts_with_all = ["prompt", "prompts", "class"])]
    pub(crate) semantic: Vec<PathBuf>,
    /// Colours of the labels in --semantic, whose pixels are then read by their colours alone: lines of `RED GREEN BLUE NAME` from label 0
    /// on, or a PNG with a palette [default: the model's own, for a PNG in colour]
    #[arg(long, value_name = "FILE", requires = "semantic")]
    pub(crate) palette: Option<PathBuf>,
    /// Picture to start from
    #[arg(long, value_name = "IMAGE")]
    pub(crate) init_image: Option<PathBuf>,
    /// How far to lead away from --init-image: 0 is hardly, 1 is all the way [default: 0.8, with --mask 1]
    #[arg(
        long,
        value_name = "S",
        requires = "init_image",
        allow_negative_numbers = true
    )]
    pub(crate) strength: Option<f64>,
    /// Region of --init-image to draw anew: white in this image; the rest is kept
    #[arg(long, value_name = "IMAGE", requires = "init_image")]
    pub(crate) mask: Option<PathBuf>,
    #[arg(long, value_name = "NAME", value_parser = sampler, help = sampler_help())]
    pub(crate) sampler: Option<SamplerKind>,
    /// Denoising steps
    #[arg(long, default_value_t = 50, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Randomness of ddim: 0 is none, 1 as much as ddpm
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) eta: f64,
    /// Strength of classifier-free guidance; 1 is none
    #[arg(long, default_value_t = 3.0, allow_negative_numbers = true)]
    pub(crate) guidance: f64,
    /// Brings guided predictions back to the contrast of unguided ones: 0 not at all, 1 fully
    #[arg(
        long,
        value_name = "R",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) guidance_rescale: f64,
    /// Key of the noise: the same seed gives the same images, however many are drawn at once
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// A seed for each image, such as 1,5,9, in place of --seed and --count
    #[arg(
        long,
        value_name = "SEED,...",
        value_delimiter = ',',
        conflicts_with_all = ["seed", "count", "init_latents"],
        allow_negative_numbers = true,
        value_parser = seed
    )]
    pub(crate) seeds: Vec<u64>,
    /// Number of images of each prompt, class or mask [default: 1, or what fills --grid, or as many as --init-latents holds]
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=MAX_IMAGES))]
    pub(crate) count: Option<u64>,
    /// Draw N images on the way between two prompts (--to, --prompts), two --class, two --seeds, or several of these at once
    #[arg(
        long,
        value_name = "N",
        requires = "ends",
        conflicts_with_all = ["count", "init_latents"],
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u64).range(2..=MAX_IMAGES)
    )]
    pub(crate) interpolate: Option<u64>,
    /// The prompt at the other end of --interpolate
    #[arg(
        long,
        value_name = "PROMPT",
        requires = "prompt",
        requires = "interpolate"
    )]
    pub(crate) to: Option<String>,
    /// Images that are drawn together
    #[arg(long, default_value_t = 8, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) batch: u64,
    /// Width in pixels [default: as in training]
    #[arg(long, requires = "height", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=MAX_SIDE))]
    pub(crate) width: Option<u32>,
    /// Height in pixels [default: as in training]
    #[arg(long, requires = "width", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=MAX_SIDE))]
    pub(crate) height: Option<u32>,
    /// Decode in overlapping tiles of N latent pixels a side, for pictures that are too large to decode in one piece
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(8..))]
    pub(crate) tile: Option<u64>,
    /// Noise to start from in place of the seed's: `latents`, [N, C, H, W] of unit variance
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) init_latents: Option<PathBuf>,
    /// Also write what the decoder got: `latents`, [N, C, H, W]
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) save_latents: Option<PathBuf>,
    /// PNG file to write; several images get numbers before the extension
    #[arg(long, value_name = "FILE", default_value = "sample.png")]
    pub(crate) out: PathBuf,
    /// Write all images to --out as one sheet with captions, in as many columns and rows; without a size as square as can be, or a row for
    /// each prompt
    #[arg(long, value_name = "COLSxROWS", num_args = 0..=1)]
    pub(crate) grid: Option<Option<Grid>>,
    /// Beside the sheet of --grid, write each image, with a number before the extension of --out
    #[arg(long, requires = "grid")]
    pub(crate) each: bool,
    /// Also write a moving picture, .gif, or .webp without loss: how the images come about, by what the network takes them for meanwhile; or
    /// the images of --interpolate one after the other
    #[arg(long, value_name = "FILE")]
    pub(crate) animate: Option<PathBuf>,
    /// Calls of the network between two pictures of --animate
    #[arg(
        long,
        value_name = "K",
        default_value_t = 1,
        requires = "animate",
        conflicts_with = "interpolate",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub(crate) animate_every: u64,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Where the model to draw from is.
#[derive(Debug, Args)]
pub(crate) struct SampledModel {
    /// Model or run directory, CompVis checkpoint (.ckpt or .safetensors), or hub id (owner/name or owner/name@revision) [default:
    /// twemoji-64, which comes with ldm, in models/]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Configuration of a CompVis checkpoint [default: a .yaml beside it, or guessed from the shapes of its tensors]
    #[arg(long, value_name = "FILE.yaml", requires = "model")]
    pub(crate) yaml: Option<PathBuf>,
}

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

impl FromStr for Grid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let side = |text: &str| {
            let side = text.parse::<usize>().ok()?;
            (1..=MAX_IMAGES as usize).contains(&side).then_some(side)
        };
        let sides = text.split_once(['x', 'X']);
        match sides.and_then(|(columns, rows)| side(columns).zip(side(rows))) {
            Some((columns, rows)) => Ok(Self { columns, rows }),
            None => Err("a grid has the form COLSxROWS, such as 4x2; a prompt goes before a --grid without a size".into()),
        }
    }
}

fn seed(text: &str) -> Result<u64, String> {
    (text.trim().parse())
        .map_err(|_| "seeds are whole numbers from 0 on, with commas between them: 1,5,9".into())
}

/// Whatever is no negative number; whether there is such a class is for the model to say.
fn class(text: &str) -> Result<String, String> {
    match text.parse::<i64>() {
        Ok(..0) => Err("classes are counted from 0".into()),
        _ if text.is_empty() => Err("a class has a number or a name".into()),
        _ => Ok(text.into()),
    }
}

/// The samplers under the names that users know.
pub(super) fn sampler(name: &str) -> Result<SamplerKind, String> {
    name.parse()
        .map_err(|error: ldm_pipeline::diffusion::Error| error.to_string())
}

pub(super) fn sampler_help() -> String {
    let names = SamplerKind::ALL.map(SamplerKind::name).join(", ");
    format!("Way from noise to image: {names} [default: the model's own]")
}
