//! The command line as the user types it. What the options mean is decided in [`commands`](crate::commands).

mod eval;
mod sample;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ldm_pipeline::{
    data::twemoji::Group,
    plan::{ASSUMED_IMAGES, LEAST_STEPS, parse_bytes},
};

pub(crate) use eval::{
    CacheArgs, ConventionName, EvalCommand, EvalNearestArgs, EvalOutputArgs,
    EvalReconstructionArgs, EvalSamplesArgs, FakeArgs, NetworkArgs, VggArgs,
};
pub(crate) use sample::{Grid, MAX_IMAGES, SampleArgs};

use crate::device::{DeviceList, DeviceName};

/// Latent diffusion in Rust: train an autoencoder and a diffusion model in its latent space, and draw from it, or from the models of diffusers
/// and CompVis' code.
///
/// To see all of it at work, run `ldm quickstart`: a quarter of an hour on two CPU cores, nothing to download.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Quickstart(QuickstartArgs),
    /// Write a data set as a folder of images: one that comes with ldm, or one in a format of its own.
    #[command(subcommand)]
    Data(DataCommand),
    /// Train the autoencoder, the diffusion model, or one after the other.
    ///
    /// Several devices train together: `ldm train all CONFIG --device cuda:0,cuda:1`. Each makes its own `accumulation` micro-batches of a step,
    /// so that a step has twice the images. A build with the feature `mpi` does the same with several processes, on one machine or many:
    /// `mpirun -n 4 ldm train all CONFIG`.
    #[command(subcommand)]
    Train(TrainCommand),
    Plan(PlanArgs),
    /// A short piece of a training run for `ldm plan`, in a folder that it prepared.
    #[command(hide = true)]
    PlanProbe(PlanProbeArgs),
    Sample(Box<SampleArgs>),
    Encode(EncodeArgs),
    Decode(DecodeArgs),
    Reconstruct(ReconstructArgs),
    /// Measure an autoencoder or samples: PSNR, SSIM, LPIPS, FID, KID, precision, recall, copies of training pictures.
    #[command(subcommand)]
    Eval(EvalCommand),
    Convert(ConvertArgs),
    Info(InfoArgs),
    Report(ReportArgs),
    /// List the devices that this build can use.
    Devices,
}

/// Train both stages on the embedded Twemoji pictures, then draw a sheet of samples.
///
/// Exports the pictures to OUT/data, trains an autoencoder and a text-conditional U-Net on them with a preset that fits a laptop's
/// CPU, and writes the model, sheets of reconstructions and samples, and loss curves to OUT. The same seed gives the same files.
#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Folder for everything that is written; must not hold another run
    #[arg(long, value_name = "DIR", default_value = "quickstart")]
    pub(crate) out: PathBuf,
    /// Key of all random draws
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// VGG16 weights for the perceptual loss: a .safetensors file with torchvision's key names. Without it that term is off
    #[arg(long, value_name = "FILE")]
    pub(crate) vgg: Option<PathBuf>,
    /// Go on with a quickstart that was interrupted
    #[arg(long)]
    pub(crate) resume: bool,
    /// Shorten both stages to N steps, to see whether everything works; the pictures will not be recognisable
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: Option<u64>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    Twemoji(TwemojiArgs),
    /// Fashion-MNIST: 60,000 + 10,000 pictures of clothes at 32x32 in ten class folders, from its own four files.
    FashionMnist {
        /// Folder of `train-images-idx3-ubyte.gz` and the other three, such as Debian's /usr/share/datasets/fashion-mnist
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Folder to create; it gets train/ and test/
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Twemoji: emoji as 72x72 PNG with their names as captions (graphics CC-BY 4.0).
#[derive(Debug, Args)]
pub(crate) struct TwemojiArgs {
    /// Folder to create
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How many pictures, evenly spread over all
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// People in each skin tone, not in the default alone
    #[arg(long)]
    pub(crate) skin_tones: bool,
    /// Only these: smileys, people, animals, food, travel, activities, objects, symbols, flags. By default all but flags
    #[arg(long, value_name = "GROUP[,GROUP...]", value_delimiter = ',')]
    pub(crate) groups: Vec<Group>,
    /// Every group, flags too
    #[arg(long, conflicts_with = "groups")]
    pub(crate) all: bool,
    /// What the captions say
    #[arg(long, value_enum, default_value_t = CaptionStyle::Name)]
    pub(crate) captions: CaptionStyle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaptionStyle {
    /// "waving hand: dark skin tone"
    Name,
    /// Two for each picture: that, and "waving hand, dark skin tone, people"
    Full,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrainCommand {
    /// Stage 1: the autoencoder.
    Vae(TrainArgs),
    /// Stage 2: the diffusion model in the latent space of the run's autoencoder.
    Diffusion(TrainArgs),
    /// Both stages.
    All(TrainArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Configuration of the run, a TOML file; configs/ has presets
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// Folder of images, in place of the configuration's `data.path`
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Folder of the run: checkpoints, logs, sheets and, at the end, the model
    #[arg(long, value_name = "RUN", default_value = "runs/ldm")]
    pub(crate) out: PathBuf,
    /// Go on from the newest checkpoint in the run's folder
    #[arg(long)]
    pub(crate) resume: bool,
    /// Steps of the stage, or of both, in place of the configuration's
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: Option<u64>,
    /// Change a setting, for example `--set stage2.training.lr.rate=1e-4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub(crate) overrides: Vec<String>,
    /// Where to compute; `ldm devices` lists what this build offers. Several, such as cuda:0,cuda:1, train together
    #[arg(
        long = "device",
        default_value = "flex",
        value_name = "DEVICE[,DEVICE...]"
    )]
    pub(crate) devices: DeviceList,
}

/// Measure a few steps and predict a training's memory, time and disk, before it starts.
///
/// Runs short pieces of the real training, with sheets and checkpoints, in processes of their own and in the system's folder for temporary
/// files (TMPDIR). Proposes the largest micro-batch that fits, with the same number of images per step.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Configuration of the run, a TOML file; configs/ has presets
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// Folder of images, in place of the configuration's `data.path`; with neither, pictures are drawn
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Number of images to count with where there is no folder of them
    #[arg(long, value_name = "N", default_value_t = ASSUMED_IMAGES as u64, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(2..=1_000_000_000_000))]
    pub(crate) images: u64,
    /// Which stages to plan [default: all that the configuration has]
    #[arg(long, value_enum)]
    pub(crate) stage: Option<StageName>,
    /// What the training may take, such as 16GiB [default: 90% of the memory that is free now]
    #[arg(long, value_name = "AMOUNT", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub(crate) memory: Option<u64>,
    /// Change a setting, for example `--set stage2.training.batch_size=8`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub(crate) overrides: Vec<String>,
    /// Steps that are measured of each size of micro-batch; quick ones are measured more often
    #[arg(long, value_name = "N", default_value_t = LEAST_STEPS, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(LEAST_STEPS..=1000))]
    pub(crate) probe_steps: u64,
    /// Seconds after which a measurement ends with what it has; there are up to five for each stage
    #[arg(long, value_name = "S", default_value_t = 300, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) probe_seconds: u64,
    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Stages by the names of `ldm train`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StageName {
    /// Stage 1: the autoencoder
    Vae,
    /// Stage 2: the diffusion model
    Diffusion,
    /// Both
    All,
}

#[derive(Debug, Args)]
pub(crate) struct PlanProbeArgs {
    /// The prepared folder
    pub(crate) dir: PathBuf,
    /// What to do in it
    #[arg(long, value_enum)]
    pub(crate) task: TaskName,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What a probe is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TaskName {
    /// Draw an autoencoder
    FirstStage,
    /// Train stage 1
    Vae,
    /// Train stage 2
    Diffusion,
}

/// Passes on what looks like a setting; whether there is one of that name is for the configuration to say.
fn setting(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.into()),
        _ => Err(
            "a setting has the form section.key=value, such as stage1.training.steps=1000".into(),
        ),
    }
}

/// Where a model is.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model or run directory, CompVis checkpoint (.ckpt or .safetensors), or hub id (owner/name or owner/name@revision)
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Configuration of a CompVis checkpoint [default: a .yaml beside it, or guessed from the shapes of its tensors]
    #[arg(long, value_name = "FILE.yaml")]
    pub(crate) yaml: Option<PathBuf>,
}

