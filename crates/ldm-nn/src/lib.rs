//! Layers that two or more of ldm's models share, under diffusers' field names, and the hot operators beneath them.
//!
//! Parameters live in burn's own modules; this crate decides how they are applied. [`ops`] holds the operators that
//! have a hand-written CPU kernel; [`watch`] traces numbers that are not finite to a layer.

pub mod ops;
pub mod watch;
pub mod weights;

mod activations;
mod attention;
mod embedding;
mod freed_memory;
mod layer_norm;
mod resample;
mod resnet;

pub use activations::{Activations, BlockInputs, MapInputs};
pub use attention::{Attention, AttentionConfig};
pub use embedding::{TimestepEmbedding, timestep_embedding};
pub use freed_memory::keep_freed_memory;
pub use layer_norm::LayerNorm;
pub use resample::{
    Downsample2d, DownsamplePadding, Upsample2d, downsample_mean_2x, upsample_nearest,
};
pub use resnet::{ResnetBlock2d, ResnetBlock2dConfig};
