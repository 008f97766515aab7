use burn::prelude::*;
use ldm_nn::{Activations, ResnetBlock2d, ResnetBlock2dConfig};

use super::{
    attention::{AttentionKind, SpatialAttention},
    config::{
        DownBlockType, MidBlockType, ResampleType, TimeScaleShift, UNetClass, UNetConfig,
        UpBlockType,
    },
    init::zeroed_conv,
    resample::{Downsampler, Upsampler},
};

/// One level on the way down.
#[derive(Module, Debug)]
pub struct DownBlock {
    /// ResNet blocks.
    pub resnets: Vec<ResnetBlock2d>,
    /// One after each ResNet block, or none at all.
    pub attentions: Vec<SpatialAttention>,
    /// One, except at the coarsest level.
    pub downsamplers: Vec<Downsampler>,
    /// Whether the blocks' activations are kept for the backward pass.
    #[module(skip)]
    pub activations: Activations,
}

impl DownBlock {
    pub(super) fn new(config: &UNetConfig, level: usize, device: &Device) -> Self {
        let channels = &config.block_out_channels;
        let (first_in, out) = (channels[level.saturating_sub(1)], channels[level]);
        let (kind, resampling) = match config.down_block_types[level] {
            DownBlockType::DownBlock2D => (None, ResampleType::Conv),
            DownBlockType::ResnetDownsampleBlock2D => (None, ResampleType::Resnet),
            DownBlockType::AttnDownBlock2D => (Some(AttentionKind::Plain), config.downsample_type),
            DownBlockType::CrossAttnDownBlock2D => {
                (Some(AttentionKind::Transformer), config.downsample_type)
            }
        };
        let layers = config.layers_per_block;
        Self {
            resnets: (0..layers)
                .map(|i| resnet(config, if i == 0 { first_in } else { out }, out, device))
                .collect(),
            attentions: attentions(kind, config, level, layers, device),
            downsamplers: (level + 1 < channels.len())
                .then(|| Downsampler::new(resampling, config, out, device))
                .into_iter()
                .collect(),
            activations: Activations::default(),
        }
    }

    /// Pushes the output of every layer and of the down-sampling onto `skips`, and returns the last, `[N, C', H', W']`.
    ///
    /// # Panics
    /// If a transformer gets no context.
    pub fn forward(
        &self,
        mut x: Tensor<4>,
        temb: &Tensor<2>,
        context: Option<&Tensor<3>>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = layer(
                self.activations,
                resnet,
                self.attentions.get(i),
                x,
                temb,
                context,
            );
            skips.push(x.clone());
        }
        for downsampler in &self.downsamplers {
            x = downsampler.forward(self.activations, x, temb);
            skips.push(x.clone());
        }
        x
    }
}

/// The middle: ResNet block, attention, ResNet block.
#[derive(Module, Debug)]
pub struct MidBlock {
    /// Two ResNet blocks, but one alone in a `UNet2DConditionModel` with a `UNetMidBlock2D`.
    pub resnets: Vec<ResnetBlock2d>,
    /// The attention between them, if there is one.
    pub attentions: Vec<SpatialAttention>,
    /// Whether the blocks' activations are kept for the backward pass.
    #[module(skip)]
    pub activations: Activations,
}

impl MidBlock {
    pub(super) fn new(config: &UNetConfig, device: &Device) -> Self {
        let level = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[level];
        let (resnets, kind) = match (config.mid_block(), config.class_name) {
            (MidBlockType::UNetMidBlock2D, UNetClass::UNet2DConditionModel) => (1, None),
            (MidBlockType::UNetMidBlock2D, UNetClass::UNet2DModel) => {
                (2, config.add_attention.then_some(AttentionKind::PlainMid))
            }
            (MidBlockType::UNetMidBlock2DCrossAttn, _) => (2, Some(AttentionKind::Transformer)),
        };
        Self {
            resnets: (0..resnets)
                .map(|_| resnet(config, channels, channels, device))
                .collect(),
            attentions: attentions(kind, config, level, 1, device),
            activations: Activations::default(),
        }
    }

    /// `[N, C, H, W]` to `[N, C, H, W]`.
    ///
    /// # Panics
    /// If a transformer gets no context.
    pub fn forward(
        &self,
        mut x: Tensor<4>,
        temb: &Tensor<2>,
        context: Option<&Tensor<3>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = layer(
                self.activations,
                resnet,
                self.attentions.get(i),
                x,
                temb,
                context,
            );
        }
        x
    }
}

