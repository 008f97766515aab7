use burn::{
    nn::{Embedding, EmbeddingConfig},
    prelude::*,
};
use ldm_nn::{TimestepEmbedding, watch};

use super::config::{ClassEmbedType, UNetConfig};

/// What is added to the timestep's embedding for a class.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a network has one")]
pub enum ClassEmbedding {
    /// A learned vector per class.
    Learned(Embedding),
    /// The label is embedded as a timestep is, with layers of its own.
    Timestep(TimestepEmbedding),
    /// The vector is given, of this width.
    Identity(usize),
}

impl ClassEmbedding {
    /// `None` for a network without classes.
    pub(super) fn new(config: &UNetConfig, device: &Device) -> Option<Self> {
        let width = config.time_embed_dim();
        match (config.class_embed_type, config.num_class_embeds) {
            (None, None) => None,
            (None, Some(classes)) => Some(Self::Learned(
                EmbeddingConfig::new(classes, width).init(device),
            )),
            (Some(ClassEmbedType::Timestep), _) => Some(Self::Timestep(TimestepEmbedding::new(
                config.block_out_channels[0],
                width,
                device,
            ))),
            (Some(ClassEmbedType::Identity), _) => Some(Self::Identity(width)),
        }
    }

    /// Embeds labels `[N]` to `[N, time_embed_dim]`, given the network's sinusoidal embedding.
    pub(super) fn forward(
        &self,
        labels: Tensor<1, Int>,
        sinusoids: impl Fn(Tensor<1>) -> Tensor<2>,
    ) -> Tensor<2> {
        match self {
            Self::Learned(classes) => {
                let embedded = classes.weight.val().select(0, labels);
                watch::parameter(classes.weight.id, embedded)
            }
            Self::Timestep(embedding) => embedding.forward(sinusoids(labels.float())),
            Self::Identity(width) => labels.float().unsqueeze_dim::<2>(1).repeat_dim(1, *width),
        }
    }
}
