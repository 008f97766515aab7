//! What turns a condition other than a text into the U-Net's input: a class into a token of the context (paper, section
//! 4.3.1), a label map into channels beside the latent (section 4.3.2). Either is trained with the U-Net.

mod class_embedder;
mod spatial_rescaler;

pub use class_embedder::{ClassEmbedder, ClassEmbedderConfig};
pub use spatial_rescaler::{SpatialRescaler, SpatialRescalerConfig};