/// One level on the way up.
#[derive(Module, Debug)]
pub struct UpBlock {
    /// ResNet blocks, each over the features so far and a skip.
    pub resnets: Vec<ResnetBlock2d>,
    /// One after each ResNet block, or none at all.
    pub attentions: Vec<SpatialAttention>,
    /// One, except at the finest level.
    pub upsamplers: Vec<Upsampler>,
    /// Whether the blocks' activations are kept for the backward pass.
    #[module(skip)]
    pub activations: Activations,
}

impl UpBlock {
    /// The block at `level`, counted from the finest.
    pub(super) fn new(config: &UNetConfig, level: usize, device: &Device) -> Self {
        let channels = &config.block_out_channels;
        let coarsest = channels.len() - 1;
        let out = channels[level];
        let from_below = channels[(level + 1).min(coarsest)];
        // The last skip is the down-sampled output of the level above.
        let last_skip = channels[level.saturating_sub(1)];
        let (kind, resampling) = match config.up_block_types[coarsest - level] {
            UpBlockType::UpBlock2D => (None, ResampleType::Conv),
            UpBlockType::ResnetUpsampleBlock2D => (None, ResampleType::Resnet),
            UpBlockType::AttnUpBlock2D => (Some(AttentionKind::PlainUp), config.upsample_type),
            UpBlockType::CrossAttnUpBlock2D => {
                (Some(AttentionKind::Transformer), config.upsample_type)
            }
        };
        let layers = config.layers_per_block + 1;
        Self {
            resnets: (0..layers)
                .map(|i| {
                    let features = if i == 0 { from_below } else { out };
                    let skip = if i + 1 == layers { last_skip } else { out };
                    resnet(config, features + skip, out, device)
                })
                .collect(),
            attentions: attentions(kind, config, level, layers, device),
            upsamplers: (level > 0)
                .then(|| Upsampler::new(resampling, config, out, device))
                .into_iter()
                .collect(),
            activations: Activations::default(),
        }
    }

    /// Takes a skip per layer off `skips` and up-samples to the size of the next one.
    ///
    /// # Panics
    /// If a transformer gets no context, or there are too few skips.
    pub fn forward(
        &self,
        mut x: Tensor<4>,
        temb: &Tensor<2>,
        context: Option<&Tensor<3>>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let skip = skips.pop().expect("the way down left a skip per layer");
            let input = Tensor::cat(vec![x, skip], 1);
            x = layer(
                self.activations,
                resnet,
                self.attentions.get(i),
                input,
                temb,
                context,
            );
        }
        if let (Some(upsampler), Some(skip)) = (self.upsamplers.first(), skips.last()) {
            let [_, _, height, width] = skip.dims();
            x = upsampler.forward(self.activations, x, temb, [height, width]);
        }
        x
    }
}

/// A ResNet block and the attention that follows it, if one does.
fn layer(
    activations: Activations,
    resnet: &ResnetBlock2d,
    attention: Option<&SpatialAttention>,
    x: Tensor<4>,
    temb: &Tensor<2>,
    context: Option<&Tensor<3>>,
) -> Tensor<4> {
    let x = activations.run(resnet, (x, Some(temb.clone())), |resnet, (x, temb)| {
        resnet.forward(x, temb)
    });
    match attention {
        Some(attention) => activations.run(
            attention,
            (x, context.cloned()),
            |attention, (x, context)| attention.forward(x, context.as_ref()),
        ),
        None => x,
    }
}

/// A ResNet block whose residual branch starts at 0.
pub(super) fn resnet(
    config: &UNetConfig,
    in_channels: usize,
    out_channels: usize,
    device: &Device,
) -> ResnetBlock2d {
    let mut resnet = ResnetBlock2dConfig {
        in_channels,
        out_channels,
        temb_channels: Some(config.time_embed_dim()),
        scale_shift: config.resnet_time_scale_shift == TimeScaleShift::ScaleShift,
        norm_num_groups: config.norm_num_groups,
        norm_eps: config.norm_eps,
    }
    .init(device);
    resnet.conv2 = zeroed_conv(resnet.conv2, device);
    resnet
}

fn attentions(
    kind: Option<AttentionKind>,
    config: &UNetConfig,
    level: usize,
    layers: usize,
    device: &Device,
) -> Vec<SpatialAttention> {
    kind.map(|kind| {
        (0..layers)
            .map(|_| SpatialAttention::new(kind, config, level, device))
            .collect()
    })
    .unwrap_or_default()
}
