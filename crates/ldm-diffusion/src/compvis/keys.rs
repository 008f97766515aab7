use ldm_nn::weights::{KeyPair, Layout};

use crate::unet::{DownBlockType, MidBlockType, ResampleType, UNetClass, UNetConfig, UpBlockType};

/// Every tensor of the U-Net that `config` describes, under diffusers' key and under CompVis' (without
/// `model.diffusion_model.`).
///
/// `new_attention_order` is CompVis' `use_new_attention_order`. The names are those of a checkpoint of
/// [`CompVisUNet::from_config`](super::CompVisUNet::from_config), which says whether there is one.
pub fn compvis_keys(config: &UNetConfig, new_attention_order: bool) -> Vec<KeyPair> {
    let mut keys = Keys {
        config,
        new_attention_order,
        pairs: Vec::new(),
    };
    keys.network();
    keys.pairs
}

/// What follows a ResNet block.
#[derive(Clone, Copy)]
enum Attention {
    Plain,
    Transformer,
}

struct Keys<'a> {
    config: &'a UNetConfig,
    new_attention_order: bool,
    pairs: Vec<KeyPair>,
}

impl Keys<'_> {
    fn network(&mut self) {
        self.layer("time_embedding.linear_1", "time_embed.0");
        self.layer("time_embedding.linear_2", "time_embed.2");
        if self.config.num_class_embeds.is_some() {
            self.weight("class_embedding", "label_emb");
        }
        self.layer("conv_in", "input_blocks.0.0");
        self.down();
        self.mid();
        self.up();
        self.layer("conv_norm_out", "out.0");
        self.layer("conv_out", "out.2");
    }

    fn down(&mut self) {
        let config = self.config;
        let channels = &config.block_out_channels;
        let mut index = 1;
        for (level, kind) in config.down_block_types.iter().enumerate() {
            let (attention, resampling) = match kind {
                DownBlockType::DownBlock2D => (None, ResampleType::Conv),
                DownBlockType::ResnetDownsampleBlock2D => (None, ResampleType::Resnet),
                DownBlockType::AttnDownBlock2D => (Some(Attention::Plain), config.downsample_type),
                DownBlockType::CrossAttnDownBlock2D => {
                    (Some(Attention::Transformer), config.downsample_type)
                }
            };
            for layer in 0..config.layers_per_block {
                let from = if layer == 0 {
                    channels[level.saturating_sub(1)]
                } else {
                    channels[level]
                };
                self.resnet(
                    &format!("down_blocks.{level}.resnets.{layer}"),
                    &format!("input_blocks.{index}.0"),
                    from != channels[level],
                );
                self.attention(
                    attention,
                    level,
                    &format!("down_blocks.{level}.attentions.{layer}"),
                    &format!("input_blocks.{index}.1"),
                );
                index += 1;
            }
            if level + 1 < channels.len() {
                let diffusers = format!("down_blocks.{level}.downsamplers.0");
                let compvis = format!("input_blocks.{index}.0");
                match resampling {
                    ResampleType::Conv => {
                        self.layer(&format!("{diffusers}.conv"), &format!("{compvis}.op"));
                    }
                    ResampleType::Resnet => self.resnet(&diffusers, &compvis, false),
                }
                index += 1;
            }
        }
    }

    fn mid(&mut self) {
        let config = self.config;
        let attention = match config.mid_block() {
            MidBlockType::UNetMidBlock2DCrossAttn => Some(Attention::Transformer),
            MidBlockType::UNetMidBlock2D => (config.add_attention
                && config.class_name == UNetClass::UNet2DModel)
                .then_some(Attention::Plain),
        };
        let level = config.block_out_channels.len() - 1;
        self.resnet("mid_block.resnets.0", "middle_block.0", false);
        self.attention(attention, level, "mid_block.attentions.0", "middle_block.1");
        self.resnet("mid_block.resnets.1", "middle_block.2", false);
    }

    fn up(&mut self) {
        let config = self.config;
        let coarsest = config.block_out_channels.len() - 1;
        let mut index = 0;
        for (block, kind) in config.up_block_types.iter().enumerate() {
            let level = coarsest - block;
            let (attention, resampling) = match kind {
                UpBlockType::UpBlock2D => (None, ResampleType::Conv),
                UpBlockType::ResnetUpsampleBlock2D => (None, ResampleType::Resnet),
                UpBlockType::AttnUpBlock2D => (Some(Attention::Plain), config.upsample_type),
                UpBlockType::CrossAttnUpBlock2D => {
                    (Some(Attention::Transformer), config.upsample_type)
                }
            };
            for layer in 0..=config.layers_per_block {
                // Features and a skip come in, so the channels always change.
                self.resnet(
                    &format!("up_blocks.{block}.resnets.{layer}"),
                    &format!("output_blocks.{index}.0"),
                    true,
                );
                self.attention(
                    attention,
                    level,
                    &format!("up_blocks.{block}.attentions.{layer}"),
                    &format!("output_blocks.{index}.1"),
                );
                index += 1;
            }
            if level > 0 {
                let diffusers = format!("up_blocks.{block}.upsamplers.0");
                let place = if attention.is_some() { 2 } else { 1 };
                let compvis = format!("output_blocks.{}.{place}", index - 1);
                match resampling {
                    ResampleType::Conv => {
                        self.layer(&format!("{diffusers}.conv"), &format!("{compvis}.conv"));
                    }
                    ResampleType::Resnet => self.resnet(&diffusers, &compvis, false),
                }
            }
        }
    }

    fn resnet(&mut self, diffusers: &str, compvis: &str, shortcut: bool) {
        let layers = [
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
        ];
        let shortcut = shortcut.then_some(("conv_shortcut", "skip_connection"));
        for (ours, theirs) in layers.into_iter().chain(shortcut) {
            self.layer(
                &format!("{diffusers}.{ours}"),
                &format!("{compvis}.{theirs}"),
            );
        }
    }

    fn attention(&mut self, kind: Option<Attention>, level: usize, diffusers: &str, compvis: &str) {
        match kind {
            None => {}
            Some(Attention::Plain) => self.plain(level, diffusers, compvis),
            Some(Attention::Transformer) => self.transformer(level, diffusers, compvis),
        }
    }

    fn plain(&mut self, level: usize, diffusers: &str, compvis: &str) {
        self.layer(
            &format!("{diffusers}.group_norm"),
            &format!("{compvis}.norm"),
        );
        let channels = self.config.block_out_channels[level];
        let width = (self.config.attention_head_dim.as_ref()).map_or(channels, |dim| dim.at(level));
        let heads = if self.new_attention_order {
            1
        } else {
            channels / width
        };
        for (part, name) in ["to_q", "to_k", "to_v"].into_iter().enumerate() {
            for tensor in ["weight", "bias"] {
                self.pairs.push(KeyPair {
                    diffusers: format!("{diffusers}.{name}.{tensor}"),
                    compvis: format!("{compvis}.qkv.{tensor}"),
                    layout: Layout::Qkv { part, heads },
                });
            }
        }
        self.pointwise(
            &format!("{diffusers}.to_out.0"),
            &format!("{compvis}.proj_out"),
            1,
        );
    }

    fn transformer(&mut self, level: usize, diffusers: &str, compvis: &str) {
        self.layer(&format!("{diffusers}.norm"), &format!("{compvis}.norm"));
        for projection in ["proj_in", "proj_out"] {
            let (diffusers, compvis) = (
                format!("{diffusers}.{projection}"),
                format!("{compvis}.{projection}"),
            );
            if self.config.use_linear_projection {
                self.pointwise(&diffusers, &compvis, 2);
            } else {
                self.layer(&diffusers, &compvis);
            }
        }
        for layer in 0..self.config.transformer_layers_per_block.at(level) {
            let block = format!("transformer_blocks.{layer}");
            let mut same = |name: &str| {
                let name = format!("{block}.{name}");
                let (ours, theirs) = (format!("{diffusers}.{name}"), format!("{compvis}.{name}"));
                self.pairs.push(KeyPair::same(ours, theirs));
            };
            for attention in ["attn1", "attn2"] {
                for tensor in [
                    "to_q.weight",
                    "to_k.weight",
                    "to_v.weight",
                    "to_out.0.weight",
                    "to_out.0.bias",
                ] {
                    same(&format!("{attention}.{tensor}"));
                }
            }
            for layer in ["ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"] {
                same(&format!("{layer}.weight"));
                same(&format!("{layer}.bias"));
            }
        }
    }

    /// Weight and bias that are the same in both.
    fn layer(&mut self, diffusers: &str, compvis: &str) {
        self.weight(diffusers, compvis);
        self.bias(diffusers, compvis);
    }

    /// A linear layer that is a convolution with a kernel of 1 in CompVis' code.
    fn pointwise(&mut self, diffusers: &str, compvis: &str, axes: usize) {
        self.pairs.push(KeyPair {
            diffusers: format!("{diffusers}.weight"),
            compvis: format!("{compvis}.weight"),
            layout: Layout::Pointwise { axes },
        });
        self.bias(diffusers, compvis);
    }

    fn weight(&mut self, diffusers: &str, compvis: &str) {
        let (diffusers, compvis) = (format!("{diffusers}.weight"), format!("{compvis}.weight"));
        self.pairs.push(KeyPair::same(diffusers, compvis));
    }

    fn bias(&mut self, diffusers: &str, compvis: &str) {
        let (diffusers, compvis) = (format!("{diffusers}.bias"), format!("{compvis}.bias"));
        self.pairs.push(KeyPair::same(diffusers, compvis));
    }
}
