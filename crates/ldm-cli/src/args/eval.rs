//! The options of `ldm eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ldm_pipeline::diffusion::SamplerKind;

use super::{
    DeviceArgs, ModelArgs,
    sample::{sampler, sampler_help},
};

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    Reconstruction(Box<EvalReconstructionArgs>),
    Samples(Box<EvalSamplesArgs>),
    Nearest(Box<EvalNearestArgs>),
}

/// Measure an autoencoder: PSNR, SSIM, and with networks LPIPS and rFID.
///
/// Encodes the pictures of a folder to the means of their posteriors, decodes them, and compares both at 8 bits. --vgg adds the perceptual
/// distance (LPIPS with --lpips-heads), --inception rFID; with --vgg alone the same distance of VGG features takes rFID's place.
#[derive(Debug, Args)]
pub(crate) struct EvalReconstructionArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder of pictures that the model wasn't trained on
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Only the first N pictures
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Side in pixels that the middle of each picture is brought to [default: that of the model's training]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(16..=16_384))]
    pub(crate) resolution: Option<u64>,
    /// LPIPS' weights of VGG16's channels; without them every channel counts the same
    #[arg(long, value_name = "FILE", requires = "vgg")]
    pub(crate) lpips_heads: Option<String>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) output: EvalOutputArgs,
}

/// Measure samples against real pictures: FID, sFID, KID, precision, recall, Inception Score.
///
/// Samples come from a folder or are drawn from a model: of a class-conditional one its classes in turn, of a text-conditional one the
/// captions of --real in turn. The numbers are torch-fidelity's if the network is: Inception v3 of 2015-12-05, as
/// pt_inception-2015-12-05-6726825d.pth. Without it, --vgg gives the same statistics of VGG16's features under names of their own, such as
/// VGG-FD, which can be compared among themselves only.
#[derive(Debug, Args)]
pub(crate) struct EvalSamplesArgs {
    /// Folder of real pictures, or their statistics: an .npz with `mu` and `sigma`, or what --save-stats wrote
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) real: PathBuf,
    #[command(flatten)]
    pub(crate) fake: FakeArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Also write the statistics of the real pictures, for another --real
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) save_stats: Option<PathBuf>,
    /// Subsets that KID is averaged over
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) kid_subsets: u64,
    /// Pictures in a subset; fewer if there are fewer
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    pub(crate) kid_subset_size: u64,
    #[command(flatten)]
    pub(crate) output: EvalOutputArgs,
}

/// Look for copies of training pictures: the nearest one of each sample, and how far it is.
///
/// With --held-out, real pictures that the model wasn't trained on, the distances are set against theirs: a ratio of the medians near 1 is
/// that of new pictures, near 0 that of copies. Distances are between VGG16's features with --vgg, else root mean squares of pixels.
#[derive(Debug, Args)]
pub(crate) struct EvalNearestArgs {
    /// Folder of the training pictures
    #[arg(long, value_name = "DIR")]
    pub(crate) train: PathBuf,
    /// Folder of real pictures that weren't trained on
    #[arg(long, value_name = "DIR")]
    pub(crate) held_out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fake: FakeArgs,
    #[command(flatten)]
    pub(crate) vgg: VggArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// A sample counts as a copy if it is nearer to a training picture than R times the median of the held-out pictures
    #[arg(
        long,
        value_name = "R",
        default_value_t = 0.25,
        allow_negative_numbers = true
    )]
    pub(crate) copy_ratio: f64,
    /// Sheet to draw: samples beside their nearest training pictures, the nearest pairs first
    #[arg(long, value_name = "FILE.png")]
    pub(crate) out: Option<PathBuf>,
    /// Pairs on the sheet
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) pairs: u64,
    #[command(flatten)]
    pub(crate) output: EvalOutputArgs,
}

/// Where samples come from.
#[derive(Debug, Args)]
pub(crate) struct FakeArgs {
    /// Folder of samples
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "model",
        conflicts_with = "model"
    )]
    pub(crate) fake: Option<PathBuf>,
    /// Model to draw samples from: model or run directory, CompVis checkpoint, or hub id
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Configuration of a CompVis checkpoint [default: a .yaml beside it, or guessed from the shapes of its tensors]
    #[arg(long, value_name = "FILE.yaml", conflicts_with = "fake")]
    pub(crate) yaml: Option<PathBuf>,
    /// Samples to draw from --model, or to take from the folder [default: 1000, or all of the folder]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    pub(crate) count: Option<u64>,
    /// Only this class, counted from 0, of a class-conditional model
    #[arg(long, value_name = "N", conflicts_with = "fake")]
    pub(crate) class: Option<usize>,
    #[arg(long, value_name = "NAME", conflicts_with = "fake", value_parser = sampler, help = sampler_help())]
    pub(crate) sampler: Option<SamplerKind>,
    /// Denoising steps
    #[arg(long, default_value_t = 50, conflicts_with = "fake", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Randomness of ddim: 0 is none, 1 as much as ddpm
    #[arg(
        long,
        default_value_t = 0.0,
        conflicts_with = "fake",
        allow_negative_numbers = true
    )]
    pub(crate) eta: f64,
    /// Strength of classifier-free guidance; 1 is none
    #[arg(
        long,
        default_value_t = 1.0,
        conflicts_with = "fake",
        allow_negative_numbers = true
    )]
    pub(crate) guidance: f64,
    /// Key of the noise
    #[arg(
        long,
        default_value_t = 0,
        conflicts_with = "fake",
        allow_negative_numbers = true
    )]
    pub(crate) seed: u64,
    /// Folder to write the samples to, as PNG files
    #[arg(long, value_name = "DIR", conflicts_with = "fake")]
    pub(crate) save_samples: Option<PathBuf>,
    /// Side in pixels that the middle of each picture of a folder is brought to [default: none, or with --model that of its training]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    pub(crate) resolution: Option<u64>,
}

/// The network that makes features of pictures.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Inception v3 of 2015-12-05: pytorch-fid's or torch-fidelity's .pth file, the same as .safetensors, or a hub id
    #[arg(long, value_name = "FILE")]
    pub(crate) inception: Option<String>,
    /// How pictures become Inception's input
    #[arg(
        long,
        value_enum,
        default_value = "torch-fidelity",
        requires = "inception"
    )]
    pub(crate) convention: ConventionName,
    #[command(flatten)]
    pub(crate) vgg: VggArgs,
}

/// VGG16 as the network of features.
#[derive(Debug, Args)]
pub(crate) struct VggArgs {
    /// VGG16's weights: a .safetensors or .pth file with torchvision's key names, or a hub id
    #[arg(long, value_name = "FILE")]
    pub(crate) vgg: Option<String>,
    /// Side in pixels that pictures are brought to for VGG16's features; smaller is quicker
    #[arg(long, value_name = "N", default_value_t = 224, requires = "vgg", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(32..=1024))]
    pub(crate) vgg_size: u64,
}

/// Whose conventions a score follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConventionName {
    /// TensorFlow 1's resizing, that of the first published scores
    TorchFidelity,
    /// PyTorch's resizing: for statistics that pytorch-fid made
    PytorchFid,
}

/// Where features are kept.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Folder to keep features of real pictures in, under a key of their content [default: eval in $LDM_CACHE, or in ldm's folder of the user's cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Keep none, and use none that are kept
    #[arg(long, conflicts_with = "cache")]
    pub(crate) no_cache: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalOutputArgs {
    /// Pictures that go through a network together
    #[arg(long, value_name = "N", default_value_t = 16, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) batch: u64,
    /// Also write the numbers as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}