/// Encode images to latents.
///
/// Writes `mean` and `logvar` of a KL autoencoder, or the `latents` of a VQ one before quantisation: f32, [N, C, H, W], not scaled.
#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    /// Images of one size, or .safetensors files with `images`, f32, [N, 3, H, W] in [-1, 1]
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// File to write
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Decode latents to images.
///
/// Writes a PNG per image, and all in images.safetensors: `images`, f32, [N, 3, H, W], around [-1, 1] but not clamped.
#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// File with `latents`, f32, [N, C, H, W], scaled as `ldm sample --save-latents` writes them
    #[arg(value_name = "FILE.safetensors")]
    pub(crate) latents: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder to write into; created if missing
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Decode in overlapping tiles of N latent pixels a side
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(8..))]
    pub(crate) tile: Option<u64>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Convert between CompVis checkpoints and model directories.
///
/// A DST that ends in .ckpt or .safetensors becomes a CompVis checkpoint, with its configuration beside it as .yaml; any other DST a model
/// directory. SRC is whatever --model takes elsewhere. An autoencoder alone is converted as well.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Model directory, run directory, CompVis checkpoint, or hub id
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// Directory or checkpoint to write; must not exist
    #[arg(value_name = "DST")]
    pub(crate) destination: PathBuf,
    /// Configuration of a CompVis SRC [default: a .yaml beside it, or guessed from the shapes of its tensors]
    #[arg(long, value_name = "FILE.yaml")]
    pub(crate) yaml: Option<PathBuf>,
    /// Store floats in 16 bits
    #[arg(long)]
    pub(crate) half: bool,
}

/// Encode images and decode them again, side by side with the originals.
#[derive(Debug, Args)]
pub(crate) struct ReconstructArgs {
    /// Images, of any size and common format
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder for the pictures; created if missing
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Show what a model directory, a run or a configuration holds: components, parameter counts, shapes, scaling factor.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Model directory, run directory, CompVis checkpoint, hub id, or configuration file
    #[arg(value_name = "MODEL|CONFIG")]
    pub(crate) path: PathBuf,
}

/// Show a run, finished or still going on, as one HTML page: curves, sheets, configuration, log, hardware.
///
/// The page needs nothing but itself: no network, no other file. To see a run as it is by then, write it again.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Folder of the run
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Page to write [default: RUN/report.html]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Picture of the loss curves to write beside it, a PNG
    #[arg(long, value_name = "FILE")]
    pub(crate) curves: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute; `ldm devices` lists what this build offers
    #[arg(long, default_value = "flex", value_name = "DEVICE")]
    pub(crate) device: DeviceName,
}
